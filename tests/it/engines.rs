//! What does every engine get? Each question is asked of a real dockerd and of a real podman, by their command lines.
//!
//! All tests of an engine share it and its wasmvol, with volumes of their own names. What only one engine does is in `docker.rs`
//! and `podman.rs`.

use std::fs;
use std::path::Path;

use crate::support::engine::{Engine, ask_every_engine};
use crate::support::pair::Pair;

ask_every_engine!(
    options_reach_the_volume,
    a_misspelt_option_is_answered_with_the_right_one_and_makes_nothing,
    ls_and_inspect_show_the_volume,
    the_mountpoint_is_the_same_before_and_after_the_first_mount,
    a_run_mounts_and_its_end_unmounts,
    data_outlives_the_container_and_goes_with_the_volume,
    a_removed_name_starts_empty_when_it_is_made_again,
    containers_share_a_volume_until_the_last_has_gone,
    a_volume_may_appear_twice_in_one_container,
    a_container_takes_volumes_from_another,
    a_copy_into_a_running_container_leaves_its_data_mounted,
    stop_unmounts_and_start_mounts_again,
    a_killed_container_holds_nothing,
    a_container_that_cannot_start_holds_nothing,
    a_volume_in_use_is_not_removed,
    what_the_image_has_there_is_copied_into_the_volume,
    a_read_only_use_cannot_write,
    a_tmpfs_volume_is_as_large_as_asked,
    a_volume_that_is_not_there_is_said_to_be_none,
);

fn options_reach_the_volume<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.engine
        .ok("volume create --driver wasmvol --opt mode=0750 --opt uid=1000 --opt gid=1001 options");
    let seen = pair.engine.ok("run --rm -v options:/data busybox stat -c '%a %u %g' /data");
    assert_eq!(seen, "750 1000 1001");
}

fn a_misspelt_option_is_answered_with_the_right_one_and_makes_nothing<E: Engine>() {
    let pair = Pair::<E>::shared();
    let create = "volume create --driver wasmvol --opt";
    let error = pair.engine.refused(&format!("{create} moed=0750 misspelt"));
    assert!(error.contains("no option `moed`: did you mean `mode`?"), "{error}");
    assert!(error.contains("`local` takes: "), "{error}");
    let error = pair.engine.refused(&format!("{create} driver=tmpfs --opt sise=1g misspelt"));
    assert!(error.contains("no option `sise`: did you mean `size`?"), "{error}");
    assert!(error.contains("`tmpfs` takes: "), "{error}");
    assert!(!pair.engine.ok("volume ls -q").contains("misspelt"));
    assert_eq!(pair.wasmvol.plugin().get("misspelt").unwrap_err(), "no such volume");
}

fn ls_and_inspect_show_the_volume<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.engine.ok("volume create --driver wasmvol --label colour=blue shown");
    let listed = pair.engine.ok("volume ls --format '{{.Driver}} {{.Name}}'");
    assert!(listed.lines().any(|line| line == "wasmvol shown"), "{listed}");
    let shown = pair.inspect("shown");
    assert_eq!(shown["Name"], "shown");
    assert_eq!(shown["Driver"], "wasmvol");
    assert_eq!(shown["Scope"], "local");
    assert_eq!(shown["Labels"]["colour"], "blue");
    let created = shown["CreatedAt"].as_str().unwrap();
    assert!(created.starts_with("20"), "the time of the create, not Go's zero: {created}");
    assert_eq!(shown["Status"]["driver"], "local");
}

fn the_mountpoint_is_the_same_before_and_after_the_first_mount<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("stable");
    let before = pair.wasmvol.plugin().path("stable").unwrap();
    assert_eq!(before.parent().unwrap(), pair.wasmvol.anchor());
    // dockerd records with a container what it heard last of its volume; of a Create it hears no mountpoint.
    pair.inspect("stable");
    pair.sleeper("stable-user", "stable");
    assert_eq!(pair.wasmvol.plugin().path("stable").unwrap(), before);
    assert_eq!(pair.inspect("stable")["Mountpoint"], before.to_str().unwrap());
    let source = pair.engine.ok("inspect -f '{{(index .Mounts 0).Source}}' stable-user");
    assert_eq!(Path::new(&source), before);
    pair.discard("stable-user");
}

fn a_run_mounts_and_its_end_unmounts<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("run");
    pair.engine.ok("run --rm -v run:/data busybox sh -c 'echo kept > /data/file'");
    pair.wasmvol.wait_unmounted("run");
    assert_eq!(pair.engine.ok("run --rm -v run:/data busybox cat /data/file"), "kept");
}

fn data_outlives_the_container_and_goes_with_the_volume<E: Engine>() {
    let pair = Pair::<E>::own();
    pair.volume("data");
    pair.engine.ok("run --name writer -v data:/data busybox sh -c 'echo precious > /data/file'");
    pair.engine.ok("rm writer");
    assert_eq!(pair.engine.ok("run --rm -v data:/data busybox cat /data/file"), "precious");
    pair.engine.ok("volume rm data");
    assert_eq!(pair.wasmvol.entries("volumes"), Vec::<String>::new());
    pair.wasmvol.wait_reaped();
    assert_eq!(pair.engine.ok("volume ls -q"), "");
}

