//! What a hostile driver does costs one clear error, and nobody else anything.

use std::time::Duration;

use wasmvol_driver::{
    CallError, ErrorCode, Marked, Reclaim, Root, Roots, Scope, Value, types::Options,
};
use wasmvol_plan::{Id, VolumeName};

use crate::stage::{
    ENGINE, compiler, create, engine, guest, hostile, logged, name, resident, volume, well_behaved,
};

/// No shorter than the engine's own deadline.
const LONG: Duration = Duration::MAX;

fn timed_out(error: &CallError, seconds: u64) -> bool {
    *error == CallError::TimedOut(Duration::from_secs(seconds))
}

fn out_of(error: &CallError) -> &str {
    if let CallError::OutOfBounds(what) = error { what } else { panic!("{error:?}") }
}

fn broken(error: &CallError) -> &str {
    if let CallError::Contract(what) = error { what } else { panic!("{error:?}") }
}

#[test]
fn a_loop_in_create_ends_at_the_deadline() {
    let error = create(&well_behaved(), "loop").expect_err("endless");
    assert!(timed_out(&error, 2), "{error:?}");
    assert_eq!(error.to_string(), "driver did not answer within 2000 ms");
}

#[test]
fn a_loop_in_path_ends_at_the_deadline() {
    let error = well_behaved().path(&volume("loop")).expect_err("endless");
    assert!(timed_out(&error, 2), "{error:?}");
}

#[test]
fn a_loop_in_describe_refuses_the_driver() {
    let error = hostile("loop").err().expect("endless");
    assert_eq!(error.to_string(), "`describe` failed: driver did not answer within 2000 ms");
}

#[test]
fn a_sleep_ends_at_the_deadline() {
    let error = well_behaved().path(&volume("sleep")).expect_err("an hour");
    assert!(timed_out(&error, 2), "{error:?}");
}

#[test]
fn a_driver_whose_calls_all_hang_keeps_no_other_driver_waiting() {
    let cache = tempfile::tempdir().expect("cache");
    // One call in four: the hanging driver may have one at a time.
    let engine = engine(cache.path(), compiler(), 4);
    let component = guest("hostile");
    let load = |n: &str| engine.load(&name(n), &component, [].into()).expect("loads");
    let (hanging, other) = (load("hanging"), load("other"));
    std::thread::scope(|scope| {
        let calls = [(); 6].map(|()| scope.spawn(|| hanging.path(&volume("loop"))));
        while calls.iter().any(|call| !call.is_finished()) {
            other.path(&volume("nothing")).expect("the other driver answers");
        }
        for call in calls {
            let error = call.join().expect("thread").expect_err("endless");
            assert!(timed_out(&error, 2), "{error:?}");
        }
    });
    hanging.path(&volume("nothing")).expect("its next call has a fresh instance");
}

