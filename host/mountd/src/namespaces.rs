//! Whether any mount namespace shows a volume: asked of the kernel, which knows them all, also those without a process.
//!
//! Several times as fast as mountinfo, which tells in return who it is. Needs Linux 6.12; `scan` does without it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::anchor::Device;
use crate::scan::Target;
use crate::sys::{AskMounts, ask_mounts, neighbour};

/// Bytes of one page of a list of mounts.
const LIST: usize = 8 * 512;
/// Where the strings of a `struct statmount` begin, and where they end if it is one path.
const STRINGS: usize = 512;
const END: usize = STRINGS + 4097;
/// The parts of a `struct statmount` that are asked for: the superblock; or with it the mount's numbers and its root.
const SUPERBLOCK: u64 = 1;
const ALL: u64 = SUPERBLOCK | 2 | 8;
/// To list from the root of a namespace.
const ROOT: u64 = u64::MAX;

/// The device of each mount that was met: it never changes, and no mount gets the number of another.
pub(crate) type Devices = HashMap<u64, Device>;
/// Most that are remembered; then it begins anew, without those that have gone.
const DEVICES_MAX: usize = 100_000;

/// Whether some namespace shows the target, by the rule of `scan`; `own` is a file of this process's namespace.
pub(crate) fn show(own: &OwnedFd, target: &Target, devices: &mut Devices) -> Result<bool, Errno> {
    if devices.len() > DEVICES_MAX {
        devices.clear();
    }
    // To the kernel 0 is the caller's own.
    if shows(0, target, devices)? {
        return Ok(true);
    }
    for after in [false, true] {
        let mut next = neighbour(own, after);
        while let Some((namespace, number)) = unless_gone(next)? {
            if shows(number, target, devices)? {
                return Ok(true);
            }
            next = neighbour(&namespace, after);
        }
    }
    Ok(false)
}

/// The end of a list, or what has ended meanwhile, is no failure.
fn unless_gone<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}

/// What one mount is; `false` if it has gone.
fn stat(namespace: u64, mount: u64, parts: u64, answer: &mut [u8]) -> Result<bool, Errno> {
    unless_gone(ask_mounts(AskMounts::Stat, [mount, parts, namespace], answer))
        .map(|it| it.is_some())
}

/// Looks at every mount of one namespace.
fn shows(namespace: u64, target: &Target, devices: &mut Devices) -> Result<bool, Errno> {
    let (mut list, mut mount, mut below) = ([0; LIST], [0; END], [0; STRINGS]);
    let mut last = 0;
    loop {
        let count = ask_mounts(AskMounts::List, [ROOT, last, namespace], &mut list);
        let count = unless_gone(count)?.unwrap_or(0);
        for number in list.chunks_exact(8).take(count) {
            last = u64::from_ne_bytes(field(number, 0));
            if !devices.contains_key(&last) && stat(namespace, last, SUPERBLOCK, &mut below)? {
                devices.insert(last, device(&below));
            }
            if devices.get(&last) == Some(&target.device)
                && stat(namespace, last, ALL, &mut mount)?
                && target.is(device(&mount), &root(&mount))
            {
                let parent = u64::from_ne_bytes(field(&mount, 48));
                let on = stat(namespace, parent, SUPERBLOCK, &mut below)?;
                if !on || device(&below) != target.anchor {
                    return Ok(true);
                }
            }
        }
        if count < LIST / 8 {
            return Ok(false);
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn device(stat: &[u8]) -> Device {
    (u32::from_ne_bytes(field(stat, 16)), u32::from_ne_bytes(field(stat, 20)))
}

/// The root of a mount within its file system.
fn root(stat: &[u8]) -> String {
    let start = STRINGS.saturating_add(u32::from_ne_bytes(field(stat, 104)) as usize);
    let bytes = stat.get(start..).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}
