//! While drivers do their worst, in eight calls at once: does it end, is it told, does the daemon stay small, and do others go on?
//!
//! What a call may do wrong by itself is asked in `drivers.rs`, and of the engine alone in its own tests. How much slower others get is a
//! figure of `make bench`; here they must go on at all.

#[path = "../../host/driver/tests/engine/backend.rs"]
mod backend;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backend::Backend;

use crate::drivers::{component, hostile};
use crate::limits::on_a_small_disk;
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, until};

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
    ("able", "store-keys", "the store has at most 1024 keys and 1024 KiB"),
    ("able", "store-bytes", "the store has at most 1024 keys and 1024 KiB"),
    ("able", "store-full", ""),
    ("able", "store-reads", "limit of 2 s of computing"),
    ("able", "store-lists", "limit of 2 s of computing"),
    ("able", "reveal-probe", "is not granted"),
    ("able", "reveal-flood", "this call has asked for 16 secrets already"),
    ("able", "hoard-fields", "limit of 128 host resources"),
    ("able", "hoard-headers", "total size of fields exceeds limit"),
    ("able", "hoard-methods", "the method is refused"),
    ("able", "hoard-authorities", "the authority is refused"),
    ("able", "hoard-bodies", "limit of 128 host resources"),
    ("able", "hoard-always", "limit of 2 s of computing"),
    ("able", "populate-loop", "driver did not answer within 90000 ms"),
    ("able", "populate-listings", "limit of 128 host resources"),
    ("able", "populate-open", "limit of 128 host resources"),
    ("able", "populate-executables", "at most 100000 are allowed"),
    ("able", "populate-giant", "limit of 16 MiB in one answer"),
    ("able", "populate-out", ""),
];

/// A wasmvol with both drivers, and a backend that the second may ask.
fn with_drivers(wasmvol: &Wasmvol, backend: &Backend) {
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    let able = component("guests/able.wasm");
    let grant = backend.origin();
    wasmvol.cli(&format!("driver load {} --grant http={grant}", able.display())).ok();
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
            let options = if driver == "able" { &options[..] } else { &options[..2] };
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

#[test]
fn explore() {
    let wasmvol = Wasmvol::start();
    let backend = Backend::start(backend::good);
    with_drivers(&wasmvol, &backend);
    let acts = std::env::var("ACTS").unwrap_or_default();
    for (driver, act, _) in DEEDS {
        if !acts.is_empty() && !acts.split(',').any(|a| a == *act) { continue; }
        let no = AtomicBool::new(true);
        let quiet: Vec<_> = { let mut all: Vec<_> = (0..40).flat_map(|_| go_on(&wasmvol, &no)).collect(); all.sort(); all };
        let before = resident(&wasmvol);
        fs::write(format!("/proc/{}/clear_refs", wasmvol.daemon()), "5").unwrap();
        let out = meanwhile(&wasmvol, driver, act, "");
        let at = |t: &[Duration], share: usize| t[(t.len() * share / 100).min(t.len()-1)].as_secs_f64() * 1e3;
        let status = fs::read_to_string(format!("/proc/{}/status", wasmvol.daemon())).unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
        let longest = out.calls.iter().map(|c| c.1).max().unwrap();
        eprintln!("{driver}:{act}: p50 {:.1}->{:.1} p99 {:.1}->{:.1} max {:.1} n={} ratio {:.1}; rss {}->{} MiB peak {peak}; {longest:.1?}; {:?}",
            at(&quiet,50), at(&out.others,50), at(&quiet,99), at(&out.others,99), at(&out.others,100), out.others.len(), at(&out.others,99)/at(&quiet,99), before>>10, resident(&wasmvol)>>10, out.calls[0].0.as_ref().map_err(|e| e.chars().take(160).collect::<String>()));
        clear(&wasmvol);
    }
}
