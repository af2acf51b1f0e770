//! Files with a file system inside: what is made, how large it is, and that there is one loop device for each.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use wasmvol_plan::frame::{Inventory, Mount};
use wasmvol_plan::{
    Facts, Fault, FaultKind, Filesystem, Id, Image, Plan, Release, Reply, Request, Storage,
};

use crate::machine::{Machine, OWNER, driver, eventually, id, plain, trash};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    an_image_of_each_file_system_is_made_and_keeps_its_data,
    an_image_holds_no_more_than_its_size,
    an_image_that_is_not_thin_has_its_blocks_from_the_start,
    what_is_deleted_in_a_thin_image_goes_back_to_the_disk,
    a_lost_image_is_held_by_the_container_that_has_it_and_mounted_from_the_same_loop,
    a_mountd_that_was_killed_finds_the_image_of_before,
    an_image_grows_while_it_is_mounted_and_while_it_is_not,
    an_image_never_gets_smaller,
    a_read_only_image_withstands_a_remount_by_a_container,
    an_image_with_a_broken_journal_is_mended_before_it_is_mounted,
    an_image_that_cannot_be_mended_is_refused_with_the_cure,
    an_image_that_is_in_use_cannot_be_thrown_away,
    a_make_that_was_killed_is_made_anew,
    a_tool_that_is_missing_is_named_with_its_package,
    a_size_that_the_disk_has_not_is_refused_and_takes_nothing,
    a_directory_of_an_image_is_mounted_and_nothing_beside_it,
    images_need_their_grant,
];

const MIB: u64 = 1 << 20;
const ALL: [Filesystem; 3] = [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs];

fn image(filesystem: Filesystem) -> Image {
    Image { size: filesystem.smallest(), thin: true, filesystem, encrypt: None, owner: OWNER }
}

fn ext4() -> Image {
    Image { size: 32 * MIB, ..image(Filesystem::Ext4) }
}

/// A machine whose driver may have images.
fn granted() -> Machine {
    let machine = Machine::start();
    fs::write(machine.dir.join("etc/grants.d/local"), "image\n").unwrap();
    machine
}

fn make(machine: &mut Machine, id: Id, image: &Image) -> Result<(), Fault> {
    let storage = Storage::Image(image.clone());
    done(
        machine.ask(Request::Make { id, driver: driver(), storage, note: Vec::new() }),
        &Reply::Made,
    )
}

fn grow(machine: &mut Machine, id: Id, image: &Image) -> Result<(), Fault> {
    let storage = Storage::Image(image.clone());
    done(
        machine.ask(Request::Grow { id, driver: driver(), storage, note: Vec::new() }),
        &Reply::Grown,
    )
}

fn done(reply: Reply, wanted: &Reply) -> Result<(), Fault> {
    match reply {
        Reply::Failed(fault) => Err(fault),
        reply => {
            assert_eq!(reply, *wanted);
            Ok(())
        }
    }
}

fn mount(machine: &mut Machine, id: Id, image: &Image, plan: Plan) -> Result<Facts, Fault> {
    let storage = Storage::Image(image.clone());
    let (driver, peer, last) = (driver(), None, None);
    match machine.ask(Request::Mount(Box::new(Mount { id, driver, storage, plan, peer, last }))) {
        Reply::Mounted(facts) => Ok(facts),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

/// Makes an image and mounts it.
fn mounted(machine: &mut Machine, id: Id, image: &Image) -> Facts {
    make(machine, id, image).unwrap();
    mount(machine, id, image, plain()).unwrap()
}

fn file(machine: &Machine, id: Id) -> std::path::PathBuf {
    machine.dir.join(format!("state/volumes/{id}/image"))
}

/// The loop devices that a volume's image has.
fn loops(machine: &Machine, id: Id) -> Vec<String> {
    let wanted = file(machine, id).display().to_string();
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap());
    let backing = |path: std::path::PathBuf| fs::read_to_string(path.join("loop/backing_file"));
    let is_its = |text: String| text.trim_end().trim_end_matches(" (deleted)") == wanted;
    devices
        .filter(|device| backing(device.path()).is_ok_and(is_its))
        .map(|device| device.file_name().into_string().unwrap())
        .collect()
}

fn an_image_of_each_file_system_is_made_and_keeps_its_data() {
    let mut machine = granted();
    for (number, filesystem) in (1..).zip(ALL) {
        let image = image(filesystem);
        let facts = mounted(&mut machine, id(number), &image);
        assert_eq!((facts.filesystem.as_str(), facts.root.as_str()), (filesystem.name(), "/"));
        assert_eq!(mount(&mut machine, id(number), &image, plain()), Ok(facts));
        let root = machine.volume(id(number));
        let stat = fs::metadata(&root).unwrap();
        let owner = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
        assert_eq!(owner, (OWNER.uid, OWNER.gid, OWNER.mode));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "engines fill empty volumes only");
        fs::write(root.join("file"), "kept").unwrap();
        let flags = machine.lines(id(number)).remove(0);
        assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
        assert!(!flags.contains("shared:"), "{flags}");
        assert_eq!(machine.unmount(id(number)), Release::Gone);
        assert_eq!(loops(&machine, id(number)), [""; 0], "the loop device is free again");
        mount(&mut machine, id(number), &image, plain()).unwrap();
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
        // To make it again is done already.
        make(&mut machine, id(number), &image).unwrap();
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
        assert_eq!(machine.unmount(id(number)), Release::Gone);
    }
}

