//! What a driver that fills a volume leaves of a disk that others use, too.
//!
//! Used by `call`, which looks at it from time to time while such a call runs. A volume on a file system of its own may be filled to its end.

use std::io;
use std::os::fd::OwnedFd;

/// One part of the disk in so many is left.
const SHARE: u64 = 20;
/// And at most so many bytes: a large disk has room for a catalog without a twentieth of it.
const MOST: u64 = 1 << 30;

/// A directory on a disk that must not be filled.
pub(crate) struct Reserve(OwnedFd);

impl Reserve {
    /// That of a directory, if it lies on this disk.
    pub(crate) fn of(directory: &OwnedFd, disk: u64) -> io::Result<Option<Self>> {
        let is_shared = rustix::fs::fstat(directory)?.st_dev == disk;
        is_shared.then(|| directory.try_clone().map(Self)).transpose()
    }

    /// The limit that is reached, of bytes or of files, if one is.
    pub(crate) fn over(&self) -> Option<String> {
        // Who cannot be asked has no limit of its own.
        let disk = rustix::fs::fstatvfs(&self.0).ok()?;
        let left = MOST.min(disk.f_blocks.saturating_mul(disk.f_frsize) / SHARE);
        if disk.f_bavail.saturating_mul(disk.f_frsize) < left {
            return Some(format!("all but {} MiB of the disk", left >> 20));
        }
        // A file system that does not count its files has none.
        let left = disk.f_files / SHARE;
        (left > 0 && disk.f_favail < left).then(|| format!("all but {left} files of the disk"))
    }
}
