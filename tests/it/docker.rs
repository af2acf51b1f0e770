//! Does a real dockerd get what it expects? Every sequence of calls that Docker's command line causes, by that command line.
//!
//! Tests share one dockerd and one wasmvol, with volumes of their own names, unless they stop or kill one of them.

use std::fs;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::support::docker::Docker;
use crate::support::wasmvol::Wasmvol;
use crate::support::{Outcome, shell, until};

/// A dockerd and the wasmvol that it finds in its plugin directory.
pub(crate) struct Pair {
    wasmvol: Wasmvol,
    docker: Docker,
}

impl Pair {
    fn with(docker: Docker) -> Self {
        Self { wasmvol: Wasmvol::start_for(&docker.plugins()), docker }
    }

    /// A pair that no other test uses.
    pub(crate) fn own() -> Self {
        Self::with(Docker::start())
    }

    /// Runs a line of shell in which `docker` and `wasmvol` are these.
    pub(crate) fn shell(&self, line: &str) -> Outcome {
        shell(line, &[self.docker.variables(), self.wasmvol.variables()].concat())
    }

    /// The pair that tests share while any of them runs.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Pair>> = Mutex::new(Weak::new());
        // A test that failed to start the pair poisons nothing: the next one tries again.
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let pair = Arc::new(Self::own());
            *shared = Arc::downgrade(&pair);
            pair
        })
    }

    /// Makes a volume of the default driver.
    fn volume(&self, name: &str) {
        self.docker.ok(&format!("volume create -d wasmvol {name}"));
    }

    /// Starts a container that runs for as long as the test, with the volume at /data.
    fn sleeper(&self, container: &str, volume: &str) {
        self.docker
            .ok(&format!("run -d --init --name {container} -v {volume}:/data busybox sleep 1000"));
    }

    /// Inspects a volume.
    fn inspect(&self, volume: &str) -> Value {
        let text = self.docker.ok(&format!("volume inspect {volume}"));
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }
}

#[test]
fn options_reach_the_volume() {
    let pair = Pair::shared();
    pair.docker.ok("volume create -d wasmvol -o mode=0750 -o uid=1000 -o gid=1001 options");
    let seen = pair.docker.ok("run --rm -v options:/data busybox stat -c '%a %u %g' /data");
    assert_eq!(seen, "750 1000 1001");
}

#[test]
fn a_misspelt_option_is_answered_with_the_right_one() {
    let pair = Pair::shared();
    let error = pair.docker.refused("volume create -d wasmvol -o driver=tmpfs -o sise=1g misspelt");
    assert!(error.contains("no option `sise`: did you mean `size`?"), "{error}");
    assert!(error.contains("`tmpfs` takes: "), "{error}");
    assert!(!pair.docker.ok("volume ls -q").contains("misspelt"));
}

#[test]
fn a_size_of_a_directory_is_refused_with_what_has_a_size() {
    let pair = Pair::shared();
    let error = pair.docker.refused("volume create -d wasmvol -o size=1g sized");
    assert!(error.contains("-o driver=tmpfs -o size="), "{error}");
}

#[test]
fn ls_and_inspect_show_the_volume() {
    let pair = Pair::shared();
    pair.docker.ok("volume create -d wasmvol --label colour=blue shown");
    let listed = pair.docker.ok("volume ls --format '{{.Driver}} {{.Name}}'");
    assert!(listed.lines().any(|line| line == "wasmvol shown"), "{listed}");
    let shown = pair.inspect("shown");
    assert_eq!(shown["Name"], "shown");
    assert_eq!(shown["Driver"], "wasmvol");
    assert_eq!(shown["Scope"], "local");
    assert_eq!(shown["Labels"]["colour"], "blue");
    let mountpoint = shown["Mountpoint"].as_str().unwrap();
    assert!(mountpoint.starts_with(pair.wasmvol.anchor().to_str().unwrap()), "{mountpoint}");
    let created = shown["CreatedAt"].as_str().unwrap();
    assert!(created.starts_with("20"), "the time of the create, not Go's zero: {created}");
    assert_eq!(shown["Status"]["driver"], "local");
}

#[test]
fn the_mountpoint_is_the_same_before_and_after_the_first_mount() {
    let pair = Pair::shared();
    pair.volume("stable");
    let before = pair.inspect("stable")["Mountpoint"].clone();
    pair.sleeper("stable-user", "stable");
    assert_eq!(pair.inspect("stable")["Mountpoint"], before);
    let source = pair.docker.ok("inspect -f '{{(index .Mounts 0).Source}}' stable-user");
    assert_eq!(Value::from(source), before);
}

#[test]
fn creating_a_volume_again_is_no_error() {
    let pair = Pair::shared();
    pair.volume("again");
    pair.docker.ok("run --rm -v again:/data busybox touch /data/file");
    pair.volume("again");
    assert_eq!(pair.docker.ok("run --rm -v again:/data busybox ls /data"), "file");
}

