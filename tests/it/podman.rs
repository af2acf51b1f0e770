//! Does a real podman get what it expects, alone and beside a dockerd? podman counts its mounts itself and sends one Mount and
//! one Unmount, always with the same ID.

use std::sync::{Arc, Mutex, Weak};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::docker::Docker;
use crate::support::podman::Podman;
use crate::support::wasmvol::{Wasmvol, send};

/// A podman and its wasmvol.
struct Pair {
    podman: Podman,
    wasmvol: Wasmvol,
}

impl Pair {
    /// A pair that no other test uses.
    fn own() -> Self {
        let wasmvol = Wasmvol::start();
        Self { podman: Podman::with_plugin("wasmvol", &wasmvol.plugin().socket), wasmvol }
    }

    /// The pair that tests share while any of them runs.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Pair>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let pair = Arc::new(Self::own());
            *shared = Arc::downgrade(&pair);
            pair
        })
    }

    fn volume(&self, name: &str) {
        self.podman.ok(&format!("volume create --driver wasmvol {name}"));
    }

    fn sleeper(&self, container: &str, volume: &str) {
        let line = format!("run -d --name {container} -v {volume}:/data busybox sleep 1000");
        self.podman.ok(&line);
    }
}

#[test]
fn options_reach_the_volume() {
    let pair = Pair::shared();
    pair.podman.ok("volume create --driver wasmvol --opt mode=0750 --opt uid=1000 options");
    let seen = pair.podman.ok("run --rm -v options:/data busybox stat -c '%a %u' /data");
    assert_eq!(seen, "750 1000");
}

#[test]
fn a_refusal_is_an_error_and_makes_nothing() {
    let pair = Pair::shared();
    let error = pair.podman.refused("volume create --driver wasmvol --opt moed=0750 misspelt");
    assert!(error.contains("no option `moed`: did you mean `mode`?"), "{error}");
    assert!(!pair.podman.ok("volume ls -q").contains("misspelt"));
    assert!(pair.wasmvol.plugin().get("misspelt").is_err());
}

#[test]
fn ls_and_inspect_show_the_volume() {
    let pair = Pair::shared();
    pair.volume("shown");
    assert!(pair.podman.ok("volume ls -q").lines().any(|name| name == "shown"));
    let shown: Value = serde_json::from_str(&pair.podman.ok("volume inspect shown")).unwrap();
    assert_eq!(shown[0]["Driver"], "wasmvol");
    assert_eq!(shown[0]["Status"]["driver"], "local");
}

#[test]
fn a_run_mounts_and_its_end_unmounts() {
    let pair = Pair::shared();
    pair.volume("run");
    pair.podman.ok("run --rm -v run:/data busybox sh -c 'echo kept > /data/file'");
    pair.wasmvol.wait_unmounted("run");
    assert_eq!(pair.podman.ok("run --rm -v run:/data busybox cat /data/file"), "kept");
}

#[test]
fn containers_share_a_volume_until_the_last_has_gone() {
    let pair = Pair::shared();
    pair.volume("common");
    pair.sleeper("first", "common");
    pair.sleeper("second", "common");
    pair.podman.ok("exec first sh -c 'echo hello > /data/file'");
    assert_eq!(pair.podman.ok("exec second cat /data/file"), "hello");
    pair.podman.ok("rm -f -t 0 first");
    assert_eq!(pair.podman.ok("exec second cat /data/file"), "hello");
    assert!(pair.wasmvol.is_mounted("common"));
    pair.podman.ok("rm -f -t 0 second");
    pair.wasmvol.wait_unmounted("common");
}

#[test]
fn a_volume_may_appear_twice_in_one_container() {
    let pair = Pair::shared();
    pair.volume("twice");
    let line =
        "run --rm -v twice:/one -v twice:/two busybox sh -c 'echo x > /one/file; cat /two/file'";
    assert_eq!(pair.podman.ok(line), "x");
    pair.wasmvol.wait_unmounted("twice");
}

#[test]
fn a_copy_into_a_running_container_leaves_its_data_mounted() {
    let pair = Pair::shared();
    pair.volume("copied");
    pair.sleeper("target", "copied");
    let file = pair.wasmvol.path("from-outside");
    std::fs::write(&file, "hello").unwrap();
    pair.podman.ok(&format!("cp {} target:/data/file", file.display()));
    assert_eq!(pair.podman.ok("exec target cat /data/file"), "hello");
    pair.podman.ok("rm -f -t 0 target");
    pair.wasmvol.wait_unmounted("copied");
}

#[test]
fn stop_unmounts_and_start_mounts_again() {
    let pair = Pair::shared();
    pair.volume("stopped");
    pair.sleeper("stopping", "stopped");
    pair.podman.ok("exec stopping touch /data/file");
    pair.podman.ok("stop -t 0 stopping");
    pair.wasmvol.wait_unmounted("stopped");
    pair.podman.ok("start stopping");
    assert_eq!(pair.podman.ok("exec stopping ls /data"), "file");
    pair.podman.ok("restart -t 0 stopping");
    assert_eq!(pair.podman.ok("exec stopping ls /data"), "file");
    pair.podman.ok("rm -f -t 0 stopping");
    pair.wasmvol.wait_unmounted("stopped");
}

#[test]
fn a_container_that_cannot_start_holds_nothing() {
    let pair = Pair::shared();
    pair.volume("failed");
    pair.podman.refused("run --rm -v failed:/data busybox /no/such/program");
    pair.wasmvol.wait_unmounted("failed");
    pair.podman.ok("volume rm failed");
}

