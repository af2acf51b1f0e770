//! Overlays and id maps: a layer of the volume's own over granted directories, and owners that are shown as others.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use wasmvol_plan::frame::Mount;
use wasmvol_plan::steps::{KILL_AT, LAYER};
use wasmvol_plan::{
    Below, Directory, Facts, FaultKind, HostDirectory, Id, IdMap, IdRange, Overlay, Plan, Release,
    Reply, Request, Source, Storage,
};

use crate::machine::{Machine, OWNER, driver, eventually, id, make, mount_request, plain, tmpfs};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_layer_hides_what_lies_below_and_leaves_it_as_it_is,
    several_directories_lie_below_each_other,
    an_overlay_that_is_only_read_withstands_a_remount_by_a_container,
    an_overlay_over_what_is_not_granted_is_refused,
    an_overlay_that_a_container_holds_is_taken_back_not_doubled,
    a_volatile_layer_is_used_again_by_the_same_boot,
    a_volatile_layer_of_another_boot_begins_anew,
    a_layer_lies_over_the_directory_of_another_volume,
    a_layer_that_is_reset_begins_anew_at_each_mount_and_at_none_that_repeats_one,
    a_layer_that_is_reset_is_never_emptied_while_a_container_has_it,
    killed_at_any_step_a_layer_that_is_reset_comes_back_empty_and_as_it_was_made,
    owners_are_shown_as_the_map_says,
    a_read_only_directory_has_its_ids_mapped,
    a_tmpfs_has_its_ids_mapped_and_is_taken_back_with_them,
    what_lies_below_an_overlay_has_its_ids_mapped,
    an_id_map_of_ranges_that_overlap_is_refused,
    a_read_only_tmpfs_withstands_a_remount_by_a_container,
];

/// A machine with two directories that the driver was granted, `low` with a file `a`, and `high` with `a` and `b`.
fn granted() -> (Machine, PathBuf) {
    let machine = Machine::start();
    let srv = machine.dir.join("srv");
    for (path, text) in [("low/a", "low"), ("high/a", "high"), ("high/b", "high")] {
        let path = srv.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let line = format!("host-directory={}\n", srv.display());
    fs::write(machine.dir.join("etc/grants.d/local"), line).unwrap();
    (machine, srv)
}

fn over(srv: &Path, lower: &[&str], volatile: bool) -> Plan {
    let lower = lower.iter().map(|name| srv.join(name).display().to_string()).collect();
    Plan { source: Source::Overlay(Overlay { lower, volatile, reset: false }), ..plain() }
}

/// Over `low`, with a layer that each first mount empties.
fn resetting(srv: &Path) -> Plan {
    let lower = vec![srv.join("low").display().to_string()];
    Plan { source: Source::Overlay(Overlay { lower, volatile: false, reset: true }), ..plain() }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn a_layer_hides_what_lies_below_and_leaves_it_as_it_is() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    machine.make(id(2), OWNER);
    let facts = machine.mount(id(1), over(&srv, &["low"], false)).unwrap();
    assert_eq!((facts.filesystem.as_str(), facts.root.as_str()), ("overlay", "/"));
    let volume = machine.volume(id(1));
    assert_eq!(read(volume.join("a")), "low");
    fs::write(volume.join("a"), "mine").unwrap();
    let stat = fs::metadata(&volume).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    let line = machine.lines(id(1)).remove(0);
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    assert_eq!(read(srv.join("low/a")), "low");
    machine.mount(id(2), over(&srv, &["low"], false)).unwrap();
    assert_eq!(read(machine.volume(id(2)).join("a")), "low");
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    machine.mount(id(1), over(&srv, &["low"], false)).unwrap();
    assert_eq!(read(machine.volume(id(1)).join("a")), "mine");
}

fn several_directories_lie_below_each_other() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    machine.mount(id(1), over(&srv, &["low", "high"], false)).unwrap();
    let volume = machine.volume(id(1));
    assert_eq!((read(volume.join("a")), read(volume.join("b"))), ("low".into(), "high".into()));
}

fn an_overlay_that_is_only_read_withstands_a_remount_by_a_container() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    let plan = Plan { read_only: true, ..over(&srv, &["low"], false) };
    machine.mount(id(1), plan).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("mount -o remount,rw /mnt && touch /mnt/new"));
    assert!(!container.sh("touch /mnt/new") && container.sh("grep -q low /mnt/a"));
}

