//! What a driver that fills a volume leaves of a disk that others use, too.
//!
//! Used by `call`, which looks at it from time to time while such a call runs. A volume on a file system of its own may be filled to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One part of the disk in so many is left.
const SHARE: u64 = 20;
/// And at most so many bytes: a large disk has room for a catalog without a twentieth of it.
const MOST: u64 = 1 << 30;

/// A disk that must not be filled: a directory on it that has no limit of its own.
pub(crate) struct Reserve(Arc<OwnedFd>);

impl Reserve {
    /// That of a directory, if it lies on this disk.
    pub(crate) fn of(directory: &OwnedFd, disk: &Arc<OwnedFd>) -> io::Result<Option<Self>> {
        let is_shared = is_on(directory, disk)?;
        Ok(is_shared.then(|| Self(Arc::clone(disk))))
    }

    /// The limit that is reached, of bytes or of files, if one is.
    pub(crate) fn over(&self) -> Option<String> {
        // Who cannot be asked has no limit of its own.
        let disk = rustix::fs::fstatvfs(&*self.0).ok()?;
        let left = MOST.min(disk.f_blocks.saturating_mul(disk.f_frsize) / SHARE);
        if disk.f_bavail.saturating_mul(disk.f_frsize) < left {
            return Some(format!("all but {} MiB of the disk", left >> 20));
        }
        // A file system that does not count its files has none.
        let left = disk.f_files / SHARE;
        (left > 0 && disk.f_favail < left).then(|| format!("all but {left} files of the disk"))
    }
}

/// Whether two directories lie on one disk. A subvolume of btrfs has a device number of its own, and the size of the whole.
fn is_on(directory: &OwnedFd, disk: &OwnedFd) -> io::Result<bool> {
    const BTRFS: u64 = 0x9123_683e;
    if rustix::fs::fstat(directory)?.st_dev == rustix::fs::fstat(disk)?.st_dev {
        return Ok(true);
    }
    let [one, other] = [rustix::fs::fstatfs(directory)?, rustix::fs::fstatfs(disk)?];
    let is_btrfs = [&one, &other].iter().all(|disk| u64::try_from(disk.f_type) == Ok(BTRFS));
    Ok(is_btrfs && one.f_blocks == other.f_blocks)
}
