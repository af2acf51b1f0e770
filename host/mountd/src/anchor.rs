//! The anchor: a tmpfs at RUNTIME/mnt in which every volume has its mountpoint.
//!
//! It is read-only to everybody, so that a container never writes to the host's disk where a mount is missing; mountd makes
//! mountpoints through a writable clone that is attached nowhere. It is shared, so that an engine in a slave namespace sees volumes
//! come and go. Everything is done relative to its fd: whoever mounts over the path changes nothing here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, FaultKind, Id};

use crate::fault::{Context, fault};
use crate::{say, sys};

/// By this source a later start knows the anchor again.
const SOURCE: &str = "wasmvol-anchor";
/// Most mountpoints and what they need: directories take no space, 16 thousand are more than one machine mounts.
const LIMITS: [(&str, &str); 3] = [("mode", "0711"), ("size", "1m"), ("nr_inodes", "16k")];
const FLAGS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// Clones one mount, without what lies on it, into a tree that is attached nowhere.
pub(crate) const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_EMPTY_PATH);

/// The anchor of this daemon.
pub(crate) struct Anchor {
    /// Where it is, as this process's mountinfo says it.
    pub(crate) path: String,
    pub(crate) mount_id: u64,
    pub(crate) device: (u32, u32),
    root: OwnedFd,
    writable: OwnedFd,
}

/// Which mount a file is on, and the device it shows.
pub(crate) fn identity(
    directory: impl AsFd,
    name: &str,
    flags: AtFlags,
) -> Result<(u64, (u32, u32)), Errno> {
    let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let statx = rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID)?;
    Ok((statx.stx_mnt_id, (statx.stx_dev_major, statx.stx_dev_minor)))
}

impl Anchor {
    /// Takes over the anchor of an earlier start, or makes one; `lines` is this process's mountinfo.
    pub(crate) fn open(path: String, lines: &[Entry<'_>]) -> Result<Self, Fault> {
        let here: Vec<_> = lines.iter().filter(|line| line.mount_point == path).collect();
        if here.is_empty() {
            make(&path)?;
        } else {
            uncover(&path, &here)?;
        }
        let what = || format!("open the anchor `{path}`");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).trying(what)?;
        // Also after a start that was killed in between.
        sys::mount_setattr(
            root.as_fd(),
            FLAGS,
            MountAttrFlags::empty(),
            MountPropagationFlags::SHARED,
        )
        .trying(what)?;
        let writable = rustix::mount::open_tree(&root, "", CLONE).trying(what)?;
        sys::mount_setattr(
            writable.as_fd(),
            MountAttrFlags::empty(),
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountPropagationFlags::PRIVATE,
        )
        .trying(what)?;
        let (mount_id, device) = identity(&root, "", AtFlags::EMPTY_PATH).trying(what)?;
        Ok(Self { path, mount_id, device, root, writable })
    }

    /// The mount on a volume's mountpoint, by its number.
    pub(crate) fn mounted(&self, id: Id) -> Result<Option<u64>, Fault> {
        match identity(&self.root, &id.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok((mount_id, _)) if mount_id == self.mount_id => Ok(None),
            Ok((mount_id, _)) => Ok(Some(mount_id)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).trying(|| format!("look at mountpoint `{id}`")),
        }
    }

    /// The root of what is mounted for a volume; hold it briefly, it keeps the mount busy.
    pub(crate) fn open_volume(&self, id: Id) -> Result<OwnedFd, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, id.to_string(), flags, Mode::empty())
            .trying(|| format!("open mountpoint `{id}`"))
    }

    /// Makes a volume's mount private, should a start have been killed before that.
    pub(crate) fn make_private(&self, id: Id) -> Result<(), Fault> {
        let none = MountAttrFlags::empty();
        sys::mount_setattr(
            self.open_volume(id)?.as_fd(),
            none,
            none,
            MountPropagationFlags::PRIVATE,
        )
        .trying(|| format!("make the mount of `{id}` private"))
    }

    /// Puts a mount that is attached nowhere on a volume's mountpoint. The one commit point of a Mount.
    pub(crate) fn attach(&self, id: Id, tree: BorrowedFd<'_>) -> Result<(), Fault> {
        let name = id.to_string();
        match rustix::fs::mkdirat(&self.writable, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).trying(|| format!("make mountpoint `{id}`")),
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", &self.root, &name, flags)
            .trying(|| format!("attach a mount to `{id}`"))
    }

    /// Unmounts a volume; `false` if it is busy. Never lazily: what is busy stays.
    pub(crate) fn detach(&self, id: Id) -> Result<bool, Fault> {
        let what = || format!("unmount `{id}`");
        rustix::process::fchdir(&self.root).trying(what)?;
        match rustix::mount::unmount(id.to_string(), UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::BUSY) => return Ok(false),
            Err(e) => return Err(e).trying(what),
        }
        match self.mounted(id)? {
            None => Ok(true),
            Some(_) => fault(
                FaultKind::Failed,
                format!("`{id}` is mounted twice: unmount it by hand once"),
            ),
        }
    }

    /// Removes a mountpoint; the kernel refuses where something is mounted.
    pub(crate) fn remove(&self, id: Id) -> Result<(), Fault> {
        match rustix::fs::unlinkat(&self.writable, id.to_string(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).trying(|| format!("remove mountpoint `{id}`")),
        }
    }

    /// What lies in the anchor, mounted or not.
    pub(crate) fn entries(&self) -> BorrowedFd<'_> {
        self.writable.as_fd()
    }
}

fn make(path: &str) -> Result<(), Fault> {
    let what = || format!("make the anchor `{path}`");
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).trying(what),
    }
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).trying(what)?;
    for (key, value) in [("source", SOURCE)].into_iter().chain(LIMITS) {
        rustix::mount::fsconfig_set_string(&context, key, value).trying(what)?;
    }
    rustix::mount::fsconfig_create(&context).trying(what)?;
    let mount =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, FLAGS).trying(what)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", CWD, path, flags).trying(what)
}

/// Makes sure that the anchor is what lies at its path, and takes away what a container mounted over it.
fn uncover(path: &str, here: &[&Entry<'_>]) -> Result<(), Fault> {
    let lowest = here.iter().find(|line| here.iter().all(|other| other.mount_id != line.parent_id));
    match lowest {
        Some(line) if line.filesystem == "tmpfs" && line.source == SOURCE => {}
        _ => {
            let why = format!(
                "something else is mounted at `{path}`: unmount it, or use another runtime directory"
            );
            return fault(FaultKind::Busy, why);
        }
    }
    for _ in 1..here.len() {
        say(format_args!("something is mounted over `{path}`: unmounting it"));
        rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)
            .trying(|| format!("unmount what covers `{path}`"))?;
    }
    Ok(())
}
