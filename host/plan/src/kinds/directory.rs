//! A directory of the volume's own beneath the state directory. It needs no grant.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::{Fault, Id, Owner};

/// A directory beneath the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Owner of the directory.
    pub owner: Owner,
    /// Most bytes it may hold: a project quota of the file system that it lies on.
    pub limit: Option<u64>,
    /// What lies beneath all else in an overlay of it.
    #[serde(default)]
    pub over: Option<Below>,
}

/// Another volume, with a directory that a layer lies over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Its name, as the user of the one above gave it.
    pub name: String,
    /// Which one that is: the daemon looks it up at create, and refuses to remove it from then on.
    pub id: Option<Id>,
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
