//! Does a real dockerd get what it expects? Every sequence of calls that Docker's command line causes, by that command line.
//!
//! All tests share one dockerd and one wasmvol, with volumes of their own names.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::pair::Pair;
use crate::support::until;

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
