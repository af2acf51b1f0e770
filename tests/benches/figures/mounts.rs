//! Mount and Unmount of a `local` volume, beside the bare system calls that any of it needs.

use std::fs;
use std::path::Path;
use std::time::Instant;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::client::held;
use crate::instance::{Instance, volume};
use crate::machine::{median, micros};
use crate::report::{Figure, Goal, Report, number, time};
use crate::{Places, Result};

/// Rounds in turn.
const ROUNDS: usize = 15;
/// Pairs of Mount and Unmount in a round.
const PAIRS: usize = 60;
/// An ID as dockerd makes them.
const ID: &str = "6b1d8a3c5e7f90214365870912ab34cd56ef7890a1b2c3d4e5f60718293a4b5c";

pub(crate) fn measure(places: &Places, few: &Instance, report: &mut Report) -> Result<()> {
    let (from, to) = (places.state.join("bare"), places.runtime.join("bare"));
    fs::create_dir(&from)?;
    fs::create_dir(&to)?;
    let mut client = few.connect()?;
    let request = held(&volume(0), ID);
    let mut own = || -> Result<f64> {
        let begin = Instant::now();
        client.call("VolumeDriver.Mount", &request)?;
        client.call("VolumeDriver.Unmount", &request)?;
        Ok(micros(begin.elapsed()))
    };
    own()?;
    let before = few.commits()?;
    let (mut owns, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..PAIRS {
            owns.push(own()?);
        }
        for _ in 0..PAIRS {
            bares.push(bare(&from, &to)?);
        }
    }
    let commits = (few.commits()?.mount_table - before.mount_table) / owns.len() as f64;
    let (own, bare) = (median(owns), median(bares));
    report.figure(Figure {
        name:
            "Mount + Unmount of a `local` volume, p50, beside bare open_tree + move_mount + umount"
                .to_owned(),
        goal: Goal::AtMost(6.0),
        measured: own / bare,
        unit: "times",
        raw: format!("{} and {}", time(own), time(bare)),
    });
    report.figure(Figure {
        name: "Mount + Unmount: mount table commits of the pair".to_owned(),
        goal: Goal::AtMost(2.0),
        measured: commits,
        unit: "commits",
        raw: format!("{} a call", number(commits / 2.0)),
    });
    Ok(())
}

/// The least that shows a directory at another place, and takes it away.
fn bare(from: &Path, to: &Path) -> Result<f64> {
    let begin = Instant::now();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, from, flags)?;
    move_mount(&tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    drop(tree);
    unmount(to, UnmountFlags::NOFOLLOW)?;
    Ok(micros(begin.elapsed()))
}