fn a_removed_name_starts_empty_when_it_is_made_again<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("reborn");
    let first = pair.wasmvol.plugin().path("reborn").unwrap();
    pair.engine.ok("run --rm -v reborn:/data busybox touch /data/file");
    pair.engine.ok("volume rm reborn");
    pair.volume("reborn");
    assert_eq!(pair.engine.ok("run --rm -v reborn:/data busybox ls /data"), "");
    assert_ne!(pair.wasmvol.plugin().path("reborn").unwrap(), first);
}

fn containers_share_a_volume_until_the_last_has_gone<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("common");
    pair.sleeper("first", "common");
    pair.sleeper("second", "common");
    pair.engine.ok("exec first sh -c 'echo hello > /data/file'");
    assert_eq!(pair.engine.ok("exec second cat /data/file"), "hello");
    pair.discard("first");
    assert_eq!(pair.engine.ok("exec second cat /data/file"), "hello");
    assert!(pair.wasmvol.is_mounted("common"));
    pair.discard("second");
    pair.wasmvol.wait_unmounted("common");
}

fn a_volume_may_appear_twice_in_one_container<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("twice");
    let line =
        "run --rm -v twice:/one -v twice:/two busybox sh -c 'echo x > /one/file; cat /two/file'";
    assert_eq!(pair.engine.ok(line), "x");
    pair.wasmvol.wait_unmounted("twice");
}

fn a_container_takes_volumes_from_another<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("lent");
    pair.sleeper("lender", "lent");
    pair.engine.ok("run --rm --volumes-from lender busybox touch /data/file");
    assert_eq!(pair.engine.ok("exec lender ls /data"), "file");
    pair.discard("lender");
    pair.wasmvol.wait_unmounted("lent");
}

fn a_copy_into_a_running_container_leaves_its_data_mounted<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("copied");
    pair.sleeper("target", "copied");
    let file = pair.wasmvol.path("from-outside");
    fs::write(&file, "hello").unwrap();
    // dockerd sends the ID of the live mount again: Mount, then Unmount.
    for _ in 0..3 {
        pair.engine.ok(&format!("cp {} target:/data/file", file.display()));
        assert_eq!(pair.engine.ok("exec target cat /data/file"), "hello");
        assert!(pair.wasmvol.is_mounted("copied"));
    }
    pair.engine.ok("exec target sh -c 'echo changed > /data/file'");
    assert_eq!(pair.engine.ok("run --rm -v copied:/data busybox cat /data/file"), "changed");
    pair.discard("target");
    pair.wasmvol.wait_unmounted("copied");
}

fn stop_unmounts_and_start_mounts_again<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("stopped");
    pair.sleeper("stopping", "stopped");
    pair.engine.ok("exec stopping touch /data/file");
    pair.engine.ok(&format!("{} stopping", E::STOP));
    pair.wasmvol.wait_unmounted("stopped");
    pair.engine.ok("start stopping");
    assert_eq!(pair.engine.ok("exec stopping ls /data"), "file");
    pair.engine.ok("restart -t 1 stopping");
    assert_eq!(pair.engine.ok("exec stopping ls /data"), "file");
    pair.discard("stopping");
    pair.wasmvol.wait_unmounted("stopped");
}

fn a_killed_container_holds_nothing<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("struck");
    pair.sleeper("striking", "struck");
    pair.engine.ok("kill striking");
    pair.wasmvol.wait_unmounted("struck");
    pair.engine.ok("rm striking");
    pair.engine.ok("volume rm struck");
}

fn a_container_that_cannot_start_holds_nothing<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("failed");
    pair.engine.refused("run --name failing -v failed:/data busybox /no/such/program");
    pair.wasmvol.wait_unmounted("failed");
    pair.engine.ok("rm failing");
    pair.engine.ok("volume rm failed");
}

fn a_volume_in_use_is_not_removed<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("used");
    pair.sleeper("user", "used");
    let error = pair.engine.refused("volume rm used");
    assert!(error.contains("in use") || error.contains("being used"), "{error}");
    pair.engine.ok("exec user touch /data/file");
    pair.discard("user");
    pair.engine.ok("volume rm used");
}

fn what_the_image_has_there_is_copied_into_the_volume<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("filled");
    pair.engine.ok("run --rm -v filled:/bin busybox true");
    let listed = pair.engine.ok("run --rm -v filled:/data busybox ls /data");
    assert!(listed.lines().any(|name| name == "busybox"), "{listed}");
    pair.wasmvol.wait_unmounted("filled");
}

fn a_read_only_use_cannot_write<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.volume("guarded");
    let error = pair.engine.refused("run --rm -v guarded:/data:ro busybox touch /data/file");
    assert!(error.contains("Read-only file system"), "{error}");
    pair.engine.ok("run --rm -v guarded:/data busybox touch /data/file");
}

fn a_tmpfs_volume_is_as_large_as_asked<E: Engine>() {
    let pair = Pair::<E>::shared();
    pair.engine.ok("volume create --driver wasmvol --opt driver=tmpfs --opt size=1m small");
    pair.sleeper("filler", "small");
    let error = pair.engine.refused("exec filler dd if=/dev/zero of=/data/file bs=1M count=2");
    assert!(error.contains("No space left on device"), "{error}");
    pair.discard("filler");
}

fn a_volume_that_is_not_there_is_said_to_be_none<E: Engine>() {
    let pair = Pair::<E>::shared();
    for line in ["volume rm nowhere", "volume inspect nowhere"] {
        let error = pair.engine.refused(line).to_lowercase();
        assert!(error.contains("no such volume") || error.contains("no volume"), "{line}: {error}");
    }
    pair.engine.ok("volume rm -f nowhere");
}
