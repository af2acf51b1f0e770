//! File systems on block devices: which are mounted, which are refused, and what the errors say.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use wasmvol_plan::frame::{Attached, Inventory};
use wasmvol_plan::{
    Device, FaultKind, IdMap, IdRange, MountOption, MountValue, Plan, Release, Reply, Request,
    Source,
};

use crate::machine::{Machine, OWNER, eventually, id, plain};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_file_system_on_a_granted_device_is_mounted,
    a_device_that_others_use_is_unmounted_and_stays_in_use,
    a_device_that_goes_afterwards_stays_mounted_while_anybody_has_it,
    a_device_that_goes_afterwards_is_held_though_its_mount_was_taken_away_by_hand,
    a_directory_inside_of_a_device_is_shown_alone,
    options_reach_the_file_system_and_the_mount,
    a_read_only_device_withstands_a_remount_by_a_container,
    a_device_that_is_not_granted_is_refused,
    what_is_no_block_device_is_refused,
    a_device_that_shows_what_wasmvol_keeps_is_refused,
    a_disk_of_the_btrfs_that_wasmvol_lies_on_is_refused,
    one_child_after_another_works_for_a_volume,
    an_option_that_could_reach_beyond_the_device_is_refused,
    what_the_kernel_refuses_is_told_in_its_words,
    a_device_is_mounted_with_its_ids_mapped,
    a_blank_device_gets_its_file_system_once,
    a_read_only_volume_of_a_blank_device_is_made_too,
    what_is_anywhere_at_the_ends_of_a_device_stays_as_it_is,
    another_file_system_on_a_device_stays_as_it_is,
    a_blank_device_that_somebody_has_is_not_written_to,
    a_device_that_is_attached_a_moment_later_is_waited_for,
    a_device_that_never_appears_is_named,
    without_a_make_nothing_is_made,
];

const MIB: u64 = 1 << 20;

/// A loop device on a file with an ext4 inside; it ends with the test.
struct Loop(String);

