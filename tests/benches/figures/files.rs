//! Files on a mounted volume of each kind, beside the same file system mounted by hand: the kernel or the same program does the work, so
//! more than a little is a mistake of ours.
//!
//! Rounds are short, and in each both take turns, so that what else the machine does meets both; the middle of the rounds' ratios counts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;

use crate::Result;
use crate::client::held;
use crate::ground::{DRIVERS, Ground, is_served};
use crate::instance::Instance;
use crate::machine::{median, micros};
use crate::report::{Figure, Goal, Report, time};

/// Rounds of own, bare, bare, own.
const ROUNDS: usize = 11;
/// Bytes of a file that is written and read from end to end, and of one write.
const SEQUENTIAL: usize = 8 << 20;
const PIECE: usize = 1 << 20;
/// Pages that are written here and there in such a file, then synced at once.
const RANDOM: u64 = 1024;
const PAGE: usize = 4096;
/// Files that are made, looked at and deleted; a server is asked for each of them.
const FILES: usize = 1500;
const FILES_FAR: usize = 100;
/// Size of the image.
const IMAGE: &str = "256m";
/// An ID as dockerd makes them.
const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// What is done with files, and what it is called.
type Load = (&'static str, fn(&Path) -> Result<()>);

const NEAR: [Load; 3] = [("sequential", sequential), ("random", random), ("metadata", metadata)];
const FAR: [Load; 3] = [("sequential", sequential), ("random", random), ("metadata", metadata_far)];

pub(crate) fn measure(ground: &Ground, few: &Instance, report: &mut Report) -> Result<()> {
    for driver in DRIVERS {
        let instance = if driver == "btrfs" { &ground.on_btrfs } else { few };
        let volume = format!("files-{driver}");
        let mut client = instance.connect()?;
        client.call("VolumeDriver.Create", &ground.create(&volume, driver, IMAGE)?)?;
        let mounted = client.call("VolumeDriver.Mount", &held(&volume, ID))?;
        let mounted: serde_json::Value = serde_json::from_slice(mounted.body)?;
        let own = mounted.get("Mountpoint").and_then(|at| at.as_str()).ok_or("no mountpoint")?;
        let (own, bare) = (PathBuf::from(own), ground.by_hand(driver)?);
        for (load, work) in if is_served(driver) { FAR } else { NEAR } {
            report.figure(compare(driver, load, work, &own, &bare)?);
        }
        // A link leads to what is a plain directory.
        if !bare.is_symlink() {
            unmount(&bare, UnmountFlags::NOFOLLOW)?;
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
    let (mut owns, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    timed(own)?;
    timed(bare)?;
    for round in 0..ROUNDS {
        // Who goes first goes last, and the next time it is the other.
        let (outer, inner) = if round % 2 == 0 { (own, bare) } else { (bare, own) };
        let (first, between) = (timed(outer)?, timed(inner)? + timed(inner)?);
        let around = first + timed(outer)?;
        let (own, bare) = if round % 2 == 0 { (around, between) } else { (between, around) };
        owns.push(own / 2.0);
        bares.push(bare / 2.0);
        ratios.push(own / bare);
    }
    let beside = if is_served(driver) { "program" } else { "file system" };
    Ok(Figure {
        name: format!("files on `{driver}`, {load}, beside the same {beside} mounted by hand"),
        goal: Goal::AtMost(1.05),
        measured: median(ratios),
        unit: "times",
        raw: format!("{} and {}", time(median(owns)), time(median(bares))),
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
    files(place, FILES)
}

fn metadata_far(place: &Path) -> Result<()> {
    files(place, FILES_FAR)
}

fn files(place: &Path, count: usize) -> Result<()> {
    let path = |number: usize| place.join(format!("file-{number}"));
    for number in 0..count {
        File::create(path(number))?;
    }
    for number in 0..count {
        fs::metadata(path(number))?;
    }
    (0..count).try_for_each(|number| Ok(fs::remove_file(path(number))?))
}
