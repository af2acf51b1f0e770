//! Is each promise that a driver breaks found, and no other blamed?

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{CREATED, SERVED, command, faulty, passes, report, with_result};
use crate::deeds;
use crate::drivers::{component, hostile};
use crate::support::{Scratch, outcome, shell};

const PLANNED: &str = "its plan is the same each time";
const LISTED: &str = "what it knows is listed";
const DESCRIBED: &str = "it describes itself";
const LOADED: &str = "a host loads it";
const LIMITS: &str = "no call comes near a limit";
const APART: &str = "two volumes are apart";
const NAMED: &str = "so are two of one name";
const LATER: &str = "time changes no plan";
const REMOVED: &str = "a volume is removed twice";
const NEVER_MADE: &str = "one that never was is removed";
const FOREIGN: &str = "state that is not its own is answered";
const OLD: &str = "unknown options are refused, or change nothing";
const FILLED: &str = "an empty directory is filled twice";
const ENDED: &str = "all that was made is removed";

/// It fails these checks and no other, all for this reason.
#[track_caller]
fn fails(component: &Path, arguments: &[&str], checks: &[&str], reason: &str) {
    let checks: Vec<_> = checks.iter().map(|check| (*check, reason)).collect();
    fails_each(component, arguments, &checks);
}

/// It fails these checks and no other, each for its own reason.
#[track_caller]
fn fails_each(component: &Path, arguments: &[&str], checks: &[(&str, &str)]) {
    let (report, code) = report(component, arguments);
    let failed = with_result(&report, "fail");
    let names = |all: &[(&str, &str)]| -> Vec<String> {
        all.iter().map(|(check, _)| (*check).to_owned()).collect()
    };
    assert_eq!(names(&failed), names(checks), "{arguments:?}: {failed:?}");
    for ((_, detail), (check, reason)) in failed.iter().zip(checks) {
        assert!(detail.contains(reason), "{arguments:?}: {check}: {detail}");
        assert!(!detail.contains(char::is_control), "{arguments:?}: {detail:?}");
    }
    assert_eq!((&report["passed"], code), (&Value::Bool(false), Some(1)), "{arguments:?}");
}

#[test]
fn each_promise_that_is_broken_is_found_and_no_other_is_blamed() {
    const ATTACHED: &str = "it is attached and detached twice";
    let all = [
        ("version", &[DESCRIBED][..], "`1` is no semantic version"),
        ("long version", &[DESCRIBED], "`1.2.3.4` is no semantic version"),
        ("help", &[DESCRIBED], "the driver's line of help says nothing"),
        ("restless describe", &[DESCRIBED], "`describe` is answered in two ways"),
        ("grant", &[DESCRIBED], "`everything` is no grant"),
        ("default", &["every default is a value of its option"], "option `wait` is not a duration"),
        ("create", &[CREATED], "a second `create` of one id is refused: it is there"),
        ("message", &[CREATED], r"why is not one line: `two\u{a}lines`"),
        ("share", &[CREATED], r"`create` is refused: `\\nas\team` is away"),
        ("restless path", &[PLANNED], "`path` of one volume is answered in two ways"),
        ("late path", &[LATER], "a later `path` of one volume is answered in two ways"),
        ("remove all", &[APART, NAMED], "is refused: it went with another"),
        ("one of a name", &[NAMED], "after another volume of that name is refused: another has"),
        ("attach late", &[PLANNED], "wants to be asked after more than 30000 ms"),
        ("remove", &[REMOVED, NEVER_MADE], "is refused: never heard of it"),
        ("remove once", &[REMOVED, NEVER_MADE, ENDED], ": it is gone"),
        ("list", &[LISTED], "`list` finds `one` twice"),
        ("list id", &[LISTED], "the id of a volume that is found is answered in two ways"),
        ("list options", &[LISTED], "the options of a volume that is found is answered in two"),
        ("list state", &[LISTED], "`attach` of a volume that is found is refused: its state is"),
        ("name", &["names at the limit are answered"], "of 128 characters: driver crashed"),
        ("stubborn", &["names at the limit are answered", ENDED], ": it is in use"),
        ("value", &["odd values are answered"], "with `size=0`: driver crashed: nothing has no"),
        ("strict path", &[OLD], "`path` with an option that it does not describe is refused"),
        ("strict remove", &[OLD], "`remove` with an option that it does not describe is refused"),
        ("state", &[FOREIGN], "`path` with empty state: driver cr"),
        ("long state", &[FOREIGN], "`path` with 64 KiB of garbage: driver cr"),
        ("state in attach", &[FOREIGN], "`attach` with empty state: driver cr"),
        ("state in detach", &[FOREIGN], "`detach` with empty state: driver cr"),
        ("state in resize", &[FOREIGN], "`resize` with empty state: driver cr"),
        ("state in populate", &[FOREIGN], "`populate` with empty state: driver cr"),
        ("state in check", &[FOREIGN], "`check` with empty state: driver cr"),
        ("state in migrate", &[FOREIGN], "`migrate` with empty state: driver cr"),
        ("attach", &[APART, NAMED, ATTACHED], "is refused: it is attached"),
        ("restless attach", &[LISTED, ATTACHED], "is answered in two ways"),
        ("detach", &[ATTACHED], "a `detach` of what is detached is refused: it is not attached"),
        ("resize", &["it is resized twice"], "`resize` changes more of the storage than its size"),
        ("populate", &[FILLED], "`bin/walk` cannot be made execut"),
        ("health", &["its health is told"], "`check` says degraded, and why says nothing"),
        ("migrate", &["older state is migrated twice"], "its state is not this driver's"),
        ("memory", &[LIMITS], " of its 65536 KiB of memory"),
        ("log", &[LIMITS], " of its 16 KiB of log"),
        ("large state", &[LIMITS], "`create` takes 56 of its 64 KiB of state"),
        ("large list", &[LIMITS], " of its 16384 KiB of answer"),
    ];
    let find = |(fault, checks, reason): &(&str, &[&str], &str)| {
        let fault = format!("fault={fault}");
        fails(&faulty(), &["--grant", "image", "--setting", &fault], checks, reason);
    };
    // Each waits most of its time, from one step of `attach` to the next.
    for some in all.chunks(4) {
        std::thread::scope(|scope| some.iter().for_each(|one| drop(scope.spawn(|| find(one)))));
    }
}