impl Loop {
    fn new(machine: &Machine) -> Self {
        let file = machine.dir.join("disk");
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&file).status().unwrap();
        assert!(made.success(), "mkfs.ext4");
        Self::on(&file)
    }

    /// On a file with nothing but zeros, or holes.
    fn blank(machine: &Machine, size: u64) -> Self {
        let file = machine.dir.join("disk");
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        Self::on(&file)
    }

    fn on(file: &Path) -> Self {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        let name = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert!(name.starts_with("/dev/loop"), "{name}");
        Self(name)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _detached = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A device that the driver of a machine was granted.
fn granted() -> (Machine, Loop) {
    let machine = Machine::start();
    let disk = Loop::new(&machine);
    grant(&machine, &disk.0);
    (machine, disk)
}

fn grant(machine: &Machine, path: &str) {
    fs::write(machine.dir.join("etc/grants.d/local"), format!("device={path}\n")).unwrap();
}

fn of(path: &str, options: &[(&str, &str)]) -> Plan {
    let option = |(key, text): &(&str, &str)| MountOption {
        key: (*key).to_owned(),
        value: match *text {
            "" => MountValue::Present,
            text => MountValue::Text(text.to_owned()),
        },
    };
    let (path, filesystem) = (path.to_owned(), "ext4".to_owned());
    let options = options.iter().map(option).collect();
    Plan { source: Source::Device(Device { path, filesystem, options, make: None }), ..plain() }
}

fn a_file_system_on_a_granted_device_is_mounted() {
    let (mut machine, disk) = granted();
    let facts = machine.mount(id(1), of(&disk.0, &[])).unwrap();
    assert_eq!((facts.filesystem.as_str(), facts.root.as_str()), ("ext4", "/"));
    assert!(machine.volume(id(1)).join("lost+found").is_dir());
    assert_eq!(machine.mount(id(1), of(&disk.0, &[])), Ok(facts));
    let line = machine.lines(id(1)).remove(0);
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_device_that_others_use_is_unmounted_and_stays_in_use() {
    let (mut machine, disk) = granted();
    machine.mount(id(1), of(&disk.0, &[])).unwrap();
    let container = machine.container(id(1));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(container.sh("echo kept > /mnt/file"));
    // One superblock, whoever mounts it.
    machine.mount(id(2), of(&disk.0, &[])).unwrap();
    assert_eq!(fs::read_to_string(machine.volume(id(2)).join("file")).unwrap(), "kept\n");
}

fn a_device_that_goes_afterwards_stays_mounted_while_anybody_has_it() {
    let (mut machine, disk) = granted();
    machine.mount(id(1), of(&disk.0, &[])).unwrap();
    let container = machine.container(id(1));
    let release = Request::Unmount { id: id(1), attached: Some(Attached { last: None }) };
    match machine.ask(release.clone()) {
        Reply::Unmounted(Release::Held(evidence)) => {
            assert_eq!(evidence.holders[0].pid, container.pid());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.lines(id(1)).len(), 1);
    drop(container);
    assert_eq!(machine.ask(release), Reply::Unmounted(Release::Gone));
}

fn a_device_that_goes_afterwards_is_held_though_its_mount_was_taken_away_by_hand() {
    let (mut machine, disk) = granted();
    let last = Some(machine.mount(id(1), of(&disk.0, &[])).unwrap());
    let container = machine.container(id(1));
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let release = Request::Unmount { id: id(1), attached: Some(Attached { last }) };
    match machine.ask(release.clone()) {
        Reply::Unmounted(Release::Held(evidence)) => {
            assert_eq!(evidence.holders[0].pid, container.pid());
        }
        other => panic!("{other:?}"),
    }
    drop(container);
    assert_eq!(machine.ask(release), Reply::Unmounted(Release::Gone));
}

fn a_directory_inside_of_a_device_is_shown_alone() {
    let (mut machine, disk) = granted();
    machine.mount(id(1), of(&disk.0, &[])).unwrap();
    fs::create_dir_all(machine.volume(id(1)).join("a/b")).unwrap();
    symlink("/", machine.volume(id(1)).join("out")).unwrap();
    let inside = |subpath: &str| Plan { subpath: Some(subpath.into()), ..of(&disk.0, &[]) };
    let facts = machine.mount(id(2), inside("a")).unwrap();
    assert_eq!(facts.root, "/a");
    assert!(machine.volume(id(2)).join("b").is_dir());
    let fault = machine.mount(id(3), inside("out")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
}

fn options_reach_the_file_system_and_the_mount() {
    let (mut machine, disk) = granted();
    machine.mount(id(1), of(&disk.0, &[("noatime", ""), ("commit", "17")])).unwrap();
    let line = machine.lines(id(1)).remove(0);
    assert!(line.contains("noatime") && line.contains("commit=17"), "{line}");
}

fn a_read_only_device_withstands_a_remount_by_a_container() {
    let (mut machine, disk) = granted();
    machine.mount(id(1), Plan { read_only: true, ..of(&disk.0, &[]) }).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("mount -o remount,rw /mnt && touch /mnt/new"));
    assert!(!container.sh("touch /mnt/new") && container.sh("test -d /mnt/lost+found"));
    assert!(machine.mount(id(1), Plan { read_only: true, ..of(&disk.0, &[]) }).is_ok());
}

fn a_device_that_is_not_granted_is_refused() {
    let (mut machine, disk) = granted();
    grant(&machine, "/dev/loop-control");
    let fault = machine.mount(id(1), of(&disk.0, &[])).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    assert!(
        fault.message.contains(&format!("`wasmvol driver grant local 'device={}'`", disk.0)),
        "{fault}"
    );
    for path in [machine.dir.join("disk").to_str().unwrap(), "/dev", "/dev/../etc", "sda"] {
        let fault = machine.mount(id(1), of(path, &[])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{path}: {fault}");
    }
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
}

fn what_is_no_block_device_is_refused() {
    let (mut machine, disk) = granted();
    grant(&machine, "/dev");
    let fault = machine.mount(id(1), of("/dev/null", &[])).unwrap_err();
    assert!(fault.message.contains("`/dev/null` is no block device"), "{fault}");
    let fault = machine.mount(id(1), of("/dev/wasmvol-none", &[])).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
    // Others than root make names there.
    let link = format!("/dev/shm/wasmvol-{}", std::process::id());
    symlink(&disk.0, &link).unwrap();
    let refused = machine.mount(id(1), of(&link, &[]));
    fs::remove_file(&link).unwrap();
    assert_eq!(refused.unwrap_err().kind, FaultKind::Denied);
}

fn a_device_that_shows_what_wasmvol_keeps_is_refused() {
    let machine = Machine::start();
    let file = machine.dir.join("state/volumes/image");
    fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&file).status().unwrap();
    assert!(made.success(), "mkfs.ext4");
    let (disk, mut machine) = (Loop::on(&file), machine);
    grant(&machine, "/dev");
    let fault = machine.mount(id(1), of(&disk.0, &[])).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    assert!(fault.message.contains(&format!("`{}` is refused: wasmvol keeps", disk.0)), "{fault}");
    // A file that is called as a directory of wasmvol's is none of its.
    let beside = machine.dir.join("state-of-others");
    fs::rename(&file, &beside).unwrap();
    machine.mount(id(1), of(&disk.0, &[])).unwrap();
}

fn with_btrfs(path: &str) -> Plan {
    let (path, filesystem) = (path.to_owned(), "btrfs".to_owned());
    let device = Device { path, filesystem, options: Vec::new(), make: None };
    Plan { source: Source::Device(device), ..plain() }
}

fn a_disk_of_the_btrfs_that_wasmvol_lies_on_is_refused() {
    let machine = Machine::empty();
    let disks = ["one", "two"].map(|name| {
        let file = machine.dir.join(name);
        fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
        Loop::on(&file)
    });
    let [one, two] = disks.each_ref().map(|disk| disk.0.as_str());
    // It goes before its disks do.
    let mut machine = machine;
    let line =
        format!("mkdir state && mkfs.btrfs -q {one} {two} && mount -o device={two} {one} state");
    assert!(machine.sh(&line), "btrfs-progs is installed");
    machine.boot(&[]);
    grant(&machine, "/dev");
    for disk in [one, two] {
        let fault = machine.mount(id(1), with_btrfs(disk)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
        assert!(fault.message.contains(&format!("`{disk}` is refused: wasmvol keeps")), "{fault}");
    }
    // Another btrfs is nobody's.
    let file = machine.dir.join("three");
    fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
    let other = Loop::on(&file);
    assert!(machine.sh(&format!("mkfs.btrfs -q {}", other.0)));
    machine.mount(id(1), with_btrfs(&other.0)).unwrap();
}

fn one_child_after_another_works_for_a_volume() {
    let (mut machine, _) = granted();
    grant(&machine, "/dev");
    // The answer comes before the end of the child that gives it, and the next request then waits for that end.
    for _ in 0..100 {
        let fault = machine.mount(id(1), of("/dev/null", &[])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
    }
}

fn an_option_that_could_reach_beyond_the_device_is_refused() {
    let (mut machine, disk) = granted();
    for (key, text) in [
        ("source", "/dev/sda"),
        ("journal_path", "/dev/sda"),
        ("errors", "panic"),
        ("context", "x"),
        ("suid", ""),
        ("dev", ""),
        ("rw", ""),
        ("noatime", "1"),
        ("commit", ""),
    ] {
        let fault = machine.mount(id(1), of(&disk.0, &[(key, text)])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{key}: {fault}");
        assert!(fault.message.contains(&format!("`{key}")), "{fault}");
    }
    let Source::Device(device) = of(&disk.0, &[]).source else { unreachable!() };
    for filesystem in ["overlay", "proc", "tmpfs", "nfs", "fuse", ""] {
        let device = Device { filesystem: filesystem.to_owned(), ..device.clone() };
        let plan = Plan { source: Source::Device(device), ..plain() };
        assert_eq!(machine.mount(id(1), plan).unwrap_err().kind, FaultKind::Invalid);
    }
}

fn what_the_kernel_refuses_is_told_in_its_words() {
    let (mut machine, disk) = granted();
    let fault = machine.mount(id(1), of(&disk.0, &[("data", "nonsense")])).unwrap_err();
    let start = format!("cannot mount the ext4 on `{}`: invalid argument (", disk.0);
    assert!(fault.message.starts_with(&start) && fault.message.contains("data"), "{fault}");
    // In use in another way.
    machine.mount(id(1), of(&disk.0, &[])).unwrap();
    let fault = machine.mount(id(2), Plan { read_only: true, ..of(&disk.0, &[]) }).unwrap_err();
    assert!(fault.message.contains("mounted elsewhere in another way"), "{fault}");
}

fn a_device_is_mounted_with_its_ids_mapped() {
    let (mut machine, disk) = granted();
    let range = vec![IdRange { disk: 0, shown: 100_000, count: 10 }];
    let id_map = Some(IdMap { users: range.clone(), groups: range });
    machine.mount(id(1), Plan { id_map, ..of(&disk.0, &[]) }).unwrap();
    let stat = fs::metadata(machine.volume(id(1)).join("lost+found")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&stat), 100_000);
}

/// A plan that makes a file system where there is none.
fn making(path: &str, filesystem: &str) -> Plan {
    let (path, filesystem) = (path.to_owned(), filesystem.to_owned());
    let device = Device { path, filesystem, options: Vec::new(), make: Some(OWNER) };
    Plan { source: Source::Device(device), ..plain() }
}

fn blank(size: u64) -> (Machine, Loop) {
    let machine = Machine::start();
    let disk = Loop::blank(&machine, size);
    grant(&machine, &disk.0);
    (machine, disk)
}

fn a_blank_device_gets_its_file_system_once() {
    for (filesystem, size) in [("ext4", 16 * MIB), ("xfs", 300 * MIB), ("btrfs", 256 * MIB)] {
        let (mut machine, disk) = blank(size);
        // What lies between the ends is not looked at.
        fs::File::options().write(true).open(&disk.0).unwrap().write_at(b"x", 3 * MIB).unwrap();
        let facts = machine.mount(id(1), making(&disk.0, filesystem)).unwrap();
        assert_eq!(facts.filesystem, filesystem);
        let root = machine.volume(id(1));
        let stat = fs::metadata(&root).unwrap();
        let owner = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
        assert_eq!(owner, (OWNER.uid, OWNER.gid, OWNER.mode), "{filesystem}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "engines fill empty volumes only");
        fs::write(root.join("file"), "kept").unwrap();
        assert_eq!(machine.unmount(id(1)), Release::Gone);
        machine.mount(id(1), making(&disk.0, filesystem)).unwrap();
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept", "{filesystem}");
        assert_eq!(machine.unmount(id(1)), Release::Gone);
    }
}

fn a_read_only_volume_of_a_blank_device_is_made_too() {
    let (mut machine, disk) = blank(16 * MIB);
    machine.mount(id(1), Plan { read_only: true, ..making(&disk.0, "ext4") }).unwrap();
    let root = machine.volume(id(1));
    assert_eq!(fs::metadata(&root).unwrap().uid(), OWNER.uid);
    assert!(fs::write(root.join("file"), "").is_err());
}

/// What is on a device, in a number.
fn sum(disk: &Loop) -> String {
    let summed = Command::new("sha256sum").arg(&disk.0).output().unwrap();
    assert!(summed.status.success());
    String::from_utf8(summed.stdout).unwrap()
}

fn what_is_anywhere_at_the_ends_of_a_device_stays_as_it_is() {
    let size = 16 * MIB;
    for place in [0, 511, MIB - 1, size - MIB, size - 1] {
        let (mut machine, disk) = blank(size);
        fs::File::options().write(true).open(&disk.0).unwrap().write_at(b"x", place).unwrap();
        let before = sum(&disk);
        let fault = machine.mount(id(1), making(&disk.0, "ext4")).unwrap_err();
        assert!(fault.message.contains("cannot mount the ext4 on "), "{place}: {fault}");
        assert_eq!(sum(&disk), before, "{place}");
    }
}

fn another_file_system_on_a_device_stays_as_it_is() {
    let (mut machine, disk) = granted();
    let before = sum(&disk);
    for filesystem in ["xfs", "btrfs"] {
        let fault = machine.mount(id(1), making(&disk.0, filesystem)).unwrap_err();
        assert!(fault.message.contains("cannot mount the "), "{fault}");
        assert_eq!(sum(&disk), before, "{filesystem}");
    }
    machine.mount(id(1), making(&disk.0, "ext4")).unwrap();
    assert!(machine.volume(id(1)).join("lost+found").is_dir(), "it is the one of before");
}

fn a_blank_device_that_somebody_has_is_not_written_to() {
    let (mut machine, disk) = blank(16 * MIB);
    let before = sum(&disk);
    let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let held = fs::File::options().read(true).custom_flags(exclusive).open(&disk.0).unwrap();
    let fault = machine.mount(id(1), making(&disk.0, "ext4")).unwrap_err();
    assert!(fault.message.contains("something else has it"), "{fault}");
    assert_eq!(sum(&disk), before);
    drop(held);
    machine.mount(id(1), making(&disk.0, "ext4")).unwrap();
}

/// A name of a device that comes later, and is gone with the test.
struct Name(PathBuf);

impl Name {
    fn new() -> Self {
        Self(PathBuf::from(format!("/dev/wasmvol-late-{}", std::process::id())))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _was_never_made = fs::remove_file(&self.0);
    }
}

fn a_device_that_is_attached_a_moment_later_is_waited_for() {
    let (mut machine, disk) = blank(16 * MIB);
    let name = Name::new();
    grant(&machine, name.0.to_str().unwrap());
    let mountd = machine.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let children = format!("/proc/{0}/task/{0}/children", mountd.as_raw_nonzero());
            let looks =
                || (fs::read_to_string(&children).ok()?.split(' ').count() > 2).then_some(());
            eventually("a child waits for it", looks);
            symlink(disk.0.trim_start_matches("/dev/"), &name.0).unwrap();
        });
        machine.mount(id(1), making(name.0.to_str().unwrap(), "ext4")).unwrap();
    });
    assert_eq!(fs::metadata(machine.volume(id(1))).unwrap().uid(), OWNER.uid);
}

fn a_device_that_never_appears_is_named() {
    let mut machine = Machine::start();
    grant(&machine, "/dev/wasmvol-never");
    let fault = machine.mount(id(1), making("/dev/wasmvol-never", "ext4")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
    let wanted = "cannot find device `/dev/wasmvol-never`: no such file or directory: it did not appear within 10 s";
    assert_eq!(fault.message, wanted);
}

fn without_a_make_nothing_is_made() {
    let (mut machine, disk) = blank(16 * MIB);
    let before = sum(&disk);
    let fault = machine.mount(id(1), of(&disk.0, &[])).unwrap_err();
    assert!(fault.message.contains("see with `blkid` what is on it"), "{fault}");
    assert_eq!(sum(&disk), before);
}
