//! A file system in memory. It needs no grant.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{Fault, Owner};

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Most bytes; the kernel's default is half of the memory.
    pub size: Option<u64>,
    /// Most inodes.
    pub inodes: Option<u64>,
    /// Owner of its root.
    pub owner: Owner,
}

impl Tmpfs {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        // To the kernel 0 means "without a limit".
        if self.size == Some(0) || self.inodes == Some(0) {
            return invalid("a tmpfs with 0 as `size` or `inodes` holds nothing: use at least 1");
        }
        self.owner.check()
    }
}
