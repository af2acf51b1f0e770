//! Btrfs subvolumes: what they take, what they hold, and that they go.

use std::fs;
use std::os::unix::fs::MetadataExt;

use wasmvol_plan::frame::{Inventory, Mount};
use wasmvol_plan::{
    Compression, Facts, Fault, Id, Plan, Release, Reply, Request, Storage, Subvolume,
};

use crate::machine::{Machine, OWNER, driver, eventually, id, plain, trash};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_subvolume_keeps_its_data_between_mounts,
    a_container_keeps_its_subvolume_until_it_ends,
    a_subvolume_holds_no_more_than_its_limit_and_more_after_a_resize,
    a_subvolume_is_compressed_or_written_in_place_as_it_says,
    a_subvolume_goes_with_the_subvolumes_that_a_container_made_in_it,
    a_read_only_subvolume_withstands_a_remount_by_a_container,
    a_state_directory_that_is_not_on_btrfs_is_named_with_the_cure,
];

const PLAIN: Subvolume =
    Subvolume { owner: OWNER, limit: None, compress: None, copy_on_write: true };

/// A machine whose state directory lies on a btrfs of its own.
fn on_btrfs() -> Machine {
    let mut machine = Machine::empty();
    let line = "mkdir state && truncate -s 512M disk && mkfs.btrfs -q disk >/dev/null && mount -o loop disk state";
    assert!(machine.sh(line), "btrfs-progs is installed");
    machine.boot(&[]);
    machine
}

fn make(machine: &mut Machine, id: Id, subvolume: &Subvolume) -> Result<(), Fault> {
    let storage = Storage::Subvolume(subvolume.clone());
    match machine.ask(Request::Make { id, driver: driver(), storage, note: Vec::new() }) {
        Reply::Made => Ok(()),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

fn mount(machine: &mut Machine, id: Id, plan: Plan) -> Facts {
    let storage = Storage::Subvolume(PLAIN);
    let (driver, peer, last) = (driver(), None, None);
    match machine.ask(Request::Mount(Box::new(Mount { id, driver, storage, plan, peer, last }))) {
        Reply::Mounted(facts) => facts,
        other => panic!("{other:?}"),
    }
}

fn a_subvolume_keeps_its_data_between_mounts() {
    let mut machine = on_btrfs();
    make(&mut machine, id(1), &PLAIN).unwrap();
    let facts = mount(&mut machine, id(1), plain());
    assert_eq!(mount(&mut machine, id(1), plain()), facts);
    let root = machine.volume(id(1));
    let stat = fs::metadata(&root).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    assert_eq!(stat.ino(), 256, "the root of a subvolume");
    fs::write(root.join("file"), "kept").unwrap();
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    make(&mut machine, id(1), &PLAIN).unwrap();
    mount(&mut machine, id(1), plain());
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
}

fn a_container_keeps_its_subvolume_until_it_ends() {
    let mut machine = on_btrfs();
    for number in [1, 2] {
        make(&mut machine, id(number), &PLAIN).unwrap();
        mount(&mut machine, id(number), plain());
    }
    let container = machine.container(id(1));
    assert_eq!(machine.unmount(id(2)), Release::Gone, "nobody has the other one");
    match machine.unmount(id(1)) {
        Release::Held(evidence) => assert_eq!(evidence.holders.len(), 1, "{evidence:?}"),
        Release::Gone => panic!("a container has it"),
    }
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)), "also behind our back");
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_subvolume_holds_no_more_than_its_limit_and_more_after_a_resize() {
    let mut machine = on_btrfs();
    let limited = |mib: u64| Subvolume { limit: Some(mib << 20), ..PLAIN };
    make(&mut machine, id(1), &limited(16)).unwrap();
    mount(&mut machine, id(1), plain());
    let root = machine.volume(id(1));
    let write = |mib: usize| {
        let written = fs::write(root.join("file"), vec![7; mib << 20]);
        written.and_then(|()| fs::File::open(root.join("file"))?.sync_all())
    };
    write(12).unwrap();
    let full = write(20).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(122), "EDQUOT: {full}");
    fs::remove_file(root.join("file")).unwrap();
    let storage = Storage::Subvolume(limited(32));
    let request = Request::Grow { id: id(1), driver: driver(), storage, note: Vec::new() };
    assert_eq!(machine.ask(request), Reply::Grown);
    assert!(machine.sh("btrfs filesystem sync state"));
    write(20).unwrap();
    assert!(write(40).is_err());
}

fn a_subvolume_is_compressed_or_written_in_place_as_it_says() {
    let mut machine = on_btrfs();
    let compressed = Subvolume { compress: Some(Compression::Zstd), ..PLAIN };
    make(&mut machine, id(1), &compressed).unwrap();
    make(&mut machine, id(2), &Subvolume { copy_on_write: false, ..PLAIN }).unwrap();
    mount(&mut machine, id(1), plain());
    mount(&mut machine, id(2), plain());
    let [one, two] = [1, 2].map(|number| format!("run/mnt/{}", id(number)));
    assert!(
        machine.sh(&format!("btrfs property get {one} compression | grep -qx compression=zstd"))
    );
    assert!(machine.sh(&format!("touch {two}/file && lsattr {two}/file | grep -q '^[^ ]*C'")));
}

fn a_subvolume_goes_with_the_subvolumes_that_a_container_made_in_it() {
    let mut machine = on_btrfs();
    make(&mut machine, id(1), &PLAIN).unwrap();
    mount(&mut machine, id(1), plain());
    let root = format!("run/mnt/{}", id(1));
    let deep: Vec<String> = (0..12).map(|n| format!("sub{n}")).collect();
    for depth in 1..=deep.len() {
        let path = deep[..depth].join("/d/");
        let line = format!(
            "mkdir -p $(dirname {root}/{path}) && btrfs -q subvolume create {root}/{path} && echo x > {root}/{path}/file && mkdir {root}/{path}/d"
        );
        assert!(machine.sh(&line));
    }
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert_eq!(machine.ask(trash(id(1))), Reply::Trashed);
    assert_eq!(machine.survey(Inventory::Volumes).0, []);
    let trash = machine.inside("state/trash");
    eventually("the reaper is done", || {
        fs::read_dir(&trash).unwrap().next().is_none().then_some(())
    });
}

fn a_read_only_subvolume_withstands_a_remount_by_a_container() {
    let mut machine = on_btrfs();
    make(&mut machine, id(1), &PLAIN).unwrap();
    mount(&mut machine, id(1), Plan { read_only: true, ..plain() });
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("mount -o remount,rw /mnt"), "privileged containers do this");
    assert!(!container.sh("touch /mnt/new"));
}

fn a_state_directory_that_is_not_on_btrfs_is_named_with_the_cure() {
    let mut machine = Machine::empty();
    assert!(machine.sh("mkdir state && mount -t tmpfs -o mode=755 disk state"));
    machine.boot(&[]);
    let fault = make(&mut machine, id(1), &PLAIN).unwrap_err();
    let cure = "mount a btrfs there, or use `-o driver=image -o fs=btrfs`";
    assert!(fault.message.contains("is not on btrfs") && fault.message.ends_with(cure), "{fault}");
    assert_eq!(machine.survey(Inventory::Volumes).0, []);
}
