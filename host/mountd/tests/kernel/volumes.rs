//! What mountd makes of a plan.

use std::fs;
use std::os::unix::fs::MetadataExt;

use wasmvol_plan::{Release, Reply, Request};

use crate::machine::{Machine, OWNER, id, plain, tmpfs};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_directory_keeps_its_data_between_mounts", a_directory_keeps_its_data_between_mounts),
    ("a_tmpfs_has_the_size_and_owner_of_its_plan", a_tmpfs_has_the_size_and_owner_of_its_plan),
];

fn a_directory_keeps_its_data_between_mounts() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let facts = machine.mount(id(1), plain()).unwrap();
    fs::write(machine.volume(id(1)).join("file"), "kept").unwrap();
    assert_eq!(machine.mount(id(1), plain()), Ok(facts));
    assert_eq!(machine.lines(id(1)).len(), 1);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(!machine.volume(id(1)).exists());
    machine.mount(id(1), plain()).unwrap();
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "kept");
}

fn a_tmpfs_has_the_size_and_owner_of_its_plan() {
    let mut machine = Machine::start();
    machine.mount(id(1), tmpfs()).unwrap();
    let root = fs::metadata(machine.volume(id(1))).unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    match machine.ask(Request::Usage { id: id(1) }) {
        Reply::Used(usage) => assert_eq!((usage.size, usage.used, usage.inodes), (1 << 20, 0, 100)),
        other => panic!("{other:?}"),
    }
}
