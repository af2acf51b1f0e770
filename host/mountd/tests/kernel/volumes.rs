//! What mountd makes of storage and plans.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{
    Directory, FaultKind, Owner, Plan, Release, Reply, Request, Source, Storage, Tmpfs,
};

use crate::machine::{
    Machine, OWNER, directory, eventually, id, make, mount_request, plain, tmpfs, trash,
};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_directory_keeps_its_data_between_mounts,
    a_directory_has_exactly_the_owner_and_mode_of_its_storage,
    a_tmpfs_has_the_size_and_owner_of_its_plan,
    an_option_that_the_kernel_refuses_is_told_in_its_words,
    a_read_only_directory_withstands_a_remount_by_a_container,
    a_read_only_tmpfs_cannot_be_written,
    a_mount_has_nosuid_and_nodev_unless_granted_and_noexec_if_asked,
    grants_that_others_can_write_are_not_believed,
    a_subpath_is_mounted_and_nothing_beside_it,
    a_subpath_over_a_symbolic_link_is_refused,
    a_symbolic_link_in_place_of_a_volume_is_refused,
    a_stranger_on_the_mountpoint_is_neither_used_nor_covered,
    nothing_can_be_written_where_no_volume_is_mounted,
    a_mounted_volume_cannot_be_thrown_away,
    strangers_are_reported_and_stay,
    a_survey_comes_in_pages_of_all_volumes,
    no_file_stays_open,
    a_full_disk_is_an_error_and_nothing_more,
    a_state_directory_on_a_tmpfs_keeps_its_volumes_apart,
];

fn a_directory_keeps_its_data_between_mounts() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let facts = machine.mount(id(1), plain()).unwrap();
    fs::write(machine.volume(id(1)).join("file"), "kept").unwrap();
    assert_eq!(machine.mount(id(1), plain()), Ok(facts));
    assert_eq!(machine.lines(id(1)).len(), 1);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(!machine.volume(id(1)).exists());
    machine.mount(id(1), plain()).unwrap();
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "kept");
}

fn a_directory_has_exactly_the_owner_and_mode_of_its_storage() {
    let mut machine = Machine::start();
    for (number, mode) in [(1, 0o2750), (2, 0o1777), (3, 0o4000), (4, 0)] {
        let owner = Owner { mode, ..OWNER };
        machine.make(id(number), owner);
        machine.make(id(number), owner);
        let data =
            fs::metadata(machine.dir.join(format!("state/volumes/{}/data", id(number)))).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (owner.uid, owner.gid, mode));
    }
    let storage = Storage::Directory(Directory { owner: OWNER, limit: Some(0), over: None });
    let reply = machine.ask(make(id(5), storage));
    assert!(matches!(reply, Reply::Failed(fault) if fault.kind == FaultKind::Invalid));
    assert!(!machine.dir.join(format!("state/volumes/{}", id(5))).exists());
}

fn a_tmpfs_has_the_size_and_owner_of_its_plan() {
    let mut machine = Machine::start();
    let facts = machine.mount(id(1), tmpfs()).unwrap();
    assert_eq!((facts.filesystem.as_str(), facts.root.as_str()), ("tmpfs", "/"));
    let root = fs::metadata(machine.volume(id(1))).unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    match machine.ask(Request::Usage(id(1))) {
        Reply::Used(usage) => assert_eq!((usage.size, usage.used, usage.inodes), (1 << 20, 0, 100)),
        other => panic!("{other:?}"),
    }
    assert!(fs::write(machine.volume(id(1)).join("big"), vec![1; 2 << 20]).is_err());
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn an_option_that_the_kernel_refuses_is_told_in_its_words() {
    let mut machine = Machine::start();
    let source = Source::Tmpfs(Tmpfs { size: None, inodes: Some(u64::MAX), owner: OWNER });
    let fault = machine.mount(id(1), Plan { source, ..plain() }).unwrap_err();
    assert!(fault.message.contains("nr_inodes"), "{fault}");
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
}

fn a_read_only_directory_withstands_a_remount_by_a_container() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    fs::write(machine.volume(id(1)).join("file"), "kept").unwrap();
    machine.unmount(id(1));
    let facts = machine.mount(id(1), Plan { read_only: true, ..plain() }).unwrap();
    assert_eq!(machine.mount(id(1), Plan { read_only: true, ..plain() }), Ok(facts));
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "kept");
    let container = machine.container(id(1));
    assert!(!container.sh("mount -o remount,rw /mnt"));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("touch /mnt/new"));
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_read_only_tmpfs_cannot_be_written() {
    let mut machine = Machine::start();
    machine.mount(id(1), Plan { read_only: true, ..tmpfs() }).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("touch /mnt/new"));
}

