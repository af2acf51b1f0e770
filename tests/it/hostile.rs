//! While drivers do their worst, in eight calls at once: does it end, is it told, does the daemon stay small, and do others go on?
//!
//! What a call may do wrong by itself is asked in `drivers.rs`, and of the engine alone in its own tests. How much slower others get is a
//! figure of `make bench`; here they must go on at all.

#[path = "../../host/driver/tests/engine/backend.rs"]
#[expect(dead_code, reason = "the engine's tests have more bad ones")]
mod backend;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backend::Backend;

use crate::drivers::{component, hostile};
use crate::limits::on_a_small_disk;
use crate::support::wasmvol::Wasmvol;

/// Calls of a driver at once.
const AT_ONCE: usize = 8;
/// How long a call may take that asks nobody: its deadline and that of its undo make 4 s, and this machine may be busy.
const CALL: Duration = Duration::from_secs(15);
/// What the daemon may have grown by once it is over, in KiB.
const GROWTH: u64 = 64 << 10;
/// A verb of somebody else's on a busy machine. All of a driver's deadlines are longer.
const GOES_ON: Duration = Duration::from_millis(1500);

/// Whose deeds, which, and what the error says. Some are no error at all.
const DEEDS: &[(&str, &str, &str)] = &[
    ("hostile", "loop", "driver did not answer within 2000 ms"),
    ("hostile", "sleep", "driver did not answer within 2000 ms"),
    ("hostile", "recurse", "limit of 512 KiB of stack"),
    ("hostile", "grow", "limit of 64 MiB of memory"),
    ("hostile", "hoard-resources", "limit of 128 host resources"),
    ("hostile", "panic", "driver crashed: out of cheese"),
    ("hostile", "exit", "driver exited with status 1"),
    ("hostile", "giant-error", "limit of 1 MiB in one answer"),
    ("hostile", "giant-state", "limit of 1 MiB in one answer"),
    ("hostile", "log-flood", ""),
    ("hostile", "stderr-flood", ""),
    ("hostile", "endless-line", ""),
    ("rogue", "store-keys", "the store has at most 1024 keys and 1024 KiB"),
    ("rogue", "store-bytes", "the store has at most 1024 keys and 1024 KiB"),
    ("rogue", "store-full", ""),
    ("rogue", "store-reads", "limit of 2 s of computing"),
    ("rogue", "store-lists", "limit of 2 s of computing"),
    ("rogue", "reveal-probe", "may not be revealed to driver `rogue`"),
    ("rogue", "reveal-flood", "this call has asked for 16 secrets already"),
    ("rogue", "hoard-fields", "limit of 128 host resources"),
    ("rogue", "hoard-headers", "total size of fields exceeds limit"),
    ("rogue", "hoard-methods", "the method is refused"),
    ("rogue", "hoard-authorities", "the authority is refused"),
    ("rogue", "hoard-bodies", "limit of 128 host resources"),
    ("rogue", "hoard-always", "limit of 2 s of computing"),
    ("rogue", "populate-listings", "limit of 128 host resources"),
    ("rogue", "populate-open", "limit of 128 host resources"),
    ("rogue", "populate-executables", "at most 100000 are allowed"),
    ("rogue", "populate-giant", "limit of 16 MiB in one answer"),
    ("rogue", "populate-out", ""),
];

/// Loads both drivers; the second may ask these backends.
fn with_drivers(wasmvol: &Wasmvol, backends: &[&Backend]) {
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    let grants: String =
        backends.iter().map(|backend| format!(" --grant http={}", backend.origin())).collect();
    let rogue = component("guests/rogue.wasm");
    wasmvol.cli(&format!("driver load {}{grants}", rogue.display())).ok();
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// Of each call, and how long it took.
    calls: Vec<(Result<(), String>, Duration)>,
    /// What somebody else's verbs took meanwhile, in order.
    others: Vec<Duration>,
}

/// Has a driver do something in calls at once, while somebody makes, mounts, unmounts and removes a volume of another's.
fn meanwhile(wasmvol: &Wasmvol, driver: &str, act: &str, with: &str) -> Outcome {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| go_on(wasmvol, &over));
        let call = |number: usize| {
            let name = format!("deed-{number}");
            let options = [("driver", driver), ("do", act), ("with", with)];
            let options = if driver == "rogue" { &options[..] } else { &options[..2] };
            let begin = Instant::now();
            let result = wasmvol.plugin().create(&name, options);
            (result, begin.elapsed())
        };
        let calls: Vec<_> = (0..AT_ONCE).map(|number| scope.spawn(move || call(number))).collect();
        let calls = calls.into_iter().map(|call| call.join().unwrap()).collect();
        over.store(true, Ordering::SeqCst);
        Outcome { calls, others: others.join().unwrap() }
    })
}

