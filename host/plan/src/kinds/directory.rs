//! A directory of the volume's own beneath the state directory. It needs no grant.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{Fault, Owner};

/// A directory beneath the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Owner of the directory.
    pub owner: Owner,
    /// Most bytes it may hold: a project quota of the file system that it lies on.
    pub limit: Option<u64>,
}

impl Directory {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        check_limit(self.limit)?;
        self.owner.check()
    }
}

/// Says whether a directory can have this limit.
pub(super) fn check_limit(limit: Option<u64>) -> Result<(), Fault> {
    if limit == Some(0) {
        return invalid("a directory with `size` 0 holds nothing: use at least 1");
    }
    Ok(())
}
