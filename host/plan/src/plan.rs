//! Storage and plan: a driver's answers in the host's own types, and the check that both sides make of them.
//!
//! Made by `driver/contract` from what a driver said, stored in records, sent to mountd in frames. A case of the contract that
//! this host does not serve never gets here: the contract's adapter answers it with `unsupported`.

use serde::{Deserialize, Serialize};

use crate::kinds::device::Device;
use crate::kinds::directory::{Below, Directory};
use crate::kinds::host_directory::HostDirectory;
use crate::kinds::image::Image;
use crate::kinds::named_directory::NamedDirectory;
use crate::kinds::overlay::Overlay;
use crate::kinds::program::Program;
use crate::kinds::share::Share;
use crate::kinds::subvolume::Subvolume;
use crate::kinds::tmpfs::Tmpfs;
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

/// What the host makes for a volume when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// Nothing.
    None,
    /// A directory.
    Directory(Directory),
    /// A file with a file system inside.
    Image(Image),
    /// A btrfs subvolume.
    Subvolume(Subvolume),
    /// A directory that is named by its volume, beneath a granted root.
    NamedDirectory(NamedDirectory),
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
    /// What a server shares.
    Share(Share),
    /// A layer over directories.
    Overlay(Overlay),
    /// A file system on a block device.
    Device(Device),
    /// A file system that a program serves.
    Program(Program),
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
    /// Owners are shown as other ids than the disk has.
    pub id_map: Option<IdMap>,
}

/// How owners on the disk are shown in the volume: an idmapped mount, mount_setattr(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Ranges of users.
    pub users: Vec<IdRange>,
    /// Ranges of groups.
    pub groups: Vec<IdRange>,
}

/// `count` ids from `disk` on are shown as those from `shown` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id on the disk.
    pub disk: u32,
    /// The id that it is shown as.
    pub shown: u32,
    /// How many.
    pub count: u32,
}

/// Most ranges of one map; the kernel takes 340.
const RANGES_MAX: usize = 16;

fn invalid<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Invalid, why))
}

impl Storage {
    /// Says whether a driver with `grants` may have this storage made.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, grants: &Grants) -> Result<(), Fault> {
        match self {
            Self::None => Ok(()),
            Self::Directory(directory) => directory.check(),
            Self::Image(image) => image.check(grants),
            Self::Subvolume(subvolume) => subvolume.check(),
            Self::NamedDirectory(directory) => directory.check(grants),
        }
    }

    /// Says whether a driver can fill this storage before its volume is there: it is the volume's alone, and empty.
    ///
    /// # Errors
    /// `Invalid` says what it is instead.
    pub fn check_fill(&self) -> Result<(), Fault> {
        let what = match self {
            Self::Directory(directory) if directory.over.is_none() => return Ok(()),
            Self::Image(_) | Self::Subvolume(_) => return Ok(()),
            Self::None => "no storage",
            Self::Directory(_) => "a layer over another volume",
            Self::NamedDirectory(_) => "a named directory",
        };
        let can = "a directory, an image or a subvolume of the volume's own";
        invalid(format!("it fills its volumes, but asked for {what}: only {can} can be filled"))
    }

    /// Most bytes of a directory that has a limit: then the kernel tells size and use of it alone.
    pub fn limit(&self) -> Option<u64> {
        match self {
            Self::Directory(directory) => directory.limit,
            Self::NamedDirectory(directory) => directory.limit,
            Self::None | Self::Image(_) | Self::Subvolume(_) => None,
        }
    }

    /// The volume that lies below, of a layer that has one.
    pub fn below(&self) -> Option<&Below> {
        match self {
            Self::Directory(directory) => directory.over.as_ref(),
            _ => None,
        }
    }

    /// Whether other hosts may have it too: then a driver lists it, and the data stays unless its user said otherwise.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::NamedDirectory(_))
    }
}

impl Plan {
    /// Says whether a driver with `grants` may have this plan carried out for a volume with `storage`.
    ///
    /// # Errors
    /// `Denied` names the grant to add, `Invalid` the value that no host can serve.
    pub fn check(&self, storage: &Storage, grants: &Grants) -> Result<(), Fault> {
        self.subpath.as_deref().map_or(Ok(()), check_subpath)?;
        self.id_map.as_ref().map_or(Ok(()), IdMap::check)?;
        match &self.source {
            Source::Storage if *storage == Storage::None => {
                invalid("plan mounts the volume's storage, but none was made at create")
            }
            Source::Storage if matches!(storage, Storage::NamedDirectory(_)) => {
                invalid("a named directory is mounted by its path: use the source `host-directory`")
            }
            Source::Tmpfs(_) if self.subpath.is_some() => {
                invalid("a new tmpfs is empty: it has no subpath")
            }
            Source::Storage if storage.below().is_some() => {
                invalid("a layer over a volume is no volume by itself: use the source `overlay`")
            }
            Source::Storage => Ok(()),
            Source::Tmpfs(tmpfs) => tmpfs.check(),
            Source::HostDirectory(directory) => directory.check(grants),
            Source::Share(share) => share.check(grants),
            Source::Overlay(overlay) => overlay.check(storage, grants),
            Source::Device(device) => device.check(grants),
            Source::Program(program) => program.check(grants),
        }
    }
}

impl IdMap {
    fn check(&self) -> Result<(), Fault> {
        for ranges in [&self.users, &self.groups] {
            if ranges.is_empty() || ranges.len() > RANGES_MAX {
                return invalid(format!(
                    "an id map has 1 to {RANGES_MAX} ranges of users and of groups"
                ));
            }
            let ends = |range: &IdRange| {
                range.count > 0
                    && range.disk.checked_add(range.count).is_some()
                    && range.shown.checked_add(range.count).is_some()
            };
            if !ranges.iter().all(ends) {
                return invalid("a range of an id map is empty or goes beyond the last id");
            }
        }
        Ok(())
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
