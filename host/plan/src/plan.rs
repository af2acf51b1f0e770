//! Storage and plan: a driver's answers in the host's own types, and the check that both sides make of them.
//!
//! Made by `driver/contract` from what a driver said, stored in records, sent to mountd in frames. A case of the contract that
//! this host does not serve never gets here: the contract's adapter answers it with `unsupported`.

use serde::{Deserialize, Serialize};

use crate::name::Quoted;
use crate::path::{PATH_MAX, is_plain};
use crate::{Fault, FaultKind, Grants};

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

/// A directory of the host, beneath a root that the operator granted: `host-directory=ROOT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirectory {
    /// Absolute, without `.`, `..` and empty parts.
    pub path: String,
    /// Where it is missing it is made, with this owner; parents that are missing too belong to root.
    pub make: Option<Owner>,
}

/// Where a volume's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// What the host made at create.
    Storage,
    /// A tmpfs of the volume's own.
    Tmpfs(Tmpfs),
    /// A directory that is there without the volume, and that others may use.
    HostDirectory(HostDirectory),
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

fn invalid<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Invalid, why))
}

impl Storage {
    /// Says whether a driver with `grants` may have this storage made.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, _grants: &Grants) -> Result<(), Fault> {
        match self {
            Self::None => Ok(()),
            Self::Directory(Directory { limit: Some(_), .. }) => invalid(
                "a directory has no size of its own: use `-o driver=tmpfs -o size=…` for a volume that has one",
            ),
            Self::Directory(Directory { owner, limit: None }) => owner.check(),
        }
    }
}

impl Plan {
    /// Says whether a driver with `grants` may have this plan carried out for a volume with `storage`.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, storage: &Storage, grants: &Grants) -> Result<(), Fault> {
        match (&self.source, &self.subpath) {
            (Source::Storage, _) if *storage == Storage::None => {
                invalid("plan mounts the volume's storage, but none was made at create")
            }
            (Source::Storage, Some(subpath)) => check_subpath(subpath),
            (Source::Storage, None) => Ok(()),
            (Source::Tmpfs(_), Some(_)) => invalid("a new tmpfs is empty: it has no subpath"),
            (Source::Tmpfs(tmpfs), None) => tmpfs.check(),
            (Source::HostDirectory(directory), subpath) => {
                subpath.as_deref().map_or(Ok(()), check_subpath)?;
                directory.check(grants)
            }
        }
    }
}

impl HostDirectory {
    fn check(&self, grants: &Grants) -> Result<(), Fault> {
        let beneath = self.path.strip_prefix('/').filter(|path| is_plain(path));
        if beneath.is_none() || self.path.len() > PATH_MAX {
            let shown = Quoted::new(&self.path);
            return invalid(format!(
                "directory {shown} is not allowed: use an absolute path without `.`, `..` and `//`"
            ));
        }
        grants.host_directory(&self.path)?;
        self.make.map_or(Ok(()), Owner::check)
    }
}

impl Owner {
    /// Says whether a directory can have this owner.
    ///
    /// # Errors
    /// `Invalid` names the number that is none.
    pub fn check(self) -> Result<(), Fault> {
        // To chown(2) the largest number means "leave it": it would be root's.
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return invalid("owner 4294967295 is no user or group: use a smaller number");
        }
        if self.mode > 0o7777 {
            return invalid(format!("mode {:o} is not allowed: use at most 7777", self.mode));
        }
        Ok(())
    }
}

impl Tmpfs {
    fn check(&self) -> Result<(), Fault> {
        // To the kernel 0 means "without a limit".
        if self.size == Some(0) || self.inodes == Some(0) {
            return invalid("a tmpfs with 0 as `size` or `inodes` holds nothing: use at least 1");
        }
        self.owner.check()
    }
}

/// Says whether `subpath` names a directory inside of a source. It is resolved by openat2 beneath the source; this refuses what could
/// only be a mistake.
///
/// # Errors
/// `Invalid` shows the subpath.
pub fn check_subpath(subpath: &str) -> Result<(), Fault> {
    if subpath.len() > PATH_MAX {
        let length = subpath.len();
        return invalid(format!("subpath has {length} bytes: at most {PATH_MAX} are allowed"));
    }
    if is_plain(subpath) {
        return Ok(());
    }
    let shown = Quoted::new(subpath);
    invalid(format!("subpath {shown} is not allowed: use plain names, with `/` between"))
}
