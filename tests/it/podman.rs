//! Does a real podman get what it expects, alone and beside a dockerd? podman counts its mounts itself and sends one Mount and
//! one Unmount, always with the same ID.

use std::thread;

use rustix::process::Signal;

use crate::support::docker::Docker;
use crate::support::engine::Engine;
use crate::support::podman::Podman;
use crate::support::wasmvol::{Wasmvol, send};

type Pair = crate::support::pair::Pair<Podman>;

#[test]
fn prune_removes_what_no_container_uses() {
    let pair = Pair::own();
    pair.volume("unused");
    pair.volume("kept");
    pair.sleeper("keeper", "kept");
    pair.engine.ok("volume prune -f");
    assert_eq!(pair.wasmvol.plugin().list(), ["kept"]);
}

#[test]
fn reload_adopts_a_volume_that_was_made_elsewhere_and_forgets_one_that_has_gone() {
    let pair = Pair::own();
    pair.volume("vanishing");
    pair.wasmvol.plugin().create("elsewhere", &[]).unwrap();
    pair.wasmvol.plugin().remove("vanishing").unwrap();
    pair.engine.ok("volume reload");
    assert_eq!(pair.engine.ok("volume ls -q"), "elsewhere");
    pair.engine.ok("run --rm -v elsewhere:/data busybox touch /data/file");
}

#[test]
fn a_mounted_volume_can_be_exported() {
    let pair = Pair::shared();
    pair.volume("exported");
    pair.sleeper("exporter", "exported");
    pair.engine.ok("exec exporter touch /data/file");
    let file = pair.wasmvol.path("export.tar");
    pair.engine.ok(&format!("volume export exported --output {}", file.display()));
    let tar = std::fs::read(file).unwrap();
    assert!(tar.windows(4).any(|bytes| bytes == b"file"));
    pair.engine.ok("rm -f -t 0 exporter");
}

#[test]
fn a_mount_that_podman_gave_up_is_undone() {
    let pair = Pair::own();
    pair.volume("slow");
    // mountd stands still, as it would on a slow backend; podman waits for 5 s and sends no Unmount.
    send(pair.wasmvol.mountd(), Signal::STOP);
    let error = pair.engine.refused("run --rm -v slow:/data busybox true");
    assert!(error.contains("deadline exceeded"), "{error}");
    send(pair.wasmvol.mountd(), Signal::CONT);
    pair.wasmvol.wait_unmounted("slow");
    pair.engine.ok("run --rm -v slow:/data busybox touch /data/file");
    pair.wasmvol.wait_unmounted("slow");
    pair.engine.ok("volume rm slow");
}

#[test]
fn a_volume_is_made_once() {
    let pair = Pair::shared();
    pair.volume("single");
    let error = pair.engine.refused("volume create --driver wasmvol single");
    assert!(error.contains("already exists"), "{error}");
    pair.engine.ok("run --rm -v single:/data busybox true");
}

#[test]
fn podmans_own_option_of_a_longer_wait_makes_a_volume() {
    let pair = Pair::shared();
    pair.engine.ok("volume create --driver wasmvol --opt o=timeout=25 --opt mode=0700 patient");
    let mode = pair.engine.ok("run --rm -v patient:/data busybox stat -c %a /data");
    assert_eq!(mode, "700");
}

#[test]
fn a_volume_that_nobody_made_is_podmans_own() {
    let pair = Pair::shared();
    pair.engine.ok("run --rm -v implicit:/data busybox touch /data/file");
    assert_eq!(pair.inspect("implicit")["Driver"], "local");
    assert_eq!(pair.wasmvol.plugin().get("implicit").unwrap_err(), "no such volume");
}

#[test]
fn a_copy_into_a_stopped_container_is_refused_and_holds_nothing() {
    let pair = Pair::shared();
    pair.volume("closed");
    pair.engine.ok("create --name closed-user -v closed:/data busybox true");
    let file = pair.wasmvol.path("for-the-closed");
    std::fs::write(&file, "hello").unwrap();
    pair.engine.refused(&format!("cp {} closed-user:/data/file", file.display()));
    assert!(!pair.wasmvol.is_mounted("closed"));
    pair.engine.ok("rm closed-user");
    pair.engine.ok("volume rm closed");
}