fn an_overlay_over_what_is_not_granted_is_refused() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    symlink("/etc", srv.join("out")).unwrap();
    for lower in ["/etc", "out"] {
        let fault = machine.mount(id(1), over(&srv, &["low", lower], false)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{lower}: {fault}");
    }
    assert_eq!(machine.lines(id(1)), [""; 0]);
}

fn an_overlay_that_a_container_holds_is_taken_back_not_doubled() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    let plan = || over(&srv, &["low"], true);
    let facts = machine.mount(id(1), plan()).unwrap();
    let container = machine.container(id(1));
    assert!(matches!(machine.unmount(id(1)), Release::Held(_)), "it is held");
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let Facts { device, .. } = machine.mount_for(id(1), plan(), None, Some(facts.clone())).unwrap();
    assert_eq!(device, facts.device);
    assert!(container.sh("touch /mnt/new"));
    assert!(machine.volume(id(1)).join("new").exists());
}

fn a_volatile_layer_is_used_again_by_the_same_boot() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    for run in ["first", "second", "third"] {
        machine.mount(id(1), over(&srv, &["low"], true)).unwrap();
        let line = machine.lines(id(1)).remove(0);
        assert!(line.contains("volatile"), "{line}");
        let file = machine.volume(id(1)).join("runs");
        let before = fs::read_to_string(&file).unwrap_or_default();
        fs::write(file, format!("{before}{run} ")).unwrap();
        assert_eq!(machine.unmount(id(1)), Release::Gone);
    }
    let file = machine.dir.join(format!("state/volumes/{}/data/runs", id(1)));
    assert_eq!(read(file), "first second third ");
}

fn a_volatile_layer_of_another_boot_begins_anew() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    let plan = || over(&srv, &["low"], true);
    machine.mount(id(1), plan()).unwrap();
    fs::write(machine.volume(id(1)).join("written"), "").unwrap();
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    let boot = machine.dir.join(format!("state/volumes/{}/boot", id(1)));
    fs::remove_file(&boot).unwrap();
    symlink("0123456789abcdef0123456789abcdef", &boot).unwrap();
    machine.mount(id(1), plan()).unwrap();
    let volume = machine.volume(id(1));
    assert_eq!(read(volume.join("a")), "low");
    assert!(!volume.join("written").exists());
    let stat = fs::metadata(&volume).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    eventually("the old layer is deleted", || {
        fs::read_dir(machine.dir.join("state/trash")).unwrap().next().is_none().then_some(())
    });
}

fn a_layer_lies_over_the_directory_of_another_volume() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    fs::write(machine.inside(format!("state/volumes/{}/data/a", id(1))), "base").unwrap();
    fs::write(machine.inside(format!("state/volumes/{}/data/base", id(1))), "base").unwrap();
    let mut layer = |below: Option<Id>, lower: &[&str]| {
        let below = Some(Below { name: "base".to_owned(), id: below });
        let storage = Storage::Directory(Directory { owner: OWNER, limit: None, over: below });
        assert_eq!(machine.ask(make(id(2), storage.clone())), Reply::Made);
        let (id, driver, plan) = (id(2), driver(), over(&srv, lower, false));
        let (peer, last) = (None, None);
        let mounted =
            machine.ask(Request::Mount(Box::new(Mount { id, driver, storage, plan, peer, last })));
        let root = machine.volume(id);
        let seen = ["a", "base"].map(|name| fs::read_to_string(root.join(name)).ok());
        if let Reply::Mounted(_) = mounted {
            fs::write(root.join("base"), "mine").unwrap();
            fs::remove_file(root.join("base")).unwrap();
            assert_eq!(machine.unmount(id), Release::Gone);
        }
        (mounted, seen)
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(layer(Some(id(1)), &[]).1, [text("base"), text("base")]);
    let (unknown, _) = layer(None, &[]);
    assert!(matches!(unknown, Reply::Failed(fault) if fault.kind == FaultKind::Invalid));
    let (missing, _) = layer(Some(id(3)), &[]);
    assert!(matches!(missing, Reply::Failed(fault) if fault.kind == FaultKind::Missing));
    // Directories lie above the volume; what was deleted in the layer stays so.
    assert_eq!(layer(Some(id(1)), &["low"]).1, [text("low"), None]);
    assert_eq!(read(machine.inside(format!("state/volumes/{}/data/base", id(1)))), "base");
}

/// Waits until nothing is left in the trash.
fn reaped(machine: &Machine) {
    let trash = machine.inside("state/trash");
    eventually("what the layer held is deleted", || {
        fs::read_dir(&trash).unwrap().next().is_none().then_some(())
    });
}