#[test]
fn a_driver_that_misbehaves_in_a_call_fails_for_what_it_did() {
    let both = &[CREATED, NEVER_MADE, ENDED][..];
    for (act, checks, reason) in [
        ("loop", both, "driver did not answer within 2000 ms"),
        ("recurse", both, "its limit of 512 KiB of stack"),
        ("grow", both, "its limit of 64 MiB of memory"),
        ("hoard-resources", both, "its limit of 128 host resources"),
        ("drain-entropy", both, "requested len 1073741824 exceeds limit 4096"),
        ("log-huge", both, "its limit of 1 MiB in one answer"),
        ("log-flood", &[LIMITS], "of log"),
        ("panic", both, "driver crashed: out of cheese"),
        ("quiet-abort", both, "driver crashed: "),
        ("exit-well", both, "driver exited with status 0"),
        ("deny", &[CREATED], "`create` is refused: not today"),
        ("fail", &[CREATED], r"why is not one line: `backend is\u{a}full \u{1b}[31m`"),
        ("long-error", &[CREATED], "`create` is refused: xxxx"),
        ("giant-error", &[CREATED], "its limit of 1 MiB in one answer"),
        ("full-state", &[LIMITS], "`create` takes 64 of its 64 KiB of state"),
        ("large-state", &[CREATED], "state has 65537 bytes: at most 65536 are allowed"),
        ("giant-state", &[CREATED], "its limit of 1 MiB in one answer"),
        ("bad-mode", &[CREATED], "mode 10755 is not allowed"),
        ("lie-over", &[SERVED], "it names volume `bystander`, which no option of its user's does"),
        ("parent", &[PLANNED], "subpath `a/../../b` is not allowed"),
        ("absolute", &[PLANNED], "subpath `/etc` is not allowed"),
        ("long-subpath", &[PLANNED], "subpath has 200001 bytes"),
        ("served", &[PLANNED], "source `served` is not served by this version of wasmvol"),
    ] {
        fails(&hostile(), &["-o", &format!("do={act}")], checks, reason);
    }
    for harmless in ["", "read-files", "connect", "look-around", "unknown", "retain"] {
        passes(&hostile(), &["-o", &format!("do={harmless}")]);
    }
}

