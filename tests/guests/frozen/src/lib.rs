//! A driver that uses all of the contract 0.1.0: every import, every ability, every case of every answer.
//!
//! Its component is not built with the tests: the one in `tests/frozen/since_v0.1.0/driver.wasm`, made of this when the contract was
//! frozen, is what every later host must run, and is never replaced. It was made by
//! `cargo build --profile driver --target wasm32-wasip2 -p frozen`.
//!
//! Options say what is answered; what it saw of its imports it tells in its state, as text.

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/since_v0.1.0",
        inline: "
            package test:frozen;
            world whole {
                include wasmvol:driver/driver@0.1.0;
                include wasmvol:driver/with-attachment@0.1.0;
                include wasmvol:driver/with-health@0.1.0;
                include wasmvol:driver/with-migration@0.1.0;
                include wasmvol:driver/with-population@0.1.0;
                include wasmvol:driver/with-resizing@0.1.0;
            }
        ",
        world: "test:frozen/whole",
        generate_all,
    });
    use super::Whole;
    export!(Whole);
}

use bindings::exports::wasmvol::driver::attachment::{self, Again, Progress};
use bindings::exports::wasmvol::driver::health::{self, Condition, Report};
use bindings::exports::wasmvol::driver::migration;
use bindings::exports::wasmvol::driver::population::{self, Populated};
use bindings::exports::wasmvol::driver::resizing::{self, Resized};
use bindings::exports::wasmvol::driver::volumes::{self, Created, Found};
use bindings::wasmvol::driver::types::{
    Compression, Description, Device, Directory, Error, ErrorCode, Filesystem, HostDirectory,
    IdMap, IdRange, Image, MountOption, MountValue, NamedDirectory, OptionSpec, OptionValue, Other,
    Overlay, Owner, Plan, Program, Reclaim, Share, Source, Storage, Subvolume, Tmpfs, Value,
    ValueType, Volume,
};
use bindings::wasmvol::driver::{log, roots, secrets, settings, store};
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};

struct Whole;

const OWNER: Owner = Owner { uid: 1, gid: 2, mode: 0o750 };

impl volumes::Guest for Whole {
    fn describe() -> Description {
        let spec = |key: &str, value_type, default: Option<&str>| OptionSpec {
            key: key.to_owned(),
            value_type,
            required: false,
            default: default.map(str::to_owned),
            help: format!("a {key}"),
        };
        Description {
            name: "frozen".to_owned(),
            version: "0.1.0".to_owned(),
            help: "all of the contract".to_owned(),
            options: vec![
                spec("storage", ValueType::Text, Some("directory")),
                spec("source", ValueType::Text, Some("storage")),
                spec("fail", ValueType::Text, None),
                spec("url", ValueType::Text, None),
                spec("size", ValueType::Size, Some("1m")),
                spec("number", ValueType::Number, Some("-7")),
                spec("flag", ValueType::Boolean, Some("true")),
                spec("time", ValueType::Duration, Some("1500ms")),
                spec("key", ValueType::Secret, None),
                OptionSpec { required: true, ..spec("must", ValueType::Text, None) },
            ],
            grants: vec!["image".to_owned(), "http=https://api.example".to_owned()],
        }
    }

    fn create(id: String, name: String, options: Vec<OptionValue>) -> Result<Created, Error> {
        refuse(&options)?;
        for level in [log::Level::Error, log::Level::Warn, log::Level::Info, log::Level::Debug] {
            log::write(level, &format!("makes {name} at {level:?}"));
        }
        eprintln!("says it to stderr");
        let said = [
            format!("id {id}, name {name}"),
            options.iter().map(shown).collect::<Vec<_>>().join(" "),
            format!("settings {:?} {:?}", settings::get("colour"), settings::all()),
            format!("roots {:?}", roots::granted()),
            kept()?,
            revealed(&options),
            asked(&options),
        ];
        Ok(Created { storage: storage(&options)?, state: said.join("\n").into_bytes() })
    }

    fn remove(volume: Volume) -> Result<Reclaim, Error> {
        refuse(&volume.options)?;
        Ok(if volume.state.is_empty() { Reclaim::Retain } else { Reclaim::Delete })
    }

    fn path(volume: Volume) -> Result<Plan, Error> {
        refuse(&volume.options)?;
        let range = |disk| IdRange { disk, shown: 0, count: 65_536 };
        let source = source(&volume.options)?;
        let is_whole = matches!(source, Source::Tmpfs(_));
        Ok(Plan {
            source,
            read_only: is_whole,
            no_exec: is_whole,
            subpath: is_whole.then(|| "a/b".to_owned()),
            id_map: is_whole.then(|| IdMap { users: vec![range(10)], groups: vec![range(20)] }),
        })
    }

