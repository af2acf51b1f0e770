//! What if dockerd or wasmvol goes away in between? Stopped, killed, blind, or broken off in the middle of a call.

use std::fs;
use std::time::Duration;

use wasmvol_plan::steps;

use crate::support::docker::Docker;
use crate::support::pair::Pair;
use crate::support::wasmvol::Wasmvol;
use crate::support::{open_to_all, until};

#[test]
fn a_dockerd_that_stops_unmounts_what_its_containers_used() {
    let mut pair = Pair::own();
    pair.volume("ended");
    pair.sleeper("ending", "ended");
    pair.docker.ok("exec ending touch /data/file");
    pair.docker.stop();
    pair.wasmvol.wait_unmounted("ended");
    pair.docker.start_again();
    pair.docker.ok("start ending");
    assert_eq!(pair.docker.ok("exec ending ls /data"), "file");
    pair.docker.ok("rm -f ending");
    pair.docker.ok("volume rm ended");
}

#[test]
fn a_dockerd_that_was_killed_sends_the_same_id_again_and_the_count_is_right() {
    let mut pair = Pair::own();
    pair.volume("orphaned");
    pair.sleeper("orphan", "orphaned");
    pair.docker.ok("exec orphan touch /data/file");
    pair.docker.kill();
    pair.docker.start_again();
    // No Unmount was sent for the first life; one is sent for the second.
    pair.docker.ok("start orphan");
    assert_eq!(pair.docker.ok("exec orphan ls /data"), "file");
    pair.docker.ok("stop -t 1 orphan");
    pair.wasmvol.wait_unmounted("orphaned");
    pair.docker.ok("rm orphan");
    pair.docker.ok("volume rm orphaned");
}

#[test]
fn a_holder_that_its_engine_has_forgotten_does_not_keep_the_volume_for_ever() {
    let mut pair = Pair::own();
    // dockerd never sends the Unmount of a container that died with the dockerd before it.
    pair.volume("lost");
    pair.sleeper("loser", "lost");
    pair.docker.kill();
    pair.docker.start_again();
    pair.docker.ok("rm -f loser");
    // dockerd tries an Unmount for 15 s, then gives up for good.
    pair.volume("missed");
    pair.sleeper("quiet", "missed");
    pair.docker.ok("exec quiet touch /data/file");
    assert!(pair.wasmvol.stop().success());
    pair.docker.ok("stop -t 1 quiet");
    pair.wasmvol.run();
    // The same ID comes again from the same dockerd, and one Unmount for both.
    pair.docker.ok("start quiet");
    assert_eq!(pair.docker.ok("exec quiet ls /data"), "file");
    pair.docker.ok("rm -f quiet");
    for volume in ["lost", "missed"] {
        until_removed(&pair, volume);
    }
    assert_eq!(pair.wasmvol.volume_mounts(), []);
}

/// Removes a volume that has a rest of a holder: refused with the reason while the holder is younger than dockerd's longest wait.
fn until_removed(pair: &Pair, volume: &str) {
    until(
        &format!("the rest of a holder of `{volume}` is dropped"),
        Duration::from_secs(150),
        || {
            let removed = pair.docker.cli(&format!("volume rm {volume}"));
            let is_young = removed.stderr.contains("is in use: mounted 1 time by docker");
            assert!(is_young || removed.code == Some(0), "{removed:?}");
            (removed.code == Some(0)).then_some(())
        },
    );
}

#[test]
fn live_restore_keeps_the_data_over_a_restart_of_dockerd() {
    let mut pair = Pair::with(Docker::start_with_live_restore());
    pair.volume("lasting");
    pair.sleeper("survivor", "lasting");
    pair.docker.ok("exec survivor sh -c 'echo one > /data/file'");
    pair.docker.stop();
    pair.docker.start_again();
    assert_eq!(pair.docker.ok("exec survivor cat /data/file"), "one");
    pair.docker.kill();
    pair.docker.start_again();
    assert_eq!(pair.docker.ok("exec survivor cat /data/file"), "one");
    // A copy repeats the ID of a Mount that an earlier dockerd sent.
    pair.docker.ok("cp survivor:/data/file -");
    assert!(pair.wasmvol.is_mounted("lasting"));
    assert_eq!(pair.docker.ok("run --rm -v lasting:/data busybox cat /data/file"), "one");
    pair.docker.ok("stop -t 1 survivor");
    pair.wasmvol.wait_unmounted("lasting");
}

