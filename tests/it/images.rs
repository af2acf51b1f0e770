//! Images and subvolumes, made by their drivers and used by containers: what a volume of a size holds, and that it outlives what is killed.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use wasmvol_plan::steps::RESIZE;

use crate::support::docker::Docker;
use crate::support::engine::Engine;
use crate::support::shelf::loops;
use crate::support::wasmvol::{PROGRAMS, Wasmvol, children_of, is_running, send};
use crate::support::{Frozen, SOON, open_to_all, until};

type Pair = crate::support::pair::Pair<Docker>;

const MIB: u64 = 1 << 20;

/// Gives the driver what an operator must.
fn grant(wasmvol: &Wasmvol) {
    let component = PROGRAMS.parent().unwrap().join("drivers/image.wasm");
    wasmvol.cli(&format!("driver load {} --grant image", component.display())).ok();
}

#[test]
fn an_image_is_refused_until_the_operator_grants_it_and_names_the_grant() {
    let wasmvol = Wasmvol::start();
    let options = [("driver", "image"), ("size", "16m")];
    let error = wasmvol.plugin().create("early", &options).unwrap_err();
    assert!(error.contains("`wasmvol driver grant image 'image'`"), "{error}");
    grant(&wasmvol);
    wasmvol.plugin().create("early", &options).unwrap();
    for (size, reason) in
        [("1k", "at least 8 MiB"), ("0", "at least 8 MiB"), ("65t", "at most 64 TiB")]
    {
        let options = [("driver", "image"), ("size", size)];
        let error = wasmvol.plugin().create("odd", &options).unwrap_err();
        assert!(error.contains(reason), "{size}: {error}");
    }
    assert_eq!(wasmvol.plugin().list(), ["early"]);
}

#[test]
fn an_image_is_encrypted_by_a_secret_that_is_kept_or_not_made() {
    let wasmvol = Wasmvol::start();
    grant(&wasmvol);
    let options = [("driver", "image"), ("size", "32m"), ("encrypt", "vault")];
    let error = wasmvol.plugin().create("dark", &options).unwrap_err();
    assert!(error.starts_with("option `encrypt`: no secret of that name is kept"), "{error}");
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
    assert_eq!((wasmvol.entries("volumes"), loops(&wasmvol.state())), (Vec::<String>::new(), 0));
}

#[test]
fn containers_share_an_image_fill_it_and_get_more_room_while_they_run() {
    let pair = Pair::own();
    grant(&pair.wasmvol);
    pair.engine.ok("volume create -d wasmvol -o driver=image -o size=300m -o fs=xfs -o thin sized");
    pair.sleeper("first", "sized");
    pair.sleeper("second", "sized");
    let fill = "exec first sh -c 'dd if=/dev/zero of=/data/full bs=1M 2>&1'";
    let full = pair.engine.refused(fill);
    let said = pair.engine.ok("exec first sh -c 'dd if=/dev/zero of=/data/more bs=1M 2>&1; true'");
    assert!(said.contains("No space left on device"), "{said} {full}");
    let written =
        || -> u64 { pair.engine.ok("exec second stat -c %s /data/full").parse().unwrap() };
    let before = written();
    assert!(before < 300 * MIB, "{before}");
    let shown = pair.wasmvol.json("volume resize sized 400m");
    assert_eq!(shown["status"]["options"]["size"], (400 * MIB).to_string());
    pair.engine.ok("exec second dd if=/dev/zero of=/data/room bs=1M count=64");
    let error = pair.wasmvol.cli("volume resize sized 350m").refused();
    assert!(error.contains("never gets smaller"), "{error}");
    assert_eq!(written(), before);
    assert_eq!(loops(&pair.wasmvol.state()), 1);
    pair.discard("first");
    pair.discard("second");
    pair.wasmvol.wait_unmounted("sized");
    // The kernel frees it once the file system has gone, which may be a moment after its mount.
    until("its device is freed", SOON, || (loops(&pair.wasmvol.state()) == 0).then_some(()));
    pair.engine.ok("volume rm sized");
    pair.wasmvol.wait_reaped();
}

