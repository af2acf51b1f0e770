//! Does a real dockerd get what it expects? Every sequence of calls that Docker's command line causes, by that command line.
//!
//! All tests share one dockerd and one wasmvol, with volumes of their own names.

use std::fs;

use std::thread;

use crate::support::docker::Docker;
use crate::support::engine::Engine;
use crate::support::{SOON, until};

type Pair = crate::support::pair::Pair<Docker>;

#[test]
fn a_size_of_a_directory_is_refused_with_what_has_a_size() {
    let pair = Pair::shared();
    let error = pair.engine.refused("volume create -d wasmvol -o size=1g sized");
    assert!(error.contains("or use `-o driver=image`"), "{error}");
}

#[test]
fn inspect_shows_the_mountpoint_before_the_first_mount() {
    let pair = Pair::shared();
    pair.volume("foreseen");
    let path = pair.wasmvol.plugin().path("foreseen").unwrap();
    assert_eq!(pair.inspect("foreseen")["Mountpoint"], path.to_str().unwrap());
}

#[test]
fn creating_a_volume_again_is_no_error_and_changes_nothing() {
    let pair = Pair::shared();
    pair.volume("again");
    pair.engine.ok("run --rm -v again:/data busybox touch /data/file");
    // dockerd asks Get, hears that the volume is there, and keeps the other options to itself.
    for options in ["", "-o mode=0700"] {
        pair.engine.ok(&format!("volume create -d wasmvol {options} again"));
        assert_eq!(pair.engine.ok("run --rm -v again:/data busybox ls /data"), "file");
        let mode = pair.engine.ok("run --rm -v again:/data busybox stat -c %a /data");
        assert_eq!(mode, "755");
    }
}

#[test]
fn a_name_belongs_to_one_driver_of_docker() {
    let pair = Pair::shared();
    pair.volume("ours");
    pair.engine.ok("volume create -d local theirs");
    for (driver, name) in [("local", "ours"), ("wasmvol", "theirs")] {
        let error = pair.engine.refused(&format!("volume create -d {driver} {name}"));
        assert!(error.contains("volume name must be unique"), "{error}");
    }
    assert_eq!(pair.inspect("ours")["Driver"], "wasmvol");
    assert_eq!(pair.inspect("theirs")["Driver"], "local");
    assert_eq!(pair.wasmvol.plugin().get("theirs").unwrap_err(), "no such volume");
}

#[test]
fn creates_of_one_name_at_once_make_one_volume() {
    let pair = Pair::own();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| pair.volume("one"));
            scope.spawn(|| {
                pair.engine.ok("run --rm --volume-driver wasmvol -v one:/data busybox true")
            });
        }
    });
    assert_eq!(pair.engine.ok("volume ls -q"), "one");
}

#[test]
fn a_copy_into_a_stopped_container_reaches_the_volume() {
    let pair = Pair::shared();
    pair.volume("copied-stopped");
    pair.engine.ok("create --name stopped -v copied-stopped:/data busybox true");
    let file = pair.wasmvol.path("for-the-stopped");
    fs::write(&file, "hello").unwrap();
    pair.engine.ok(&format!("cp {} stopped:/data/file", file.display()));
    assert_eq!(pair.engine.ok("run --rm -v copied-stopped:/data busybox cat /data/file"), "hello");
    pair.wasmvol.wait_unmounted("copied-stopped");
}

#[test]
fn a_container_that_is_restarted_by_its_policy_keeps_its_data() {
    let pair = Pair::shared();
    pair.volume("retried");
    let script = "echo x >> /data/runs; exit 1";
    pair.engine.ok(&format!(
        "run -d --name retrying --restart on-failure:2 -v retried:/data busybox sh -c '{script}'"
    ));
    assert_eq!(pair.engine.ok("wait retrying"), "1");
    until("the policy gives up", SOON, || {
        let runs = pair.engine.ok("run --rm -v retried:/data busybox cat /data/runs");
        (runs.lines().count() == 3).then_some(())
    });
    pair.wasmvol.wait_unmounted("retried");
}

#[test]
fn a_volume_in_use_is_not_removed() {
    let pair = Pair::shared();
    pair.volume("used");
    pair.sleeper("user", "used");
    let error = pair.engine.refused("volume rm used");
    assert!(error.contains("volume is in use"), "{error}");
    pair.engine.refused("volume rm -f used");
    pair.engine.ok("exec user touch /data/file");
}

#[test]
fn rm_with_volumes_takes_the_anonymous_one_and_leaves_the_named_one() {
    let pair = Pair::shared();
    pair.volume("named");
    let before = pair.wasmvol.plugin().list();
    pair.engine.ok("run -d --init --name both -v named:/named \
         --mount type=volume,dst=/anonymous,volume-driver=wasmvol busybox sleep 1000");
    let anonymous = pair.engine.ok(
        "inspect -f '{{range .Mounts}}{{if eq .Destination \"/anonymous\"}}{{.Name}}{{end}}{{end}}' both",
    );
    assert!(!before.contains(&anonymous));
    assert!(pair.wasmvol.is_mounted(&anonymous));
    pair.engine.ok("rm -fv both");
    assert!(pair.wasmvol.plugin().get(&anonymous).is_err());
    pair.wasmvol.plugin().get("named").unwrap();
}

#[test]
fn a_mount_flag_creates_the_volume_with_its_options() {
    let pair = Pair::shared();
    let line = "run --rm --mount type=volume,src=implicit,dst=/data,volume-driver=wasmvol,\
                volume-opt=driver=tmpfs,volume-opt=size=5m busybox stat -f -c %T /data";
    assert_eq!(pair.engine.ok(line), "tmpfs");
    assert_eq!(pair.inspect("implicit")["Status"]["driver"], "tmpfs");
}

#[test]
fn what_the_image_has_there_is_copied_when_the_container_is_made_unless_that_is_unwanted() {
    let pair = Pair::shared();
    let seen =
        |volume: &str| pair.engine.ok(&format!("run --rm -v {volume}:/data busybox ls /data"));
    for volume in ["copied-at-create", "not-copied"] {
        pair.volume(volume);
    }
    pair.engine.ok("create -v copied-at-create:/bin busybox true");
    assert!(seen("copied-at-create").lines().any(|name| name == "busybox"));
    pair.engine.ok("create --mount type=volume,src=not-copied,dst=/bin,volume-nocopy busybox true");
    assert_eq!(seen("not-copied"), "");
    pair.wasmvol.wait_unmounted("copied-at-create");
}

#[test]
fn prune_leaves_our_volumes() {
    let pair = Pair::shared();
    pair.volume("unused");
    pair.engine.ok("volume prune -f");
    pair.wasmvol.plugin().get("unused").unwrap();
}

#[test]
fn a_volume_that_was_removed_behind_its_back_is_no_error_to_docker() {
    let pair = Pair::shared();
    pair.volume("vanished");
    pair.wasmvol.plugin().remove("vanished").unwrap();
    pair.engine.ok("volume rm -f vanished");
    let error = pair.engine.refused("volume inspect vanished");
    assert!(error.to_lowercase().contains("no such volume"), "{error}");
}
