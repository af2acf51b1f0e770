//! Volumes that are filled before they are there: what their driver is given, what is taken over of what it left, and what is not.
//!
//! The test has the root that the daemon gets, and what it puts there is made the daemon's. Being root it can also put there what the
//! daemon could not.

use std::fs::{self, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, mkdirat, openat};
use rustix::fs::{StatVfsMountFlags, makedev, mknodat, renameat_with};
use wasmvol_plan::frame::{Inventory, Mount};
use wasmvol_plan::kinds::directory::Below;
use wasmvol_plan::steps::{FILL, KILL_AT};
use wasmvol_plan::{
    Compression, Directory, FaultKind, Filesystem, Image, Reply, Request, Storage, Subvolume,
};

use crate::machine::{Machine, OWNER, UID, directory, driver, eventually, id, make, plain, trash};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    the_daemon_gets_the_root_of_new_storage_and_no_way_out_of_it,
    what_was_filled_in_is_the_volumes_owners_in_each_kind_of_storage,
    set_id_bits_are_gone_and_programs_stay_programs,
    a_symlink_is_taken_over_and_never_followed,
    what_is_no_file_directory_or_symlink_is_refused_by_its_path,
    a_file_that_has_another_name_elsewhere_stays_who_it_is,
    what_the_daemon_has_not_made_is_refused,
    a_tree_of_10_000_levels_is_taken_over_and_goes,
    a_tree_that_is_too_deep_is_refused,
    what_is_swapped_while_it_is_looked_through_reaches_nothing_outside,
    storage_that_is_filled_again_is_empty,
    a_volume_that_somebody_has_is_not_filled,
    what_was_not_opened_to_be_filled_is_not_taken_over,
    storage_that_is_not_the_volumes_alone_is_not_filled,
    killed_at_any_step_of_a_fill_the_storage_can_be_thrown_away,
];

fn path_of(root: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()))
}

/// Makes something the daemon's, as what a driver writes is.
fn daemons(path: impl AsRef<Path>) {
    lchown(path, Some(UID), Some(UID)).unwrap();
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap();
    daemons(path);
}

fn mkdir(path: impl AsRef<Path>) {
    fs::create_dir(&path).unwrap();
    daemons(path);
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Owner and mode.
fn owner(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

const fn owned(mode: u32) -> (u32, u32, u32) {
    (OWNER.uid, OWNER.gid, mode)
}

fn image(filesystem: Filesystem) -> Storage {
    let size = filesystem.smallest();
    Storage::Image(Image { size, thin: true, filesystem, encrypt: None, owner: OWNER })
}

/// A machine with new storage that waits to be filled.
fn made(storage: &Storage) -> Machine {
    let mut machine = Machine::start();
    fs::write(machine.dir.join("etc/grants.d/local"), "image\n").unwrap();
    assert_eq!(machine.ask(make(id(1), storage.clone())), Reply::Made);
    machine
}

/// The same, opened.
fn opened() -> (Machine, PathBuf, OwnedFd) {
    let mut machine = made(&directory());
    let root = machine.fill(id(1), &directory()).unwrap();
    (machine, path_of(&root), root)
}

fn mount(machine: &mut Machine, storage: &Storage) -> PathBuf {
    let (id, driver, storage, plan) = (id(1), driver(), storage.clone(), plain());
    let wanted = Mount { id, driver, storage, plan, peer: None, last: None };
    let reply = machine.ask(Request::Mount(Box::new(wanted)));
    assert!(matches!(reply, Reply::Mounted(_)), "{reply:?}");
    machine.volume(id)
}

fn the_daemon_gets_the_root_of_new_storage_and_no_way_out_of_it() {
    for storage in [directory(), image(Filesystem::Ext4)] {
        let mut machine = made(&storage);
        let root = machine.fill(id(1), &storage).unwrap();
        let path = path_of(&root);
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (UID, UID, 0o700));
        assert_eq!(fs::metadata(path.join("..")).unwrap().ino(), stat.ino(), "there is no above");
        let flags = rustix::fs::fstatvfs(&root).unwrap().f_flag;
        let wanted =
            StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
        assert!(flags.contains(wanted), "{flags:?}");
        assert_eq!(machine.lines(id(1)), [""; 0], "nobody else sees it");
        // Not even root can link what is beside it.
        let outside = machine.dir.join("state/outside");
        fs::write(&outside, "").unwrap();
        let error = fs::hard_link(&outside, path.join("in")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::XDEV.raw_os_error()));
        assert!(fs::rename(&outside, path.join("in")).is_err());
        // The daemon writes there, and what it has not been given it cannot reach.
        let line = "touch file && mkdir d && ln -s file link && ! ls \"$1/volumes\" 2>/dev/null";
        let mut shell = Command::new("setpriv");
        let user = UID.to_string();
        shell.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh", "-c", line, "sh"]);
        shell.arg(machine.dir.join("state")).current_dir(&path);
        assert!(shell.status().unwrap().success());
        machine.settle(id(1), &storage).unwrap();
        assert!(fs::write(path.join("later"), "").is_ok(), "root may");
        let mut late = Command::new("setpriv");
        late.args(["--reuid", &user, "--regid", &user, "--clear-groups", "touch", "more"]);
        let late = late.current_dir(path.join("d")).stderr(std::process::Stdio::null()).status();
        assert!(!late.unwrap().success(), "the daemon may not, although it has the root open");
    }
}

