//! The anchor: a tmpfs at RUNTIME/mnt in which every volume has its mountpoint.
//!
//! It is read-only to everybody, so that a container never writes to the host's disk where a mount is missing; mountd makes
//! mountpoints through a writable clone that is attached nowhere. It is shared, so that an engine in a slave namespace sees volumes
//! come and go. Everything is done relative to its fd: whoever mounts over the path changes nothing here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, FaultKind, Id};

use crate::fault::{Context, fault};
use crate::places::PLACE;
use crate::{say, sys};

/// By this source a later start knows the anchor again. Directories take no space, and 16 thousand are more than one machine mounts.
const OPTIONS: [(&str, &str); 4] =
    [("source", SOURCE), ("mode", "0711"), ("size", "1m"), ("nr_inodes", "16k")];
const SOURCE: &str = "wasmvol-anchor";
const FLAGS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// No flag of a mount.
pub(crate) const NONE: MountAttrFlags = MountAttrFlags::empty();
/// Clones one mount, without what lies on it, into a tree that is attached nowhere.
pub(crate) const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_EMPTY_PATH);
/// Attaches a tree that is known by its fd.
const ATTACH: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;

/// The anchor of this daemon.
pub(crate) struct Anchor {
    /// Where it is, as this process's mountinfo says it.
    pub(crate) path: String,
    pub(crate) device: (u32, u32),
    mount_id: u64,
    root: OwnedFd,
    writable: OwnedFd,
}

/// Which mount a file is on, and the device it shows. An empty name is `directory` itself.
pub(crate) fn identity(directory: impl AsFd, name: &str) -> Result<(u64, (u32, u32)), Errno> {
    let flags = AtFlags::EMPTY_PATH
        | AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::STATX_DONT_SYNC;
    let statx = rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID)?;
    Ok((statx.stx_mnt_id, (statx.stx_dev_major, statx.stx_dev_minor)))
}

impl Anchor {
    /// Takes over the anchor of an earlier start, or makes one; `lines` is this process's mountinfo.
    pub(crate) fn open(path: String, lines: &[Entry<'_>]) -> Result<Self, Fault> {
        let here: Vec<_> = lines.iter().filter(|line| line.mount_point == path).collect();
        if here.is_empty() {
            make(&path).trying(format_args!("make the anchor `{path}`"))?;
        } else {
            uncover(&path, &here)?;
        }
        let what = format_args!("open the anchor `{path}`");
        let root = rustix::fs::open(&path, PLACE, Mode::empty()).trying(what)?;
        // Also after a start that was killed in between.
        sys::mount_setattr(root.as_fd(), FLAGS, NONE, MountPropagationFlags::SHARED)
            .trying(what)?;
        let writable = rustix::mount::open_tree(&root, "", CLONE).trying(what)?;
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        sys::mount_setattr(writable.as_fd(), NONE, read_only, MountPropagationFlags::PRIVATE)
            .trying(what)?;
        let (mount_id, device) = identity(&root, "").trying(what)?;
        Ok(Self { path, device, mount_id, root, writable })
    }

    /// The number of the mount on a volume's mountpoint.
    pub(crate) fn mounted(&self, id: Id) -> Result<Option<u64>, Fault> {
        match identity(&self.root, &id.to_string()) {
            Ok((mount_id, _)) => Ok(Some(mount_id).filter(|mount_id| *mount_id != self.mount_id)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).trying(format_args!("look at mountpoint `{id}`")),
        }
    }

    /// The root of what is mounted for a volume; hold it briefly, it keeps the mount busy.
    pub(crate) fn open_volume(&self, id: Id) -> Result<OwnedFd, Fault> {
        rustix::fs::openat(&self.root, id.to_string(), PLACE, Mode::empty())
            .trying(format_args!("open mountpoint `{id}`"))
    }

    /// Puts a mount that is attached nowhere on a volume's mountpoint. The one commit point of a Mount.
    pub(crate) fn attach(&self, id: Id, tree: BorrowedFd<'_>) -> Result<(), Fault> {
        let name = id.to_string();
        match rustix::fs::mkdirat(&self.writable, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {
                rustix::mount::move_mount(tree, "", &self.root, &name, ATTACH)
                    .trying(format_args!("attach a mount to `{id}`"))
            }
            Err(e) => Err(e).trying(format_args!("make mountpoint `{id}`")),
        }
    }

    /// Unmounts a volume; `false` if it is busy. Never lazily: what is busy stays.
    pub(crate) fn detach(&self, id: Id) -> Result<bool, Fault> {
        let what = format_args!("unmount `{id}`");
        rustix::process::fchdir(&self.root).trying(what)?;
        match rustix::mount::unmount(id.to_string(), UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => return Ok(false),
            other => other.trying(what)?,
        }
        match self.mounted(id)? {
            None => Ok(true),
            Some(_) => fault(FaultKind::Failed, format!("`{id}` was mounted twice: ask again")),
        }
    }

    /// Removes a mountpoint; the kernel refuses where something is mounted.
    pub(crate) fn remove(&self, id: Id) -> Result<(), Fault> {
        match rustix::fs::unlinkat(&self.writable, id.to_string(), AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other.trying(format_args!("remove mountpoint `{id}`")),
        }
    }

    /// What lies in the anchor, mounted or not.
    pub(crate) fn entries(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }
}

/// On a shared parent a mount becomes shared too: containers could send mounts back.
pub(crate) fn make_private(mount: &OwnedFd) -> Result<(), Fault> {
    sys::mount_setattr(mount.as_fd(), NONE, NONE, MountPropagationFlags::PRIVATE)
        .trying("make a mount private")
}

fn make(path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in OPTIONS {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, FLAGS)?;
    rustix::mount::move_mount(&mount, "", CWD, path, ATTACH)
}

/// Makes sure that the anchor is what lies at its path, and takes away what a container mounted over it.
fn uncover(path: &str, here: &[&Entry<'_>]) -> Result<(), Fault> {
    let lowest = here.iter().find(|line| here.iter().all(|other| other.mount_id != line.parent_id));
    if lowest.is_none_or(|line| line.filesystem != "tmpfs" || line.source != SOURCE) {
        let cure = "unmount it, or use another runtime directory";
        return fault(FaultKind::Busy, format!("something else is mounted at `{path}`: {cure}"));
    }
    for _ in 1..here.len() {
        say(format_args!("something is mounted over `{path}`: unmounting it"));
        rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)
            .trying(format_args!("unmount what covers `{path}`"))?;
    }
    Ok(())
}
