//! Volumes with a size on file systems with project quotas, xfs and ext4: is the size kept, shown, changed, and gone with the volume?
//!
//! Each test has a disk of its own for the state directory and a granted root. `xfs_quota` tells what the kernel has in its books.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use wasmvol_plan::steps::KILL_AT;

use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{Outcome, shell, until};

const MIB: u64 = 1 << 20;
/// What happens by itself, in an emulated machine.
const SOON: Duration = Duration::from_secs(120);

/// How each file system is made; quotas are asked of it when it is mounted.
const SYSTEMS: [&str; 2] = ["mkfs.xfs -q", "mkfs.ext4 -q -F -O quota,project"];
/// Both drivers whose volumes are directories.
const DRIVERS: [&str; 2] = ["local", "vfs"];

/// A disk with a file system, and a wasmvol whose volumes lie on it.
struct Disk {
    wasmvol: Wasmvol,
    place: PathBuf,
}

impl Disk {
    /// A wasmvol on a new file system with quotas.
    fn new(mkfs: &str) -> Self {
        let wasmvol = Wasmvol::install();
        let place = wasmvol.path("place");
        let mut disk = Self { wasmvol, place };
        disk.shell(&format!("mkdir $place && truncate -s 400M $file && {mkfs} $file")).ok();
        disk.mount("prjquota");
        disk.wasmvol.run();
        let vfs = PROGRAMS.parent().unwrap().join("guests/vfs.wasm");
        let grant = format!("--grant host-directory={}", disk.place.join("srv").display());
        disk.wasmvol.cli(&format!("driver load {} {grant}", vfs.display())).ok();
        disk
    }

    /// Mounts the file system, and its directory for the state where that belongs.
    fn mount(&self, options: &str) {
        let line = "mount -o loop,$options $file $place && mkdir -p $place/state $place/srv $state";
        self.shell(&format!("options={options}; {line} && mount --bind $place/state $state")).ok();
    }

    fn unmount(&self) {
        self.shell("umount $state && umount $place").ok();
    }

    fn shell(&self, line: &str) -> Outcome {
        let variables = [
            ("place", self.place.clone().into_os_string()),
            ("state", self.wasmvol.state().into_os_string()),
            ("file", self.wasmvol.path("disk").into_os_string()),
        ];
        shell(line, &variables)
    }

    fn create(&self, name: &str, driver: &str, more: &[(&str, &str)]) -> Result<(), String> {
        let reclaim = ("reclaim", "delete");
        self.wasmvol.plugin().create(name, &[&[("driver", driver), reclaim], more].concat())
    }

    /// Writes so many MiB as a container's root does: without the capability by which ext4 lets the host's have what it wants.
    fn write(&self, name: &str, file: &str, mib: u64) -> Outcome {
        let path = self.wasmvol.plugin().mount(name, "writer").unwrap().join(file);
        let dd = "setpriv --bounding-set -sys_resource dd if=/dev/zero of=$path bs=1M conv=fsync";
        let outcome = shell(&format!("{dd} count={mib}"), &[("path", path.into_os_string())]);
        self.wasmvol.plugin().unmount(name, "writer").unwrap();
        outcome
    }

    /// Writes more than there is room for.
    fn fill(&self, name: &str) {
        let full = self.write(name, "full", 64).refused();
        let said = |words| full.contains(words);
        assert!(said("No space left on device") || said("Disk quota exceeded"), "{full}");
    }

    /// What is shown of a mounted volume, once its use is known.
    fn measured(&mut self, name: &str) -> Value {
        self.wasmvol.cli(&format!("volume mount {name}")).ok();
        self.wasmvol.kill_daemon();
        let status = until("its use is known", SOON, || {
            let status = self.wasmvol.json(&format!("volume inspect {name}"))["status"].clone();
            status.get("used-at").is_some().then_some(status)
        });
        self.wasmvol.cli(&format!("volume unmount {name}")).ok();
        status
    }

    /// The limits of all projects that have one or use something, in KiB.
    fn limits(&self) -> Vec<u64> {
        self.books().into_iter().map(|(_, limit)| limit).collect()
    }

    /// What those use, and their limits.
    fn books(&self) -> Vec<(u64, u64)> {
        let report = self.shell("xfs_quota -f -x -c 'report -p -N -n -b' $place").ok();
        let of_a_line = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse().unwrap();
            (*words.first()? != "#0").then(|| (number(1), number(3)))
        };
        report.lines().filter_map(of_a_line).collect()
    }

    fn remove(&self, name: &str) {
        self.wasmvol.plugin().remove(name).unwrap();
        until("its limit is gone", SOON, || self.limits().is_empty().then_some(()));
        self.wasmvol.wait_reaped();
    }
}

