//! What a driver that fills a volume leaves of a disk that others use, too.
//!
//! Used by `call`, which looks at it from time to time while such a call runs. A volume on a file system of its own may be filled to its end,
//! unless that takes its blocks from the disk of everybody as it is written.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{StatVfs, fstat, fstatfs, fstatvfs, syncfs};

/// One part of the disk in so many is left.
const SHARE: u64 = 20;
/// And at most so many bytes: a large disk has room for a catalog without a twentieth of it.
const MOST: u64 = 1 << 30;
/// What the kernel still has to write, to whichever disk.
const UNWRITTEN: [&str; 2] = ["Dirty:", "Writeback:"];

/// A disk that must not be filled.
pub(crate) struct Reserve {
    disk: Arc<OwnedFd>,
    /// The volume, if the disk does not show what was written to it before it is on the disk.
    late: Option<OwnedFd>,
    /// The volume has files of its own, which are none of the disk's.
    is_thin: bool,
}

impl Reserve {
    /// That of a directory, if it lies on this disk, or is in an image whose blocks are taken from the disk as they are written.
    pub(crate) fn of(
        directory: &OwnedFd,
        is_thin: bool,
        disk: &Arc<OwnedFd>,
    ) -> io::Result<Option<Self>> {
        if !is_thin && !is_on(directory, disk)? {
            return Ok(None);
        }
        let is_late = is_thin || is_btrfs(disk)?;
        let late = is_late.then(|| directory.try_clone()).transpose()?;
        Ok(Some(Self { disk: Arc::clone(disk), late, is_thin }))
    }

    /// The limit that is reached, of bytes or of files, if one is.
    pub(crate) fn over(&self) -> Option<String> {
        // Who cannot be asked has no limit of its own.
        let mut disk = fstatvfs(&*self.disk).ok()?;
        let left = MOST.min(disk.f_blocks.saturating_mul(disk.f_frsize) / SHARE);
        if let Some(volume) = &self.late
            && room(&disk).saturating_sub(unwritten()) < left
        {
            // Only so is it known how much of that is the volume's. It would be written before its Create ends anyway.
            let _ = syncfs(volume);
            disk = fstatvfs(&*self.disk).ok()?;
        }
        if room(&disk) < left {
            return Some(format!("all but {} MiB of the disk", left >> 20));
        }
        // A file system that does not count its files has none.
        let left = disk.f_files / SHARE;
        let is_over = !self.is_thin && left > 0 && disk.f_favail < left;
        is_over.then(|| format!("all but {left} files of the disk"))
    }
}

fn room(disk: &StatVfs) -> u64 {
    disk.f_bavail.saturating_mul(disk.f_frsize)
}

/// Bytes that are written and on no disk yet, whosever they are. Where nobody tells, that is any number.
fn unwritten() -> u64 {
    let bytes = || {
        let text = std::io::read_to_string(File::open("/proc/meminfo").ok()?).ok()?;
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        let of = |what: &str| text.lines().find(|line| line.starts_with(what)).and_then(kib);
        UNWRITTEN.iter().map(|what| of(what)).sum::<Option<u64>>()?.checked_mul(1 << 10)
    };
    bytes().unwrap_or(u64::MAX)
}

/// Whether two directories lie on one disk. A subvolume of btrfs has a device number of its own, and the size of the whole.
fn is_on(directory: &OwnedFd, disk: &OwnedFd) -> io::Result<bool> {
    if fstat(directory)?.st_dev == fstat(disk)?.st_dev {
        return Ok(true);
    }
    let is_btrfs = is_btrfs(directory)? && is_btrfs(disk)?;
    Ok(is_btrfs && fstatfs(directory)?.f_blocks == fstatfs(disk)?.f_blocks)
}

fn is_btrfs(directory: &OwnedFd) -> io::Result<bool> {
    const BTRFS: u64 = 0x9123_683e;
    Ok(u64::try_from(fstatfs(directory)?.f_type) == Ok(BTRFS))
}