/// A volume's root as its container meets it: what it shows, and whose it is.
fn shown(machine: &Machine, id: Id) -> (Vec<String>, (u32, u32, u32)) {
    let root = machine.volume(id);
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|entry| name(entry).into_string().unwrap()).collect();
    names.sort();
    let stat = fs::metadata(root).unwrap();
    (names, (stat.uid(), stat.gid(), stat.mode() & 0o7777))
}

/// What a layer over `low` shows before anything was written.
fn untouched() -> (Vec<String>, (u32, u32, u32)) {
    (vec!["a".to_owned()], (OWNER.uid, OWNER.gid, OWNER.mode))
}

fn a_layer_that_is_reset_begins_anew_at_each_mount_and_at_none_that_repeats_one() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    for run in ["first", "second"] {
        let facts = machine.mount(id(1), resetting(&srv)).unwrap();
        let volume = machine.volume(id(1));
        assert_eq!((shown(&machine, id(1)), read(volume.join("a"))), (untouched(), "low".into()));
        fs::write(volume.join("a"), run).unwrap();
        fs::write(volume.join("new"), run).unwrap();
        chown(&volume, Some(5), None).unwrap();
        assert_eq!(machine.mount(id(1), resetting(&srv)), Ok(facts.clone()), "mounted already");
        machine.kill();
        machine.boot(&[]);
        assert_eq!(machine.mount(id(1), resetting(&srv)), Ok(facts.clone()), "after a restart");
        // Taken away by hand, and mounted again for those who hold it.
        assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
        machine.mount_for(id(1), resetting(&srv), None, Some(facts)).unwrap();
        assert_eq!((read(volume.join("a")), read(volume.join("new"))), (run.into(), run.into()));
        assert_eq!(machine.unmount(id(1)), Release::Gone);
    }
    machine.mount(id(1), resetting(&srv)).unwrap();
    assert_eq!(shown(&machine, id(1)), untouched());
    assert_eq!(read(srv.join("low/a")), "low");
    reaped(&machine);
}

fn a_layer_that_is_reset_is_never_emptied_while_a_container_has_it() {
    let (mut machine, srv) = granted();
    machine.make(id(1), OWNER);
    machine.mount(id(1), resetting(&srv)).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("echo mine > /mnt/new"));
    // Nobody remembers it but the kernel: its mount and its row are lost.
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    let fault = machine.mount(id(1), resetting(&srv)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Busy, "{fault}");
    let who = format!("process {} has it at `/mnt`, end that one", container.pid());
    assert!(fault.message.contains(&who), "{fault}");
    assert!(container.sh("grep -qx mine /mnt/new && echo more >> /mnt/new"));
    drop(container);
    machine.mount(id(1), resetting(&srv)).unwrap();
    assert_eq!(shown(&machine, id(1)), untouched());
}

fn killed_at_any_step_a_layer_that_is_reset_comes_back_empty_and_as_it_was_made() {
    for step in LAYER {
        let (mut machine, srv) = granted();
        machine.make(id(1), OWNER);
        machine.mount(id(1), resetting(&srv)).unwrap();
        fs::write(machine.volume(id(1)).join("old"), "").unwrap();
        assert_eq!(machine.unmount(id(1)), Release::Gone);
        machine.kill();
        let flag = machine.dir.join("armed");
        fs::write(&flag, "").unwrap();
        machine.boot(&[(KILL_AT, &format!("{step}@{}", flag.display()))]);
        assert_eq!(machine.try_ask(mount_request(id(1), resetting(&srv), None, None)), None);
        assert!(!flag.exists(), "{step} was not reached");
        machine.boot(&[]);
        machine.mount(id(1), resetting(&srv)).unwrap();
        assert_eq!(shown(&machine, id(1)), untouched(), "{step}");
        fs::write(machine.volume(id(1)).join("new"), "").unwrap();
        assert_eq!(machine.unmount(id(1)), Release::Gone);
        reaped(&machine);
    }
}

