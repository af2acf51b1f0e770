//! What does Docker notice when wasmvol is away as it asks, and is all well when wasmvol is back?
//!
//! dockerd tries again for 15 s at each call, and at its own start for each volume that it knows: these tests wait more than they work.

use std::fs;
use std::thread;

use crate::support::docker::Docker;
use crate::support::engine::Engine;
use crate::support::{SOON, until};

type Pair = crate::support::pair::Pair<Docker>;

/// What dockerd logs when it finds no plugin, or nobody at its socket.
const MISSED: &str = ", retrying in ";

#[test]
fn what_needs_no_volume_asks_wasmvol_nothing() {
    let mut pair = Pair::own();
    pair.volume("left-alone");
    pair.sleeper("busy", "left-alone");
    pair.engine.ok("create --name done -v left-alone:/data busybox true");
    assert!(pair.wasmvol.stop().success());
    for line in [
        "pause busy",
        "unpause busy",
        "exec busy touch /data/file",
        "ps -a",
        "inspect busy",
        "system df",
        "volume prune -f",
        "rm done",
    ] {
        pair.engine.ok(line);
    }
    assert!(!pair.engine.log().contains(MISSED), "a request was sent");
    // Had there been one, dockerd would have said so.
    thread::scope(|scope| {
        let asked = scope.spawn(|| pair.engine.ok("volume inspect left-alone"));
        until("dockerd misses wasmvol", SOON, || pair.engine.log().contains(MISSED).then_some(()));
        pair.engine.ok("exec busy ls /data/file");
        pair.wasmvol.run();
        asked.join().unwrap();
    });
}

#[test]
fn calls_to_a_wasmvol_that_is_away_fail_and_change_nothing() {
    let mut pair = Pair::own();
    for volume in ["known", "unused"] {
        pair.volume(volume);
    }
    pair.engine.ok("create --name waiting -v known:/data busybox sh -c 'echo x > /data/file'");
    assert!(pair.wasmvol.stop().success());
    // All at once, because each takes 15 s.
    thread::scope(|scope| {
        let refused = [
            "run --rm -v known:/data busybox true",
            "start waiting",
            "volume inspect known",
            "volume rm unused",
        ]
        .map(|line| (line, scope.spawn(|| pair.engine.refused(line))));
        let listed = scope.spawn(|| pair.engine.ok("volume ls -q"));
        for (line, refused) in refused {
            let error = refused.join().unwrap();
            assert!(error.contains("wasmvol.sock"), "{line}: {error}");
        }
        assert_eq!(listed.join().unwrap(), "known\nunused", "dockerd shows what it remembers");
    });
    pair.wasmvol.run();
    assert_eq!(pair.engine.ok("volume ls -q"), "known\nunused");
    pair.engine.ok("start -a waiting");
    assert_eq!(pair.engine.ok("run --rm -v known:/data busybox cat /data/file"), "x");
    pair.engine.ok("rm waiting");
    pair.engine.ok("volume rm known unused");
}

#[test]
fn a_call_in_whose_time_wasmvol_comes_back_succeeds() {
    let mut pair = Pair::own();
    assert!(pair.wasmvol.stop().success());
    thread::scope(|scope| {
        let created = scope.spawn(|| pair.engine.ok("volume create -d wasmvol patient"));
        until("dockerd misses wasmvol", SOON, || pair.engine.log().contains(MISSED).then_some(()));
        pair.wasmvol.run();
        created.join().unwrap();
    });
    pair.engine.ok("run --rm -v patient:/data busybox touch /data/file");
}

#[test]
fn a_socket_that_somebody_deleted_is_there_again_after_a_restart() {
    let mut pair = Pair::own();
    pair.volume("reached");
    fs::remove_file(&pair.wasmvol.plugin().socket).unwrap();
    assert!(pair.wasmvol.stop().success());
    pair.wasmvol.run();
    pair.engine.ok("run --rm -v reached:/data busybox touch /data/file");
}

/// dockerd takes more than a minute for such a start, so both kinds of it are started side by side.
#[test]
fn a_dockerd_that_started_without_wasmvol_has_its_volumes_when_wasmvol_is_there() {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pair = started_alone(Docker::start());
            let error = pair.engine.refused("start user");
            assert!(error.contains("wasmvol"), "{error}");
            pair.wasmvol.run();
            assert_eq!(pair.engine.ok("volume ls -q"), "kept");
            pair.engine.ok("start user");
            works(&pair);
            pair.wasmvol.wait_unmounted("kept");
            pair.engine.ok("volume rm kept");
        });
        scope.spawn(|| {
            let mut pair = started_alone(Docker::start_with_live_restore());
            assert_eq!(
                pair.engine.ok("exec user cat /data/file"),
                "before",
                "it has never stopped"
            );
            pair.wasmvol.run();
            assert_eq!(pair.engine.ok("volume ls -q"), "kept");
            works(&pair);
            // dockerd sends no Unmount for a container that it found without its plugin. The volume serves on.
            let again = pair.engine.ok("run --rm -v kept:/data busybox cat /data/file");
            assert_eq!(again, "after");
        });
    });
}

/// A dockerd that ended with wasmvol and was started before it, with a volume `kept` and its container `user`.
fn started_alone(docker: Docker) -> Pair {
    let mut pair = Pair::with(docker);
    pair.volume("kept");
    pair.sleeper("user", "kept");
    pair.engine.ok("exec user sh -c 'echo before > /data/file'");
    pair.engine.stop();
    assert!(pair.wasmvol.stop().success());
    pair.engine.start_again();
    pair
}

/// The running container and another one share the volume's data, which is what it was.
fn works(pair: &Pair) {
    assert_eq!(pair.engine.ok("exec user cat /data/file"), "before");
    pair.engine.ok("run --rm -v kept:/data busybox sh -c 'echo after > /data/file'");
    assert_eq!(pair.engine.ok("exec user cat /data/file"), "after");
    pair.discard("user");
}
