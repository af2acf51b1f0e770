//! A btrfs subvolume beneath the state directory. It needs no grant, but a state directory on btrfs.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{Fault, Owner};

/// A btrfs subvolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subvolume {
    /// Owner of its root.
    pub owner: Owner,
    /// Most bytes, as a quota group counts them.
    pub limit: Option<u64>,
    /// Compression of new files.
    pub compress: Option<Compression>,
    /// Off for databases: blocks are written in place, without checksums and compression.
    pub copy_on_write: bool,
}

/// How new files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// zlib
    Zlib,
    /// LZO
    Lzo,
    /// Zstandard
    Zstd,
}

impl Compression {
    /// Its name, as the property `btrfs.compression` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Lzo => "lzo",
            Self::Zstd => "zstd",
        }
    }
}

impl Subvolume {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.limit == Some(0) {
            return invalid("a subvolume with `size` 0 holds nothing: use at least 1");
        }
        if self.compress.is_some() && !self.copy_on_write {
            return invalid("btrfs compresses only what it copies on write: leave one of the two");
        }
        self.owner.check()
    }
}