/// Shows what the disk has as 0 to 9 as 100000 and on, and no other id.
fn map() -> Option<IdMap> {
    let ranges = vec![IdRange { disk: 0, shown: 100_000, count: 10 }];
    Some(IdMap { users: ranges.clone(), groups: ranges })
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

fn owners_are_shown_as_the_map_says() {
    let (mut machine, srv) = granted();
    chown(srv.join("high/b"), Some(3), Some(4)).unwrap();
    chown(srv.join("high/a"), Some(500), Some(4)).unwrap();
    let source = Source::HostDirectory(HostDirectory {
        path: srv.join("high").display().to_string(),
        make: None,
    });
    machine.mount(id(1), Plan { source, id_map: map(), ..plain() }).unwrap();
    let volume = machine.volume(id(1));
    assert_eq!(owner(volume.join("b")), (100_003, 100_004));
    assert_eq!(owner(volume.join("a")), (65534, 100_004), "what no range has is nobody's");
    let container = machine.container(id(1));
    assert!(container.sh("setpriv --reuid 100000 --regid 100001 --clear-groups touch /mnt/new"));
    assert_eq!(owner(srv.join("high/new")), (0, 1));
    assert!(!container.sh("touch /mnt/roots"), "root of the host is nobody there");
    chown(volume.join("b"), Some(100_005), None).unwrap();
    assert_eq!(owner(srv.join("high/b")), (5, 4));
    let mine = Plan { id_map: map(), ..plain() };
    machine.make(id(2), wasmvol_plan::Owner { uid: 7, gid: 8, mode: 0o755 });
    machine.mount(id(2), mine).unwrap();
    assert_eq!(owner(machine.volume(id(2))), (100_007, 100_008));
}

fn a_read_only_directory_has_its_ids_mapped() {
    let (mut machine, srv) = granted();
    let source = Source::HostDirectory(HostDirectory {
        path: srv.join("low").display().to_string(),
        make: None,
    });
    let plan = Plan { source, read_only: true, id_map: map(), ..plain() };
    machine.mount(id(1), plan).unwrap();
    assert_eq!(owner(machine.volume(id(1)).join("a")), (100_000, 100_000));
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt") && !container.sh("touch /mnt/new"));
}

fn a_tmpfs_has_its_ids_mapped_and_is_taken_back_with_them() {
    let mut machine = Machine::start();
    let mut plan = tmpfs();
    let Source::Tmpfs(memory) = &mut plan.source else { unreachable!() };
    (memory.owner.uid, memory.owner.gid) = (1, 2);
    let plan = Plan { id_map: map(), ..plan };
    let facts = machine.mount(id(1), plan.clone()).unwrap();
    assert_eq!(owner(machine.volume(id(1))), (100_001, 100_002));
    let _container = machine.container(id(1));
    assert!(machine.sh(&format!("umount run/mnt/{}", id(1))));
    machine.mount_for(id(1), plan, None, Some(facts)).unwrap();
    assert_eq!(owner(machine.volume(id(1))), (100_001, 100_002));
}

fn what_lies_below_an_overlay_has_its_ids_mapped() {
    let (mut machine, srv) = granted();
    machine.make(id(1), wasmvol_plan::Owner { uid: 100_001, gid: 2, mode: 0o755 });
    machine.mount(id(1), Plan { id_map: map(), ..over(&srv, &["low"], false) }).unwrap();
    let volume = machine.volume(id(1));
    assert_eq!((owner(&volume), owner(volume.join("a"))), ((100_001, 2), (100_000, 100_000)));
    fs::set_permissions(volume.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(owner(volume.join("a")), (100_000, 100_000), "it was copied up as it was shown");
    assert_eq!(owner(srv.join("low/a")), (0, 0));
}

fn an_id_map_of_ranges_that_overlap_is_refused() {
    let mut machine = Machine::start();
    machine.make(id(1), OWNER);
    let ranges = vec![
        IdRange { disk: 0, shown: 1000, count: 10 },
        IdRange { disk: 5, shown: 2000, count: 10 },
    ];
    let id_map = Some(IdMap { users: ranges.clone(), groups: ranges });
    let fault = machine.mount(id(1), Plan { id_map, ..plain() }).unwrap_err();
    assert!(fault.message.contains("overlap"), "{fault}");
    assert!(machine.lines(id(1)).is_empty());
}

fn a_read_only_tmpfs_withstands_a_remount_by_a_container() {
    let mut machine = Machine::start();
    let plan = Plan { read_only: true, ..tmpfs() };
    machine.mount(id(1), plan.clone()).unwrap();
    let stat = fs::metadata(machine.volume(id(1))).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (OWNER.uid, OWNER.gid, OWNER.mode));
    assert!(machine.mount(id(1), plan).is_ok());
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("mount -o remount,rw /mnt && touch /mnt/new"));
    assert!(!container.sh("touch /mnt/new"));
}