fn what_was_filled_in_is_the_volumes_owners_in_each_kind_of_storage() {
    let on_btrfs = |machine: &mut Machine| {
        let line = "mkdir state && truncate -s 512M disk && mkfs.btrfs -q disk >/dev/null && mount -o loop disk state";
        assert!(machine.sh(line), "btrfs-progs is installed");
    };
    let compress = Some(Compression::Zstd);
    let subvolume = Subvolume { owner: OWNER, limit: None, compress, copy_on_write: true };
    for storage in [
        directory(),
        image(Filesystem::Ext4),
        image(Filesystem::Xfs),
        image(Filesystem::Btrfs),
        Storage::Subvolume(subvolume),
    ] {
        let mut machine = Machine::empty();
        if matches!(storage, Storage::Subvolume(_)) {
            on_btrfs(&mut machine);
        }
        machine.boot(&[]);
        fs::write(machine.dir.join("etc/grants.d/local"), "image\n").unwrap();
        assert_eq!(machine.ask(make(id(1), storage.clone())), Reply::Made);
        let root = machine.fill(id(1), &storage).unwrap();
        let path = path_of(&root);
        mkdir(path.join("d"));
        for n in 0..20 {
            mkdir(path.join(format!("d/{n}")));
            (0..20).for_each(|m| write(path.join(format!("d/{n}/{m}")), "text"));
        }
        drop(root);
        machine.settle(id(1), &storage).unwrap();
        let volume = mount(&mut machine, &storage);
        assert_eq!(owner(&volume), owned(OWNER.mode), "{storage:?}");
        assert_eq!(owner(volume.join("d")), owned(0o755));
        let (mut count, all) = (0, 20 * 21);
        for n in fs::read_dir(volume.join("d")).unwrap().map(|entry| entry.unwrap().path()) {
            assert_eq!(owner(&n), owned(0o755));
            for file in fs::read_dir(&n).unwrap().map(|entry| entry.unwrap().path()) {
                assert_eq!(owner(&file), owned(0o644));
                assert_eq!(fs::read_to_string(file).unwrap(), "text");
                count += 1;
            }
            count += 1;
        }
        assert_eq!(count, all, "{storage:?}");
        machine.unmount(id(1));
    }
}

fn set_id_bits_are_gone_and_programs_stay_programs() {
    let (mut machine, path, _root) = opened();
    for (name, mode) in
        [("user", 0o4755), ("group", 0o2755), ("both", 0o6711), ("plain", 0o4600), ("open", 0o666)]
    {
        write(path.join(name), "");
        set_mode(path.join(name), mode);
    }
    mkdir(path.join("sticky"));
    set_mode(path.join("sticky"), 0o7777);
    machine.settle(id(1), &directory()).unwrap();
    let volume = mount(&mut machine, &directory());
    for name in ["user", "group", "both", "sticky"] {
        assert_eq!(owner(volume.join(name)), owned(0o755), "{name}");
    }
    for name in ["plain", "open"] {
        assert_eq!(owner(volume.join(name)), owned(0o644), "{name}");
    }
}

fn a_symlink_is_taken_over_and_never_followed() {
    let (mut machine, path, _root) = opened();
    let victim = machine.dir.join("victim");
    fs::write(&victim, "").unwrap();
    set_mode(&victim, 0o600);
    let before = owner("/etc");
    mkdir(path.join("d"));
    for (target, name) in [
        (Path::new("/etc"), "etc"),
        (&victim, "victim"),
        (Path::new(".."), "d/up"),
        (Path::new("none"), "none"),
    ] {
        symlink(target, path.join(name)).unwrap();
        daemons(path.join(name));
    }
    machine.settle(id(1), &directory()).unwrap();
    assert_eq!((owner("/etc"), owner(&victim)), (before, (0, 0, 0o600)));
    let volume = mount(&mut machine, &directory());
    for (name, target) in [("etc", "/etc"), ("d/up", ".."), ("none", "none")] {
        assert_eq!(fs::read_link(volume.join(name)).unwrap(), Path::new(target));
        assert_eq!((owner(volume.join(name)).0, owner(volume.join(name)).1), (1000, 1001));
    }
}