/// Somebody else, until it is over, and for one round at least.
fn go_on(wasmvol: &Wasmvol, over: &AtomicBool) -> Vec<Duration> {
    let plugin = wasmvol.plugin();
    let mut times = Vec::new();
    loop {
        let mut timed = |verb: &dyn Fn()| {
            let begin = Instant::now();
            verb();
            times.push(begin.elapsed());
        };
        timed(&|| plugin.create("other", &[]).unwrap());
        timed(&|| drop(plugin.mount("other", "id").unwrap()));
        timed(&|| plugin.unmount("other", "id").unwrap());
        timed(&|| plugin.remove("other").unwrap());
        if over.load(Ordering::SeqCst) {
            times.sort_unstable();
            return times;
        }
    }
}

/// Removes what a deed has left, whatever its driver says of that.
fn clear(wasmvol: &Wasmvol) {
    for name in wasmvol.plugin().list() {
        wasmvol.cli(&format!("volume rm --force {name}")).ok();
    }
    for number in 0..AT_ONCE {
        // Half made ones are in no list.
        wasmvol.cli(&format!("volume rm --force deed-{number}"));
    }
}

/// What the daemon has of memory, in KiB.
fn resident(wasmvol: &Wasmvol) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", wasmvol.daemon())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Checks that an error names the driver and the reason, in one line that a terminal can show.
#[track_caller]
fn check_told(error: &str, driver: &str, reason: &str) {
    assert!(error.contains(&format!("driver `{driver}`: ")) && error.contains(reason), "{error}");
    assert!(error.chars().all(|c| !c.is_control()) && error.len() < 4096, "{error}");
}

/// Checks that somebody else went on meanwhile: one verb in a hundred may have met something else on this machine.
#[track_caller]
fn check_others(others: &[Duration], what: &str) {
    let p99 = others[(others.len() * 99 / 100).min(others.len() - 1)];
    assert!(p99 < GOES_ON, "while {what}: {p99:?} of {} verbs", others.len());
}

#[test]
fn whatever_eight_calls_of_a_driver_do_it_ends_and_others_go_on() {
    let wasmvol = Wasmvol::start();
    let backend = Backend::start(backend::good);
    with_drivers(&wasmvol, &[&backend]);
    go_on(&wasmvol, &AtomicBool::new(true));
    let before = resident(&wasmvol);
    for (driver, act, reason) in DEEDS {
        let Outcome { calls, others } = meanwhile(&wasmvol, driver, act, "key");
        for (result, took) in calls {
            match result {
                Ok(()) => assert_eq!(*reason, "", "{act} was no error"),
                Err(error) => {
                    assert_ne!(*reason, "", "{act}: {error}");
                    check_told(&error, driver, reason);
                }
            }
            assert!(took < CALL, "{act} took {took:?}");
        }
        check_others(&others, act);
        let grown = resident(&wasmvol).saturating_sub(before);
        assert!(grown < GROWTH, "{act}: the daemon has {} MiB more", grown >> 10);
        clear(&wasmvol);
    }
    let log = wasmvol.log();
    assert!(log.len() < 4 << 20, "the log has {} bytes", log.len());
}

