//! A driver that does everything a driver must not do, one thing at a time: the subject of the engine's tests.
//!
//! What it does is named by the option `do` of a volume, or by the setting `do` for `describe` and `list`, which have no volume.
//! Without one it behaves. It uses the generated bindings directly, because the SDK would not let it lie.

use std::hint::black_box;
use std::time::Duration;

mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/since_v0.1.0", world: "driver" });
    use super::Hostile;
    export!(Hostile);
}

/// Of WASI, what std does not let one abuse. The interfaces are whole, because the linker merges them with std's.
mod wasi {
    wit_bindgen::generate!({
        inline: "
            package test:hostile;
            world greedy {
                import wasi:clocks/monotonic-clock@0.2.0;
                import wasi:random/random@0.2.0;
            }
            package wasi:io@0.2.0 {
                interface poll {
                    resource pollable { ready: func() -> bool; block: func(); }
                    poll: func(in: list<borrow<pollable>>) -> list<u32>;
                }
            }
            package wasi:clocks@0.2.0 {
                interface monotonic-clock {
                    use wasi:io/poll@0.2.0.{pollable};
                    type instant = u64;
                    type duration = u64;
                    now: func() -> instant;
                    resolution: func() -> duration;
                    subscribe-instant: func(when: instant) -> pollable;
                    subscribe-duration: func(when: duration) -> pollable;
                }
            }
            package wasi:random@0.2.0 {
                interface random {
                    get-random-bytes: func(len: u64) -> list<u8>;
                    get-random-u64: func() -> u64;
                }
            }
        ",
        world: "test:hostile/greedy",
        generate_all,
    });
}

use bindings::exports::wasmvol::driver::volumes::{Created, Found, Guest};
use bindings::wasmvol::driver::types::{
    Description, Directory, Error, ErrorCode, Filesystem, Image, OptionSpec, OptionValue, Owner,
    Plan, Reclaim, Source, Storage, Tmpfs, Value, ValueType, Volume,
};
use bindings::wasmvol::driver::{log, roots, settings};

struct Hostile;

impl Guest for Hostile {
    fn describe() -> Description {
        let act = settings::get("do").unwrap_or_default();
        misbehave(&act);
        let spec = |key: &str| OptionSpec {
            key: key.to_owned(),
            value_type: ValueType::Text,
            required: false,
            default: None,
            help: "what to do".to_owned(),
        };
        let mut described = Description {
            name: "hostile".to_owned(),
            version: "0.1.0".to_owned(),
            help: "does what a driver must not".to_owned(),
            options: vec![spec("do")],
            grants: Vec::new(),
        };
        match act.as_str() {
            "bad-name" => described.name = "../hostile".to_owned(),
            "no-version" => described.version.clear(),
            "long-version" => described.version = "1".repeat(100_000),
            "reserved-option" => described.options.push(spec("reclaim")),
            "bad-option" => described.options.push(spec("Do It")),
            "option-twice" => described.options.push(spec("do")),
            "many-options" => {
                described.options = (0..1000).map(|n| spec(&format!("o{n}"))).collect();
            }
            // As many as it may have, with the longest default each.
            "full-options" => {
                let long = OptionSpec { default: Some("x".repeat(4 << 10)), ..spec("o") };
                described
                    .options
                    .extend((1..64).map(|n| OptionSpec { key: format!("o{n}"), ..long.clone() }));
            }
            "required-default" => described.options.push(OptionSpec {
                required: true,
                default: Some("x".to_owned()),
                ..spec("both")
            }),
            "odd-default" => described.options.push(OptionSpec {
                value_type: ValueType::Boolean,
                default: Some("yes".to_owned()),
                ..spec("odd")
            }),
            "default-lines" => described
                .options
                .push(OptionSpec { default: Some("a\nb".to_owned()), ..spec("lines") }),
            "name-a-volume" => described
                .options
                .push(OptionSpec { default: Some("bystander".to_owned()), ..spec("below") }),
            "secret-option" => described
                .options
                .push(OptionSpec { value_type: ValueType::Secret, ..spec("secret") }),
            "many-grants" => described.grants = vec!["dev".to_owned(); 1000],
            "loud-help" => described.help = "\u{1b}[2Jhelp\n\u{202e}".repeat(1000),
            _ => {}
        }
        described
    }

