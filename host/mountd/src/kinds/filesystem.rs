//! What each file system of an image wants: how it is made, mounted, and made larger. Called by `image`, in a child.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use wasmvol_plan::{Fault, Filesystem, Image};

use super::loops::BLOCK;
use super::tool;
use crate::anchor::superblock;
use crate::sys::{ioctl, ioctl_size};

/// The ioctls that grow a file system. Their arguments: how many blocks; a `struct xfs_fsop_geom_v1` and a `struct xfs_growfs_data`; a
/// `struct btrfs_ioctl_vol_args`.
const EXT4_RESIZE: u32 = 0x4008_6610;
const XFS_GEOMETRY: u32 = 0x8070_5864;
const XFS_GROW: u32 = 0x4010_586e;
const BTRFS_RESIZE: u32 = 0x5000_9403;
/// Makes a file system. The blocks are BLOCK's, whatever the disk has; nothing is discarded, since all is empty.
pub(super) fn format(filesystem: Filesystem, device: &str) -> Result<(), Fault> {
    match filesystem {
        Filesystem::Ext4 => {
            let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
            tool::MKFS_EXT4.succeed(&["-q", "-F", "-b", "4096", "-m", "0", "-E", lazy, device])
        }
        Filesystem::Xfs => tool::MKFS_XFS.succeed(&["-q", "-f", "-K", "-s", "size=4096", device]),
        Filesystem::Btrfs => tool::MKFS_BTRFS.succeed(&["-q", "-f", "-K", "-s", "4096", device]),
    }
}

/// The file system of a device, attached nowhere; the one that is there already, if anybody has it.
pub(super) fn mount(image: &Image, device: String, read_only: bool) -> Result<OwnedFd, Fault> {
    // What is deleted in a thin image goes back to the disk as it is deleted: a run of fstrim now and then would need somebody who
    // starts it. One that is not thin keeps what it was given.
    let discard = match (image.filesystem, image.thin) {
        (_, false) => ("nodiscard", ""),
        (Filesystem::Btrfs, true) => ("discard", "async"),
        (_, true) => ("discard", ""),
    };
    let own = match image.filesystem {
        // They are zero already, as the file was. To write zeros would take blocks of a thin image, and give back another's.
        Filesystem::Ext4 => Some(("noinit_itable", "")),
        // A copy of an image may be mounted beside it.
        Filesystem::Xfs => Some(("nouuid", "")),
        Filesystem::Btrfs => None,
    };
    let mut options = vec![("source", device)];
    options.extend(
        [Some(discard), own].into_iter().flatten().map(|(key, value)| (key, value.to_owned())),
    );
    superblock(image.filesystem.name(), &options, read_only)
}

/// What resize2fs, xfs_growfs and `btrfs filesystem resize max` ask the kernel for.
pub(super) fn grow_inside(filesystem: Filesystem, root: &OwnedFd, size: u64) -> Result<(), Errno> {
    let blocks = (size / u64::from(BLOCK)).to_ne_bytes();
    match filesystem {
        Filesystem::Ext4 => ioctl(root, EXT4_RESIZE, &mut blocks.clone())?,
        Filesystem::Xfs => {
            let mut geometry = [0; ioctl_size(XFS_GEOMETRY)];
            ioctl(root, XFS_GEOMETRY, &mut geometry)?;
            // The share of it that inodes may take stays as it is.
            let share = geometry.get(28..32).unwrap_or_default();
            let mut wanted = [&blocks, share, &[0; 4]].concat();
            ioctl(root, XFS_GROW, &mut wanted)?
        }
        Filesystem::Btrfs => {
            let mut wanted = [0; ioctl_size(BTRFS_RESIZE)];
            wanted.iter_mut().skip(8).zip(b"max").for_each(|(to, from)| *to = *from);
            ioctl(root, BTRFS_RESIZE, &mut wanted)?
        }
    };
    Ok(())
}