#[test]
fn backends_that_never_come_to_an_end_delay_nobody_but_their_own_volumes() {
    let wasmvol = Wasmvol::start();
    let manners = [
        backend::silent as fn(_) -> _,
        backend::trickling_head,
        backend::trickling_body,
        backend::endless_promises,
        backend::deaf,
    ];
    let backends = manners.map(Backend::start);
    with_drivers(&wasmvol, &backends.each_ref());
    let plugin = wasmvol.plugin();
    let over = AtomicBool::new(false);
    let before = resident(&wasmvol);
    let others = thread::scope(|scope| {
        let others = scope.spawn(|| go_on(&wasmvol, &over));
        let asked: Vec<_> = backends
            .iter()
            .enumerate()
            .map(|(number, backend)| {
                let (name, plugin) = (format!("asks-{number}"), &plugin);
                scope.spawn(move || {
                    // The last one has more to read than fits on the way.
                    let (act, url) = match number {
                        4 => ("ask-post", format!("15000000@{}", backend.url("/"))),
                        _ => ("ask-get", backend.url("/")),
                    };
                    plugin.create(&name, &[("driver", "rogue"), ("do", act), ("with", &url)])
                })
            })
            .collect();
        for asked in asked {
            let error = asked.join().unwrap().unwrap_err();
            check_told(&error, "rogue", "driver did not answer within 30000 ms");
        }
        over.store(true, Ordering::SeqCst);
        others.join().unwrap()
    });
    check_others(&others, "backends do not answer");
    let grown = resident(&wasmvol).saturating_sub(before);
    assert!(grown < GROWTH, "the daemon has {} MiB more", grown >> 10);
    assert!(plugin.list().is_empty());
}

#[test]
fn a_driver_that_fills_the_disk_leaves_some_of_it_to_others() {
    for (act, pause) in [("populate-disk", "500"), ("populate-files", "200")] {
        let wasmvol = on_a_small_disk("mode=755,size=256m,nr_inodes=8000");
        let backend = Backend::start(backend::good);
        with_drivers(&wasmvol, &[&backend]);
        let Outcome { calls, others } = meanwhile(&wasmvol, "rogue", act, pause);
        for (result, _) in calls {
            check_told(&result.expect_err(act), "rogue", "limit of all but ");
        }
        check_others(&others, act);
        wasmvol.wait_reaped();
        assert!(wasmvol.entries("volumes").is_empty(), "{act}: something is left");
    }
}

#[test]
fn steps_without_end_are_few_and_come_to_an_end() {
    let wasmvol = Wasmvol::start();
    let backend = Backend::start(backend::good);
    with_drivers(&wasmvol, &[&backend]);
    let plugin = wasmvol.plugin();
    plugin.create("endless", &[("driver", "rogue"), ("do", "attach-again")]).unwrap();
    let commits = || {
        let status = wasmvol.json("status");
        status["commits"]["catalog"]["transactions"].as_u64().unwrap()
    };
    let before = commits();
    let error = plugin.mount("endless", "id").unwrap_err();
    check_told(&error, "rogue", "driver did not answer within 40000 ms");
    // Each step is durable: five a second, whatever the driver asks for.
    let steps = commits() - before;
    assert!(steps < 40 * 5 + 50, "{steps} commits");
    assert!(!wasmvol.is_mounted("endless"));
}

/// A component whose one module has so many functions that its compiler needs more memory than it may have.
fn bomb() -> Vec<u8> {
    const FUNCTIONS: usize = 1_000_000;
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let section = |id: u8, content: Vec<u8>| [vec![id], number(content.len()), content].concat();
    // Each of them takes a number and answers it.
    let types = section(1, b"\x01\x60\x01\x7f\x01\x7f".to_vec());
    let functions = section(3, [number(FUNCTIONS), vec![0; FUNCTIONS]].concat());
    let bodies = b"\x04\x00\x20\x00\x0b".repeat(FUNCTIONS);
    let code = section(10, [number(FUNCTIONS), bodies].concat());
    let module = [b"\0asm\x01\0\0\0".to_vec(), types, functions, code].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, module)].concat()
}

#[test]
fn a_component_that_its_compiler_chokes_on_is_refused_and_others_go_on() {
    let wasmvol = Wasmvol::start();
    let file = wasmvol.path("bomb.wasm");
    fs::write(&file, bomb()).unwrap();
    let over = AtomicBool::new(false);
    let before = resident(&wasmvol);
    let others = thread::scope(|scope| {
        let others = scope.spawn(|| go_on(&wasmvol, &over));
        let load = format!("driver load {} --name bomb", file.display());
        let error = wasmvol.cli(&load).refused();
        over.store(true, Ordering::SeqCst);
        assert!(error.contains("bomb") && error.contains("compiling was ended: "), "{error}");
        assert!(error.contains("(it may use 2 GiB of memory)"), "{error}");
        others.join().unwrap()
    });
    check_others(&others, "a component is compiled");
    let grown = resident(&wasmvol).saturating_sub(before);
    assert!(grown < GROWTH, "the daemon has {} MiB more", grown >> 10);
}
