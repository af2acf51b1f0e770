//! What if dockerd or wasmvol goes away in between? Stopped, killed, blind, or broken off in the middle of a call.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use wasmvol_plan::steps;

use crate::drivers::hostile;
use crate::support::container::Container;
use crate::support::docker::Docker;
use crate::support::engine::{Engine, ask_every_engine};
use crate::support::pair;
use crate::support::wasmvol::{Wasmvol, send};
use crate::support::{SOON, mortal, open_to_all, spawn, until};

type Pair = pair::Pair<Docker>;

ask_every_engine!(
    containers_keep_their_data_while_the_daemon_is_killed,
    containers_keep_their_data_while_mountd_is_killed,
    containers_keep_their_data_while_wasmvol_is_stopped_and_started,
);

#[test]
fn a_dockerd_that_stops_unmounts_what_its_containers_used() {
    let mut pair = Pair::own();
    pair.volume("ended");
    pair.sleeper("ending", "ended");
    pair.engine.ok("exec ending touch /data/file");
    pair.engine.stop();
    pair.wasmvol.wait_unmounted("ended");
    pair.engine.start_again();
    pair.engine.ok("start ending");
    assert_eq!(pair.engine.ok("exec ending ls /data"), "file");
    pair.engine.ok("rm -f ending");
    pair.engine.ok("volume rm ended");
}

#[test]
fn a_dockerd_that_was_killed_sends_the_same_id_again_and_the_count_is_right() {
    let mut pair = Pair::own();
    pair.volume("orphaned");
    pair.sleeper("orphan", "orphaned");
    pair.engine.ok("exec orphan touch /data/file");
    pair.engine.kill();
    pair.engine.start_again();
    // No Unmount was sent for the first life; one is sent for the second.
    pair.engine.ok("start orphan");
    assert_eq!(pair.engine.ok("exec orphan ls /data"), "file");
    pair.engine.ok("stop -t 1 orphan");
    pair.wasmvol.wait_unmounted("orphaned");
    pair.engine.ok("rm orphan");
    pair.engine.ok("volume rm orphaned");
}

#[test]
fn a_holder_that_its_engine_has_forgotten_does_not_keep_the_volume_for_ever() {
    let mut pair = Pair::own();
    // dockerd never sends the Unmount of a container that died with the dockerd before it.
    pair.volume("lost");
    pair.sleeper("loser", "lost");
    pair.engine.kill();
    pair.engine.start_again();
    pair.engine.ok("rm -f loser");
    // dockerd tries an Unmount for 15 s, then gives up for good.
    pair.volume("missed");
    pair.sleeper("quiet", "missed");
    pair.engine.ok("exec quiet touch /data/file");
    assert!(pair.wasmvol.stop().success());
    pair.engine.ok("stop -t 1 quiet");
    pair.wasmvol.run();
    // The same ID comes again from the same dockerd, and one Unmount for both.
    pair.engine.ok("start quiet");
    assert_eq!(pair.engine.ok("exec quiet ls /data"), "file");
    pair.engine.ok("rm -f quiet");
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
            let removed = pair.engine.cli(&format!("volume rm {volume}"));
            let is_young = removed.stderr.contains("is in use: mounted 1 time by docker");
            assert!(is_young || removed.code == Some(0), "{removed:?}");
            (removed.code == Some(0)).then_some(())
        },
    );
}

#[test]
fn a_container_that_starts_with_dockerd_has_its_data_again() {
    let mut pair = Pair::own();
    pair.volume("steady");
    pair.engine.ok(
        "run -d --init --restart unless-stopped --name daily -v steady:/data busybox sleep 1000",
    );
    pair.engine.ok("exec daily touch /data/file");
    pair.engine.stop();
    pair.engine.start_again();
    until("the container runs again", SOON, || {
        let seen = pair.engine.cli("exec daily ls /data");
        (seen.code == Some(0)).then(|| assert_eq!(seen.ok(), "file"))
    });
    pair.engine.ok("stop -t 1 daily");
    pair.wasmvol.wait_unmounted("steady");
}

