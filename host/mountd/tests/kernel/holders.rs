//! Who keeps a volume from being unmounted, and who must see it.

use std::fs;

use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{Evidence, FaultKind, Release, Reply, Request};

use crate::machine::{Machine, OWNER, id, plain, tmpfs};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_container_keeps_its_volume_until_it_ends,
    a_bind_in_the_hosts_own_namespace_holds_the_volume,
    a_copy_of_the_whole_tree_holds_nothing,
    an_open_file_keeps_the_volume,
    a_tmpfs_that_a_container_holds_is_taken_back,
    a_tmpfs_that_a_container_of_another_user_holds_is_taken_back,
    a_lost_directory_is_held_by_the_container_that_has_it,
    a_lost_tmpfs_is_held_by_the_container_that_has_it,
    a_directory_inside_a_lost_tmpfs_is_not_taken_for_the_volume,
    an_engine_that_cannot_see_the_mount_gets_an_error_and_the_mount_goes,
    an_engine_in_a_slave_namespace_sees_volumes_come_and_go,
];

fn a_container_keeps_its_volume_until_it_ends() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    for (number, plan) in [(1, plain()), (2, tmpfs())] {
        machine.mount(id(number), plan.clone()).unwrap();
        let container = machine.container(id(number));
        let evidence = match machine.unmount(id(number)) {
            Release::Held(evidence) => evidence,
            Release::Gone => panic!("a container has it"),
        };
        assert_eq!(evidence.unknown, 0);
        let [holder] = &evidence.holders[..] else { panic!("{evidence:?}") };
        assert_eq!((holder.pid, holder.path.as_str()), (container.pid(), "/mnt"));
        assert_eq!(
            machine.ask(Request::Scan { id: id(number), attached: None }),
            Reply::Scanned(evidence)
        );
        // Draining: a new Mount finds the same superblock.
        assert!(container.sh("echo held > /mnt/file"));
        machine.mount(id(number), plan).unwrap();
        assert_eq!(fs::read_to_string(machine.volume(id(number)).join("file")).unwrap(), "held\n");
        drop(container);
        assert_eq!(machine.unmount(id(number)), Release::Gone);
    }
}

fn a_bind_in_the_hosts_own_namespace_holds_the_volume() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    fs::create_dir(machine.volume(id(1)).join("inner")).unwrap();
    assert!(machine.sh(&format!("mkdir here && mount --bind run/mnt/{}/inner here", id(1))));
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    assert!(machine.sh("umount here"));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_copy_of_the_whole_tree_holds_nothing() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    let copy = machine.namespace("private", "mount --rbind / /mnt");
    let scanned = machine.ask(Request::Scan { id: id(1), attached: None });
    assert_eq!(scanned, Reply::Scanned(Evidence::default()));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    drop(copy);
}

fn an_open_file_keeps_the_volume() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    machine.mount(id(1), plain()).unwrap();
    let held = fs::File::create(machine.volume(id(1)).join("open")).unwrap();
    match machine.unmount(id(1)) {
        Release::Held(evidence) => assert!(!evidence.is_free()),
        Release::Gone => panic!("a file is open"),
    }
    assert_eq!(machine.lines(id(1)).len(), 1);
    drop(held);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_tmpfs_that_a_container_holds_is_taken_back() {
    let mut machine = Machine::start();
    let facts = machine.mount(id(1), tmpfs()).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("echo alive > /mnt/file && mount -o remount,bind,ro /mnt"));
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let again = machine.mount_for(id(1), tmpfs(), None, Some(facts.clone())).unwrap();
    assert_eq!(again.device, facts.device);
    let file = machine.volume(id(1)).join("file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "alive\n");
    fs::write(&file, "written").unwrap();
    let line = machine.lines(id(1)).remove(0);
    assert!(line.contains("nosuid,nodev") && !line.contains("shared:"), "{line}");
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    // Nobody has it any more: a new one, whatever the old device number is now.
    machine.mount_for(id(1), tmpfs(), None, Some(facts)).unwrap();
    assert!(!file.exists());
}

fn a_tmpfs_that_a_container_of_another_user_holds_is_taken_back() {
    let mut machine = Machine::start();
    let facts = machine.mount(id(1), tmpfs()).unwrap();
    let line = format!("mount --bind run/mnt/{} /mnt", id(1));
    let container = machine.user_namespace(&line);
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let again = machine.mount_for(id(1), tmpfs(), None, Some(facts.clone())).unwrap();
    assert_eq!(again.device, facts.device);
    fs::write(machine.volume(id(1)).join("file"), "written").unwrap();
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_lost_directory_is_held_by_the_container_that_has_it() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let facts = machine.mount(id(1), plain()).unwrap();
    let container = machine.container(id(1));
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    let again = machine.mount_for(id(1), plain(), None, Some(facts.clone())).unwrap();
    assert_eq!((again.device, again.root), (facts.device, facts.root));
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_lost_tmpfs_is_held_by_the_container_that_has_it() {
    let mut machine = Machine::start();
    machine.mount(id(1), tmpfs()).unwrap();
    let container = machine.container(id(1));
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    match machine.ask(Request::Scan { id: id(1), attached: None }) {
        Reply::Scanned(evidence) => assert_eq!(evidence.holders.len(), 1, "{evidence:?}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)));
    assert_eq!(machine.unmount(id(2)), Release::Gone, "nobody has another volume");
    drop(container);
    assert_eq!(machine.unmount(id(1)), Release::Gone);
}

fn a_directory_inside_a_lost_tmpfs_is_not_taken_for_the_volume() {
    let mut machine = Machine::start();
    let facts = machine.mount(id(1), tmpfs()).unwrap();
    fs::create_dir(machine.volume(id(1)).join("inside")).unwrap();
    let line = format!("mount --bind run/mnt/{0}/inside /mnt && umount run/mnt/{0}", id(1));
    let container = machine.namespace("private", &line);
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let refused = machine.mount_for(id(1), tmpfs(), None, Some(facts.clone())).unwrap_err();
    assert_eq!(refused.kind, FaultKind::Busy, "{refused}");
    drop(container);
    machine.mount_for(id(1), tmpfs(), None, Some(facts)).unwrap();
    assert_eq!(fs::read_dir(machine.volume(id(1))).unwrap().count(), 0);
}

fn an_engine_that_cannot_see_the_mount_gets_an_error_and_the_mount_goes() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let engine = machine.namespace("private", "true");
    let fault = machine.mount_for(id(1), plain(), Some(engine.pid()), None).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invisible);
    assert!(fault.message.contains("make-rshared"), "{fault}");
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
    // What others use stays.
    machine.mount(id(1), plain()).unwrap();
    assert!(machine.mount_for(id(1), plain(), Some(engine.pid()), None).is_err());
    assert_eq!(machine.lines(id(1)).len(), 1);
}

fn an_engine_in_a_slave_namespace_sees_volumes_come_and_go() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let engine = machine.namespace("slave", "true");
    let pid = engine.pid();
    machine.mount_for(id(1), plain(), Some(pid), None).unwrap();
    let seen = || fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(seen().contains(&id(1).to_string()));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(!seen().contains(&id(1).to_string()));
    drop(engine);
    machine.mount_for(id(1), plain(), Some(pid), None).unwrap();
}
