//! While drivers do their worst, in eight calls at once: does it end, is it told, does the daemon stay small, and do others go on?
//!
//! What a call may do wrong by itself is asked in `drivers.rs`, and of the engine alone in its own tests. How much slower others get is a
//! figure of `make bench`; here they must go on at all.

#[path = "../../host/driver/tests/engine/backend.rs"]
#[expect(dead_code, reason = "the engine's tests have more bad ones")]
mod backend;

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backend::Backend;

use crate::deeds::{DEEDS, WITH, bomb};
use crate::drivers::{component, hostile};
use crate::limits::on_a_small_disk;
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, until};

/// Calls of a driver at once.
const AT_ONCE: usize = 8;
/// How long a call may take that asks nobody: its deadline and that of its undo make 4 s, and this machine may be busy.
const CALL: Duration = Duration::from_secs(15);
/// What the daemon may grow by meanwhile, in KiB, and a call's own memory, which comes on top where it is used.
const GROWTH: u64 = 64 << 10;
const OWN: u64 = 64 << 10;
/// The deeds that use much of it. It goes with the call.
const LARGE: [&str; 5] =
    ["grow", "giant-error", "giant-state", "populate-giant", "populate-executables"];
/// How often a deed is done until nobody else is held up by it.
const TRIES: usize = 3;
/// How a call ends that has computed for too long.
const LATE: &str = "driver did not answer within 2000 ms";
/// A verb of somebody else's on a busy machine. All of a driver's deadlines are longer.
const GOES_ON: Duration = Duration::from_millis(1500);

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
    go_on_with(wasmvol, "other", &[], over)
}