fn a_mount_has_nosuid_and_nodev_unless_granted_and_noexec_if_asked() {
    let mut machine = Machine::empty();
    // A mount keeps what restricts the file system that the data lies on, and many machines have nosuid on /tmp.
    let dir = machine.dir.to_str().unwrap();
    let lift = format!("mount --bind {dir} {dir} && mount -o remount,bind,suid,dev,exec {dir}");
    assert!(machine.command("sh").args(["-c", &lift]).status().unwrap().success());
    machine.boot(&[]);
    machine.make(id(1), OWNER);
    let mut flags = |no_exec| {
        machine.mount(id(1), Plan { no_exec, ..plain() }).unwrap();
        let line = machine.lines(id(1)).remove(0);
        assert_eq!(machine.unmount(id(1)), Release::Gone);
        ["nosuid", "nodev", "noexec", "shared:"].map(|flag| line.contains(flag))
    };
    assert_eq!(flags(false), [true, true, false, false]);
    assert_eq!(flags(true), [true, true, true, false]);
    fs::write(machine.dir.join("etc/grants.d/local"), "suid # asked for\n").unwrap();
    machine.mount(id(1), plain()).unwrap();
    let line = machine.lines(id(1)).remove(0);
    assert!(!line.contains("nosuid") && line.contains("nodev"), "{line}");
}

fn grants_that_others_can_write_are_not_believed() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let file = machine.dir.join("etc/grants.d/local");
    fs::write(&file, "suid\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    assert_eq!(machine.mount(id(1), plain()).unwrap_err().kind, FaultKind::Denied);
    fs::remove_file(&file).unwrap();
    symlink("/etc/hostname", &file).unwrap();
    assert!(machine.mount(id(1), plain()).is_err());
    fs::remove_file(&file).unwrap();
    fs::write(&file, "root\n").unwrap();
    let fault = machine.mount(id(1), plain()).unwrap_err();
    assert!(fault.message.contains("`root`"), "{fault}");
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
}

fn inside(path: &str) -> Plan {
    Plan { subpath: Some(path.to_owned()), ..plain() }
}

fn a_subpath_is_mounted_and_nothing_beside_it() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    assert_eq!(machine.mount(id(1), inside("a/b")).unwrap_err().kind, FaultKind::Missing);
    let data = machine.dir.join(format!("state/volumes/{}/data", id(1)));
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/file"), "deep").unwrap();
    let facts = machine.mount(id(1), inside("a/b")).unwrap();
    assert!(facts.root.ends_with("/data/a/b"), "{facts:?}");
    assert_eq!(machine.mount(id(1), inside("a/b")), Ok(facts));
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "deep");
    assert_eq!(machine.mount(id(1), plain()).unwrap_err().kind, FaultKind::Busy);
}

fn a_subpath_over_a_symbolic_link_is_refused() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let data = machine.dir.join(format!("state/volumes/{}/data", id(1)));
    symlink("/etc", data.join("out")).unwrap();
    fs::create_dir(data.join("real")).unwrap();
    symlink("real", data.join("in")).unwrap();
    for path in ["out", "in", "out/ssl"] {
        assert_eq!(
            machine.mount(id(1), inside(path)).unwrap_err().kind,
            FaultKind::Denied,
            "{path}"
        );
    }
    assert!(machine.sh(&format!("mount -t tmpfs none state/volumes/{}/data/real", id(1))));
    assert_eq!(machine.mount(id(1), inside("real")).unwrap_err().kind, FaultKind::Denied);
}

fn a_symbolic_link_in_place_of_a_volume_is_refused() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let volumes = machine.dir.join("state/volumes");
    let volume = volumes.join(id(1).to_string());
    fs::remove_dir(volume.join("data")).unwrap();
    symlink("/etc", volume.join("data")).unwrap();
    symlink(volumes.join(id(1).to_string()), volumes.join(id(2).to_string())).unwrap();
    for number in [1, 2] {
        assert!(machine.mount(id(number), plain()).is_err());
        let make = make(id(number), directory());
        assert!(matches!(machine.ask(make), Reply::Failed(_)));
    }
    assert_eq!(fs::metadata("/etc").unwrap().uid(), 0);
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
}