#[test]
fn a_removed_volume_is_gone_with_its_data() {
    let pair = Pair::own();
    pair.volume("data");
    pair.sleeper("user", "data");
    pair.podman.refused("volume rm data");
    pair.podman.ok("rm -f -t 0 user");
    pair.podman.ok("volume rm data");
    assert_eq!(pair.wasmvol.entries("volumes"), Vec::<String>::new());
    pair.wasmvol.wait_reaped();
}

#[test]
fn prune_removes_what_no_container_uses() {
    let pair = Pair::own();
    pair.volume("unused");
    pair.volume("kept");
    pair.sleeper("keeper", "kept");
    pair.podman.ok("volume prune -f");
    assert_eq!(pair.wasmvol.plugin().list(), ["kept"]);
}

#[test]
fn reload_adopts_a_volume_that_was_made_elsewhere_and_forgets_one_that_has_gone() {
    let pair = Pair::own();
    pair.volume("vanishing");
    pair.wasmvol.plugin().create("elsewhere", &[]).unwrap();
    pair.wasmvol.plugin().remove("vanishing").unwrap();
    pair.podman.ok("volume reload");
    assert_eq!(pair.podman.ok("volume ls -q"), "elsewhere");
    pair.podman.ok("run --rm -v elsewhere:/data busybox touch /data/file");
}

#[test]
fn a_mounted_volume_can_be_exported() {
    let pair = Pair::shared();
    pair.volume("exported");
    pair.sleeper("exporter", "exported");
    pair.podman.ok("exec exporter touch /data/file");
    let file = pair.wasmvol.path("export.tar");
    pair.podman.ok(&format!("volume export exported --output {}", file.display()));
    let tar = std::fs::read(file).unwrap();
    assert!(tar.windows(4).any(|bytes| bytes == b"file"));
    pair.podman.ok("rm -f -t 0 exporter");
}

#[test]
fn what_the_image_has_there_is_copied_into_the_volume() {
    let pair = Pair::shared();
    pair.volume("filled");
    pair.podman.ok("run --rm -v filled:/bin busybox true");
    let listed = pair.podman.ok("run --rm -v filled:/data busybox ls /data");
    assert!(listed.lines().any(|name| name == "busybox"), "{listed}");
}

#[test]
fn containers_keep_their_data_while_wasmvol_is_killed() {
    let mut pair = Pair::own();
    pair.volume("lasting");
    pair.sleeper("survivor", "lasting");
    pair.podman.ok("exec survivor touch /data/file");
    pair.wasmvol.kill_daemon();
    pair.wasmvol.kill_mountd();
    pair.wasmvol.run();
    assert_eq!(pair.podman.ok("exec survivor ls /data"), "file");
    pair.podman.ok("rm -f -t 0 survivor");
    pair.wasmvol.wait_unmounted("lasting");
    pair.podman.ok("volume rm lasting");
}

#[test]
fn a_mount_that_podman_gave_up_is_undone() {
    let pair = Pair::own();
    pair.volume("slow");
    // mountd stands still, as it would on a slow backend; podman waits for 5 s and sends no Unmount.
    send(pair.wasmvol.mountd(), Signal::STOP);
    let error = pair.podman.refused("run --rm -v slow:/data busybox true");
    assert!(error.contains("deadline exceeded"), "{error}");
    send(pair.wasmvol.mountd(), Signal::CONT);
    pair.wasmvol.wait_unmounted("slow");
    pair.podman.ok("run --rm -v slow:/data busybox touch /data/file");
    pair.wasmvol.wait_unmounted("slow");
    pair.podman.ok("volume rm slow");
}

#[test]
fn docker_and_podman_use_one_volume_at_once() {
    let docker = Docker::start();
    let wasmvol = Wasmvol::start_for(&docker.plugins());
    let podman = Podman::with_plugin("wasmvol", &wasmvol.plugin().socket);
    for (volume, options) in [("disk", ""), ("memory", "-o driver=tmpfs")] {
        docker.ok(&format!("volume create -d wasmvol {options} {volume}"));
        docker.ok(&format!("run -d --init --name d-{volume} -v {volume}:/data busybox sleep 1000"));
        podman.ok("volume reload");
        podman.ok(&format!("run -d --name p-{volume} -v {volume}:/data busybox sleep 1000"));
        docker.ok(&format!("exec d-{volume} sh -c 'echo of docker > /data/one'"));
        podman.ok(&format!("exec p-{volume} sh -c 'echo of podman > /data/two'"));
        assert_eq!(podman.ok(&format!("exec p-{volume} cat /data/one")), "of docker");
        assert_eq!(docker.ok(&format!("exec d-{volume} cat /data/two")), "of podman");
    }
    // Either may leave first; the other keeps its data.
    docker.ok("rm -f d-disk");
    assert_eq!(podman.ok("exec p-disk cat /data/one"), "of docker");
    let error = docker.refused("volume rm disk");
    assert!(error.contains("podman"), "the one who still has it is named: {error}");
    podman.ok("rm -f -t 0 p-disk");
    wasmvol.wait_unmounted("disk");
    podman.ok("rm -f -t 0 p-memory");
    assert_eq!(docker.ok("exec d-memory cat /data/two"), "of podman");
    docker.ok("rm -f d-memory");
    wasmvol.wait_unmounted("memory");
}