#[test]
fn a_driver_that_misuses_what_a_driver_has_fails_for_that() {
    const RESOURCES: &str = "its limit of 128 host resources";
    const ANSWER: &str = "its limit of 16 MiB in one answer";
    const PROGRAMS: &str = "populate has 100001 executables: at most 100000 are allowed";
    const STATE: &str = "state has 65537 bytes: at most 65536 are allowed";
    const MIGRATED: &str = "older state is migrated twice";
    // It never says why it is not well.
    const ILL: (&str, &str) = ("its health is told", "and why says nothing");
    let place = Scratch::new();
    for (act, checks) in [
        ("behave", &[ILL][..]),
        ("store-keys", &[(CREATED, "the store has at most 1024 keys and 1024 KiB")]),
        ("store-reads", &[(CREATED, "its limit of 2 s of computing")]),
        ("hoard-fields", &[(CREATED, RESOURCES)]),
        ("hoard-headers", &[(CREATED, "its limit of 16 KiB of headers in one request")]),
        ("hoard-methods", &[(CREATED, "a request's method has at most 32 bytes")]),
        ("attach-late", &[(PLANNED, "wants to be asked after more than 30000 ms")]),
        ("attach-state", &[(PLANNED, STATE)]),
        ("populate-open", &[(FOREIGN, RESOURCES), (FILLED, RESOURCES), ILL]),
        ("populate-giant", &[(FOREIGN, ANSWER), (FILLED, ANSWER), ILL]),
        ("populate-executables", &[(FOREIGN, PROGRAMS), (FILLED, PROGRAMS), ILL]),
        ("resize-other", &[("it is resized twice", "more of the storage than its size"), ILL]),
        ("check-giant", &[(FOREIGN, "its limit of 1 MiB"), (ILL.0, "its limit of 1 MiB")]),
        ("migrate-large", &[(FOREIGN, STATE), ILL, (MIGRATED, STATE)]),
        ("migrate-write", &[ILL, (MIGRATED, "this call may not write to the store")]),
    ] {
        fails_each(&component("guests/rogue.wasm"), &["-o", &format!("do={act}")], checks);
    }
    let bomb = place.path().join("bomb.wasm");
    fs::write(&bomb, deeds::bomb()).unwrap();
    fails(&bomb, &[], &[LOADED], "compiling was ended: ");
}

#[test]
fn a_driver_that_fills_its_volume_without_end_leaves_nothing_of_it() {
    let place = Scratch::new();
    let small = place.dir("small");
    shell(&format!("mount -t tmpfs -o size=64m small {}", small.display()), &[]).ok();
    let mut command =
        command(&component("guests/rogue.wasm"), &["-o", "do=populate-disk", "--json"]);
    let outcome = outcome("driver check", command.env("TMPDIR", &small));
    let left = fs::read_dir(&small).unwrap().count();
    shell(&format!("umount {}", small.display()), &[]).ok();
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let failed = with_result(&report, "fail");
    assert!(failed.iter().any(|(check, _)| *check == FILLED), "{failed:?}");
    assert_eq!((left, outcome.code), (0, Some(1)));
}

#[test]
fn a_driver_that_lies_of_itself_or_of_others_fails_for_that() {
    for (act, check, reason) in [
        ("bad-name", LOADED, "`../hostile`"),
        ("no-version", LOADED, "version is empty"),
        ("reserved-option", LOADED, "option `reclaim` is the host's own"),
        ("option-twice", LOADED, "option `do` is described twice"),
        ("required-default", LOADED, "option `both` is required and has a default"),
        ("many-options", LOADED, "description has 1000 options"),
        ("loop", LOADED, "`describe` failed: driver did not answer within 2000 ms"),
        ("panic", LOADED, "`describe` failed: driver crashed: out of cheese"),
        ("loud-help", DESCRIBED, "line of help is too long and was cut"),
        ("list-slow", LIMITS, " of its 10000 ms"),
        ("list-many", LISTED, "list has 10001 volumes"),
        ("list-giant", LISTED, "its limit of 16 MiB in one answer"),
        ("list-long-name", LISTED, "found volume name has 100000 bytes"),
        ("list-bad-id", LISTED, "`v` is no volume id"),
        ("list-option-twice", LISTED, "found volume has option `a` twice"),
        ("list-bad-option", LISTED, "option key `A B` is not made of"),
    ] {
        fails(&hostile(), &["--setting", &format!("do={act}")], &[check], reason);
    }
    let report = passes(&hostile(), &["--setting", "do=list-odd-name"]);
    let detail = with_result(&report, "ok").into_iter().find(|(check, _)| *check == LISTED);
    assert_eq!(detail.unwrap().1, "1 found, and no engine takes the name `../v`");
    // It has texts alone, and one of them was another.
    let detail = with_result(&report, "ok").into_iter().find(|(check, _)| *check == NAMED);
    assert_eq!(detail.unwrap().1, "with `do=check`");
}

#[test]
fn what_is_no_component_fails_to_be_loaded() {
    let scratch = Scratch::new();
    let file = scratch.path().join("bad.wasm");
    for (bytes, reason) in [
        (&b"no wasm at all"[..], "is no WebAssembly component"),
        (b"\0asm\x01\0\0\0", "is a core module, not a component"),
        (b"\0asm\x0d\0\x01\0", "does not export `wasmvol:driver/volumes`"),
    ] {
        fs::write(&file, bytes).unwrap();
        fails(&file, &[], &[LOADED], reason);
    }
}