#[test]
fn a_container_keeps_its_image_when_the_daemon_and_mountd_are_killed() {
    let mut wasmvol = Wasmvol::start();
    grant(&wasmvol);
    let plugin = wasmvol.plugin();
    plugin.create("kept", &[("driver", "image"), ("size", "32m")]).unwrap();
    let path = plugin.mount("kept", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    wasmvol.kill_daemon();
    wasmvol.kill_mountd();
    wasmvol.run();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(plugin.mount("kept", "id").unwrap(), path);
    assert_eq!(loops(&wasmvol.state()), 1);
    for _ in 0..2 {
        plugin.unmount("kept", "id").unwrap();
    }
    wasmvol.wait_unmounted("kept");
    plugin.mount("kept", "other").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    plugin.unmount("kept", "other").unwrap();
    plugin.remove("kept").unwrap();
    wasmvol.wait_reaped();
    assert_eq!(loops(&wasmvol.state()), 0);
}

#[test]
fn a_resize_that_was_killed_at_any_step_leaves_a_volume_that_works_and_is_ended_by_another() {
    for step in RESIZE {
        let mut wasmvol = Wasmvol::install();
        let flag = open_to_all(&format!("flag-{step}"));
        fs::write(&flag, "").unwrap();
        wasmvol.set_variables(&[("WASMVOL_KILL_AT", &format!("{step}@{}", flag.display()))]);
        wasmvol.run();
        grant(&wasmvol);
        let plugin = wasmvol.plugin();
        let options = [("driver", "image"), ("size", "300m"), ("fs", "xfs"), ("thin", "true")];
        plugin.create("sized", &options).unwrap();
        let path = plugin.mount("sized", "id").unwrap();
        fs::write(path.join("file"), "kept").unwrap();
        wasmvol.cli("volume resize sized 400m").refused();
        assert!(!flag.exists(), "{step} was reached");
        wasmvol.wait_ready();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept", "{step}");
        let shown = wasmvol.json("volume resize sized 400m");
        assert_eq!(shown["status"]["options"]["size"], (400 * MIB).to_string(), "{step}");
        let size = rustix::fs::statvfs(&path).unwrap();
        assert!(size.f_blocks * size.f_frsize > 300 * MIB, "{step}");
        plugin.unmount("sized", "id").unwrap();
        wasmvol.wait_unmounted("sized");
    }
}

#[test]
fn an_unmount_that_waits_for_a_disk_delays_no_other_volume() {
    let mut wasmvol = Wasmvol::install_on("ext4", 512 * MIB);
    wasmvol.run();
    grant(&wasmvol);
    let plugin = wasmvol.plugin();
    plugin.create("other", &[("driver", "tmpfs")]).unwrap();
    for (fs, size) in [("ext4", "64m"), ("btrfs", "256m")] {
        let options = [("driver", "image"), ("size", size), ("fs", fs), ("thin", "true")];
        plugin.create(fs, &options).unwrap();
        let path = plugin.mount(fs, "id").unwrap();
        fs::write(path.join("file"), vec![7; 16 << 20]).unwrap();
        let frozen = Frozen::new(wasmvol.state());
        std::thread::scope(|scope| {
            let unmount = scope.spawn(|| plugin.unmount(fs, "id"));
            let is_writing = || (wasmvol.children().len() > 1).then_some(());
            until("a child waits for the disk", SOON, is_writing);
            plugin.mount("other", "id").unwrap();
            plugin.unmount("other", "id").unwrap();
            drop(frozen);
            unmount.join().unwrap().unwrap();
        });
        wasmvol.wait_unmounted(fs);
        plugin.mount(fs, "id").unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), vec![7; 16 << 20], "{fs}");
        plugin.unmount(fs, "id").unwrap();
        wasmvol.wait_unmounted(fs);
    }
}

#[test]
fn a_check_of_an_image_that_takes_longer_than_a_mount_may_goes_on_and_delays_no_other_volume() {
    let mut wasmvol = Wasmvol::install_on("ext4", 512 * MIB);
    wasmvol.run();
    grant(&wasmvol);
    let plugin = wasmvol.plugin();
    plugin.create("other", &[("driver", "tmpfs")]).unwrap();
    plugin.create("sick", &[("driver", "image"), ("size", "64m"), ("thin", "true")]).unwrap();
    let path = plugin.mount("sick", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    plugin.unmount("sick", "id").unwrap();
    wasmvol.wait_unmounted("sick");
    let state = wasmvol.state().display().to_string();
    wasmvol.shell(&format!("tune2fs -E force_fsck {state}/volumes/*/image")).ok();
    let is_check = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "e2fsck\n")
    };
    let checks = || wasmvol.children().into_iter().flat_map(children_of).find(is_check);
    // It cannot write what it found until it is to be stopped, and goes no further from then on.
    let frozen = Frozen::new(wasmvol.state());
    let check = std::thread::scope(|scope| {
        let mount = scope.spawn(|| plugin.mount("sick", "id"));
        let check = until("the image is checked", SOON, checks);
        send(check, Signal::STOP);
        drop(frozen);
        plugin.mount("other", "id").unwrap();
        let error = mount.join().unwrap().unwrap_err();
        assert!(error.contains("its image is still being checked, which goes on"), "{error}");
        check
    });
    wasmvol.kill_daemon();
    assert!(is_running(check), "it was ended, and would begin anew");
    assert_eq!(plugin.list(), ["other", "sick"]);
    send(check, Signal::CONT);
    let path = plugin.mount("sick", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    plugin.unmount("sick", "id").unwrap();
    wasmvol.wait_unmounted("sick");
    assert_eq!(loops(&wasmvol.state()), 0);
}

#[test]
fn a_subvolume_holds_what_its_limit_says_and_goes() {
    let mut wasmvol = Wasmvol::install_on("btrfs", 512 * MIB);
    let state = wasmvol.state();
    wasmvol.run();
    let plugin = wasmvol.plugin();
    plugin.create("limited", &[("driver", "btrfs"), ("size", "16m")]).unwrap();
    let path = plugin.mount("limited", "id").unwrap();
    let write = |mib: usize| {
        fs::write(path.join("file"), vec![7; mib << 20])?;
        fs::File::open(path.join("file"))?.sync_all()
    };
    write(8).unwrap();
    assert!(write(24).is_err());
    wasmvol.cli("volume resize limited 64m").ok();
    fs::remove_file(path.join("file")).unwrap();
    assert!(Command::new("sync").arg("-f").arg(&state).status().unwrap().success());
    write(24).unwrap();
    plugin.unmount("limited", "id").unwrap();
    plugin.remove("limited").unwrap();
    wasmvol.wait_reaped();
}