fn a_stranger_on_the_mountpoint_is_neither_used_nor_covered() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    assert!(machine.sh(&format!("mount -t tmpfs none run/mnt/{}", id(1))));
    assert_eq!(machine.mount(id(1), plain()).unwrap_err().kind, FaultKind::Busy);
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    assert_eq!(machine.lines(id(1)).len(), 2);
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn nothing_can_be_written_where_no_volume_is_mounted() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    assert!(!machine.sh(&format!("touch run/mnt/{}/file", id(1))));
    assert!(!machine.sh("mkdir run/mnt/other"));
    assert!(!machine.sh(&format!("rmdir run/mnt/{}", id(1))));
}

fn a_mounted_volume_cannot_be_thrown_away() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    let busy = machine.ask(trash(id(1)));
    assert!(matches!(busy, Reply::Failed(fault) if fault.kind == FaultKind::Busy));
    assert_eq!(machine.survey(Inventory::Volumes).0, [id(1)]);
    machine.unmount(id(1));
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    assert_eq!(machine.survey(Inventory::Volumes).0, []);
    assert_eq!(machine.mount(id(1), plain()).unwrap_err().kind, FaultKind::Missing);
}

fn strangers_are_reported_and_stay() {
    let mut machine = Machine::start();
    for place in ["volumes", "trash"] {
        fs::create_dir(machine.dir.join(format!("state/{place}/lost+found"))).unwrap();
        fs::write(machine.dir.join(format!("state/{place}/a\nb")), "").unwrap();
    }
    machine.make(id(1), OWNER);
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    eventually("the trash is empty", || {
        machine.survey(Inventory::Trash).0.is_empty().then_some(())
    });
    for kind in [Inventory::Volumes, Inventory::Trash] {
        assert_eq!(machine.survey(kind).1, ["`a\\u{a}b`", "`lost+found`"]);
    }
    assert!(machine.dir.join("state/trash/lost+found").exists());
}

fn a_survey_comes_in_pages_of_all_volumes() {
    let mut machine = Machine::start();
    for number in (0..2500).rev() {
        fs::create_dir(machine.dir.join(format!("state/volumes/{}", id(number << 100)))).unwrap();
    }
    let all =
        machine.ask_all((2500..2564).map(|number| make(id(number << 100), directory())).collect());
    assert!(all.iter().all(|reply| *reply == Reply::Made));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        match machine.ask(Request::Survey { kind: Inventory::Volumes, after }) {
            Reply::Surveyed { entries, more, .. } => {
                found.extend(entries.iter().map(|(id, _)| *id));
                after = found.last().copied();
                if !more {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found, (0..2564).map(|number| id(number << 100)).collect::<Vec<_>>());
    assert!(matches!(machine.ask(mount_request(id(0), plain(), None, None)), Reply::Failed(_)));
}

fn no_file_stays_open() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let fd = format!("/proc/{}/fd", machine.pid().as_raw_nonzero());
    let files = || fs::read_dir(&fd).unwrap().count();
    let before = files();
    for _ in 0..100 {
        machine.mount(id(1), plain()).unwrap();
        machine.mount(id(2), tmpfs()).unwrap();
        assert!(machine.mount(id(3), plain()).is_err());
        let readonly = Plan { read_only: true, ..plain() };
        assert!(machine.mount(id(1), readonly).is_err());
        for number in [1, 2] {
            assert_eq!(machine.unmount(id(number)), Release::Gone);
        }
    }
    assert_eq!(files(), before);
}

/// A machine whose state directory is a small tmpfs.
fn with_state_in_memory() -> Machine {
    let mut machine = Machine::empty();
    assert!(machine.sh("mkdir state && mount -t tmpfs -o mode=755,nr_inodes=20 none state"));
    machine.boot(&[]);
    machine
}

fn a_full_disk_is_an_error_and_nothing_more() {
    let mut machine = with_state_in_memory();
    let replies = machine.ask_all((0..20).map(|number| make(id(number), directory())).collect());
    let full = |reply: &&Reply| matches!(reply, Reply::Failed(f) if f.kind == FaultKind::Exhausted);
    let made = replies.iter().filter(|reply| **reply == Reply::Made).count();
    assert!(made > 0 && made + replies.iter().filter(full).count() == 20, "{replies:?}");
    for number in 0..20 {
        machine.ask(trash(id(number)));
    }
    eventually("there is room", || {
        let make = make(id(99), directory());
        (machine.ask(make) == Reply::Made).then_some(())
    });
}

fn a_state_directory_on_a_tmpfs_keeps_its_volumes_apart() {
    let mut machine = with_state_in_memory();
    for number in [1, 2] {
        machine.make(id(number), OWNER);
        machine.mount(id(number), plain()).unwrap();
    }
    let container = machine.container(id(1));
    assert_eq!(machine.unmount(id(2)), Release::Gone);
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}