fn what_is_no_file_directory_or_symlink_is_refused_by_its_path() {
    type Make = fn(&Path);
    let strange: [(&str, Make); 5] = [
        ("fifo", |path| node(path, FileType::Fifo, 0)),
        ("device", |path| node(path, FileType::CharacterDevice, makedev(1, 3))),
        ("disk", |path| node(path, FileType::BlockDevice, makedev(7, 0))),
        ("socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("two\nnames", |path| {
            write(path.with_file_name("one"), "");
            fs::hard_link(path.with_file_name("one"), path).unwrap();
        }),
    ];
    for (name, put) in strange {
        let (mut machine, path, _root) = opened();
        mkdir(path.join("d"));
        mkdir(path.join("d/e"));
        put(&path.join("d/e").join(name));
        daemons(path.join("d/e").join(name));
        let fault = machine.settle(id(1), &directory()).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
        let starts = match name {
            // Whichever comes first.
            "two\nnames" => ["one", "two\\u{a}"].map(|name| format!("`d/e/{name}")),
            name => [(); 2].map(|()| format!("`d/e/{name}` is no file, directory or symlink")),
        };
        let is_told = starts.iter().any(|start| fault.message.starts_with(start));
        assert!(is_told && !fault.message.contains(char::is_control), "{fault}");
        assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
        reaped(&machine);
    }
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).unwrap();
}

fn reaped(machine: &Machine) {
    let trash = machine.inside("state/trash");
    let is_empty = || (fs::read_dir(&trash).unwrap().count() == 0).then_some(());
    eventually("the trash is empty", is_empty);
}

fn a_file_that_has_another_name_elsewhere_stays_who_it_is() {
    let (mut machine, _, _root) = opened();
    // What belongs to the daemon and lies beside the volumes, as its catalog does.
    let outside = machine.dir.join("state/catalog/outside");
    write(&outside, "");
    set_mode(&outside, 0o600);
    // Only root can do that: the daemon's root leads to no other mount.
    let inside = machine.dir.join(format!("state/volumes/{}/data/inside", id(1)));
    fs::hard_link(&outside, inside).unwrap();
    let fault = machine.settle(id(1), &directory()).unwrap_err();
    assert!(fault.message.starts_with("`inside` has a second name"), "{fault}");
    assert_eq!(owner(&outside), (UID, UID, 0o600));
}

fn what_the_daemon_has_not_made_is_refused() {
    let (mut machine, path, _root) = opened();
    fs::write(path.join("roots"), "").unwrap();
    let fault = machine.settle(id(1), &directory()).unwrap_err();
    assert!(fault.message.starts_with("`roots` is nothing that its driver has made"), "{fault}");
    assert_eq!(owner(path.join("roots")).0, 0);
}

/// Directories in each other, each with a file; answers the innermost.
fn deep(root: &OwnedFd, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = openat(root, ".", flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&here, "d", Mode::RWXU).unwrap();
        let inside = openat(&here, "d", flags, Mode::empty()).unwrap();
        daemons(path_of(&inside).join("."));
        write(path_of(&inside).join("f"), "");
        here = inside;
    }
}

fn a_tree_of_10_000_levels_is_taken_over_and_goes() {
    let (mut machine, _, root) = opened();
    deep(&root, 10_000);
    machine.settle(id(1), &directory()).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = openat(&root, ".", flags, Mode::empty()).unwrap();
    for _ in 0..10_000 {
        here = openat(&here, "d", flags, Mode::empty()).unwrap();
        assert_eq!(owner(path_of(&here).join(".")), owned(0o755));
        assert_eq!(owner(path_of(&here).join("f")), owned(0o644));
    }
    drop((here, root));
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    reaped(&machine);
}

fn a_tree_that_is_too_deep_is_refused() {
    let (mut machine, _, root) = opened();
    deep(&root, 16_001);
    let fault = machine.settle(id(1), &directory()).unwrap_err();
    assert!(fault.message.contains("more than 16000 directories in each other"), "{fault}");
    drop(root);
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    reaped(&machine);
}