#[test]
fn a_dockerd_that_cannot_see_the_mount_is_told_so_and_how_to_mend_it() {
    let pair = Pair::with(Docker::start_blind());
    pair.volume("unseen");
    let error = pair.docker.refused("run --rm -v unseen:/data busybox touch /data/file");
    assert!(error.contains("mount namespace"), "{error}");
    assert!(!pair.wasmvol.is_mounted("unseen"), "a failed Mount is followed by no Unmount");
    let found = pair.wasmvol.cli("doctor");
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains("dockerd, process "), "{}", found.stdout);
    pair.docker.ok("volume rm unseen");
}

#[test]
fn containers_keep_their_data_while_the_daemon_is_killed() {
    keeps_data(Wasmvol::kill_daemon);
}

#[test]
fn containers_keep_their_data_while_mountd_is_killed() {
    keeps_data(|wasmvol| {
        wasmvol.kill_mountd();
        wasmvol.run();
    });
}

#[test]
fn containers_keep_their_data_while_wasmvol_is_stopped_and_started() {
    keeps_data(|wasmvol| {
        let status = wasmvol.stop();
        assert!(status.success(), "{status}");
        wasmvol.run();
    });
}

/// Containers run on two kinds of volumes while `interrupt` happens: nothing is lost, and the next Unmount works.
fn keeps_data(interrupt: impl Fn(&mut Wasmvol)) {
    let mut pair = Pair::own();
    pair.volume("disk");
    pair.docker.ok("volume create -d wasmvol -o driver=tmpfs memory");
    for volume in ["disk", "memory"] {
        pair.sleeper(&format!("on-{volume}"), volume);
        pair.docker.ok(&format!("exec on-{volume} sh -c 'echo before > /data/file'"));
    }
    interrupt(&mut pair.wasmvol);
    for volume in ["disk", "memory"] {
        assert_eq!(pair.docker.ok(&format!("exec on-{volume} cat /data/file")), "before");
        pair.docker.ok(&format!("exec on-{volume} sh -c 'echo after > /data/file'"));
        let second = pair.docker.ok(&format!("run --rm -v {volume}:/data busybox cat /data/file"));
        assert_eq!(second, "after", "a second container sees the data of the first");
        pair.docker.ok(&format!("rm -f on-{volume}"));
        pair.wasmvol.wait_unmounted(volume);
    }
    assert_eq!(pair.docker.ok("run --rm -v disk:/data busybox cat /data/file"), "after");
    pair.docker.ok("volume rm disk memory");
}

#[test]
fn a_call_that_breaks_off_fails_clearly_and_works_when_it_is_repeated() {
    let mut pair = Pair::own();
    let flag = open_to_all("outage");
    let run = "run --rm -v broken:/data busybox touch /data/file";
    for (step, line, again) in [
        ("create.made", "volume create -d wasmvol broken", "volume create -d wasmvol broken"),
        ("mount.attached", run, run),
        // What has begun to go is gone by then.
        ("remove.trashed", "volume rm broken", "volume rm -f broken"),
    ] {
        pair.wasmvol.kill_mountd();
        let armed = format!("{step}@{}", flag.display());
        pair.wasmvol.set_variables(&[(steps::KILL_AT, &armed)]);
        pair.wasmvol.run();
        fs::write(&flag, "").unwrap();
        // dockerd asks again, and its second request has lost its body.
        let error = pair.docker.refused(line);
        assert!(!flag.exists(), "{line} did not come to the step `{step}`");
        assert!(error.contains("empty request"), "{line}: {error}");
        pair.docker.ok(again);
    }
    assert_eq!(pair.wasmvol.volume_mounts(), []);
    assert_eq!(pair.wasmvol.plugin().list(), Vec::<String>::new());
}