    fn create(id: String, _name: String, options: Vec<OptionValue>) -> Result<Created, Error> {
        let act = act(&options);
        misbehave(&act);
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let directory = |owner| Storage::Directory(Directory { owner, limit: None, over: None });
        let mut created = Created { storage: directory(owner), state: id.into_bytes() };
        match act.as_str() {
            "deny" => return fail(ErrorCode::Denied, "not today".to_owned()),
            "fail" => return fail(ErrorCode::Exhausted, "backend is\nfull \u{1b}[31m".to_owned()),
            "long-error" => return fail(ErrorCode::Internal, "x".repeat(100_000)),
            "giant-error" => return fail(ErrorCode::Internal, "x".repeat(10 << 20)),
            "full-state" => created.state = vec![1; 64 << 10],
            "large-state" => created.state = vec![1; (64 << 10) + 1],
            "giant-state" => created.state = vec![1; 32 << 20],
            "lie-over" => {
                let over = Some("bystander".to_owned());
                created.storage = Storage::Directory(Directory { owner, limit: None, over });
            }
            "bad-mode" => created.storage = directory(Owner { mode: 0o10_755, ..owner }),
            "image" => {
                created.storage = Storage::Image(Image {
                    size: 1 << 30,
                    thin: true,
                    filesystem: Filesystem::Ext4,
                    encrypt: None,
                    owner,
                });
            }
            _ => {}
        }
        Ok(created)
    }

    fn remove(volume: Volume) -> Result<Reclaim, Error> {
        let act = act(&volume.options);
        misbehave(&act);
        match act.as_str() {
            "unknown" => fail(ErrorCode::NotFound, "never heard of it".to_owned()),
            "retain" => Ok(Reclaim::Retain),
            _ => Ok(Reclaim::Delete),
        }
    }

    fn path(volume: Volume) -> Result<Plan, Error> {
        let act = act(&volume.options);
        misbehave(&act);
        let mut plan = Plan {
            source: Source::Storage,
            read_only: false,
            no_exec: false,
            subpath: None,
            id_map: None,
        };
        let owner = Owner { uid: 0, gid: 0, mode: u32::MAX };
        match act.as_str() {
            "parent" => plan.subpath = Some("a/../../b".to_owned()),
            "absolute" => plan.subpath = Some("/etc".to_owned()),
            "empty-subpath" => plan.subpath = Some(String::new()),
            "long-subpath" => plan.subpath = Some("a/".repeat(100_000) + "a"),
            "subpath" => plan.subpath = Some("data/current".to_owned()),
            "bad-mode" => plan.source = Source::Tmpfs(Tmpfs { size: None, inodes: None, owner }),
            "served" => plan.source = Source::Served,
            _ => {}
        }
        Ok(plan)
    }

    fn list() -> Result<Vec<Found>, Error> {
        let act = settings::get("do").unwrap_or_default();
        let found = |name: String| Found {
            name,
            id: None,
            options: Vec::new(),
            state: Vec::new(),
            owned: true,
        };
        let text =
            |key: &str| OptionValue { key: key.to_owned(), value: Value::Text(String::new()) };
        Ok(match act.as_str() {
            "list-many" => (0..10_001).map(|n| found(format!("v{n}"))).collect(),
            "list-full" => (0..10_000).map(|n| found(format!("v{n}"))).collect(),
            "list-giant" => (0..300_000).map(|n| found(format!("v{n}"))).collect(),
            "list-long-name" => vec![found("v".repeat(100_000))],
            "list-bad-id" => vec![Found { id: Some("v".to_owned()), ..found("v".to_owned()) }],
            "list-slow" => {
                std::thread::sleep(Duration::from_millis(7_700));
                Vec::new()
            }
            "list-loop" => loop {
                black_box(());
            },
            "list-roots" => {
                assert!(roots::entries("/etc").is_err(), "a root that was not granted was there");
                let marked = roots::granted().into_iter().flat_map(|root| {
                    let entries = roots::entries(&root).expect("a granted root");
                    entries.into_iter().map(move |roots::Entry { name, id, directory, options }| {
                        let state = format!("{root}/{directory}").into_bytes();
                        Found { name, id: Some(id), options, state, owned: true }
                    })
                });
                marked.collect()
            }
            "list-odd-name" => vec![found("../v".to_owned())],
            "list-option-twice" => {
                vec![Found { options: vec![text("a"), text("a")], ..found("v".to_owned()) }]
            }
            "list-bad-option" => {
                vec![Found { options: vec![text("A B")], ..found("v".to_owned()) }]
            }
            _ => Vec::new(),
        })
    }
}