fn an_image_holds_no_more_than_its_size() {
    let mut machine = granted();
    let image = ext4();
    mounted(&mut machine, id(1), &image);
    assert_eq!(fs::metadata(file(&machine, id(1))).unwrap().len(), image.size);
    let path = machine.volume(id(1));
    let to = format!("of={}/file", path.display());
    let full = Command::new("dd").args(["if=/dev/zero", "bs=1M", &to]).output().unwrap();
    assert!(!full.status.success());
    let complaint = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(complaint.contains("No space left on device"), "{complaint}");
    let written = fs::metadata(path.join("file")).unwrap().len();
    assert!(written < image.size && written > image.size / 2, "{written}");
    match machine.ask(Request::Usage(id(1))) {
        Reply::Used(usage) => {
            assert!(usage.size <= image.size && usage.used > written, "{usage:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn blocks(path: &std::path::Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn an_image_that_is_not_thin_has_its_blocks_from_the_start() {
    let mut machine = granted();
    let image = Image { thin: false, ..ext4() };
    mounted(&mut machine, id(1), &image);
    let path = file(&machine, id(1));
    assert!(blocks(&path) >= image.size, "{}", blocks(&path));
    // It keeps them, whatever is deleted or trimmed inside.
    let root = machine.volume(id(1));
    fs::write(root.join("file"), vec![1; 8 << 20]).unwrap();
    assert!(Command::new("sync").arg("-f").arg(&root).status().unwrap().success());
    fs::remove_file(root.join("file")).unwrap();
    let _not_supported_is_fine = Command::new("fstrim").arg(&root).output().unwrap();
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(blocks(&path) >= image.size, "{}", blocks(&path));
}

fn what_is_deleted_in_a_thin_image_goes_back_to_the_disk() {
    let mut machine = granted();
    mounted(&mut machine, id(1), &ext4());
    let (path, root) = (file(&machine, id(1)), machine.volume(id(1)));
    let empty = blocks(&path);
    assert!(empty < 8 * MIB, "{empty}");
    fs::write(root.join("file"), vec![1; 16 << 20]).unwrap();
    let sync = || assert!(Command::new("sync").arg("-f").arg(&root).status().unwrap().success());
    sync();
    assert!(blocks(&path) >= empty + 16 * MIB);
    fs::remove_file(root.join("file")).unwrap();
    eventually("the blocks are given back", || {
        sync();
        (blocks(&path) < empty + 4 * MIB).then_some(())
    });
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_lost_image_is_held_by_the_container_that_has_it_and_mounted_from_the_same_loop() {
    let mut machine = granted();
    for (number, filesystem) in (1..).zip(ALL) {
        let (id, image) = (id(number), image(filesystem));
        let facts = mounted(&mut machine, id, &image);
        let container = machine.container(id);
        assert!(matches!(machine.unmount(id), Release::Held(_)));
        assert!(container.sh("echo alive > /mnt/file"));
        let before = loops(&machine, id);
        assert_eq!(before.len(), 1, "{before:?}");
        assert!(machine.sh(&format!("umount run/mnt/{id}")));
        match machine.unmount(id) {
            Release::Held(evidence) => assert_eq!(evidence.holders.len(), 1, "{evidence:?}"),
            Release::Gone => panic!("a container has it"),
        }
        assert!(matches!(machine.ask(trash(id)), Reply::Failed(_)));
        let again = mount(&mut machine, id, &image, plain()).unwrap();
        assert_eq!((again.device, loops(&machine, id)), (facts.device, before));
        let file = machine.volume(id).join("file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "alive\n");
        fs::write(&file, "written").unwrap();
        assert!(container.sh("grep -q written /mnt/file"));
        drop(container);
        assert_eq!(machine.unmount(id), Release::Gone);
        assert_eq!(loops(&machine, id), [""; 0]);
    }
}

fn a_mountd_that_was_killed_finds_the_image_of_before() {
    let mut machine = granted();
    let facts = mounted(&mut machine, id(1), &ext4());
    let container = machine.container(id(1));
    machine.kill();
    machine.boot(&[]);
    assert_eq!(mount(&mut machine, id(1), &ext4(), plain()), Ok(facts));
    assert_eq!(loops(&machine, id(1)).len(), 1);
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

/// Whether this process has CAP_SYS_RESOURCE: some machines that run tests keep it from root.
fn may_grow_ext4() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 24) != 0
}

fn an_image_grows_while_it_is_mounted_and_while_it_is_not() {
    let mut machine = granted();
    for (number, filesystem) in (1..).zip(ALL) {
        for thin in [true, false] {
            let id = id(number * 2 + u128::from(thin));
            let small = Image { thin, ..image(filesystem) };
            mounted(&mut machine, id, &small);
            let size = |machine: &mut Machine| match machine.ask(Request::Usage(id)) {
                Reply::Used(usage) => usage.size,
                other => panic!("{other:?}"),
            };
            let container = machine.container(id);
            assert!(container.sh("echo kept > /mnt/file"));
            let before = size(&mut machine);
            let large = Image { size: small.size + 64 * MIB, ..small.clone() };
            let grown = grow(&mut machine, id, &large);
            if filesystem == Filesystem::Ext4 && !may_grow_ext4() {
                let fault = grown.unwrap_err();
                assert!(fault.message.contains("CAP_SYS_RESOURCE"), "{fault}");
                drop(container);
                assert_eq!(machine.unmount(id), Release::Gone);
                continue;
            }
            grown.unwrap();
            let grown = size(&mut machine);
            assert!(grown >= before + 60 * MIB && grown <= large.size, "{before} {grown}");
            // Again is done already.
            grow(&mut machine, id, &large).unwrap();
            assert_eq!(size(&mut machine), grown);
            assert_eq!(loops(&machine, id).len(), 1);
            drop(container);
            assert_eq!(machine.unmount(id), Release::Gone);
            let larger = Image { size: large.size + 64 * MIB, ..small };
            grow(&mut machine, id, &larger).unwrap();
            assert_eq!(loops(&machine, id), [""; 0]);
            mount(&mut machine, id, &larger, plain()).unwrap();
            assert!(size(&mut machine) >= grown + 60 * MIB);
            let kept = fs::read_to_string(machine.volume(id).join("file")).unwrap();
            assert_eq!(kept, "kept\n");
            assert_eq!(machine.unmount(id), Release::Gone);
        }
    }
}

fn an_image_never_gets_smaller() {
    let mut machine = granted();
    mounted(&mut machine, id(1), &ext4());
    let smaller = Image { size: 16 * MIB, ..ext4() };
    let fault = grow(&mut machine, id(1), &smaller).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
    assert_eq!(fs::metadata(file(&machine, id(1))).unwrap().len(), 32 * MIB);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_read_only_image_withstands_a_remount_by_a_container() {
    let mut machine = granted();
    for (number, filesystem) in (1..).zip(ALL) {
        let (id, image) = (id(number), image(filesystem));
        mounted(&mut machine, id, &image);
        fs::write(machine.volume(id).join("file"), "kept").unwrap();
        assert_eq!(machine.unmount(id), Release::Gone);
        mount(&mut machine, id, &image, Plan { read_only: true, ..plain() }).unwrap();
        assert_eq!(loops(&machine, id).len(), 1);
        let container = machine.container(id);
        assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
        assert!(!container.sh("touch /mnt/new"));
        assert!(!container.sh("mount -o remount,rw /mnt"), "privileged containers do this");
        assert!(!container.sh("touch /mnt/new") && container.sh("grep -q kept /mnt/file"));
        drop(container);
        assert_eq!(machine.unmount(id), Release::Gone);
    }
}

fn an_image_with_a_broken_journal_is_mended_before_it_is_mounted() {
    let mut machine = granted();
    mounted(&mut machine, id(1), &ext4());
    let root = machine.volume(id(1));
    fs::write(root.join("file"), "kept").unwrap();
    assert!(Command::new("sync").arg("-f").arg(&root).status().unwrap().success());
    // A copy of a mounted image is what a power cut leaves.
    let image = file(&machine, id(1));
    let copy = image.with_file_name("copy");
    fs::copy(&image, &copy).unwrap();
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    fs::rename(&copy, &image).unwrap();
    mount(&mut machine, id(1), &ext4(), plain()).unwrap();
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    let check = Command::new("e2fsck").args(["-fn"]).arg(&image).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

fn an_image_that_cannot_be_mended_is_refused_with_the_cure() {
    let mut machine = granted();
    make(&mut machine, id(1), &ext4()).unwrap();
    let path = file(&machine, id(1));
    fs::write(&path, vec![0xff; 1 << 20]).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(32 * MIB).unwrap();
    let fault = mount(&mut machine, id(1), &ext4(), plain()).unwrap_err();
    assert!(fault.message.contains("run `e2fsck` on"), "{fault}");
    assert!(!fault.message.contains('\n'), "{fault}");
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
    assert_eq!(loops(&machine, id(1)), [""; 0]);
}

fn an_image_that_is_in_use_cannot_be_thrown_away() {
    let mut machine = granted();
    mounted(&mut machine, id(1), &ext4());
    match machine.ask(trash(id(1))) {
        Reply::Failed(fault) => assert_eq!(fault.kind, FaultKind::Busy, "{fault}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    let (volumes, trash) = (machine.survey(Inventory::Volumes).0, machine.dir.join("state/trash"));
    assert_eq!(volumes, []);
    eventually("the reaper is done", || {
        fs::read_dir(&trash).unwrap().next().is_none().then_some(())
    });
}

fn a_make_that_was_killed_is_made_anew() {
    let mut machine = granted();
    let place = machine.dir.join(format!("state/volumes/{}", id(1)));
    fs::create_dir(&place).unwrap();
    fs::write(place.join("image.new"), "half of it").unwrap();
    mounted(&mut machine, id(1), &ext4());
    let left: Vec<_> = fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["image"]);
    assert_eq!(fs::metadata(place.join("image")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_tool_that_is_missing_is_named_with_its_package() {
    let mut machine = granted();
    // Elsewhere there are none, and here an empty directory lies over them.
    assert!(machine.sh("mkdir none && for d in /usr/sbin /sbin; do mount --bind none $d; done"));
    for (filesystem, package) in ALL.into_iter().zip(["e2fsprogs", "xfsprogs", "btrfs-progs"]) {
        let fault = make(&mut machine, id(1), &image(filesystem)).unwrap_err();
        let cure = format!("install the Debian package `{package}`");
        assert!(fault.message.ends_with(&cure), "{fault}");
    }
}

fn a_size_that_the_disk_has_not_is_refused_and_takes_nothing() {
    let mut machine = Machine::empty();
    assert!(machine.sh("mkdir state && mount -t tmpfs -o size=48m,mode=755 disk state"));
    machine.boot(&[]);
    fs::write(machine.dir.join("etc/grants.d/local"), "image\n").unwrap();
    let fixed = Image { thin: false, ..ext4() };
    let fault = make(&mut machine, id(1), &Image { size: 64 * MIB, ..fixed.clone() }).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Exhausted, "{fault}");
    assert!(!fault.message.contains('\n') && fault.message.contains("no space"), "{fault}");
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    mounted(&mut machine, id(2), &fixed);
    let fault = grow(&mut machine, id(2), &Image { size: 64 * MIB, ..fixed.clone() }).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Exhausted, "{fault}");
    // What could be reserved is given back.
    let stat = fs::metadata(machine.inside(format!("state/volumes/{}/image", id(2)))).unwrap();
    assert_eq!((stat.len(), stat.blocks() * 512), (32 * MIB, 32 * MIB));
    assert_eq!(machine.unmount(id(2)), Release::Gone);
}

fn a_directory_of_an_image_is_mounted_and_nothing_beside_it() {
    let mut machine = granted();
    mounted(&mut machine, id(1), &ext4());
    fs::create_dir(machine.volume(id(1)).join("inside")).unwrap();
    fs::write(machine.volume(id(1)).join("inside/file"), "kept").unwrap();
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    let plan = Plan { subpath: Some("inside".into()), ..plain() };
    let facts = mount(&mut machine, id(1), &ext4(), plan).unwrap();
    assert_eq!(facts.root, "/inside");
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "kept");
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn images_need_their_grant() {
    let mut machine = Machine::start();
    let fault = make(&mut machine, id(1), &ext4()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    assert!(fault.message.contains("driver grant local 'image'"), "{fault}");
    assert_eq!(machine.survey(Inventory::Volumes).0, []);
}