/// The same with a volume of this name and these options.
fn go_on_with(
    wasmvol: &Wasmvol,
    name: &str,
    options: &[(&str, &str)],
    over: &AtomicBool,
) -> Vec<Duration> {
    let plugin = wasmvol.plugin();
    let mut times = Vec::new();
    loop {
        let mut timed = |verb: &dyn Fn()| {
            let begin = Instant::now();
            verb();
            times.push(begin.elapsed());
        };
        timed(&|| plugin.create(name, options).unwrap());
        timed(&|| drop(plugin.mount(name, "id").unwrap()));
        timed(&|| plugin.unmount(name, "id").unwrap());
        timed(&|| plugin.remove(name).unwrap());
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

/// What the daemon has of memory, in KiB: `VmRSS` now, `VmHWM` at most since its peak was forgotten.
fn memory(wasmvol: &Wasmvol, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", wasmvol.daemon())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Has the kernel forget how much memory the daemon had at most: see proc(5).
fn forget_peak(wasmvol: &Wasmvol) {
    fs::write(format!("/proc/{}/clear_refs", wasmvol.daemon()), "5").unwrap();
}

/// Checks that an error names the driver and the reason, in one line that a terminal can show.
#[track_caller]
fn check_told(error: &str, driver: &str, reason: &str) {
    assert!(error.contains(&format!("driver `{driver}`: ")) && error.contains(reason), "{error}");
    assert!(error.chars().all(|c| !c.is_control()) && error.len() < 4096, "{error}");
}

/// How long somebody else's verbs took: one in a hundred, if there are so many, may have met something else on this machine.
fn p99(others: &[Duration]) -> Duration {
    others[(others.len() * 99 / 100).min(others.len() - 1)]
}

/// Checks that somebody else went on meanwhile.
#[track_caller]
fn check_others(others: &[Duration], what: &str) {
    assert!(p99(others) < GOES_ON, "while {what}: {:?} of {} verbs", p99(others), others.len());
}

/// Has a driver do something in eight calls, and checks what came of it.
fn check_deed(wasmvol: &Wasmvol, driver: &str, act: &str, reason: &str, before: u64) {
    forget_peak(wasmvol);
    let mut outcome = meanwhile(wasmvol, driver, act, WITH);
    // What a busy machine does to others once it does not do each time.
    for _ in 1..TRIES {
        if p99(&outcome.others) < GOES_ON {
            break;
        }
        clear(wasmvol);
        outcome = meanwhile(wasmvol, driver, act, WITH);
    }
    check_others(&outcome.others, act);
    let peak = memory(wasmvol, "VmHWM").saturating_sub(before);
    let most = if LARGE.contains(&act) { GROWTH + AT_ONCE as u64 * OWN } else { GROWTH };
    assert!(peak < most, "{act}: the daemon had {} MiB more", peak >> 10);
    let is_as_said = |result: &Result<(), String>| match result {
        Ok(()) => reason.is_empty(),
        Err(error) => !reason.is_empty() && error.contains(reason),
    };
    for (result, took) in &outcome.calls {
        if !is_as_said(result) {
            // A machine that has much else to do gives it too little: then its deadline comes first.
            check_told(result.as_ref().expect_err(act), driver, LATE);
        } else if let Err(error) = result {
            check_told(error, driver, reason);
        }
        assert!(*took < CALL, "{act} took {took:?}");
    }
    let kept = memory(wasmvol, "VmRSS").saturating_sub(before);
    assert!(kept < GROWTH, "{act}: the daemon keeps {} MiB", kept >> 10);
    clear(wasmvol);
    if !outcome.calls.iter().any(|(result, _)| is_as_said(result)) {
        until(&format!("{act} ends as it should where it is alone"), SOON, || {
            let result = wasmvol.plugin().create("alone", &[("driver", driver), ("do", act)]);
            clear(wasmvol);
            is_as_said(&result).then_some(())
        });
    }
}

#[test]
fn whatever_eight_calls_of_a_driver_do_it_ends_and_others_go_on() {
    let wasmvol = Wasmvol::start();
    let backend = Backend::start(backend::good);
    with_drivers(&wasmvol, &[&backend]);
    go_on(&wasmvol, &AtomicBool::new(true));
    let before = memory(&wasmvol, "VmRSS");
    for (driver, act, reason) in DEEDS {
        check_deed(&wasmvol, driver, act, reason, before);
    }
    // Uncut the floods alone would write twice as much.
    let log = wasmvol.log();
    assert!(log.len() < 768 << 10, "the log has {} bytes", log.len());
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
    let before = memory(&wasmvol, "VmRSS");
    forget_peak(&wasmvol);
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
    let grown = memory(&wasmvol, "VmHWM").saturating_sub(before);
    assert!(grown < GROWTH, "the daemon had {} MiB more", grown >> 10);
    assert!(plugin.list().is_empty());
}

#[test]
fn backends_of_many_drivers_that_hang_delay_nobody_but_their_own_volumes() {
    /// As many as once had all calls of the daemon between them, and two more.
    const HANGING: [&str; 6] = ["hangs-a", "hangs-b", "hangs-c", "hangs-d", "hangs-e", "hangs-f"];
    /// As many as a driver may have at once.
    const CALLS: usize = 16;
    let wasmvol = Wasmvol::start();
    let [silent, good] = [backend::silent as fn(_) -> _, backend::good].map(Backend::start);
    with_drivers(&wasmvol, &[&good]);
    let rogue = component("guests/rogue.wasm");
    for name in HANGING {
        let (rogue, grant) = (rogue.display(), silent.origin());
        wasmvol.cli(&format!("driver load {rogue} --name {name} --grant http={grant}")).ok();
    }
    let (plugin, over) = (wasmvol.plugin(), AtomicBool::new(false));
    let ask = |driver: &str, number: usize| {
        let (name, url) = (format!("{driver}-{number}"), silent.url("/"));
        plugin.create(&name, &[("driver", driver), ("do", "ask-get"), ("with", &url)]).unwrap_err()
    };
    let memory = [("driver", "tmpfs")];
    // One that asks a backend, too, which answers.
    let url = good.url("/");
    let asking = [("driver", "rogue"), ("do", "ask-get"), ("with", &url)];
    let others = thread::scope(|scope| {
        let calls = HANGING.iter().flat_map(|driver| (0..CALLS).map(move |n| (*driver, n)));
        let ask = &ask;
        let asked: Vec<_> = calls.map(|(d, n)| (d, scope.spawn(move || ask(d, n)))).collect();
        let others = [
            scope.spawn(|| go_on(&wasmvol, &over)),
            scope.spawn(|| go_on_with(&wasmvol, "memory", &memory, &over)),
            scope.spawn(|| go_on_with(&wasmvol, "asks", &asking, &over)),
        ];
        for (driver, asked) in asked {
            let error = asked.join().unwrap();
            let reasons = ["did not answer within 30000 ms", "left no room for it within"];
            let reason = reasons.iter().find(|reason| error.contains(**reason));
            check_told(&error, driver, reason.unwrap_or_else(|| panic!("{error}")));
        }
        over.store(true, Ordering::SeqCst);
        others.map(|others| others.join().unwrap())
    });
    for others in others {
        check_others(&others, "backends of many drivers do not answer");
        // Not one has waited until a call of theirs was over.
        let longest = others[others.len() - 1];
        assert!(longest < CALL, "{longest:?} of {} verbs", others.len());
    }
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
fn a_driver_that_fills_an_image_that_grows_leaves_some_of_the_disk_to_others() {
    let wasmvol = on_a_small_disk("mode=755,size=512m");
    let backend = Backend::start(backend::good);
    with_drivers(&wasmvol, &[&backend]);
    wasmvol.cli("driver grant rogue image").ok();
    let Outcome { calls, others } = meanwhile(&wasmvol, "rogue", "populate-thin", "500");
    for (result, _) in calls {
        check_told(&result.unwrap_err(), "rogue", "limit of all but ");
    }
    check_others(&others, "an image is filled");
    wasmvol.wait_reaped();
    assert!(wasmvol.entries("volumes").is_empty(), "something is left");
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

/// Has it compiled while others go on, and answers what the load is refused with.
fn choke(during: impl FnOnce(&Wasmvol) + Send) -> String {
    let wasmvol = Wasmvol::start();
    let file = wasmvol.path("bomb.wasm");
    fs::write(&file, bomb()).unwrap();
    let over = AtomicBool::new(false);
    let before = memory(&wasmvol, "VmRSS");
    forget_peak(&wasmvol);
    let (error, others) = thread::scope(|scope| {
        let others = scope.spawn(|| go_on(&wasmvol, &over));
        scope.spawn(|| during(&wasmvol));
        let load = format!("driver load {} --name bomb", file.display());
        let error = wasmvol.cli(&load).refused();
        over.store(true, Ordering::SeqCst);
        (error, others.join().unwrap())
    });
    check_others(&others, "a component is compiled");
    let grown = memory(&wasmvol, "VmHWM").saturating_sub(before);
    assert!(grown < GROWTH, "the daemon had {} MiB more", grown >> 10);
    assert!(error.contains("bomb") && error.contains("compiling was ended: "), "{error}");
    error
}

#[test]
fn a_component_whose_compiler_needs_too_much_memory_is_refused_and_others_go_on() {
    let error = choke(|_| {});
    assert!(error.contains("(it may use 2 GiB of memory)"), "{error}");
}

/// The process that compiles for a daemon, once that has set its limits.
fn compiler_of(daemon: u32) -> Option<u32> {
    /// 2 GiB.
    const MEMORY: &str = "2147483648";
    let threads = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let children = |thread: io::Result<DirEntry>| {
        fs::read_to_string(thread.unwrap().path().join("children")).ok()
    };
    let children: String = threads.filter_map(children).collect();
    // The daemon sets it after that of its processor time.
    let is_limited = |pid: &u32| limit(*pid, "Max data size").is_some_and(|most| most == MEMORY);
    children.split_whitespace().map(|pid| pid.parse().unwrap()).find(is_limited)
}

/// One of a process's limits.
fn limit(pid: u32, which: &str) -> Option<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(which))?;
    line.split_whitespace().next().map(str::to_owned)
}

#[test]
fn a_component_whose_compiler_computes_too_long_is_refused_and_others_go_on() {
    // Two minutes are given to it: all but a second of them are taken away here, so that this test takes no two minutes.
    let error = choke(|wasmvol| {
        let daemon = wasmvol.daemon();
        let compiler = until("it is compiled", SOON, || compiler_of(daemon));
        assert_eq!(limit(compiler, "Max cpu time").unwrap(), "120");
        let its = fs::metadata(format!("/proc/{compiler}")).unwrap();
        // Whose it is may take from it, also where root is not all-powerful.
        let (uid, gid) = (its.uid(), its.gid());
        let become_it = format!("setpriv --reuid {uid} --regid {gid} --clear-groups");
        wasmvol.shell(&format!("{become_it} prlimit --pid {compiler} --cpu=1:")).ok();
    });
    assert!(error.contains("it took over 120 s of processor time"), "{error}");
}
