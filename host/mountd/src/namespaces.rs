//! Whether any mount namespace shows a volume: asked of the kernel, which knows them all, also those without a process.
//!
//! Ten times as fast as mountinfo, which tells in return who it is. Needs Linux 6.12; where that is missing, `scan` reads
//! mountinfo at once.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::scan::Target;
use crate::sys::{AskMounts, ask_mounts, neighbour};

/// Numbers of one page of a list of mounts.
const LIST_BYTES: usize = 8 * 512;
/// `struct statmount` with one path behind it.
const STAT_BYTES: usize = STRINGS + 4097;
/// Where the strings of a `struct statmount` begin.
const STRINGS: usize = 512;
/// The parts of a `struct statmount` that are asked for: superblock, the mount's own numbers, its root.
const SUPERBLOCK: u64 = 1;
const ALL: u64 = SUPERBLOCK | 2 | 8;
/// To list from the root of a namespace.
const ROOT: u64 = u64::MAX;

/// For each target whether some namespace shows it, by the rule of `scan`; `own` is a file of this process's namespace.
pub(crate) fn held(
    own: &OwnedFd,
    targets: &[&Target],
    anchor: (u32, u32),
) -> Result<Vec<bool>, Errno> {
    let mut held = vec![false; targets.len()];
    // The number of our own namespace is told only from a neighbour's side.
    look_at(0, targets, anchor, &mut held)?;
    for after in [false, true] {
        let mut here = neighbour(own, after);
        loop {
            match here {
                Ok((namespace, number)) => {
                    look_at(number, targets, anchor, &mut held)?;
                    here = neighbour(&namespace, after);
                }
                Err(Errno::NOENT) => break,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(held)
}

/// Looks at every mount of one namespace; number 0 is the caller's own.
fn look_at(
    namespace: u64,
    targets: &[&Target],
    anchor: (u32, u32),
    held: &mut [bool],
) -> Result<(), Errno> {
    let mut list = [0; LIST_BYTES];
    let mut last = 0;
    loop {
        let count = match ask_mounts(AskMounts::List, namespace, ROOT, last, &mut list) {
            Ok(count) => count,
            // It ended meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        for number in list.chunks_exact(8).take(count) {
            last = u64_at(number, 0);
            let mut stat = [0; STAT_BYTES];
            match ask_mounts(AskMounts::Stat, namespace, last, SUPERBLOCK, &mut stat) {
                Ok(_) if targets.iter().any(|target| target.device == device(&stat)) => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(e) => return Err(e),
            }
            match ask_mounts(AskMounts::Stat, namespace, last, ALL, &mut stat) {
                Ok(_) => {}
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e),
            }
            let mut parent = [0; STAT_BYTES];
            let on =
                ask_mounts(AskMounts::Stat, namespace, u64_at(&stat, 48), SUPERBLOCK, &mut parent);
            if on.is_ok() && device(&parent) == anchor {
                continue;
            }
            for (target, held) in targets.iter().zip(held.iter_mut()) {
                *held |= target.is(device(&stat), &root(&stat));
            }
        }
        if count < LIST_BYTES / 8 {
            return Ok(());
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u64::from_ne_bytes(*field))
}

fn device(stat: &[u8]) -> (u32, u32) {
    (u32_at(stat, 16), u32_at(stat, 20))
}

/// The root of a mount within its file system.
fn root(stat: &[u8]) -> String {
    let start = STRINGS.saturating_add(u32_at(stat, 104) as usize);
    let bytes = stat.get(start..).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}
