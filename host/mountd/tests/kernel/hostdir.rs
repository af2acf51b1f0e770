//! Directories of the host: which are mounted, which are refused, and what is made.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{FaultKind, HostDirectory, Owner, Plan, Release, Source};

use crate::machine::{Machine, id, plain};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_granted_directory_is_mounted_with_what_is_in_it,
    a_directory_that_others_use_is_unmounted_and_stays_in_use,
    a_directory_is_made_where_the_plan_says_so,
    a_directory_that_is_not_granted_is_refused,
    a_link_beneath_the_granted_root_is_not_followed,
    directories_of_wasmvol_itself_are_refused,
    a_read_only_host_directory_withstands_a_remount_by_a_container,
];

/// A machine with a directory `srv` that the driver was granted.
fn granted() -> (Machine, PathBuf) {
    let machine = Machine::start();
    let srv = machine.dir.join("srv");
    fs::create_dir(&srv).unwrap();
    grant(&machine, &srv.display().to_string());
    (machine, srv)
}

fn grant(machine: &Machine, path: &str) {
    fs::write(machine.dir.join("etc/grants.d/local"), format!("host-directory={path}\n")).unwrap();
}

fn of(path: impl Into<PathBuf>, make: Option<Owner>) -> Plan {
    let path = path.into().into_os_string().into_string().unwrap();
    Plan { source: Source::HostDirectory(HostDirectory { path, make }), ..plain() }
}

fn a_granted_directory_is_mounted_with_what_is_in_it() {
    let (mut machine, srv) = granted();
    fs::create_dir_all(srv.join("a/b")).unwrap();
    fs::write(srv.join("a/b/file"), "kept").unwrap();
    let facts = machine.mount(id(1), of(srv.join("a"), None)).unwrap();
    assert!(facts.root.ends_with("/srv/a"), "{facts:?}");
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("b/file")).unwrap(), "kept");
    assert_eq!(machine.mount(id(1), of(srv.join("a"), None)), Ok(facts));
    let flags = machine.lines(id(1)).remove(0);
    assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
    let subpath = Plan { subpath: Some("b".into()), ..of(srv.join("a"), None) };
    let facts = machine.mount(id(2), subpath).unwrap();
    assert!(facts.root.ends_with("/srv/a/b"), "{facts:?}");
}

fn a_directory_that_others_use_is_unmounted_and_stays_in_use() {
    let (mut machine, srv) = granted();
    machine.mount(id(1), of(&srv, None)).unwrap();
    let container = machine.container(id(1));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    assert!(container.sh("touch /mnt/file"));
    assert!(srv.join("file").exists());
}

fn a_directory_is_made_where_the_plan_says_so() {
    let (mut machine, srv) = granted();
    let wanted = srv.join("a/b");
    let fault = machine.mount(id(1), of(&wanted, None)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Missing, "{fault}");
    assert!(!srv.join("a").exists());
    let owner = Owner { uid: 12, gid: 34, mode: 0o2770 };
    machine.mount(id(1), of(&wanted, Some(owner))).unwrap();
    let made = |path: &str| {
        let stat = fs::metadata(srv.join(path)).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    assert_eq!((made("a"), made("a/b")), ((0, 0, 0o755), (12, 34, 0o2770)));
    assert_eq!(machine.unmount(id(1)), Release::Gone);
    // What is there already keeps its owner.
    let another = Owner { uid: 56, ..owner };
    machine.mount(id(1), of(&wanted, Some(another))).unwrap();
    assert_eq!(made("a/b"), (12, 34, 0o2770));
}

fn a_directory_that_is_not_granted_is_refused() {
    let (mut machine, srv) = granted();
    let beside = PathBuf::from(format!("{}-beside", srv.display()));
    fs::create_dir(&beside).unwrap();
    for path in [&beside, &machine.dir.join("etc"), &PathBuf::from("/etc")] {
        let fault = machine.mount(id(1), of(path, None)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
        assert!(fault.message.contains("driver grant local 'host-directory="), "{fault}");
    }
    for path in ["srv", "", "/", &format!("{}/../etc", srv.display())] {
        let fault = machine.mount(id(1), of(path, None)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{path}: {fault}");
    }
    assert_eq!(machine.survey(Inventory::Mounts).0, []);
}

fn a_link_beneath_the_granted_root_is_not_followed() {
    let (mut machine, srv) = granted();
    fs::create_dir(srv.join("real")).unwrap();
    symlink("/etc", srv.join("out")).unwrap();
    symlink("real", srv.join("in")).unwrap();
    for path in ["out", "in", "out/ssl"] {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let fault = machine.mount(id(1), of(srv.join(path), Some(owner))).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{path}: {fault}");
    }
    // The root itself is the operator's word.
    let link = machine.dir.join("link");
    symlink(&srv, &link).unwrap();
    grant(&machine, &link.display().to_string());
    machine.mount(id(1), of(link.join("real"), None)).unwrap();
}

fn directories_of_wasmvol_itself_are_refused() {
    let (mut machine, _) = granted();
    grant(&machine, &machine.dir.display().to_string());
    for path in ["", "state", "state/secrets", "run", "etc/grants.d"] {
        let path = machine.dir.join(path);
        let path = PathBuf::from(path.to_str().unwrap().trim_end_matches('/'));
        let fault = machine.mount(id(1), of(&path, None)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{}: {fault}", path.display());
        assert!(fault.message.contains("its own files"), "{fault}");
        // Nor is anything made there.
        let owner = Some(Owner { uid: 0, gid: 0, mode: 0o755 });
        let inside = path.join("a/b");
        if path != machine.dir {
            let fault = machine.mount(id(1), of(&inside, owner)).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Denied, "{}: {fault}", inside.display());
            assert!(!path.join("a").exists(), "{}", path.display());
        }
    }
}

fn a_read_only_host_directory_withstands_a_remount_by_a_container() {
    let (mut machine, srv) = granted();
    fs::write(srv.join("file"), "kept").unwrap();
    fs::set_permissions(&srv, fs::Permissions::from_mode(0o777)).unwrap();
    machine.mount(id(1), Plan { read_only: true, ..of(&srv, None) }).unwrap();
    let container = machine.container(id(1));
    assert!(container.sh("mount -o remount,bind,rw /mnt"), "engines do this");
    assert!(!container.sh("mount -o remount,rw /mnt"), "privileged containers do this");
    assert!(!container.sh("touch /mnt/new") && container.sh("grep -q kept /mnt/file"));
}
