//! Named directories: who gets a name, what a marker says, and what is deleted.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use wasmvol_plan::kinds::named_directory::{Look, Mark, Page};
use wasmvol_plan::{
    Fault, FaultKind, HostDirectory, Id, NamedDirectory, Plan, Reply, Request, Source, Storage,
    VolumeName, steps,
};

use crate::machine::{Machine, OWNER, driver, eventually, id, plain};

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_named_directory_has_its_owner_is_empty_and_is_marked_beside,
    a_name_belongs_to_the_first_of_two_hosts,
    a_directory_that_is_no_volume_is_left_alone,
    a_removed_directory_goes_by_way_of_its_roots_trash,
    what_took_a_directorys_place_is_not_deleted,
    a_directory_that_a_container_has_is_not_deleted,
    a_chosen_place_is_used_as_it_is_and_never_deleted,
    a_marker_says_something_else_from_a_growth_on_of_its_own_volume_alone,
    a_root_that_is_not_granted_is_refused_for_each_request,
    markers_that_nobody_wrote_are_not_listed,
    thousands_of_markers_come_in_pages,
    a_root_may_be_a_mounted_file_system,
    killed_at_any_step_a_named_directory_is_there_wholly_or_not_at_all,
];

/// A machine with a granted root.
fn granted() -> (Machine, PathBuf) {
    let machine = Machine::start();
    let root = machine.dir.join("srv");
    fs::create_dir(&root).unwrap();
    grant(&machine, &root);
    (machine, root)
}

fn grant(machine: &Machine, root: &Path) {
    let line = format!("host-directory={}\n", root.display());
    fs::write(machine.dir.join("etc/grants.d/local"), line).unwrap();
}

fn named(root: &Path, name: &str) -> NamedDirectory {
    NamedDirectory {
        root: root.to_str().unwrap().to_owned(),
        name: VolumeName::parse(name).unwrap(),
        directory: name.to_owned(),
        owner: OWNER,
        adopt: false,
        limit: None,
    }
}

fn chosen(root: &Path, name: &str, directory: &str) -> NamedDirectory {
    NamedDirectory { directory: directory.to_owned(), adopt: true, ..named(root, name) }
}