#[test]
fn a_volume_holds_its_size_and_no_other_volume_less() {
    for mkfs in SYSTEMS {
        let mut disk = Disk::new(mkfs);
        for driver in DRIVERS {
            let size = [("size", "8m")];
            disk.create("limited", driver, &size).unwrap();
            disk.create("limited", driver, &size).expect("it is there already");
            disk.create("limited", driver, &[("size", "16m")]).expect_err("it is another one");
            assert_eq!(disk.limits(), [8 * 1024], "{mkfs} {driver}");
            disk.write("limited", "kept", 4).ok();
            disk.fill("limited");
            let status = disk.measured("limited");
            assert_eq!(status["size"], json!(8 * MIB), "{mkfs} {driver}: {status}");
            let used = status["used"].as_u64().unwrap();
            assert!((4 * MIB..=8 * MIB).contains(&used), "{mkfs} {driver}: {status}");
            for key in ["file-system-size", "inodes"] {
                assert_eq!(status.get(key), None, "{mkfs} {driver}: {status}");
            }
            disk.create("free", driver, &[]).unwrap();
            disk.write("free", "large", 16).ok();
            disk.remove("limited");
            // Of that name, and with nothing of the old one's.
            disk.create("limited", driver, &[("size", "24m")]).unwrap();
            disk.write("limited", "large", 16).ok();
            disk.fill("limited");
            disk.remove("limited");
            disk.wasmvol.plugin().remove("free").unwrap();
        }
    }
}

#[test]
fn what_a_driver_fills_in_counts_for_the_size_and_more_is_refused() {
    for mkfs in SYSTEMS {
        let mut disk = Disk::new(mkfs);
        let able = PROGRAMS.parent().unwrap().join("guests/able.wasm");
        disk.wasmvol.cli(&format!("driver load {}", able.display())).ok();
        let size = ("size", "8m");
        let error = disk.create("limited", "able", &[size, ("do", "limit-flood")]).unwrap_err();
        assert!(error.ends_with(": its volume is full"), "{mkfs}: {error}");
        until("its limit is gone", SOON, || disk.limits().is_empty().then_some(()));
        disk.create("limited", "able", &[size, ("do", "limit-some")]).unwrap();
        assert_eq!(disk.limits(), [8 * 1024], "{mkfs}");
        // Of the 8 MiB 3 are taken.
        disk.write("limited", "kept", 4).ok();
        disk.write("limited", "more", 4).refused();
        let used = disk.measured("limited")["used"].as_u64().unwrap();
        assert!((7 * MIB..=8 * MIB).contains(&used), "{mkfs}: {used}");
        disk.remove("limited");
    }
}

#[test]
fn a_size_is_raised_and_outlives_a_restart_of_the_machine() {
    for mkfs in SYSTEMS {
        let mut disk = Disk::new(mkfs);
        for driver in DRIVERS {
            disk.create("limited", driver, &[("size", "8m")]).unwrap();
            disk.fill("limited");
            disk.wasmvol.cli("volume resize limited 32m").ok();
            disk.write("limited", "more", 16).ok();
            let error = disk.wasmvol.cli("volume resize limited 16m").refused();
            assert!(error.contains("never gets smaller"), "{mkfs} {driver}: {error}");
            disk.wasmvol.kill_mountd();
            disk.shell("umount $(sed -n \"s|.* \\($(dirname $state)/run/[^ ]*\\) .*|\\1|p\" /proc/self/mountinfo | tac)");
            disk.unmount();
            disk.mount("prjquota");
            disk.wasmvol.run();
            disk.fill("limited");
            assert_eq!(disk.limits(), [32 * 1024], "{mkfs} {driver}");
            disk.create("limited", driver, &[("size", "32m")]).expect("it is there already");
            disk.remove("limited");
        }
    }
}

#[test]
fn a_size_that_was_raised_is_what_other_hosts_are_told() {
    let disk = Disk::new(SYSTEMS[0]);
    let marker = || fs::read_to_string(disk.place.join("srv/.wasmvol/limited")).unwrap();
    let says = |size: u64| marker().contains(&format!("{size}"));
    disk.create("limited", "vfs", &[("size", "8m")]).unwrap();
    assert!(says(8 * MIB), "{}", marker());
    disk.wasmvol.cli("volume resize limited 32m").ok();
    assert!(says(32 * MIB) && !says(8 * MIB), "{}", marker());
    // One who has never seen it finds it with its options.
    let mut other = Wasmvol::install();
    other.run();
    let vfs = PROGRAMS.parent().unwrap().join("guests/vfs.wasm");
    let grant = format!("--grant host-directory={}", disk.place.join("srv").display());
    other.cli(&format!("driver load {} {grant}", vfs.display())).ok();
    let vfs = ("driver", "vfs");
    let error = other.plugin().create("limited", &[vfs, ("size", "8m")]).unwrap_err();
    assert!(error.contains("`size`"), "{error}");
    other.plugin().create("limited", &[vfs, ("size", "32m")]).unwrap();
    assert_eq!(disk.limits(), [32 * 1024]);
    // Whose it is not cannot raise it, nor is anything raised that has no size.
    disk.create("free", "vfs", &[]).unwrap();
    for (wasmvol, volume) in [(&other, "limited"), (&disk.wasmvol, "free")] {
        let error = wasmvol.cli(&format!("volume resize {volume} 64m")).refused();
        assert!(error.contains("has no size that the host could change"), "{volume}: {error}");
    }
}