#[test]
fn a_call_that_finds_no_room_beside_those_of_others_is_no_fault_of_its_driver() {
    let cache = tempfile::tempdir().expect("cache");
    let engine = engine(cache.path(), compiler(), 4);
    let component = guest("hostile");
    let load = |n: &str| engine.load(&name(n), &component, [].into()).expect("loads");
    let (hanging, other) = (["a", "b", "c", "d"].map(load), load("other"));
    let within = Duration::from_millis(800);
    std::thread::scope(|scope| {
        let calls = hanging.each_ref().map(|d| scope.spawn(|| d.path(&volume("loop"))));
        let error = loop {
            match other.list(Scope::default(), within) {
                // They have not all begun.
                Ok(_) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        let why = "the calls of other drivers left no room for it within 800 ms: try again";
        assert_eq!(error, CallError::Host(why.to_owned()));
        for call in calls {
            let error = call.join().expect("thread").expect_err("endless");
            assert!(timed_out(&error, 2), "{error:?}");
        }
    });
    other.path(&volume("nothing")).expect("there is room again");
}

#[test]
fn deep_recursion_costs_one_call() {
    let error = well_behaved().path(&volume("recurse")).expect_err("too deep");
    assert_eq!(out_of(&error), "512 KiB of stack");
}

#[test]
fn memory_is_limited() {
    let error = well_behaved().path(&volume("grow")).expect_err("too much");
    assert_eq!(error.to_string(), "driver asked for more than its limit of 64 MiB of memory");
}

#[test]
fn a_driver_that_copes_with_its_limit_goes_on() {
    well_behaved().path(&volume("grow-and-carry-on")).expect("it coped");
}

#[test]
fn host_resources_are_limited() {
    let error = well_behaved().path(&volume("hoard-resources")).expect_err("too many");
    assert_eq!(out_of(&error), "128 host resources");
}

#[test]
fn random_bytes_come_in_small_portions() {
    let error = well_behaved().path(&volume("drain-entropy")).expect_err("a gigabyte");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

#[test]
fn a_panic_is_told_with_its_words() {
    let error = well_behaved().path(&volume("panic")).expect_err("panics");
    assert_eq!(error.to_string(), "driver crashed: out of cheese");
}

#[test]
fn a_silent_crash_is_told_as_the_trap_that_it_is() {
    let error = well_behaved().path(&volume("quiet-abort")).expect_err("aborts");
    let CallError::Crashed(why) = error else { panic!("{error:?}") };
    assert!(why.contains("unreachable"), "{why}");
}

#[test]
fn an_exit_is_told_as_such() {
    let driver = well_behaved();
    // WASI 0.2 knows success and failure only.
    assert_eq!(create(&driver, "exit"), Err(CallError::Exited(1)));
    assert_eq!(create(&driver, "exit-well"), Err(CallError::Exited(0)));
}

#[test]
fn what_one_call_did_is_unknown_to_the_next() {
    let driver = well_behaved();
    for act in ["panic", "quiet-abort", "exit", "grow", "recurse"] {
        driver.path(&volume(act)).expect_err(act);
        driver.path(&volume("nothing")).unwrap_or_else(|error| panic!("after {act}: {error}"));
    }
}

#[test]
fn no_file_no_network_and_no_environment_is_there() {
    let driver = well_behaved();
    for act in ["read-files", "connect", "look-around"] {
        driver.path(&volume(act)).unwrap_or_else(|error| panic!("{act}: {error}"));
    }
}

#[test]
fn errors_are_one_line_of_at_most_a_kibibyte() {
    let driver = well_behaved();
    let CallError::Failed { code, message } = create(&driver, "fail").expect_err("fails") else {
        panic!("an error of the driver's own")
    };
    assert_eq!(code, ErrorCode::Exhausted);
    assert_eq!(message, "backend is\\u{a}full \\u{1b}[31m");
    let CallError::Failed { message, .. } = create(&driver, "long-error").expect_err("fails")
    else {
        panic!("an error of the driver's own")
    };
    assert!(message.len() <= 1024, "{} bytes", message.len());
}

#[test]
fn an_answer_of_many_megabytes_is_refused_and_not_kept() {
    let driver = well_behaved();
    for act in ["giant-error", "giant-state"] {
        let error = create(&driver, act).expect_err(act);
        assert_eq!(out_of(&error), "1 MiB in one answer", "{act}");
    }
    let error =
        hostile("list-giant").expect("loads").list(Scope::default(), LONG).expect_err("giant list");
    assert_eq!(out_of(&error), "16 MiB in one answer");
}

#[test]
fn hostile_calls_leave_no_memory_behind() {
    let driver = well_behaved();
    let round = || {
        for act in ["giant-state", "giant-error", "grow", "log-huge", "endless-line"] {
            // Which error it is, is asked elsewhere.
            let _ = create(&driver, act);
        }
    };
    round();
    let before = resident();
    (0..10).for_each(|_| round());
    // 10 rounds take over a gigabyte; other tests run beside this one, so the line is drawn far from both.
    let grown = resident().saturating_sub(before);
    assert!(grown < 512 << 20, "{grown} bytes more");
}

#[test]
fn a_state_of_64_kib_is_the_largest() {
    let driver = well_behaved();
    assert_eq!(create(&driver, "full-state").expect("fits").state.len(), 64 << 10);
    let error = create(&driver, "large-state").expect_err("one byte more");
    assert_eq!(broken(&error), "state has 65537 bytes: at most 65536 are allowed");
}

#[test]
fn a_mode_with_more_than_permission_bits_breaks_the_contract() {
    let driver = well_behaved();
    let error = create(&driver, "bad-mode").expect_err("bad mode");
    assert_eq!(broken(&error), "mode 10755 is not allowed: use at most 7777");
    let error = driver.path(&volume("bad-mode")).expect_err("bad mode");
    assert_eq!(broken(&error), "mode 37777777777 is not allowed: use at most 7777");
}

#[test]
fn a_subpath_that_leaves_the_volume_breaks_the_contract() {
    let driver = well_behaved();
    for (act, path) in [("parent", "a/../../b"), ("absolute", "/etc"), ("empty-subpath", "")] {
        let error = driver.path(&volume(act)).expect_err(act);
        let start = format!("subpath `{path}` is not allowed: ");
        assert!(broken(&error).starts_with(&start), "{error}");
    }
    let error = driver.path(&volume("long-subpath")).expect_err("long");
    assert_eq!(broken(&error), "subpath has 200001 bytes: at most 4096 are allowed");
    let plan = driver.path(&volume("subpath")).expect("inside");
    assert_eq!(plan.subpath.as_deref(), Some("data/current"));
}

#[test]
fn a_case_that_no_host_serves_yet_is_unsupported() {
    let error = well_behaved().path(&volume("served")).expect_err("served");
    assert_eq!(error.to_string(), "source `served` is not served by this version of wasmvol");
}

#[test]
fn removing_what_the_driver_does_not_know_is_done_already() {
    let driver = well_behaved();
    assert_eq!(driver.remove(&volume("unknown"), Scope::default()), Ok(Reclaim::Delete.into()));
    assert_eq!(driver.remove(&volume("retain"), Scope::default()), Ok(Reclaim::Retain.into()));
}

#[test]
fn a_list_is_bounded_and_its_names_are_left_to_the_caller() {
    let list = |act: &str| hostile(act).expect("loads").list(Scope::default(), LONG);
    assert_eq!(list("list-full").expect("fits").len(), 10_000);
    let error = list("list-many").expect_err("one more");
    assert_eq!(broken(&error), "list has 10001 volumes: at most 10000 are allowed");
    let error = list("list-long-name").expect_err("long");
    assert_eq!(broken(&error), "found volume name has 100000 bytes: at most 4096 are allowed");
    let error = list("list-option-twice").expect_err("twice");
    assert_eq!(broken(&error), "found volume has option `a` twice");
    let error = list("list-bad-option").expect_err("bad key");
    assert!(broken(&error).starts_with("option key `A B` is not made of"), "{error}");
    let error = list("list-bad-id").expect_err("bad id");
    assert_eq!(broken(&error), "found volume: `v` is no volume id: it has 32 hex digits");
    assert_eq!(list("list-odd-name").expect("not judged here")[0].name, "../v");
}

#[test]
fn a_list_has_the_deadline_of_who_asks() {
    let driver = hostile("list-loop").expect("loads");
    let within = Duration::from_millis(300);
    let error = driver.list(Scope::default(), within).expect_err("endless");
    assert_eq!(error, CallError::TimedOut(within));
}

#[test]
fn a_driver_sees_its_granted_roots_and_no_other() {
    let driver = hostile("list-roots").expect("loads");
    assert!(driver.sees_roots(), "its component imports `roots`");
    let marked = |name: &str, id| Marked {
        name: VolumeName::parse(name).expect("volume name"),
        id: Id::from_bits(id),
        directory: format!("{name}-here"),
        options: Options::from([("do".to_owned(), Value::Text("x".to_owned()))]),
    };
    let root = |path: &str, marked| Root { path: path.to_owned(), marked };
    let roots = Roots(vec![
        root("/srv/one", vec![marked("a", 1), marked("b", 2)]),
        root("/srv/two", Vec::new()),
    ]);
    let found =
        driver.list(Scope { roots, ..Scope::default() }, LONG).expect("its roots are there");
    let shown: Vec<_> = found
        .iter()
        .map(|f| (f.name.as_str(), f.id.map(Id::bits), String::from_utf8_lossy(&f.state)))
        .collect();
    assert_eq!(
        shown,
        [("a", Some(1), "/srv/one/a-here".into()), ("b", Some(2), "/srv/one/b-here".into())]
    );
    assert_eq!(found[0].options["do"], Value::Text("x".to_owned()));
    assert!(driver.list(Scope::default(), LONG).expect("none").is_empty());
}

#[test]
fn a_description_that_breaks_the_contract_refuses_the_driver() {
    let expected = [
        ("bad-name", "driver name `../hostile` is not allowed"),
        ("no-version", "version is empty"),
        ("long-version", "version has 100000 bytes: at most 64 are allowed"),
        ("reserved-option", "option `reclaim` is the host's own"),
        ("bad-option", "option key `Do It` is not made of"),
        ("option-twice", "option `do` is described twice"),
        ("many-options", "description has 1000 options: at most 64 are allowed"),
        ("required-default", "option `both` is required and has a default"),
        ("default-lines", "default `a\\u{a}b` has control characters"),
        ("many-grants", "description has 1000 grants: at most 32 are allowed"),
    ];
    for (act, why) in expected {
        let error = hostile(act).err().unwrap_or_else(|| panic!("{act} was let in")).to_string();
        let start = format!("`describe` failed: driver broke the contract: {why}");
        assert!(error.starts_with(&start), "{act}: {error}");
    }
    let full = hostile("full-options").expect("as much as it may say").description().clone();
    assert_eq!(full.options.len(), 64);
    let described = hostile("loud-help").expect("only loud").description().clone();
    assert!(described.help.starts_with("\\u{1b}[2Jhelp\\u{a}\\u{202e}"), "{}", described.help);
    assert!(described.help.len() <= 256, "{} bytes", described.help.len());
}

#[test]
fn a_flood_of_log_lines_is_cut_and_counted() {
    for act in ["log-flood", "stderr-flood", "stdout-flood"] {
        let driver = well_behaved();
        let (answer, log) = logged(|| driver.path(&volume(act)));
        answer.unwrap_or_else(|error| panic!("{act}: {error}"));
        assert!(log.len() <= 16 << 10, "{act}: {} bytes", log.len());
        assert!(log.contains("line 0"), "{act}");
        assert!(log.contains("over its limit of 16 KiB a call, 256 a minute"), "{act}");
        assert_eq!(log.matches("over its limit").count(), 1, "{act}");
    }
}

#[test]
fn a_driver_that_floods_in_every_call_stays_within_its_minute() {
    let driver = well_behaved();
    let ((), log) = logged(|| {
        for _ in 0..64 {
            driver.path(&volume("log-flood")).expect("dropping lines fails no call");
        }
    });
    let bytes: usize = log.lines().filter_map(|l| l.find("line ").map(|at| l.len() - at)).sum();
    assert!(bytes > 0 && bytes <= 256 << 10, "{bytes} bytes of its own");
    assert!(log.len() <= 256 << 10, "{} bytes in all", log.len());
}

#[test]
fn what_a_driver_writes_is_escaped_and_carries_its_name() {
    let driver = well_behaved();
    let (answer, log) = logged(|| driver.path(&volume("escapes")));
    answer.expect("writing is allowed");
    assert!(log.contains("\\u{1b}[2Jcleared\\u{d}over driver=hostile"), "{log}");
    let (_, log) = logged(|| driver.path(&volume("endless-line")));
    assert!(log.lines().all(|line| line.len() < 1200), "a line is broken");
}

#[test]
fn calls_of_one_driver_run_beside_each_other() {
    let driver = ENGINE.load(&name("many"), &guest("hostile"), [].into()).expect("loads");
    std::thread::scope(|scope| {
        let calls = [(); 32].map(|()| scope.spawn(|| driver.path(&volume("nothing")).is_ok()));
        assert!(calls.into_iter().all(|call| call.join().expect("thread")));
    });
}