    fn list() -> Result<Vec<Found>, Error> {
        let mut all = Vec::new();
        for root in roots::granted() {
            for roots::Entry { name, id, directory, options } in roots::entries(&root)? {
                let state = format!("{root}/{directory}").into_bytes();
                all.push(Found { name, id: Some(id), options, state, owned: true });
            }
        }
        for name in store::keys("") {
            let state = store::get(&name).unwrap_or_default();
            all.push(Found { name, id: None, options: Vec::new(), state, owned: false });
        }
        Ok(all)
    }
}

impl attachment::Guest for Whole {
    fn attach(volume: Volume) -> Result<Progress, Error> {
        step(volume, b"attached")
    }

    fn detach(volume: Volume) -> Result<Progress, Error> {
        step(volume, b"detached")
    }
}

/// The first time it is not done yet.
fn step(volume: Volume, done: &[u8]) -> Result<Progress, Error> {
    refuse(&volume.options)?;
    store::set("step", done)?;
    if volume.state == b"once" {
        return Ok(Progress::Done(done.to_vec()));
    }
    Ok(Progress::Again(Again { state: b"once".to_vec(), after: 1000 }))
}

impl resizing::Guest for Whole {
    fn resize(volume: Volume, size: u64) -> Result<Resized, Error> {
        refuse(&volume.options)?;
        let directory = Directory { owner: OWNER, limit: Some(size), over: None };
        Ok(Resized { storage: Storage::Directory(directory), state: size.to_string().into_bytes() })
    }
}

impl population::Guest for Whole {
    fn populate(volume: Volume) -> Result<Populated, Error> {
        refuse(&volume.options)?;
        let failed = |error: std::io::Error| fault(ErrorCode::Internal, &error.to_string());
        std::fs::create_dir_all("/volume/bin").map_err(failed)?;
        std::fs::write("/volume/bin/run", "#!/bin/sh\n").map_err(failed)?;
        std::fs::write("/volume/README", "filled\n").map_err(failed)?;
        Ok(Populated { state: b"filled".to_vec(), executables: vec!["bin/run".to_owned()] })
    }
}

impl health::Guest for Whole {
    fn check(volume: Volume) -> Result<Report, Error> {
        refuse(&volume.options)?;
        let (condition, message) = match text(&volume.options, "source") {
            "storage" => (Condition::Healthy, ""),
            "tmpfs" => (Condition::Degraded, "one disk of two is gone"),
            _ => (Condition::Unreachable, "nobody answers"),
        };
        Ok(Report { condition, message: message.to_owned() })
    }
}

impl migration::Guest for Whole {
    fn migrate(volume: Volume, from: String) -> Result<Vec<u8>, Error> {
        refuse(&volume.options)?;
        Ok([from.as_bytes(), b": ", &volume.state].concat())
    }
}

/// Fails with the code that the option `fail` names.
fn refuse(options: &[OptionValue]) -> Result<(), Error> {
    let code = match text(options, "fail") {
        "not-found" => ErrorCode::NotFound,
        "already-exists" => ErrorCode::AlreadyExists,
        "invalid-option" => ErrorCode::InvalidOption,
        "in-use" => ErrorCode::InUse,
        "unavailable" => ErrorCode::Unavailable,
        "exhausted" => ErrorCode::Exhausted,
        "denied" => ErrorCode::Denied,
        "unsupported" => ErrorCode::Unsupported,
        "internal" => ErrorCode::Internal,
        _ => return Ok(()),
    };
    Err(fault(code, "it was told to fail"))
}

fn fault(code: ErrorCode, message: &str) -> Error {
    Error { code, message: message.to_owned() }
}

fn storage(options: &[OptionValue]) -> Result<Storage, Error> {
    Ok(match text(options, "storage") {
        "none" => Storage::None,
        "directory" => Storage::Directory(Directory { owner: OWNER, limit: None, over: None }),
        "layer" => {
            let over = Some("below".to_owned());
            Storage::Directory(Directory { owner: OWNER, limit: Some(1 << 20), over })
        }
        "named-directory" => Storage::NamedDirectory(NamedDirectory {
            root: "/srv".to_owned(),
            directory: Some("chosen".to_owned()),
            owner: OWNER,
            limit: None,
        }),
        "image" => Storage::Image(Image {
            size: 1 << 30,
            thin: true,
            filesystem: Filesystem::Xfs,
            encrypt: Some("vault".to_owned()),
            owner: OWNER,
        }),
        "subvolume" => Storage::Subvolume(Subvolume {
            owner: OWNER,
            limit: Some(1 << 30),
            compress: Some(Compression::Zstd),
            copy_on_write: false,
        }),
        "other" => Storage::Other(other()),
        _ => return Err(fault(ErrorCode::InvalidOption, "no such storage")),
    })
}