#[test]
fn data_outlives_the_container_and_goes_with_the_volume() {
    let pair = Pair::own();
    pair.volume("data");
    pair.docker.ok("run --name writer -v data:/data busybox sh -c 'echo precious > /data/file'");
    pair.docker.ok("rm writer");
    assert_eq!(pair.docker.ok("run --rm -v data:/data busybox cat /data/file"), "precious");
    pair.docker.ok("volume rm data");
    assert_eq!(pair.wasmvol.entries("volumes"), Vec::<String>::new());
    pair.wasmvol.wait_reaped();
    assert!(!pair.docker.ok("volume ls -q").contains("data"));
}

#[test]
fn two_containers_share_a_volume() {
    let pair = Pair::shared();
    pair.volume("common");
    pair.sleeper("first", "common");
    pair.sleeper("second", "common");
    pair.docker.ok("exec first sh -c 'echo hello > /data/file'");
    assert_eq!(pair.docker.ok("exec second cat /data/file"), "hello");
    pair.docker.ok("rm -f first");
    assert_eq!(pair.docker.ok("exec second cat /data/file"), "hello");
    assert!(pair.wasmvol.is_mounted("common"));
    pair.docker.ok("rm -f second");
    pair.wasmvol.wait_unmounted("common");
}

#[test]
fn a_volume_may_appear_twice_in_one_container() {
    let pair = Pair::shared();
    pair.volume("twice");
    let line =
        "run --rm -v twice:/one -v twice:/two busybox sh -c 'echo x > /one/file; cat /two/file'";
    assert_eq!(pair.docker.ok(line), "x");
    pair.wasmvol.wait_unmounted("twice");
}

#[test]
fn a_container_takes_volumes_from_another() {
    let pair = Pair::shared();
    pair.volume("lent");
    pair.sleeper("lender", "lent");
    pair.docker.ok("run --rm --volumes-from lender busybox touch /data/file");
    assert_eq!(pair.docker.ok("exec lender ls /data"), "file");
}

#[test]
fn a_copy_into_a_running_container_leaves_its_data_mounted() {
    let pair = Pair::shared();
    pair.volume("copied");
    pair.sleeper("target", "copied");
    let file = pair.wasmvol.path("from-outside");
    fs::write(&file, "hello").unwrap();
    // dockerd sends the ID of the live mount again: Mount, then Unmount.
    for _ in 0..3 {
        pair.docker.ok(&format!("cp {} target:/data/file", file.display()));
        assert_eq!(pair.docker.ok("exec target cat /data/file"), "hello");
        assert!(pair.wasmvol.is_mounted("copied"));
    }
    pair.docker.ok("exec target sh -c 'echo changed > /data/file'");
    assert_eq!(pair.docker.ok("run --rm -v copied:/data busybox cat /data/file"), "changed");
    pair.docker.ok("rm -f target");
    pair.wasmvol.wait_unmounted("copied");
}

#[test]
fn a_copy_into_a_stopped_container_reaches_the_volume() {
    let pair = Pair::shared();
    pair.volume("copied-stopped");
    pair.docker.ok("create --name stopped -v copied-stopped:/data busybox true");
    let file = pair.wasmvol.path("for-the-stopped");
    fs::write(&file, "hello").unwrap();
    pair.docker.ok(&format!("cp {} stopped:/data/file", file.display()));
    assert_eq!(pair.docker.ok("run --rm -v copied-stopped:/data busybox cat /data/file"), "hello");
    pair.wasmvol.wait_unmounted("copied-stopped");
}

#[test]
fn stop_unmounts_and_start_mounts_again() {
    let pair = Pair::shared();
    pair.volume("stopped");
    pair.sleeper("stopping", "stopped");
    pair.docker.ok("exec stopping touch /data/file");
    pair.docker.ok("stop -t 1 stopping");
    pair.wasmvol.wait_unmounted("stopped");
    pair.docker.ok("start stopping");
    assert_eq!(pair.docker.ok("exec stopping ls /data"), "file");
    pair.docker.ok("restart -t 1 stopping");
    assert_eq!(pair.docker.ok("exec stopping ls /data"), "file");
    pair.docker.ok("kill stopping");
    pair.wasmvol.wait_unmounted("stopped");
}

#[test]
fn a_container_that_cannot_start_holds_nothing() {
    let pair = Pair::shared();
    pair.volume("failed");
    pair.docker.refused("run --name failing -v failed:/data busybox /no/such/program");
    pair.wasmvol.wait_unmounted("failed");
    pair.docker.ok("rm failing");
    pair.docker.ok("volume rm failed");
}