fn make(machine: &mut Machine, id: Id, wanted: &NamedDirectory) -> Result<(), Fault> {
    let storage = Storage::NamedDirectory(wanted.clone());
    let note = b"note".to_vec();
    match machine.ask(Request::Make { id, driver: driver(), storage, note }) {
        Reply::Made => Ok(()),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

fn trash(machine: &mut Machine, id: Id, wanted: &NamedDirectory) -> Result<(), Fault> {
    let storage = Storage::NamedDirectory(wanted.clone());
    match machine.ask(Request::Trash { id, driver: driver(), storage }) {
        Reply::Trashed => Ok(()),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

/// Says something else of a directory. None here has a limit.
fn grow(machine: &mut Machine, id: Id, wanted: &NamedDirectory, note: &str) -> Result<(), Fault> {
    let storage = Storage::NamedDirectory(wanted.clone());
    let note = note.as_bytes().to_vec();
    match machine.ask(Request::Grow { id, driver: driver(), storage, note }) {
        Reply::Grown => Ok(()),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

/// Every marker, and how many pages that took.
fn marks(machine: &mut Machine) -> (Vec<Mark>, usize) {
    let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        pages += 1;
        match machine.ask(Request::Marks(Look { driver: driver(), after })) {
            Reply::Marked(Page { marks, next: None }) => return ([all, marks].concat(), pages),
            Reply::Marked(Page { marks, next }) => (all.extend(marks), after = next).0,
            other => panic!("{other:?}"),
        }
    }
}

fn listed(machine: &mut Machine) -> Vec<String> {
    marks(machine).0.iter().map(|mark| mark.name.to_string()).collect()
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn reaped(root: &Path) {
    let trash = root.join(".wasmvol-trash");
    eventually("the root's trash is empty", || entries(&trash).is_empty().then_some(()));
}

fn a_named_directory_has_its_owner_is_empty_and_is_marked_beside() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    let stat = fs::metadata(root.join("data")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (OWNER.uid, OWNER.gid));
    assert_eq!(stat.permissions().mode() & 0o7777, OWNER.mode);
    assert_eq!(entries(&root.join("data")), [""; 0], "an engine fills an empty volume only");
    assert_eq!(entries(&root), [".wasmvol", "data"]);
    assert_eq!(entries(&root.join(".wasmvol")), ["data"]);
    let [mark] = &marks(&mut machine).0[..] else { panic!("one") };
    assert_eq!((mark.root.as_str(), mark.directory.as_str()), (data.root.as_str(), "data"));
    assert_eq!((mark.id, mark.note.trim_ascii()), (id(1), &b"note"[..]));
    // Twice is once.
    fs::write(root.join("data/file"), "kept").unwrap();
    make(&mut machine, id(1), &data).unwrap();
    assert_eq!(entries(&root.join("data")), ["file"]);
    let source = Source::HostDirectory(HostDirectory { path: data.path(), make: None });
    machine.mount(id(1), Plan { source, ..plain() }).unwrap();
    assert_eq!(fs::read_to_string(machine.volume(id(1)).join("file")).unwrap(), "kept");
}

fn a_name_belongs_to_the_first_of_two_hosts() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    fs::write(root.join("data/file"), "theirs").unwrap();
    let fault = make(&mut machine, id(2), &data).unwrap_err();
    assert!(fault.message.contains(&id(1).to_string()), "{fault}");
    // The loser's undo touches nothing of the winner's.
    trash(&mut machine, id(2), &data).unwrap();
    assert_eq!(entries(&root.join("data")), ["file"]);
    assert_eq!(marks(&mut machine).0[0].id, id(1));
}

fn a_directory_that_is_no_volume_is_left_alone() {
    let (mut machine, root) = granted();
    fs::create_dir(root.join("data")).unwrap();
    fs::write(root.join("data/file"), "an operator's").unwrap();
    symlink("data", root.join("link")).unwrap();
    for name in ["data", "link"] {
        let wanted = named(&root, name);
        let fault = make(&mut machine, id(1), &wanted).unwrap_err();
        assert!(fault.message.contains("is no volume"), "{fault}");
        trash(&mut machine, id(1), &wanted).unwrap();
    }
    assert_eq!(entries(&root.join("data")), ["file"]);
    assert_eq!(entries(&root), [".wasmvol", "data", "link"]);
    assert_eq!(entries(&root.join(".wasmvol")), [""; 0]);
}

fn a_removed_directory_goes_by_way_of_its_roots_trash() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    fs::create_dir_all(root.join("data/deep/er")).unwrap();
    fs::write(root.join("data/deep/er/file"), "gone").unwrap();
    // Whose id is not the marker's has nothing there.
    trash(&mut machine, id(2), &data).unwrap();
    assert_eq!(listed(&mut machine), ["data"]);
    trash(&mut machine, id(1), &data).unwrap();
    assert_eq!(listed(&mut machine), [""; 0]);
    reaped(&root);
    assert_eq!(entries(&root), [".wasmvol", ".wasmvol-trash"]);
    trash(&mut machine, id(1), &data).unwrap();
    // The name is free again, and a start takes up what another one left in the trash.
    make(&mut machine, id(3), &data).unwrap();
    let left = root.join(".wasmvol-trash").join(id(4).to_string());
    fs::create_dir_all(left.join("file")).unwrap();
    fs::create_dir(root.join(".wasmvol-trash/stranger")).unwrap();
    machine.kill();
    machine.boot(&[]);
    eventually("the trash is taken up", || (!left.exists()).then_some(()));
    assert_eq!(entries(&root.join(".wasmvol-trash")), ["stranger"]);
    assert_eq!(listed(&mut machine), ["data"]);
}

fn what_took_a_directorys_place_is_not_deleted() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    fs::rename(root.join("data"), root.join("elsewhere")).unwrap();
    assert_eq!(listed(&mut machine), [""; 0]);
    fs::create_dir(root.join("data")).unwrap();
    fs::write(root.join("data/file"), "an operator's").unwrap();
    assert_eq!(listed(&mut machine), [""; 0]);
    trash(&mut machine, id(1), &data).unwrap();
    assert_eq!(entries(&root), [".wasmvol", "data", "elsewhere"]);
    assert_eq!(entries(&root.join("data")), ["file"]);
}

fn a_directory_that_a_container_has_is_not_deleted() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    let source = Source::HostDirectory(HostDirectory { path: data.path(), make: None });
    machine.mount(id(1), Plan { source, ..plain() }).unwrap();
    let container = machine.container(id(1));
    machine.unmount(id(1));
    let fault = trash(&mut machine, id(1), &data).unwrap_err();
    assert!(fault.message.contains(&format!("process {}", container.pid())), "{fault}");
    assert_eq!(listed(&mut machine), ["data"]);
    drop(container);
    trash(&mut machine, id(1), &data).unwrap();
    reaped(&root);
}

fn a_chosen_place_is_used_as_it_is_and_never_deleted() {
    let (mut machine, root) = granted();
    fs::create_dir_all(root.join("old/tree")).unwrap();
    fs::write(root.join("old/tree/file"), "kept").unwrap();
    for (number, place) in [(1, "old/tree"), (2, "new/tree"), (3, "data")] {
        let wanted = chosen(&root, "data", place);
        make(&mut machine, id(number), &wanted).unwrap();
        make(&mut machine, id(number), &wanted).unwrap();
        assert_eq!(marks(&mut machine).0[0].directory, place);
        trash(&mut machine, id(number), &wanted).unwrap();
        assert_eq!(listed(&mut machine), [""; 0]);
        assert!(root.join(place).is_dir(), "{place} is gone");
    }
    assert_eq!(fs::read_to_string(root.join("old/tree/file")).unwrap(), "kept");
    assert_eq!(fs::metadata(root.join("new/tree")).unwrap().uid(), OWNER.uid);
    assert_eq!(fs::metadata(root.join("new")).unwrap().uid(), 0);
    symlink("/etc", root.join("out")).unwrap();
    let fault = make(&mut machine, id(4), &chosen(&root, "data", "out")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
}

fn a_marker_says_something_else_from_a_growth_on_of_its_own_volume_alone() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    let marker = root.join(".wasmvol/data");
    let before = fs::read_to_string(&marker).unwrap();
    assert_eq!(grow(&mut machine, id(2), &data, "theirs").unwrap_err().kind, FaultKind::Missing);
    assert_eq!(fs::read_to_string(&marker).unwrap(), before);
    // Who was killed while it wrote one left a part.
    fs::write(root.join(format!(".wasmvol/.mark-{}", id(1))), "wasm").unwrap();
    grow(&mut machine, id(1), &data, "another").unwrap();
    let after = before.replace("note", "another");
    assert_eq!(fs::read_to_string(&marker).unwrap(), after);
    assert_eq!(entries(&root.join(".wasmvol")), ["data"]);
    // What took the place of the directory is not the volume's.
    fs::rename(root.join("data"), root.join("moved")).unwrap();
    fs::create_dir(root.join("data")).unwrap();
    assert_eq!(grow(&mut machine, id(1), &data, "third").unwrap_err().kind, FaultKind::Missing);
    assert_eq!(fs::read_to_string(&marker).unwrap(), after);
}

fn a_root_that_is_not_granted_is_refused_for_each_request() {
    let (mut machine, root) = granted();
    let data = named(&root, "data");
    make(&mut machine, id(1), &data).unwrap();
    let elsewhere = machine.dir.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    grant(&machine, &elsewhere);
    for fault in [
        make(&mut machine, id(2), &data),
        grow(&mut machine, id(1), &data, "another"),
        trash(&mut machine, id(1), &data),
    ] {
        let fault = fault.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
        assert!(fault.message.contains("driver grant local 'host-directory="), "{fault}");
    }
    assert_eq!(listed(&mut machine), [""; 0]);
    // What is beneath a granted root is none itself: who shares it would look for markers elsewhere.
    grant(&machine, &machine.dir);
    assert_eq!(make(&mut machine, id(2), &data).unwrap_err().kind, FaultKind::Denied);
    let own = named(&machine.dir.clone(), "data");
    let fault = make(&mut machine, id(2), &own).unwrap_err();
    assert!(fault.message.contains("its own files"), "{fault}");
}

fn markers_that_nobody_wrote_are_not_listed() {
    let (mut machine, root) = granted();
    make(&mut machine, id(1), &named(&root, "data")).unwrap();
    let marks = root.join(".wasmvol");
    let marker = fs::read_to_string(marks.join("data")).unwrap();
    fs::write(marks.join("empty"), "").unwrap();
    fs::write(marks.join("words"), "hello\n").unwrap();
    fs::write(marks.join("long"), marker.clone() + &" ".repeat(5000)).unwrap();
    fs::write(marks.join("out"), marker.replace(" data\n", " ../../etc\n")).unwrap();
    fs::write(marks.join("not a name"), &marker).unwrap();
    symlink("data", marks.join("link")).unwrap();
    fs::create_dir(marks.join("directory")).unwrap();
    assert!(machine.sh(&format!("mkfifo {}", marks.join("pipe").display())));
    assert_eq!(listed(&mut machine), ["data"]);
    for name in ["empty", "link", "directory", "pipe"] {
        let fault = make(&mut machine, id(2), &named(&root, name)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Busy, "{name}: {fault}");
        trash(&mut machine, id(2), &named(&root, name)).unwrap();
        assert!(marks.join(name).symlink_metadata().is_ok(), "{name} is gone");
    }
}

fn thousands_of_markers_come_in_pages() {
    let (mut machine, root) = granted();
    let marks_dir = root.join(".wasmvol");
    fs::create_dir_all(root.join("shared")).unwrap();
    fs::create_dir(&marks_dir).unwrap();
    let other = machine.dir.join("other");
    fs::create_dir_all(other.join("shared")).unwrap();
    fs::create_dir(other.join(".wasmvol")).unwrap();
    let grants = format!("host-directory={}\nhost-directory={}\n", root.display(), other.display());
    fs::write(machine.dir.join("etc/grants.d/local"), grants).unwrap();
    let mut names: Vec<String> = (0..2000).map(|n| format!("v{n:04}")).collect();
    // The other root's come after, whatever their names.
    names.extend((0..500).map(|n| format!("a{n:04}")));
    for (number, name) in names.iter().enumerate() {
        let note = "x".repeat(100);
        let marks_dir = if number < 2000 { marks_dir.clone() } else { other.join(".wasmvol") };
        fs::write(marks_dir.join(name), format!("wasmvol {} 0 shared\n{note}", id(number as u128)))
            .unwrap();
    }
    let (all, pages) = marks(&mut machine);
    let shown: Vec<&str> = all.iter().map(|mark| mark.name.as_str()).collect();
    assert_eq!(shown, names);
    assert!(pages > 1, "2000 markers do not fit a frame");
}

fn a_root_may_be_a_mounted_file_system() {
    let (mut machine, root) = granted();
    let disk = root.join("disk");
    fs::create_dir(&disk).unwrap();
    assert!(machine.sh(&format!("mount -t tmpfs disk {}", disk.display())));
    grant(&machine, &disk);
    let data = named(&disk, "data");
    make(&mut machine, id(1), &data).unwrap();
    let source = Source::HostDirectory(HostDirectory { path: data.path(), make: None });
    let facts = machine.mount(id(1), Plan { source, ..plain() }).unwrap();
    assert_eq!((facts.filesystem.as_str(), facts.root.as_str()), ("tmpfs", "/data"));
    machine.unmount(id(1));
    trash(&mut machine, id(1), &data).unwrap();
    let line = format!("test -z \"$(ls -A {}/.wasmvol-trash)\"", disk.display());
    eventually("its trash is empty", || machine.sh(&line).then_some(()));
    // On another file system than its root a chosen place is mounted, and marked in its root.
    grant(&machine, &root);
    let place = chosen(&root, "place", "disk/place");
    make(&mut machine, id(2), &place).unwrap();
    assert_eq!(listed(&mut machine), ["place"]);
    trash(&mut machine, id(2), &place).unwrap();
    assert!(machine.sh(&format!("test -d {}/place", disk.display())));
}

fn killed_at_any_step_a_named_directory_is_there_wholly_or_not_at_all() {
    for step in steps::NAMED.iter().filter(|step| step.starts_with("named.")) {
        let (mut machine, root) = granted();
        let data = named(&root, "data");
        machine.kill();
        let flag = machine.dir.join("armed");
        fs::write(&flag, "").unwrap();
        machine.boot(&[(steps::KILL_AT, &format!("{step}@{}", flag.display()))]);
        let storage = Storage::NamedDirectory(data.clone());
        let making = Request::Make {
            id: id(1),
            driver: driver(),
            storage: storage.clone(),
            note: Vec::new(),
        };
        let trashing = Request::Trash { id: id(1), driver: driver(), storage };
        let was_made = machine.ask(making) == Reply::Made;
        if was_made {
            let reply = machine.ask(trashing);
            assert!(matches!(reply, Reply::Failed(_)), "{step} was not reached: {reply:?}");
        }
        assert!(!flag.exists(), "{step} was not reached");
        if !was_made {
            // Of what was begun nothing is to be seen but the whole.
            let seen = listed(&mut machine);
            assert!(seen.is_empty() || root.join("data").is_dir(), "{step}: {seen:?}");
            make(&mut machine, id(1), &data).unwrap_or_else(|fault| panic!("{step}: {fault}"));
            assert_eq!(listed(&mut machine), ["data"], "{step}");
        }
        trash(&mut machine, id(1), &data).unwrap_or_else(|fault| panic!("{step}: {fault}"));
        assert_eq!(listed(&mut machine), [""; 0], "{step}");
        assert_eq!(entries(&root.join(".wasmvol")), [""; 0], "{step}");
        reaped(&root);
        assert!(!root.join("data").exists(), "{step}");
    }
}
