//! Files on a mounted volume of each kind, beside the same file system mounted by hand: the kernel does the work, so more than a
//! little is a mistake of ours.
//!
//! Own and bare take turns, and change sides of the disk with every round.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;

use crate::client::held;
use crate::instance::Instance;
use crate::machine::{median, micros};
use crate::report::{Figure, Goal, Report, time};
use crate::{Places, Result};

/// Rounds in turn.
const ROUNDS: usize = 9;
/// Bytes of a file that is written and read from end to end, and of one write.
const SEQUENTIAL: usize = 32 << 20;
const PIECE: usize = 1 << 20;
/// Pages that are written here and there in such a file, then synced at once.
const RANDOM: u64 = 2048;
const PAGE: usize = 4096;
/// Files that are made, looked at and deleted.
const FILES: usize = 2000;
/// An ID as dockerd makes them.
const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// One kind of storage: the driver, what a user gives it, and the same made by hand at a directory.
struct Kind {
    driver: &'static str,
    options: &'static [(&'static str, &'static str)],
    /// Of a directory of the run's own, where the driver may have one.
    grant: fn(&Path) -> Option<String>,
    by_hand: fn(&Path, &Path) -> Result<()>,
}

const KINDS: [Kind; 3] = [
    Kind { driver: "local", options: &[], grant: |_| None, by_hand: |_, _| Ok(()) },
    Kind {
        driver: "vfs",
        options: &[],
        grant: |root| Some(format!("host-directory={}", root.display())),
        by_hand: |_, _| Ok(()),
    },
    Kind {
        driver: "tmpfs",
        options: &[("size", "256m")],
        grant: |_| None,
        by_hand: |_, place| {
            run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m", "bare"]).arg(place))
        },
    },
];

/// What is done with files, and what it is called.
type Load = (&'static str, fn(&Path) -> Result<()>);

const LOADS: [Load; 3] = [("sequential", sequential), ("random", random), ("metadata", metadata)];

pub(crate) fn measure(places: &Places, few: &Instance, report: &mut Report) -> Result<()> {
    for kind in KINDS {
        let volume = format!("files-{}", kind.driver);
        let root = places.state.join(format!("{volume}-root"));
        fs::create_dir(&root)?;
        if let Some(grant) = (kind.grant)(&root) {
            few.grant(kind.driver, &grant)?;
        }
        let mut client = few.connect()?;
        let mut options = serde_json::Map::from_iter([("driver".to_owned(), json!(kind.driver))]);
        options.extend(kind.options.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
        let create = json!({ "Name": volume, "Opts": options }).to_string();
        client.call("VolumeDriver.Create", &create)?;
        let mounted = client.call("VolumeDriver.Mount", &held(&volume, ID))?;
        let mounted: serde_json::Value = serde_json::from_slice(mounted.body)?;
        let own = mounted.get("Mountpoint").and_then(|at| at.as_str()).ok_or("no mountpoint")?;
        let (own, bare) = (PathBuf::from(own), places.state.join(&volume));
        fs::create_dir(&bare)?;
        (kind.by_hand)(&places.state, &bare)?;
        for (load, work) in LOADS {
            report.figure(compare(kind.driver, load, work, &own, &bare)?);
        }
        match unmount(&bare, UnmountFlags::NOFOLLOW) {
            // What was made by hand is a plain directory.
            Err(Errno::INVAL) => {}
            other => other?,
        }
        client.call("VolumeDriver.Unmount", &held(&volume, ID))?;
        client.call("VolumeDriver.Remove", &json!({ "Name": volume }).to_string())?;
    }
    Ok(())
}

fn compare(
    driver: &str,
    load: &str,
    work: fn(&Path) -> Result<()>,
    own: &Path,
    bare: &Path,
) -> Result<Figure> {
    let timed = |place: &Path| -> Result<f64> {
        let begin = Instant::now();
        work(place)?;
        Ok(micros(begin.elapsed()))
    };
    let (mut owns, mut bares) = (Vec::new(), Vec::new());
    timed(own)?;
    timed(bare)?;
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            owns.push(timed(own)?);
            bares.push(timed(bare)?);
        } else {
            bares.push(timed(bare)?);
            owns.push(timed(own)?);
        }
    }
    let (own, bare) = (median(owns), median(bares));
    Ok(Figure {
        name: format!("files on `{driver}`, {load}, beside the same file system mounted by hand"),
        goal: Goal::AtMost(1.05),
        measured: own / bare,
        unit: "times",
        raw: format!("{} and {}", time(own), time(bare)),
    })
}

/// Writes a file, syncs it, and reads it from the disk again.
fn sequential(place: &Path) -> Result<()> {
    let path = place.join("sequential");
    let mut file =
        File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    let mut piece = vec![7; PIECE];
    for _ in 0..SEQUENTIAL / PIECE {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut again = File::open(&path)?;
    for _ in 0..SEQUENTIAL / PIECE {
        again.read_exact(&mut piece)?;
    }
    Ok(fs::remove_file(path)?)
}

/// Writes pages of a file in no order, and syncs it.
fn random(place: &Path) -> Result<()> {
    let path = place.join("random");
    let file = File::create(&path)?;
    file.set_len(SEQUENTIAL as u64)?;
    let pages = (SEQUENTIAL / PAGE) as u64;
    // A step that shares no factor with the number of pages meets each of them once.
    for at in (0..RANDOM).map(|n| n * 5009 % pages) {
        file.write_all_at(&[7; PAGE], at * PAGE as u64)?;
    }
    file.sync_all()?;
    Ok(fs::remove_file(path)?)
}

/// Makes files, looks at them, and deletes them.
fn metadata(place: &Path) -> Result<()> {
    let path = |number: usize| place.join(format!("file-{number}"));
    for number in 0..FILES {
        File::create(path(number))?;
    }
    for number in 0..FILES {
        fs::metadata(path(number))?;
    }
    (0..FILES).try_for_each(|number| Ok(fs::remove_file(path(number))?))
}

fn run(command: &mut Command) -> Result<()> {
    if command.status()?.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}