/// Stands for the row "Mount hangs" of Docker's faults with a real dockerd: one that is killed cuts its request as one that has
/// waited for 120 s does, and sends no Unmount either.
#[test]
fn a_mount_that_dockerd_did_not_live_to_hear_of_is_undone() {
    let mut pair = Pair::own();
    let mut started = hanging_start(&pair, "unheard");
    pair.engine.kill();
    assert!(!started.wait().unwrap().success());
    send(pair.wasmvol.mountd(), Signal::CONT);
    until("the Mount is undone", SOON, || {
        pair.wasmvol.log().contains("client has gone: its mount is undone").then_some(())
    });
    pair.wasmvol.wait_unmounted("unheard");
    pair.engine.start_again();
    pair.engine.ok("start unheard");
    pair.engine.ok("exec unheard touch /data/file");
    pair.discard("unheard");
    pair.wasmvol.wait_unmounted("unheard");
    pair.engine.ok("volume rm unheard");
}

#[test]
fn a_mount_goes_on_when_only_the_command_line_has_gone() {
    let pair = Pair::own();
    let mut started = hanging_start(&pair, "alone");
    started.kill().unwrap();
    started.wait().unwrap();
    send(pair.wasmvol.mountd(), Signal::CONT);
    until("the container runs", SOON, || {
        (pair.engine.cli("exec alone touch /data/file").code == Some(0)).then_some(())
    });
    assert!(pair.wasmvol.is_mounted("alone"));
    pair.discard("alone");
    pair.wasmvol.wait_unmounted("alone");
}

/// Starts a container of the same name as its volume, whose Mount hangs because mountd stands still.
fn hanging_start(pair: &Pair, name: &str) -> Child {
    const CALLED: &str = "was asked";
    pair.wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    // This driver says when it is called: the Mount is on its way when the driver was asked for a plan.
    pair.engine.ok(&format!("volume create -d wasmvol -o driver=hostile -o do=speak {name}"));
    pair.engine.ok(&format!("create --init --name {name} -v {name}:/data busybox sleep 1000"));
    let calls = || pair.wasmvol.log().matches(CALLED).count();
    let before = calls();
    send(pair.wasmvol.mountd(), Signal::STOP);
    let mut command = mortal("docker");
    command.args(["start", name]).envs(pair.engine.variables());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let started = spawn(command);
    until("the driver is asked", SOON, || (calls() > before).then_some(()));
    started
}

#[test]
fn live_restore_keeps_the_data_over_a_restart_of_dockerd() {
    let mut pair = Pair::with(Docker::start_with_live_restore());
    pair.volume("lasting");
    pair.sleeper("survivor", "lasting");
    pair.engine.ok("exec survivor sh -c 'echo one > /data/file'");
    pair.engine.stop();
    pair.engine.start_again();
    assert_eq!(pair.engine.ok("exec survivor cat /data/file"), "one");
    pair.engine.kill();
    pair.engine.start_again();
    assert_eq!(pair.engine.ok("exec survivor cat /data/file"), "one");
    // A copy repeats the ID of a Mount that an earlier dockerd sent.
    pair.engine.ok("cp survivor:/data/file -");
    assert!(pair.wasmvol.is_mounted("lasting"));
    assert_eq!(pair.engine.ok("run --rm -v lasting:/data busybox cat /data/file"), "one");
    pair.engine.ok("stop -t 1 survivor");
    pair.wasmvol.wait_unmounted("lasting");
}

#[test]
fn a_dockerd_that_cannot_see_the_mount_is_told_so_and_how_to_mend_it() {
    let pair = Pair::with(Docker::start_blind());
    pair.volume("unseen");
    let error = pair.engine.refused("run --rm -v unseen:/data busybox touch /data/file");
    assert!(error.contains("mount namespace"), "{error}");
    assert!(!pair.wasmvol.is_mounted("unseen"), "a failed Mount is followed by no Unmount");
    let found = pair.wasmvol.cli("doctor");
    assert_eq!(found.code, Some(1));
    assert!(found.stdout.contains("dockerd, process "), "{}", found.stdout);
    pair.engine.ok("volume rm unseen");
}

fn containers_keep_their_data_while_the_daemon_is_killed<E: Engine>() {
    keeps_data::<E>(Wasmvol::kill_daemon);
}

