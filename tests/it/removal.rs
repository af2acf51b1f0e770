//! Does removing a volume delete that volume and nothing else? What other volume plugins have deleted by mistake.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::Scratch;
use crate::support::wasmvol::Wasmvol;

/// A volume and the directory where its data lies.
fn volume(wasmvol: &Wasmvol, name: &str) -> PathBuf {
    wasmvol.plugin().create(name, &[]).unwrap();
    let id = wasmvol.plugin().path(name).unwrap();
    wasmvol.state().join("volumes").join(id.file_name().unwrap()).join("data")
}

/// A directory of somebody else's, with a file.
fn foreign() -> Scratch {
    let foreign = Scratch::new();
    fs::write(foreign.path().join("file"), "precious").unwrap();
    foreign
}

fn assert_untouched(foreign: &Path) {
    assert_eq!(fs::read_to_string(foreign.join("file")).unwrap(), "precious");
}

#[test]
fn links_are_deleted_and_not_followed() {
    let wasmvol = Wasmvol::start();
    let data = volume(&wasmvol, "linking");
    let foreign = foreign();
    symlink(foreign.path(), data.join("directory")).unwrap();
    symlink(foreign.path().join("file"), data.join("file")).unwrap();
    symlink("/", data.join("root")).unwrap();
    fs::hard_link(foreign.path().join("file"), data.join("hard")).unwrap();
    wasmvol.plugin().remove("linking").unwrap();
    wasmvol.wait_reaped();
    assert_untouched(foreign.path());
}

#[test]
fn what_is_mounted_below_is_not_emptied() {
    let wasmvol = Wasmvol::start();
    let data = volume(&wasmvol, "covering");
    let foreign = foreign();
    // A bind mount looks like any directory of the same file system.
    for (name, source, kind, flags) in [
        ("bound", foreign.path(), "none", MountFlags::BIND),
        ("memory", Path::new("tmpfs"), "tmpfs", MountFlags::empty()),
    ] {
        let place = data.join("below").join(name);
        fs::create_dir_all(&place).unwrap();
        mount(source, &place, kind, flags, None::<&std::ffi::CStr>).unwrap();
        fs::write(place.join("file"), "precious").unwrap();
    }
    fs::write(data.join("own"), "of the volume").unwrap();
    wasmvol.plugin().remove("covering").unwrap();
    wasmvol.plugin().get("covering").unwrap_err();

    // The rest of the volume goes; what covers it, and what carries that, stays until it is unmounted.
    let trash = wasmvol.state().join("trash");
    let mounts: Vec<PathBuf> = crate::support::mounts::all()
        .into_iter()
        .map(|m| PathBuf::from(m.path))
        .filter(|path| path.starts_with(&trash))
        .collect();
    assert_eq!(mounts.len(), 2, "{mounts:?}");
    for path in &mounts {
        assert_untouched(path);
    }
    assert_untouched(foreign.path());
    for path in &mounts {
        unmount(path, UnmountFlags::empty()).unwrap();
    }
    // Another Remove wakes the reaper at once; by itself it comes back later.
    wasmvol.plugin().create("other", &[]).unwrap();
    wasmvol.plugin().remove("other").unwrap();
    wasmvol.wait_reaped();
    assert_untouched(foreign.path());
}

#[test]
fn a_tree_of_any_depth_and_any_names_is_deleted() {
    const DEPTH: usize = 5000;
    let wasmvol = Wasmvol::start();
    let data = volume(&wasmvol, "deep");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(rustix::fs::CWD, &data, flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&directory, "level", Mode::RWXU).unwrap();
        directory = openat(&directory, "level", flags, Mode::empty()).unwrap();
    }
    drop(directory);
    for name in [&b"line\nbreak"[..], b"\xff\xfe", b"-rf", b"..data", b" ", &[b'n'; 255]] {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name);
        fs::create_dir(data.join(name)).unwrap();
        fs::write(data.join(name).join(name), "").unwrap();
    }
    fs::write(data.join("unreadable"), "").unwrap();
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    wasmvol.plugin().remove("deep").unwrap();
    wasmvol.wait_reaped();
}

#[test]
fn a_removal_never_reaches_another_volume() {
    let wasmvol = Wasmvol::start();
    let first = volume(&wasmvol, "first");
    let second = volume(&wasmvol, "second");
    fs::write(second.join("file"), "precious").unwrap();
    let inside = wasmvol.plugin().mount("second", "id").unwrap();
    symlink(&inside, first.join("link")).unwrap();
    fs::create_dir(first.join("bound")).unwrap();
    mount(&inside, first.join("bound"), "none", MountFlags::BIND, None::<&std::ffi::CStr>).unwrap();
    wasmvol.plugin().remove("first").unwrap();
    assert_untouched(&inside);
    assert_untouched(&second);
    let error = wasmvol.plugin().remove("second").unwrap_err();
    assert!(error.contains("is in use"), "{error}");
}

#[test]
fn a_tree_that_cannot_be_renamed_away_stays_whole() {
    let wasmvol = Wasmvol::start();
    let data = volume(&wasmvol, "covered");
    let place = data.parent().unwrap();
    fs::write(data.join("file"), "precious").unwrap();
    // A directory that is a mountpoint itself cannot be moved into the trash.
    mount(place, place, "none", MountFlags::BIND, None::<&std::ffi::CStr>).unwrap();
    wasmvol.plugin().remove("covered").unwrap_err();
    assert_untouched(&data);
    unmount(place, UnmountFlags::empty()).unwrap();
    wasmvol.plugin().remove("covered").unwrap();
    wasmvol.wait_reaped();
}