fn source(options: &[OptionValue]) -> Result<Source, Error> {
    Ok(match text(options, "source") {
        "storage" => Source::Storage,
        "tmpfs" => Source::Tmpfs(Tmpfs { size: Some(1 << 20), inodes: Some(100), owner: OWNER }),
        "host-directory" => {
            Source::HostDirectory(HostDirectory { path: "/srv/x".to_owned(), make: Some(OWNER) })
        }
        "share" => Source::Share(Share {
            kind: "nfs4".to_owned(),
            server: "nas.example".to_owned(),
            path: "/export".to_owned(),
            options: other().options,
            make: Some(OWNER),
        }),
        "overlay" => Source::Overlay(Overlay {
            lower: vec!["/srv/golden".to_owned()],
            volatile: true,
            reset: true,
        }),
        "device" => Source::Device(Device {
            path: "/dev/sdz".to_owned(),
            filesystem: "ext4".to_owned(),
            options: Vec::new(),
            make: Some(OWNER),
        }),
        "program" => Source::Program(Program {
            name: "sshfs".to_owned(),
            source: "me@there:/srv".to_owned(),
            options: other().options,
        }),
        "served" => Source::Served,
        "other" => Source::Other(other()),
        _ => return Err(fault(ErrorCode::InvalidOption, "no such source")),
    })
}

/// A kind that came later, with a value of each type.
fn other() -> Other {
    let option = |key: &str, value| MountOption { key: key.to_owned(), value };
    Other {
        kind: "of-later".to_owned(),
        options: vec![
            option("present", MountValue::Present),
            option("text", MountValue::Text("hello".to_owned())),
            option("number", MountValue::Number(7)),
            option("secret", MountValue::Secret("key".to_owned())),
        ],
    }
}

/// What its store did.
fn kept() -> Result<String, Error> {
    store::set("one", b"1")?;
    store::set("two", b"2")?;
    store::delete("two")?;
    let refused = store::set("", b"").err().map(|error| format!("{:?}", error.code));
    let (one, two, keys) = (store::get("one"), store::get("two"), store::keys("o"));
    Ok(format!("store {one:?} {two:?} {keys:?} {refused:?}"))
}

fn revealed(options: &[OptionValue]) -> String {
    let key = options.iter().find_map(|option| match &option.value {
        Value::Secret(name) => Some(name),
        _ => None,
    });
    match key.map(|name| secrets::reveal(name)) {
        None => "no secret".to_owned(),
        Some(Ok(bytes)) => format!("secret of {} bytes", bytes.len()),
        Some(Err(error)) => format!("secret {:?}: {}", error.code, error.message),
    }
}

/// What a host answers: its status.
fn asked(options: &[OptionValue]) -> String {
    let url = text(options, "url");
    let Some((authority, path)) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/'))
    else {
        return "nobody is asked".to_owned();
    };
    let request = OutgoingRequest::new(Fields::new());
    let path = format!("/{path}");
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&path)));
    let answer = set.ok().and_then(|()| handle(request, None).ok());
    let Some(answer) = answer else { return "nothing could be asked".to_owned() };
    answer.subscribe().block();
    match answer.get() {
        Some(Ok(Ok(answer))) => format!("answered {}", answer.status()),
        Some(Ok(Err(code))) => format!("{code:?}"),
        _ => "no answer".to_owned(),
    }
}

fn text<'a>(options: &'a [OptionValue], key: &str) -> &'a str {
    let value = options.iter().find(|option| option.key == key).map(|option| &option.value);
    if let Some(Value::Text(text)) = value { text } else { "" }
}

fn shown(option: &OptionValue) -> String {
    let value = match &option.value {
        Value::Text(text) => format!("text {text}"),
        Value::Size(bytes) => format!("size {bytes}"),
        Value::Number(number) => format!("number {number}"),
        Value::Boolean(yes) => format!("boolean {yes}"),
        Value::Duration(ms) => format!("duration {ms}"),
        Value::Secret(name) => format!("secret {name}"),
    };
    format!("{}={value}", option.key)
}