fn containers_keep_their_data_while_mountd_is_killed<E: Engine>() {
    keeps_data::<E>(|wasmvol| {
        wasmvol.kill_mountd();
        wasmvol.run();
    });
}

fn containers_keep_their_data_while_wasmvol_is_stopped_and_started<E: Engine>() {
    keeps_data::<E>(|wasmvol| {
        let status = wasmvol.stop();
        assert!(status.success(), "{status}");
        wasmvol.run();
    });
}

/// Containers run on two kinds of volumes while `interrupt` happens: nothing is lost, and the next Unmount works.
fn keeps_data<E: Engine>(interrupt: impl Fn(&mut Wasmvol)) {
    let mut pair = pair::Pair::<E>::own();
    pair.volume("disk");
    pair.engine.ok("volume create --driver wasmvol --opt driver=tmpfs memory");
    for volume in ["disk", "memory"] {
        pair.sleeper(&format!("on-{volume}"), volume);
        pair.engine.ok(&format!("exec on-{volume} sh -c 'echo before > /data/file'"));
    }
    interrupt(&mut pair.wasmvol);
    for volume in ["disk", "memory"] {
        assert_eq!(pair.engine.ok(&format!("exec on-{volume} cat /data/file")), "before");
        pair.engine.ok(&format!("exec on-{volume} sh -c 'echo after > /data/file'"));
        let second = pair.engine.ok(&format!("run --rm -v {volume}:/data busybox cat /data/file"));
        assert_eq!(second, "after", "a second container sees the data of the first");
        pair.discard(&format!("on-{volume}"));
        pair.wasmvol.wait_unmounted(volume);
    }
    assert_eq!(pair.engine.ok("run --rm -v disk:/data busybox cat /data/file"), "after");
    pair.engine.ok("volume rm disk memory");
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
        let error = pair.engine.refused(line);
        assert!(!flag.exists(), "{line} did not come to the step `{step}`");
        assert!(error.contains("empty request"), "{line}: {error}");
        pair.engine.ok(again);
    }
    assert_eq!(pair.wasmvol.volume_mounts(), []);
    assert_eq!(pair.wasmvol.plugin().list(), Vec::<String>::new());
}

#[test]
fn the_cure_of_a_mount_table_that_cannot_be_read_takes_nothing_from_a_container() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("volume create left -d tmpfs").ok();
    wasmvol.cli("volume create held -d tmpfs").ok();
    wasmvol.cli("volume mount left").ok();
    let mountpoint = wasmvol.cli("volume mount held").ok();
    fs::write(format!("{mountpoint}/file"), "hello").unwrap();
    let container = Container::with(mountpoint.as_ref());
    assert!(wasmvol.stop().success());
    let table = wasmvol.runtime().join("table/mounts.redb").canonicalize().unwrap();
    fs::write(&table, "something else").unwrap();

    wasmvol.launch();
    assert_eq!(wasmvol.wait_end().code(), Some(78));
    let (log, cure) = (wasmvol.log(), format!("remove `{}`", table.display()));
    assert!(log.lines().any(|line| line.contains("mount table") && line.contains(&cure)), "{log}");

    fs::remove_file(table).unwrap();
    wasmvol.run();
    wasmvol.wait_unmounted("left");
    container.mount();
    assert_eq!(wasmvol.cli("volume mount held").ok(), mountpoint);
    assert_eq!(fs::read_to_string(format!("{mountpoint}/file")).unwrap(), "hello");
}

#[test]
fn a_runtime_directory_on_a_disk_is_warned_of_and_one_in_memory_is_not() {
    let is_warned_of = |wasmvol: &Wasmvol| wasmvol.log().contains("is on a disk");
    let anywhere = Wasmvol::start();
    let kind = anywhere.shell(&format!("stat -fc %T {}", anywhere.runtime().display())).ok();
    assert_eq!(is_warned_of(&anywhere), !["tmpfs", "ramfs"].contains(&kind.as_str()), "{kind}");

    let mut in_memory = Wasmvol::install();
    let line = "mkdir \"$0\" && mount -t tmpfs -o mode=755 none \"$0\"";
    in_memory.shell(&format!("sh -c '{line}' {}", in_memory.runtime().display())).ok();
    in_memory.run();
    assert!(!is_warned_of(&in_memory), "{}", in_memory.log());
}