fn what_is_swapped_while_it_is_looked_through_reaches_nothing_outside() {
    let (mut machine, path, root) = opened();
    let outside = machine.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    let victims: Vec<PathBuf> = (0..64).map(|n| outside.join(format!("v{n}"))).collect();
    for (n, victim) in victims.iter().enumerate() {
        fs::write(victim, "").unwrap();
        set_mode(victim, 0o4755);
        write(path.join(format!("file{n}")), "");
        symlink(victim, path.join(format!("link{n}"))).unwrap();
        daemons(path.join(format!("link{n}")));
        mkdir(path.join(format!("dir{n}")));
        symlink(&outside, path.join(format!("way{n}"))).unwrap();
        daemons(path.join(format!("way{n}")));
    }
    let ended = AtomicBool::new(false);
    // As root, whom a sealed directory does not stop: worse than the daemon can do it.
    let swap = || {
        while !ended.load(Ordering::Relaxed) {
            for n in 0..64 {
                for (one, other) in [("file", "link"), ("dir", "way")] {
                    let [one, other] = [one, other].map(|name| path.join(format!("{name}{n}")));
                    // The next round begins with nothing.
                    let _gone = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(swap);
        for _ in 0..40 {
            match machine.ask(Request::Settle { id: id(1), driver: driver(), storage: directory() })
            {
                // Given back, so that there is something to take again.
                Reply::Settled | Reply::Failed(_) => give_back(&path),
                other => panic!("{other:?}"),
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    for victim in &victims {
        assert_eq!(owner(victim), (0, 0, 0o4755), "{}", victim.display());
    }
    assert_eq!(owner(&outside), (0, 0, 0o755));
    drop(root);
}

/// Makes all of a root the daemon's again, without following a link.
fn give_back(path: &Path) {
    for entry in fs::read_dir(path).unwrap().flatten() {
        let _swapped_meanwhile = lchown(entry.path(), Some(UID), Some(UID));
    }
    daemons(path.join("."));
}

fn storage_that_is_filled_again_is_empty() {
    for storage in [directory(), image(Filesystem::Ext4)] {
        let mut machine = made(&storage);
        let root = machine.fill(id(1), &storage).unwrap();
        deep(&root, 300);
        write(path_of(&root).join("file"), "old");
        drop(root);
        let root = machine.fill(id(1), &storage).unwrap();
        assert_eq!(fs::read_dir(path_of(&root)).unwrap().count(), 0, "{storage:?}");
        write(path_of(&root).join("new"), "new");
        drop(root);
        machine.settle(id(1), &storage).unwrap();
        let volume = mount(&mut machine, &storage);
        assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "new");
        assert_eq!(fs::read_dir(volume).unwrap().count(), 1);
        machine.unmount(id(1));
    }
}

fn a_volume_that_somebody_has_is_not_filled() {
    for storage in [directory(), image(Filesystem::Ext4)] {
        let mut machine = made(&storage);
        let volume = mount(&mut machine, &storage);
        fs::write(volume.join("file"), "kept").unwrap();
        let fault = machine.fill(id(1), &storage).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Busy, "{fault}");
        // Its mount is lost, and a container has it all the same.
        let container = machine.container(id(1));
        assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
        let fault = machine.fill(id(1), &storage).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Busy, "{fault}");
        assert!(container.sh("grep -qx kept /mnt/file"));
    }
}

fn what_was_not_opened_to_be_filled_is_not_taken_over() {
    let mut machine = made(&directory());
    let fault = machine.settle(id(1), &directory()).unwrap_err();
    assert!(fault.message.contains("is not being filled"), "{fault}");
    let volume = mount(&mut machine, &directory());
    assert_eq!(owner(volume), owned(OWNER.mode));
}

fn storage_that_is_not_the_volumes_alone_is_not_filled() {
    let mut machine = made(&directory());
    let below = Some(Below { name: "low".into(), id: Some(id(2)) });
    let over = Storage::Directory(Directory { owner: OWNER, limit: None, over: below });
    for storage in [Storage::None, over] {
        let fault = machine.fill(id(1), &storage).unwrap_err();
        assert!(fault.message.starts_with("it fills its volumes, but asked for "), "{fault}");
    }
}

fn killed_at_any_step_of_a_fill_the_storage_can_be_thrown_away() {
    for storage in [directory(), image(Filesystem::Ext4)] {
        for step in FILL {
            let mut machine = made(&storage);
            machine.kill();
            let flag = machine.dir.join("armed");
            machine.boot(&[(KILL_AT, &format!("{step}@{}", flag.display()))]);
            if *step == "fill.taken" {
                drop(machine.fill(id(1), &storage).unwrap());
            }
            fs::write(&flag, "").unwrap();
            let (driver, storage) = (driver(), storage.clone());
            let request = match *step {
                "fill.taken" => Request::Settle { id: id(1), driver, storage },
                _ => Request::Fill { id: id(1), driver, storage },
            };
            assert_eq!(machine.try_ask(request), None);
            assert!(!flag.exists(), "{step} was not reached");
            machine.boot(&[]);
            assert_eq!(machine.ask(trash(id(1))), Reply::Trashed, "{step}");
            assert_eq!(machine.survey(Inventory::Volumes).0, []);
            reaped(&machine);
        }
    }
}
