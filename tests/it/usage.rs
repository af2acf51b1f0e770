//! How large and how full does wasmvol say that a volume of each kind is, and of when does it know?

use std::fs;

use serde_json::Value;

use crate::support::shelf::{Options, Shelf};
use crate::support::sshd::Sshd;
use crate::support::wasmvol::Wasmvol;
use crate::support::{SOON, shell, until};

const MIB: u64 = 1 << 20;
/// What is written to each volume.
const WRITTEN: u64 = 256 << 10;

/// What can be told of a volume.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    /// Size and use are its own, and inodes, if they are counted.
    Own { size: u64, has_inodes: bool },
    /// It is a part of what others fill too.
    Part,
}

/// A volume of each kind: its name and driver, options, and what is told of it.
const KINDS: [(&str, &str, Options<'_>, Told); 9] = [
    ("directory", "local", &[], Told::Part),
    ("bound", "local", &[("type", "none"), ("o", "bind"), ("device", "ROOT/a")], Told::Part),
    ("named", "vfs", &[], Told::Part),
    ("layer", "overlay", &[], Told::Part),
    (
        "memory",
        "tmpfs",
        &[("size", "1m"), ("inodes", "100")],
        Told::Own { size: MIB, has_inodes: true },
    ),
    ("file", "image", &[("size", "16m")], Told::Own { size: 16 * MIB, has_inodes: true }),
    ("limited", "btrfs", &[("size", "16m")], Told::Own { size: 16 * MIB, has_inodes: false }),
    ("subvolume", "btrfs", &[], Told::Part),
    ("far", "sshfs", &[], Told::Part),
];

fn status(wasmvol: &Wasmvol, name: &str) -> Value {
    wasmvol.plugin().get(name).unwrap()["Status"].take()
}

/// The cells of a volume's row in `volume ls` by the heads of their columns.
fn cell(wasmvol: &Wasmvol, name: &str, head: &str) -> String {
    let table = wasmvol.cli("volume ls").ok();
    let mut lines = table.lines();
    let heads = lines.next().unwrap();
    // `STORAGE` ends like another head.
    let at = heads.find(&format!(" {head}")).unwrap() + 1;
    let row = lines.find(|line| line.split(' ').next() == Some(name)).unwrap();
    row[at..].split("   ").next().unwrap().trim().to_owned()
}

/// Nothing is told of what is not mounted but what its options say.
#[track_caller]
fn assert_unmounted(wasmvol: &Wasmvol, name: &str, told: Told) {
    let status = status(wasmvol, name);
    let size = match told {
        Told::Own { size, .. } => Some(size),
        Told::Part => None,
    };
    assert_eq!(status.get("size").and_then(Value::as_u64), size, "{name}: {status}");
    for key in ["used", "used-at", "inodes-used", "file-system-size", "file-system-used"] {
        assert_eq!(status.get(key), None, "{name}: {status}");
    }
    assert_eq!(cell(wasmvol, name, "AGE"), "-");
}

#[track_caller]
fn assert_mounted(wasmvol: &Wasmvol, name: &str, told: Told) {
    let status = status(wasmvol, name);
    let number = |key: &str| status.get(key).and_then(Value::as_u64);
    let age = cell(wasmvol, name, "AGE");
    let Told::Own { size, has_inodes } = told else {
        let (size, used) = (number("file-system-size"), number("file-system-used"));
        assert!(size >= used && used >= Some(WRITTEN), "{name}: {status}");
        let own = ["size", "used", "inodes", "inodes-used"].map(|key| status.get(key));
        assert_eq!((own, age.as_str()), ([None; 4], "-"), "{name}: {status}");
        return;
    };
    // An ext4 needs some of its image for itself, most of it for its journal.
    let (all, used) = (number("size").unwrap(), number("used").unwrap());
    assert!(all <= size && all * 2 > size, "{name}: {status}");
    assert!(used >= WRITTEN && used < all, "{name}: {status}");
    let asked = rustix::fs::statvfs(wasmvol.plugin().path(name).unwrap()).unwrap();
    assert_eq!(number("inodes"), has_inodes.then_some(asked.f_files), "{name}: {status}");
    let used = has_inodes.then_some(asked.f_files - asked.f_ffree);
    assert_eq!(number("inodes-used"), used, "{name}: {status}");
    assert!(age.ends_with(" s") || age.ends_with(" min"), "{name}: {age}");
    assert!(cell(wasmvol, name, "USED").ends_with("iB"));
}

#[test]
fn of_each_kind_is_told_what_its_file_system_can_tell_while_it_is_mounted() {
    let sshd = Sshd::start();
    let mut wasmvol = Wasmvol::install_on("btrfs", 512 * MIB);
    wasmvol.run();
    let mut shelf = Shelf::of(wasmvol);
    let key = sshd.key().display().to_string();
    let ((host, port), path) = (sshd.place(), sshd.served().display().to_string());
    shelf.wasmvol.cli(&format!("secret set key --driver sshfs --peer {host} --file {key}")).ok();
    let host_key = sshd.host_key();
    let server =
        [("host", host.as_str()), ("port", &port), ("path", &path), ("host-key", &host_key)];
    let plugin = shelf.wasmvol.plugin();
    for (name, driver, options, told) in KINDS {
        let more = if driver == "sshfs" { &server } else { options };
        shelf.create(name, driver, more).unwrap();
        assert_unmounted(&shelf.wasmvol, name, told);
        let path = plugin.mount(name, "id").unwrap();
        fs::write(path.join("written"), vec![7; usize::try_from(WRITTEN).unwrap()]).unwrap();
    }
    // Quota groups count what is on the disk.
    shell(&format!("sync -f {}", shelf.wasmvol.state().display()), &[]).ok();
    // The kernel is asked now and then, and by a daemon that has recovered.
    shelf.wasmvol.kill_daemon();
    for (name, _, _, told) in KINDS {
        until(&format!("the use of `{name}` is known"), SOON, || {
            status(&shelf.wasmvol, name).get("used-at").map(drop)
        });
        assert_mounted(&shelf.wasmvol, name, told);
    }
    for (name, _, _, told) in KINDS {
        plugin.unmount(name, "id").unwrap();
        shelf.wasmvol.wait_unmounted(name);
        until("what was told of it is forgotten", SOON, || {
            status(&shelf.wasmvol, name).get("used-at").is_none().then_some(())
        });
        assert_unmounted(&shelf.wasmvol, name, told);
    }
}
