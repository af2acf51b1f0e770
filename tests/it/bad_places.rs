//! Where the host is not as a driver needs it: a path that was exchanged for a link, a disk that is full, a program that is missing. Is it
//! told in one line, does nobody see what lies outside of a grant, and is nothing left?

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{MountFlags, mount};
use serde_json::json;

use crate::limits::on_a_small_disk;
use crate::support::plugin::Plugin;
use crate::support::shelf::{Options, Shelf, assert_is_a_line, tree};
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, Scratch, shell, until};

/// Volumes that show `ROOT/a/deep`, or something beneath it, by way of each kind of plan that names a path of the host.
const DEEP: [(&str, Options<'_>, &str); 5] = [
    ("local", &[("type", "none"), ("o", "bind"), ("device", "ROOT/a/deep")], "bound"),
    (
        "local",
        &[("type", "none"), ("o", "bind"), ("device", "ROOT/a/deep"), ("make", "true")],
        "made",
    ),
    ("local", &[("type", "overlay"), ("device", "o"), ("o", "lowerdir=ROOT/a/deep")], "lower"),
    ("overlay", &[("lower", "ROOT/a/deep")], "layer"),
    ("vfs", &[("path", "a/deep"), ("reclaim", "retain")], "place"),
];

/// A link that leads out of the granted directory, to one with the same names in it.
fn way_out(shelf: &Shelf) -> PathBuf {
    let (outside, link) = (shelf.outside(), shelf.root().join("link"));
    fs::create_dir(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/outside"), "").unwrap();
    symlink(&outside, &link).unwrap();
    link
}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a_directory_that_became_a_link_between_create_and_mount_is_refused() {
    let shelf = Shelf::start();
    let plugin = shelf.wasmvol.plugin();
    let (link, a) = (way_out(&shelf), shelf.root().join("a"));
    for (driver, options, name) in DEEP {
        shelf.create(name, driver, options).unwrap();
    }
    exchange(&a, &link);
    let outside = tree(&shelf.outside());
    for (_, _, name) in DEEP {
        let error = plugin.mount(name, "id").unwrap_err();
        assert_is_a_line(&error);
        let names_it = error.contains("/a/deep`") && error.contains("it leads over a link");
        assert!(names_it, "{name}: {error}");
    }
    assert_eq!(shelf.wasmvol.volume_mounts(), []);
    assert_eq!(tree(&shelf.outside()), outside);
    // The link was all that was in the way.
    exchange(&a, &link);
    for (_, _, name) in DEEP {
        let path = plugin.mount(name, "id").unwrap();
        assert!(path.join("inside").exists(), "{name}");
        plugin.unmount(name, "id").unwrap();
    }
}

#[test]
fn the_markers_of_a_root_that_became_a_link_are_not_written_through_it() {
    let shelf = Shelf::start();
    let marks = shelf.root().join(".wasmvol");
    fs::rename(&marks, shelf.root().join("marks")).unwrap();
    symlink(shelf.outside(), &marks).unwrap();
    let error = shelf.create("made", "vfs", &[]).unwrap_err();
    assert_is_a_line(&error);
    assert!(error.starts_with("cannot open the markers of `"), "{error}");
    assert_eq!(tree(&shelf.outside()), Vec::<PathBuf>::new());
    // Whether something was made cannot be told until they are there again.
    fs::remove_file(&marks).unwrap();
    fs::rename(shelf.root().join("marks"), &marks).unwrap();
    until("what was begun is undone", SOON, || {
        let untroubled = shelf.wasmvol.json("status")["troubles"] == json!([]);
        (untroubled && shelf.wasmvol.plugin().list().is_empty()).then_some(())
    });
    assert_eq!(tree(&marks), Vec::<PathBuf>::new());
}

/// Mounts and unmounts while somebody exchanges the directory for a link out and back, until both were met often: what is mounted never
/// shows the outside.
#[test]
fn a_link_that_comes_and_goes_during_mounts_never_shows_what_it_leads_to() {
    /// Mounts of each outcome: an exchange takes a microsecond, and a race that can be won is within some.
    const OFTEN: usize = 60;
    let shelf = Shelf::start();
    let (link, a) = (way_out(&shelf), shelf.root().join("a"));
    for (driver, options, name) in DEEP {
        shelf.create(name, driver, options).unwrap();
    }
    let outside = tree(&shelf.outside());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                exchange(&a, &link);
            }
        });
        let _ends_it_also_where_this_fails = OnDrop(&is_over);
        for (_, _, name) in DEEP {
            let (mut shown, mut refused) = (0, 0);
            until("both outcomes were met", SOON * 2, || {
                if shows_the_inside(&shelf.wasmvol.plugin(), name) {
                    shown += 1;
                } else {
                    refused += 1;
                }
                (shown >= OFTEN && refused >= OFTEN).then_some(())
            });
        }
        is_over.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
    });
    assert_eq!(tree(&shelf.outside()), outside);
    assert_eq!(shelf.wasmvol.volume_mounts(), []);
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a Mount was answered; then it shows what lies inside.
fn shows_the_inside(plugin: &Plugin, name: &str) -> bool {
    match plugin.mount(name, "id") {
        Ok(path) => {
            assert!(path.join("inside").exists(), "{name}: {:?}", tree(&path));
            assert!(!path.join("outside").exists(), "{name}: {:?}", tree(&path));
            plugin.unmount(name, "id").unwrap();
            true
        }
        Err(error) => {
            assert_is_a_line(&error);
            assert!(error.contains("it leads over a link"), "{name}: {error}");
            false
        }
    }
}

