//! Does a volume that its driver fills start whole, as its owner's, or not at all? Of `able`, which fills each of its volumes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::abilities::{asked, create, load, stored, with_able};
use crate::support::engine::{Engine, ask_every_engine};
use crate::support::pair::Pair;
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, until};

/// Owner, group and mode.
fn owner(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

ask_every_engine!(a_container_finds_what_a_driver_has_filled_in);

fn a_container_finds_what_a_driver_has_filled_in<E: Engine>() {
    let pair = Pair::<E>::own();
    load(&pair.wasmvol, "");
    pair.engine.ok("volume create --driver wasmvol -o driver=able -o uid=1000 filled");
    let line = "cat /data/text && echo && /data/run && /data/bin/run && stat -c '%u %g %a' /data /data/bin /data/bin/run /data/text";
    let seen =
        pair.engine.ok(&format!("run --rm -u 1000 -v filled:/data busybox sh -c \"{line}\""));
    let lines: Vec<&str> = seen.lines().map(str::trim).collect();
    assert_eq!(lines[..3], ["of filled", "ran", "ran"]);
    let owners = ["1000 1000 750", "1000 1000 755", "1000 1000 755", "1000 1000 644"];
    assert_eq!(lines[3..], owners);
    // The link is one, and what was not filled in is not there.
    let line = "readlink /data/run && find /data -mindepth 1 | wc -l";
    let seen = pair.engine.ok(&format!("run --rm -v filled:/data busybox sh -c '{line}'"));
    assert_eq!(seen.lines().map(str::trim).collect::<Vec<_>>(), ["bin/run", "4"]);
    pair.engine.ok("volume rm filled");
}

#[test]
fn an_image_is_filled_as_a_directory_is() {
    let wasmvol = with_able("--grant image");
    let plugin = wasmvol.plugin();
    create(&wasmvol, "data", &[("size", "16m"), ("uid", "7")]).unwrap();
    let path = plugin.mount("data", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("text")).unwrap(), "of data");
    assert_eq!(owner(&path), (7, 7, 0o750));
    for (name, mode) in [("text", 0o644), ("bin", 0o755), ("bin/run", 0o755)] {
        assert_eq!(owner(&path.join(name)), (7, 7, mode), "{name}");
    }
    plugin.unmount("data", "id").unwrap();
    plugin.remove("data").unwrap();
}

/// Nothing is left of a volume that was refused.
#[track_caller]
fn assert_nothing_is_left(wasmvol: &Wasmvol) {
    assert_eq!(wasmvol.plugin().list(), [""; 0]);
    assert_eq!(wasmvol.entries("volumes"), [""; 0]);
    wasmvol.wait_reaped();
    assert_eq!(wasmvol.json("status")["troubles"].to_string(), "[]");
    assert_eq!(stored(wasmvol), "");
}

#[test]
fn a_fill_that_fails_says_why_and_leaves_nothing() {
    let wasmvol = with_able("--grant image");
    for (act, reason) in [
        ("half", "the backend is away"),
        ("panic", "driver crashed: out of cheese"),
        ("second-name", "`d/"),
        ("no-program", "driver broke the contract: `../../etc/passwd` cannot be made executable"),
        ("flood", "cannot fill it: I/O error (os error 29): its volume is full"),
        (
            "no-storage",
            "it fills its volumes, but asked for no storage: only a directory, an image or a subvolume",
        ),
    ] {
        for size in [&[("size", "8m")][..], &[]] {
            if act == "flood" && size.is_empty() {
                continue;
            }
            let options = [&[("do", act)], size].concat();
            let error = create(&wasmvol, "data", &options).unwrap_err();
            let start = format!("driver `able`: {reason}");
            assert!(error.starts_with(&start), "{act}: {error}");
            assert_nothing_is_left(&wasmvol);
        }
    }
    // The name is free, and what was left of another try is not in it.
    create(&wasmvol, "data", &[]).unwrap();
    let path = wasmvol.plugin().mount("data", "id").unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 3);
    wasmvol.plugin().unmount("data", "id").unwrap();
}

#[test]
fn a_driver_that_fills_a_volume_sees_nothing_else() {
    let wasmvol = with_able("");
    create(&wasmvol, "data", &[("do", "look-around")]).unwrap();
    // Its way out stays a link that leads, in a container, to what is the container's.
    let path = wasmvol.plugin().mount("data", "id").unwrap();
    assert_eq!(fs::read_link(path.join("etc")).unwrap(), Path::new("../../../../etc"));
    assert!(!path.join("../out").exists());
    wasmvol.plugin().unmount("data", "id").unwrap();
}

#[test]
fn a_volume_that_is_being_filled_is_not_there_yet_and_delays_no_other() {
    let wasmvol = with_able("");
    let plugin = wasmvol.plugin();
    create(&wasmvol, "other", &[("do", "nothing")]).unwrap();
    let begin = |name: &str| {
        let mut socket = Socket::connect(&plugin.socket).unwrap();
        let options = r#"{"driver":"able","wait":"10s"}"#;
        let body = format!(r#"{{"Name":"{name}","Opts":{options}}}"#);
        socket.send(request("VolumeDriver.Create", &body)).unwrap();
        until("its driver is filling it", SOON, || {
            asked(&wasmvol, name).contains(&"populate [made]".to_owned()).then_some(())
        });
        socket
    };
    // The client of one has gone by the time that it is full.
    drop(begin("gone"));
    let mut kept = begin("kept");
    for name in ["gone", "kept"] {
        assert_eq!(plugin.get(name).unwrap_err(), "no such volume");
    }
    plugin.mount("other", "id").unwrap();
    plugin.unmount("other", "id").unwrap();
    assert!(kept.is_silent(), "it was full before its neighbour's calls");
    kept.read().unwrap().result().unwrap();
    until("the one that nobody waits for is there, too", SOON, || plugin.get("gone").ok());
    for name in ["gone", "kept"] {
        let path = plugin.mount(name, "id").unwrap();
        assert_eq!(fs::read_to_string(path.join("text")).unwrap(), format!("of {name}"));
        plugin.unmount(name, "id").unwrap();
    }
}

#[test]
fn a_volume_is_filled_anew_where_another_call_has_changed_what_its_driver_read() {
    let wasmvol = with_able("");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| create(&wasmvol, "slow", &[("do", "once"), ("wait", "5s")]));
        until("its driver is filling it", SOON, || {
            asked(&wasmvol, "slow").contains(&"populate [made]".to_owned()).then_some(())
        });
        create(&wasmvol, "quick", &[("do", "count")]).unwrap();
        slow.join().unwrap().unwrap();
    });
    let tries = asked(&wasmvol, "slow").iter().filter(|call| *call == "populate [made]").count();
    assert_eq!(tries, 2);
    assert_eq!(stored(&wasmvol), "count=1 filled/slow= made/quick= made/slow=");
    let path = wasmvol.plugin().mount("slow", "id").unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 1);
    wasmvol.plugin().unmount("slow", "id").unwrap();
}

#[test]
fn a_daemon_that_is_stopped_waits_for_a_driver_10_s_and_no_longer() {
    let mut wasmvol = with_able("");
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    let body = r#"{"Name":"slow","Opts":{"driver":"able","wait":"60s"}}"#;
    socket.send(request("VolumeDriver.Create", body)).unwrap();
    until("its driver is filling it", SOON, || {
        asked(&wasmvol, "slow").contains(&"populate [made]".to_owned()).then_some(())
    });
    assert!(wasmvol.stop().success());
    let log = wasmvol.log();
    assert!(log.contains("requests did not end within 10 s: recovery takes them up"), "{log}");
}