#[test]
fn a_volume_is_mounted_by_hand_and_unmounted_again() {
    let pair = Pair::shared();
    pair.volume("handy");
    pair.engine.ok("volume mount handy");
    assert!(pair.wasmvol.is_mounted("handy"));
    pair.engine.ok("volume unmount handy");
    pair.wasmvol.wait_unmounted("handy");
}

#[test]
fn containers_that_start_at_once_mount_their_volume_once() {
    let pair = Pair::shared();
    pair.volume("crowded");
    let names = ["one", "two", "three", "four"];
    thread::scope(|scope| {
        for name in names {
            let pair = &pair;
            scope.spawn(move || pair.sleeper(name, "crowded"));
        }
    });
    let shown = pair.wasmvol.plugin().get("crowded").unwrap();
    let holders = shown["Status"]["holders"].as_array().unwrap();
    let counts: Vec<_> = holders.iter().map(|holder| holder["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1], "podman counts by itself");
    for name in names {
        pair.engine.ok(&format!("exec {name} sh -c 'echo {name} >> /data/names'"));
    }
    assert_eq!(pair.engine.ok("exec one cat /data/names").lines().count(), names.len());
    thread::scope(|scope| {
        for name in names {
            let pair = &pair;
            scope.spawn(move || pair.discard(name));
        }
    });
    pair.wasmvol.wait_unmounted("crowded");
}

#[test]
fn an_unmount_that_failed_costs_the_volume_nothing() {
    let mut pair = Pair::own();
    pair.volume("missed");
    pair.sleeper("quiet", "missed");
    pair.engine.ok("exec quiet sh -c 'echo kept > /data/file'");
    assert!(pair.wasmvol.stop().success());
    // Whichever of podman's processes cleans up hears the error: this one or the container's own.
    let _ = pair.engine.cli("stop -t 0 quiet");
    assert_eq!(pair.engine.ok("inspect -f '{{.State.Running}}' quiet"), "false");
    assert_eq!(pair.wasmvol.volume_mounts().len(), 1, "the Unmount is lost");
    pair.wasmvol.run();
    pair.discard("quiet");
    assert_eq!(pair.engine.ok("run --rm -v missed:/data busybox cat /data/file"), "kept");
    // podman still counts one, and gives it back before it removes.
    pair.engine.ok("volume rm missed");
    assert_eq!(pair.wasmvol.volume_mounts(), []);
    assert_eq!(pair.wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn a_plugin_that_is_away_is_an_error_at_once_and_works_when_it_is_back() {
    let mut pair = Pair::own();
    pair.volume("held");
    pair.volume("idle");
    pair.sleeper("holder", "held");
    pair.engine.ok("exec holder sh -c 'echo kept > /data/file'");
    assert!(pair.wasmvol.stop().success());
    for line in [
        "volume create --driver wasmvol other",
        "run --rm -v idle:/data busybox true",
        "volume inspect idle",
        "volume ls",
        // podman forgets it all the same.
        "volume rm idle",
    ] {
        let error = pair.engine.refused(line);
        assert!(error.contains("wasmvol.sock"), "{line}: {error}");
    }
    assert_eq!(pair.engine.ok("exec holder cat /data/file"), "kept");
    // What is mounted is podman's to hand on.
    assert_eq!(pair.engine.ok("run --rm -v held:/data busybox cat /data/file"), "kept");
    pair.wasmvol.run();
    pair.engine.ok("volume reload");
    assert_eq!(pair.engine.ok("volume ls -q").lines().count(), 2);
    pair.engine.ok("run --rm -v idle:/data busybox touch /data/file");
    pair.discard("holder");
    pair.wasmvol.wait_unmounted("held");
    pair.engine.ok("volume rm held idle");
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