/// Makes files in a directory until there is room for none.
fn fill(directory: &Path) {
    let zeros = vec![0; 1 << 16];
    let mut size = zeros.len();
    for number in 0.. {
        // Larger pieces first, down to the last page.
        while size > 0
            && fs::write(directory.join(format!("filler-{number}")), &zeros[..size]).is_err()
        {
            size /= 2;
        }
        if size == 0 {
            return;
        }
    }
}

#[test]
fn an_image_larger_than_the_disk_has_room_for_is_refused_and_gives_back_what_it_took() {
    let shelf = Shelf::of(on_a_small_disk("mode=755,size=64m"));
    let free = || rustix::fs::statvfs(shelf.wasmvol.state()).unwrap().f_bavail;
    let before = free();
    let error = shelf.refused("image", &[("size", "1g")]);
    assert_eq!(error, "cannot give an image 1024 MiB: no space left on device");
    // The catalog has grown by a page or two.
    assert!(free() * 10 > before * 9, "{before} pages were free, and now {}", free());
    shelf.create("fits", "image", &[("size", "16m")]).unwrap();
}

#[test]
fn a_thin_image_for_which_the_disk_has_no_room_at_all_is_refused_in_the_words_of_who_makes_it() {
    let shelf = Shelf::of(on_a_small_disk("mode=755,size=64m"));
    // Room for the catalog, and not for what each file system begins with.
    let state = shelf.wasmvol.state();
    fs::write(state.join("room"), vec![0; 512 << 10]).unwrap();
    fill(&state);
    fs::remove_file(state.join("room")).unwrap();
    for (fs, size) in [("ext4", "64g"), ("xfs", "300m"), ("btrfs", "256m")] {
        let error = shelf.refused("image", &[("size", size), ("fs", fs), ("thin", "true")]);
        assert!(error.contains(&format!("`mkfs.{fs}` failed")), "{error}");
    }
}

#[test]
fn a_root_that_is_full_takes_no_directory_and_keeps_no_half_of_one() {
    let shelf = Shelf::start();
    for limit in [c"size=1m", c"nr_inodes=50"] {
        mount("full", shelf.root(), "tmpfs", MountFlags::empty(), limit).unwrap();
        shelf.create("first", "vfs", &[]).unwrap();
        shelf.wasmvol.plugin().remove("first").unwrap();
        // It gives back the room that it had.
        let trash = shelf.root().join(".wasmvol-trash");
        until("the first one is deleted", SOON, || tree(&trash).is_empty().then_some(()));
        fill(&shelf.root());
        for options in [&[][..], &[("path", "a/place"), ("reclaim", "retain")]] {
            let error = shelf.refused("vfs", options);
            let names_it = error.contains(&format!("{}", shelf.root().display()));
            assert!(names_it && error.contains("no space left on device"), "{options:?}: {error}");
        }
    }
    let made = [("type", "none"), ("o", "bind"), ("device", "ROOT/new"), ("make", "true")];
    let error = shelf.refused("local", &made);
    assert!(error.contains("/root/new`: no space left on device"), "{error}");
}

#[test]
fn a_state_directory_without_room_for_a_file_takes_no_volume_of_any_kind() {
    let shelf = Shelf::of(on_a_small_disk("mode=755,nr_inodes=300"));
    fill(&shelf.wasmvol.state());
    for driver in ["local", "overlay", "image"] {
        let error = shelf.refused(driver, &[]);
        assert!(error.contains("no space left on device"), "{driver}: {error}");
    }
}

/// Becomes the rest of its arguments in a mount namespace in which the host's programs are hidden by an empty directory, which others do
/// not notice.
const WITHOUT_PROGRAMS: &str = r#"
mount --make-private / && for place in /sbin /usr/sbin /bin; do
    [ -L $place ] || mount --bind "$0" $place || exit
done && mount --bind "$0" /usr/bin && exec "$@"
"#;

#[test]
fn a_program_that_this_machine_lacks_is_named_with_what_to_install() {
    let mut wasmvol = Wasmvol::install();
    let empty = Scratch::new();
    let empty = empty.path().display().to_string();
    // What is mounted there reaches this namespace all the same.
    let run = wasmvol.runtime().display().to_string();
    shell(&format!("mkdir -m 755 {run} && mount --bind {run} {run}"), &[]).ok();
    let apart = ["unshare", "--mount", "--propagation", "unchanged"];
    let before = [&apart[..], &["sh", "-c", WITHOUT_PROGRAMS, &empty]].concat();
    let command = wasmvol.serve(&before);
    wasmvol.launch_as(command);
    wasmvol.wait_ready();
    let shelf = Shelf::of(wasmvol);
    let rows: [(&str, Options<'_>, &str); 7] = [
        ("sshfs", &[], "`/usr/bin/sshfs` is not there: install "),
        ("s3fs", &[], "`/usr/bin/s3fs` is not there: install "),
        ("rclone", &[], "`/usr/bin/rclone` is not there: install "),
        ("glusterfs", &[], "`/usr/sbin/glusterfs` is not there: install "),
        ("image", &[], "no `mkfs.ext4`: install the Debian package `e2fsprogs`"),
        (
            "image",
            &[("fs", "xfs"), ("size", "300m"), ("thin", "true")],
            "no `mkfs.xfs`: install the Debian package `xfsprogs`",
        ),
        (
            "image",
            &[("fs", "btrfs"), ("size", "256m"), ("thin", "true")],
            "no `mkfs.btrfs`: install the Debian package `btrfs-progs`",
        ),
    ];
    for (driver, options, part) in rows {
        let error = shelf.refused(driver, options);
        assert!(error.contains(part), "{driver} {options:?}: {error}");
    }
    // The rest is served without any.
    shelf.create("plain", "local", &[]).unwrap();
    shelf.wasmvol.plugin().mount("plain", "id").unwrap();
    assert!(shelf.wasmvol.is_mounted("plain"));
}
