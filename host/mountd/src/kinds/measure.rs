//! How full a volume is: as its file system tells, or counted file by file for those whose file system counts for many.
//!
//! To count runs in a child. Nothing is changed, links are not followed, and what is mounted below is not the volume's.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, openat2, statat};
use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind, Id, Measure, Usage};

use super::{directory, subvolume};
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY};

/// Most files with several names that are told apart: 16 MiB. Beyond it each name is counted.
const LINKED_MAX: usize = 1 << 20;
/// stat(2) counts blocks of this size, whatever the file system's are.
const BLOCK: u64 = 512;

impl Mounter {
    /// What the file system tells of a mounted volume; of a subvolume with a limit, what the quota group does.
    pub(crate) fn usage(&self, id: Id) -> Result<Usage, Fault> {
        if self.anchor.mounted(id)?.is_none() {
            return fault(FaultKind::Missing, format!("volume `{id}` is not mounted"));
        }
        let what = format_args!("measure volume `{id}`");
        let root = self.anchor.open_volume(id)?;
        let all = rustix::fs::fstatvfs(&root).trying(what)?;
        let bytes = |blocks: u64| blocks.saturating_mul(all.f_frsize);
        let whole = (bytes(all.f_blocks), bytes(all.f_blocks.saturating_sub(all.f_bfree)));
        let (size, used) = subvolume::counted(&root).trying(what)?.unwrap_or(whole);
        let inodes_used = all.f_files.saturating_sub(all.f_ffree);
        Ok(Usage { size, used, inodes: all.f_files, inodes_used })
    }

    /// Counts what is mounted, or else the volume's directory.
    pub(crate) fn measure(&self, id: Id) -> Result<Measure, Fault> {
        let top = match self.anchor.mounted(id)? {
            Some(_) => self.anchor.open_volume(id)?,
            None => directory::open(&self.places, id).map_err(|missing| {
                let why = "it is not mounted, and nothing of it can be counted before: mount it";
                if missing.kind == FaultKind::Missing {
                    Fault::new(missing.kind, why)
                } else {
                    missing
                }
            })?,
        };
        let mut measured = Measure::default();
        let mut linked = HashSet::new();
        let mut queue = vec![PathBuf::from(".")];
        while let Some(path) = queue.pop() {
            match entries(&top, &path, &mut measured, &mut linked) {
                Ok(directories) => queue.extend(directories),
                // Removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(Errno::NAMETOOLONG | Errno::XDEV | Errno::ACCESS) => measured.unread += 1,
                Err(e) => return Err(e).trying(format_args!("measure volume `{id}`")),
            }
        }
        Ok(measured)
    }
}

/// Counts the entries of one directory; answers the directories among them.
fn entries(
    top: &OwnedFd,
    path: &PathBuf,
    measured: &mut Measure,
    linked: &mut HashSet<u64>,
) -> Result<Vec<PathBuf>, Errno> {
    let directory = openat2(top, path, DIRECTORY, Mode::empty(), BENEATH)?;
    let own = rustix::fs::fstat(&directory)?;
    measured.bytes += blocks(own.st_blocks);
    measured.files += 1;
    let mut inside = Vec::new();
    let mut names = Dir::read_from(&directory)?;
    while let Some(entry) = names.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            inside.push(path.join(OsStr::from_bytes(name.to_bytes())));
            continue;
        }
        let has_names = stat.st_nlink > 1 && linked.len() < LINKED_MAX;
        if !has_names || linked.insert(stat.st_ino) {
            measured.bytes += blocks(stat.st_blocks);
            measured.files += 1;
        }
    }
    Ok(inside)
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * BLOCK
}
