//! A directory of the volume's own beneath the state directory. It needs no grant.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{Fault, Owner};

/// A directory beneath the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Owner of the directory.
    pub owner: Owner,
    /// Most bytes it may hold; no host serves this yet, so `Some` is refused by [`Storage::check`](crate::Storage::check).
    pub limit: Option<u64>,
}

impl Directory {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.limit.is_some() {
            return invalid(
                "a directory has no size of its own: use `-o driver=tmpfs -o size=…` for a volume that has one",
            );
        }
        self.owner.check()
    }
}