#[test]
fn a_copy_of_a_volume_with_a_size_is_mounted_once_it_has_its_project_again() {
    for mkfs in SYSTEMS {
        let disk = Disk::new(mkfs);
        disk.create("limited", "local", &[("size", "8m")]).unwrap();
        disk.write("limited", "kept", 4).ok();
        let copied = "mv data old && mkdir data && cp -a old/. data && rm -r old";
        disk.shell(&format!("cd $place/state/volumes/* && {copied}")).ok();
        until("nothing counts any more", SOON, || (disk.books() == [(0, 8192)]).then_some(()));
        let error = disk.wasmvol.plugin().mount("limited", "id").unwrap_err();
        let command = error.split('`').nth(1).filter(|cure| cure.starts_with("find "));
        disk.shell(command.unwrap_or_else(|| panic!("{mkfs}: {error}"))).ok();
        disk.fill("limited");
        assert_eq!(disk.limits(), [8 * 1024], "{mkfs}");
        let counted = disk.shell("du -sk $place/state/volumes").ok();
        let used: u64 = counted.split_whitespace().next().unwrap().parse().unwrap();
        assert!((4096..=8192 + 64).contains(&used), "{mkfs}: what was copied counts: {used}");
    }
}

#[test]
fn a_volume_with_a_size_is_not_mounted_where_quotas_were_turned_off() {
    for mkfs in SYSTEMS {
        let mut disk = Disk::new(mkfs);
        for driver in DRIVERS {
            disk.create(driver, driver, &[("size", "8m")]).unwrap();
        }
        disk.wasmvol.kill_mountd();
        disk.unmount();
        disk.mount("noatime");
        disk.wasmvol.run();
        for driver in DRIVERS {
            let error = disk.wasmvol.plugin().mount(driver, "id").unwrap_err();
            assert!(error.contains("has no project quotas"), "{mkfs} {driver}: {error}");
            let error = disk.create("late", driver, &[("size", "8m")]).unwrap_err();
            assert!(error.contains("with `prjquota`"), "{mkfs} {driver}: {error}");
            disk.wasmvol.plugin().remove(driver).unwrap();
        }
        disk.wasmvol.wait_reaped();
        assert_eq!(fs::read_dir(disk.place.join("srv/.wasmvol")).unwrap().count(), 0);
    }
}

#[test]
fn a_volume_that_could_not_be_made_leaves_no_limit() {
    let mut disk = Disk::new(SYSTEMS[0]);
    disk.wasmvol.stop();
    for (driver, step) in [("local", "make.made"), ("vfs", "named.marked")] {
        let flag = disk.place.join("armed");
        fs::write(&flag, "").unwrap();
        let armed = format!("{step}@{}", flag.display());
        disk.wasmvol.set_variables(&[(KILL_AT, &armed)]);
        disk.wasmvol.run();
        disk.wasmvol.cli(&format!("volume create half -d {driver} -o size=8m")).refused();
        assert!(!flag.exists(), "{step} was not reached");
        // A named directory is made by a child: then that alone was killed.
        if driver == "local" {
            disk.wasmvol.wait_end();
            disk.wasmvol.run();
        }
        until("its limit is gone", SOON, || disk.limits().is_empty().then_some(()));
        disk.wasmvol.stop();
    }
}

#[test]
fn a_directory_that_is_in_a_project_itself_is_refused_with_the_cure() {
    let disk = Disk::new(SYSTEMS[1]);
    for (driver, place) in [("local", "state/volumes"), ("vfs", "srv")] {
        let begin = format!("project -s -d 0 -p $place/{place} 7");
        disk.shell(&format!("xfs_quota -f -x -c \"{begin}\" $place")).ok();
        let error = disk.create("limited", driver, &[("size", "8m")]).unwrap_err();
        assert!(error.contains("is in a quota project itself"), "{driver}: {error}");
        assert!(error.contains("`chattr -P`"), "{driver}: {error}");
        disk.create("free", driver, &[]).unwrap();
        disk.wasmvol.plugin().remove("free").unwrap();
    }
}