#[test]
fn a_container_that_is_restarted_by_its_policy_keeps_its_data() {
    let pair = Pair::shared();
    pair.volume("retried");
    let script = "echo x >> /data/runs; exit 1";
    pair.docker.ok(&format!(
        "run -d --name retrying --restart on-failure:2 -v retried:/data busybox sh -c '{script}'"
    ));
    assert_eq!(pair.docker.ok("wait retrying"), "1");
    until("the policy gives up", Duration::from_secs(30), || {
        let runs = pair.docker.ok("run --rm -v retried:/data busybox cat /data/runs");
        (runs.lines().count() == 3).then_some(())
    });
    pair.wasmvol.wait_unmounted("retried");
}

#[test]
fn a_volume_in_use_is_not_removed() {
    let pair = Pair::shared();
    pair.volume("used");
    pair.sleeper("user", "used");
    let error = pair.docker.refused("volume rm used");
    assert!(error.contains("volume is in use"), "{error}");
    pair.docker.refused("volume rm -f used");
    pair.docker.ok("exec user touch /data/file");
}

#[test]
fn rm_with_volumes_takes_the_anonymous_one_and_leaves_the_named_one() {
    let pair = Pair::shared();
    pair.volume("named");
    let before = pair.wasmvol.plugin().list();
    pair.docker.ok("run -d --init --name both -v named:/named \
         --mount type=volume,dst=/anonymous,volume-driver=wasmvol busybox sleep 1000");
    let anonymous = pair.docker.ok(
        "inspect -f '{{range .Mounts}}{{if eq .Destination \"/anonymous\"}}{{.Name}}{{end}}{{end}}' both",
    );
    assert!(!before.contains(&anonymous));
    assert!(pair.wasmvol.is_mounted(&anonymous));
    pair.docker.ok("rm -fv both");
    assert!(pair.wasmvol.plugin().get(&anonymous).is_err());
    pair.wasmvol.plugin().get("named").unwrap();
}

#[test]
fn a_mount_flag_creates_the_volume_with_its_options() {
    let pair = Pair::shared();
    let line = "run --rm --mount type=volume,src=implicit,dst=/data,volume-driver=wasmvol,\
                volume-opt=driver=tmpfs,volume-opt=size=5m busybox stat -f -c %T /data";
    assert_eq!(pair.docker.ok(line), "tmpfs");
    assert_eq!(pair.inspect("implicit")["Status"]["driver"], "tmpfs");
}

#[test]
fn prune_leaves_our_volumes() {
    let pair = Pair::shared();
    pair.volume("unused");
    pair.docker.ok("volume prune -f");
    pair.wasmvol.plugin().get("unused").unwrap();
}

#[test]
fn what_the_image_has_there_is_copied_into_the_volume() {
    let pair = Pair::shared();
    pair.volume("filled");
    pair.docker.ok("run --rm -v filled:/bin busybox true");
    let listed = pair.docker.ok("run --rm -v filled:/data busybox ls /data");
    assert!(listed.lines().any(|name| name == "busybox"), "{listed}");
}

#[test]
fn a_read_only_use_cannot_write() {
    let pair = Pair::shared();
    pair.volume("guarded");
    let error = pair.docker.refused("run --rm -v guarded:/data:ro busybox touch /data/file");
    assert!(error.contains("Read-only file system"), "{error}");
    pair.docker.ok("run --rm -v guarded:/data busybox touch /data/file");
}

#[test]
fn a_tmpfs_volume_is_as_large_as_asked() {
    let pair = Pair::shared();
    pair.docker.ok("volume create -d wasmvol -o driver=tmpfs -o size=1m small");
    pair.sleeper("filler", "small");
    let error = pair.docker.refused("exec filler dd if=/dev/zero of=/data/file bs=1M count=2");
    assert!(error.contains("No space left on device"), "{error}");
}

#[test]
fn a_removed_name_starts_empty_when_it_is_made_again() {
    let pair = Pair::shared();
    pair.volume("reborn");
    let first = pair.inspect("reborn")["Mountpoint"].clone();
    pair.docker.ok("run --rm -v reborn:/data busybox touch /data/file");
    pair.docker.ok("volume rm reborn");
    pair.volume("reborn");
    assert_eq!(pair.docker.ok("run --rm -v reborn:/data busybox ls /data"), "");
    assert_ne!(pair.inspect("reborn")["Mountpoint"], first);
}

#[test]
fn a_volume_that_was_removed_behind_its_back_is_no_error_to_docker() {
    let pair = Pair::shared();
    pair.volume("vanished");
    pair.wasmvol.plugin().remove("vanished").unwrap();
    pair.docker.ok("volume rm -f vanished");
    let error = pair.docker.refused("volume inspect vanished");
    assert!(error.to_lowercase().contains("no such volume"), "{error}");
}

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