fn act(options: &[OptionValue]) -> String {
    let value = options.iter().find(|option| option.key == "do").map(|option| &option.value);
    if let Some(Value::Text(act)) = value { act.clone() } else { String::new() }
}

fn fail<T>(code: ErrorCode, message: String) -> Result<T, Error> {
    Err(Error { code, message })
}

/// The acts that need no particular verb.
fn misbehave(act: &str) {
    match act {
        "loop" => loop {
            black_box(());
        },
        // Each copy is one instruction.
        "copy-storm" => {
            let mut bytes = vec![1_u8; 4 << 20];
            loop {
                bytes.copy_within(..2 << 20, 2 << 20);
                black_box(&mut bytes);
            }
        }
        "sleep" => std::thread::sleep(Duration::from_secs(3600)),
        "recurse" => {
            black_box(recurse(black_box(1)));
        }
        "grow" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        "grow-and-carry-on" => {
            let mut hoard: Vec<u8> = Vec::new();
            while hoard.try_reserve(hoard.capacity() + (1 << 20)).is_ok() {}
        }
        "hoard-resources" => {
            let clocks = (0..10_000).map(wasi::wasi::clocks::monotonic_clock::subscribe_duration);
            black_box(clocks.collect::<Vec<_>>());
        }
        "drain-entropy" => {
            black_box(wasi::wasi::random::random::get_random_bytes(1 << 30));
        }
        "log-flood" => (0..2_000).for_each(|n| log::write(log::Level::Info, &format!("line {n}"))),
        "log-huge" => log::write(log::Level::Info, &"x".repeat(10 << 20)),
        "stderr-flood" => (0..2_000).for_each(|n| eprintln!("line {n}")),
        "stdout-flood" => (0..2_000).for_each(|n| println!("line {n}")),
        "speak" => eprintln!("was asked"),
        "escapes" => eprintln!("\u{1b}[2Jcleared\rover"),
        "endless-line" => (0..200).for_each(|_| eprint!("{}", "x".repeat(100))),
        "panic" => panic!("out of cheese"),
        "quiet-abort" => std::process::abort(),
        "exit" => std::process::exit(7),
        "exit-well" => std::process::exit(0),
        "read-files" => {
            let seen = std::fs::read_dir("/").is_ok() || std::fs::read("/etc/passwd").is_ok();
            assert!(!seen, "a file was there");
        }
        "connect" => {
            let local = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
            let error = std::net::TcpStream::connect(local).expect_err("nothing to connect to");
            assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused, "the network is there");
        }
        "look-around" => {
            assert_eq!(std::env::args().count(), 0, "an argument was there");
            assert_eq!(std::env::vars().count(), 0, "a variable was there");
            let read = std::io::Read::read(&mut std::io::stdin(), &mut [0; 1]);
            assert!(matches!(read, Ok(0) | Err(_)), "stdin had something");
        }
        _ => {}
    }
}

#[expect(unconditional_recursion, reason = "its point")]
fn recurse(depth: u64) -> u64 {
    let next = black_box(depth + 1);
    recurse(next) + black_box(next)
}
