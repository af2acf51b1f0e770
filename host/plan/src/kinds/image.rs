//! A file with a file system inside, as large as it says and no larger: the grant `image`.

use serde::{Deserialize, Serialize};

use super::{denied, invalid};
use crate::grants::cure;
use crate::{Fault, Grants, Owner};

const MIB: u64 = 1 << 20;
/// Largest image: 64 TiB, beyond what ext4 can do with its usual blocks no host could make it.
const SIZE_MAX: u64 = 64 << 40;

/// Bytes at the beginning of an encrypted image that are LUKS2's: what `cryptsetup` takes by itself.
pub const HEADER: u64 = 16 * MIB;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Bytes of the file.
    pub size: u64,
    /// Blocks are taken from the disk as they are written; otherwise all at create.
    pub thin: bool,
    /// What is inside.
    pub filesystem: Filesystem,
    /// The name of the secret that encrypts it.
    pub encrypt: Option<String>,
    /// Owner of the file system's root.
    pub owner: Owner,
}

/// What may be inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// Btrfs
    Btrfs,
}

impl Filesystem {
    /// Its name, as the kernel knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Smallest image in bytes: mkfs.xfs refuses less than 300 MiB, and the kernel to resize a btrfs to less than 256 MiB.
    pub fn smallest(self) -> u64 {
        match self {
            Self::Ext4 => 8 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 256 * MIB,
        }
    }
}

impl Image {
    /// Bytes of the file that the file system inside cannot have.
    pub fn header(&self) -> u64 {
        if self.encrypt.is_some() { HEADER } else { 0 }
    }

    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        if !grants.image {
            let cure = cure(grants.driver.as_ref(), "image");
            return denied(format!("images are not granted: {cure}"));
        }
        let (name, smallest) = (self.filesystem.name(), self.filesystem.smallest() + self.header());
        let kind = if self.encrypt.is_some() { "an encrypted" } else { "a" };
        if self.size < smallest {
            return invalid(format!(
                "{kind} {name} image has at least {} MiB: use a larger `size`",
                smallest / MIB
            ));
        }
        if self.size > SIZE_MAX {
            return invalid("an image has at most 64 TiB: use a smaller `size`");
        }
        self.owner.check()
    }
}
