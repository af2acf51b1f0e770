//! Limits of directories, by the project quotas of the file system that they lie on.
//!
//! Called where a directory with a limit is made, grown or mounted, and by the reaper, which takes the limit away. A directory's project is a
//! number out of its volume's id, so that nothing has to be remembered: the first of a few that nobody else has on that file system. The
//! directory carries it, and all that is made inside inherits it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, openat2};
use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind, Id};

use crate::fault::{Context, fault};
use crate::places::{BENEATH, DIRECTORY, path_of};
use crate::scan::names;
use crate::sys::{QUOTA_SIZE, ioctl, ioctl_size, quotactl};

/// The ioctls of linux/fs.h with a `struct fsxattr`, where its flags and the project's number stand, and the flag by which what is made
/// inside has the same project.
const GET_ATTRIBUTES: u32 = 0x801c_581f;
const SET_ATTRIBUTES: u32 = 0x401c_5820;
const FLAGS: usize = 0;
const PROJECT: usize = 12;
const INHERITED: u32 = 0x200;
/// Commands of linux/dqblk_xfs.h, which other file systems know too, about projects: `Q_XGETQUOTA`, `Q_XSETQLIM`, `Q_XGETQSTAT`.
const GET: u32 = 0x58_0302;
const LIMIT: u32 = 0x58_0402;
const STATE: u32 = 0x58_0502;
/// `FS_QUOTA_PDQ_ACCT | FS_QUOTA_PDQ_ENFD`: projects are counted, and their limits kept. They stand at 2 of a `struct fs_quota_stat`.
const ON: u16 = 0x30;
/// How a `struct fs_disk_quota` of a project begins, version 1 and its type, and which limit is meant: the hard one of blocks of this size.
const HEAD: [u8; 2] = [1, 2];
const HARD: u16 = 8;
const BLOCK: u64 = 512;
/// Where it counts blocks and inodes.
const COUNTS: std::ops::Range<usize> = 40..56;
/// Projects of ours have this bit and thirty of the id: what tools and people number from 1 on is far below.
const OURS: u32 = 1 << 30;

/// Refuses a limit where it would not hold: for a directory, or one that is to be made in it.
pub(super) fn check(place: &OwnedFd, shown: &str) -> Result<(), Fault> {
    let mut state = [0; QUOTA_SIZE];
    let asked = quotactl(place, STATE, 0, &mut state);
    let [_, _, low, high, ..] = state;
    if asked.is_ok() && u16::from_ne_bytes([low, high]) & ON == ON {
        return Ok(());
    }
    let cure = "mount its file system with `prjquota`, or use `-o driver=image`";
    fault(FaultKind::Failed, format!("`{shown}` has no project quotas, which a size needs: {cure}"))
}

/// Refuses to make a directory with a limit in one whose own project is inherited: it could not be moved from there into the trash.
pub(super) fn check_parent(parent: &OwnedFd, shown: &str) -> Result<(), Fault> {
    check(parent, shown)?;
    let found = attributes(parent).trying(format_args!("look at the project of `{shown}`"))?;
    if number(&found, FLAGS) & INHERITED == 0 {
        return Ok(());
    }
    let why = "is in a quota project itself, so no volume in it can have a size";
    let cure = "take it out by `chattr -P`, or use another directory";
    fault(FaultKind::Failed, format!("`{shown}` {why}: {cure}"))
}

/// Gives an empty directory its project, and the project its limit. Both there already: done.
pub(super) fn limit(directory: &OwnedFd, id: Id, bytes: u64) -> Result<(), Fault> {
    let what = format!("limit volume `{id}`");
    let mut found = attributes(directory).trying(&what)?;
    let (flags, mut project) = (number(&found, FLAGS), number(&found, PROJECT));
    let is_ours = is_of(id, project);
    if !is_ours {
        project = free(directory, id).trying(&what)?;
    }
    if !is_ours || flags & INHERITED == 0 {
        // What is inside would count for nobody, and could not be renamed from one directory to another.
        if !names(directory).trying(&what)?.is_empty() {
            let path = path_of(directory)?;
            let set = format!("-exec chattr +P -p {project} {{}} + -o -type f -exec chattr -p");
            let cure = format!("`find {path} -type d {set} {project} {{}} +` gives it one again");
            let why = "its directory has lost its quota project, as a copy does";
            return fault(FaultKind::Failed, format!("{why}: {cure}"));
        }
        for (at, word) in [(FLAGS, flags | INHERITED), (PROJECT, project)] {
            found.splice(at..at + size_of::<u32>(), word.to_ne_bytes());
        }
        ioctl(directory, SET_ATTRIBUTES, &mut found).trying(&what)?;
    }
    set(directory, project, bytes).trying(&what)
}

/// Takes away the limit of what waits in the trash. Before anything of it goes: killed, it is done again.
pub(crate) fn release(trash: &OwnedFd, name: &str, id: Id) {
    for path in [name.to_owned(), format!("{name}/data")] {
        // What is no directory, or lies where there are no projects, has no limit.
        let Ok(place) = openat2(trash, path, DIRECTORY, Mode::empty(), BENEATH) else { continue };
        let found = attributes(&place).map(|found| number(&found, PROJECT));
        if let Some(project) = found.ok().filter(|project| is_of(id, *project)) {
            // Quotas may have been turned off since.
            let _nothing_to_limit = set(&place, project, 0);
        }
    }
}

/// The projects that a volume may have.
fn candidates(id: Id) -> impl Iterator<Item = u32> {
    let bits = move |turn: u32| (id.bits() >> (30 * turn)) % u128::from(OURS);
    (0..4).filter_map(move |turn| u32::try_from(bits(turn)).ok()).map(|bits| OURS | bits)
}

fn is_of(id: Id, project: u32) -> bool {
    candidates(id).any(|candidate| candidate == project)
}

/// The first of them that nobody has: no block and no inode. A limit alone is left of an earlier directory of this volume's.
fn free(directory: &OwnedFd, id: Id) -> Result<u32, Errno> {
    for project in candidates(id) {
        let mut quota = [0; QUOTA_SIZE];
        match quotactl(directory, GET, project, &mut quota) {
            Err(Errno::NOENT) => return Ok(project),
            Err(e) => return Err(e),
            Ok(()) if quota.get(COUNTS).is_some_and(|n| n.iter().all(|byte| *byte == 0)) => {
                return Ok(project);
            }
            Ok(()) => {}
        }
    }
    Err(Errno::EXIST)
}

/// Sets the limit of a project; 0 is none.
fn set(directory: &OwnedFd, project: u32, bytes: u64) -> Result<(), Errno> {
    let blocks = bytes.div_ceil(BLOCK).to_ne_bytes();
    let head = HEAD.into_iter().chain(HARD.to_ne_bytes());
    let words = head.chain(project.to_ne_bytes()).chain(blocks);
    let mut quota = [0; QUOTA_SIZE];
    quota.iter_mut().zip(words).for_each(|(to, from)| *to = from);
    quotactl(directory, LIMIT, project, &mut quota)
}

/// A `struct fsxattr`.
fn attributes(directory: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; ioctl_size(GET_ATTRIBUTES)];
    ioctl(directory, GET_ATTRIBUTES, &mut bytes).map(|_| bytes)
}

/// One of its words.
fn number(attributes: &[u8], at: usize) -> u32 {
    let word = attributes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}
