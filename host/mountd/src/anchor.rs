//! The anchor: a tmpfs at RUNTIME/mnt in which every volume has its mountpoint.
//!
//! It is read-only to everybody, so that a container never writes to the host's disk where a mount is missing; mountd makes
//! mountpoints through a writable clone that is attached nowhere. It is shared, so that an engine in a slave namespace sees volumes
//! come and go. Everything is done relative to its fd: whoever mounts over the path changes nothing here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{self, MoveMountFlags, OpenTreeFlags};
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, FaultKind, Id};

use crate::fault::{Context, fault};
use crate::places::PLACE;
use crate::say;
use crate::sys::{Flags, Propagation, mount_setattr};

/// By this source a later start knows the anchor again. Directories take no space, and 16 thousand are more than one machine mounts.
const OPTIONS: [(&str, &str); 4] =
    [("source", SOURCE), ("mode", "0711"), ("size", "1m"), ("nr_inodes", "16k")];
const SOURCE: &str = "wasmvol-anchor";
const FLAGS: Flags = Flags::MOUNT_ATTR_RDONLY
    .union(Flags::MOUNT_ATTR_NOSUID)
    .union(Flags::MOUNT_ATTR_NODEV)
    .union(Flags::MOUNT_ATTR_NOEXEC);
/// No flag of a mount.
pub(crate) const NONE: Flags = Flags::empty();
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
    pub(crate) device: Device,
    mount_id: u64,
    root: OwnedFd,
    /// The clone: in it the anchor can be written, and shows every mountpoint empty.
    pub(crate) writable: OwnedFd,
}

/// Major and minor number, as mountinfo writes them.
pub(crate) type Device = (u32, u32);

/// Which mount a file is on, and the device it shows. An empty name is `directory` itself.
pub(crate) fn identity(directory: impl AsFd, name: &str) -> Result<(u64, Device), Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let flags = flags | AtFlags::STATX_DONT_SYNC;
    let statx = rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID)?;
    Ok((statx.stx_mnt_id, (statx.stx_dev_major, statx.stx_dev_minor)))
}

impl Anchor {
    /// Takes over the anchor of an earlier start, or makes one; `lines` is this process's mountinfo.
    pub(crate) fn open(path: String, lines: &[Entry<'_>]) -> Result<Self, Fault> {
        // From the top down. One that lies beneath a file system mounted over RUNTIME later is listed too, and out of reach.
        let (mut here, mut next) = (Vec::new(), identity(CWD, &path).ok().map(|(id, _)| id));
        let is = |line: &&Entry<'_>, id| line.mount_id == id && line.mount_point == path;
        while let Some(line) = next.and_then(|id| lines.iter().find(|line| is(line, id))) {
            here.push(line);
            next = Some(line.parent_id);
        }
        (if here.is_empty() { make(&path) } else { uncover(&path, &here) })?;
        let what = format_args!("open the anchor `{path}`");
        let root = rustix::fs::open(&path, PLACE, Mode::empty()).trying(what)?;
        // Also after a start that was killed in between.
        mount_setattr(&root, FLAGS, NONE, Propagation::SHARED).trying(what)?;
        let writable = mount::open_tree(&root, "", CLONE).trying(what)?;
        let read_only = Flags::MOUNT_ATTR_RDONLY;
        mount_setattr(&writable, NONE, read_only, Propagation::PRIVATE).trying(what)?;
        let (mount_id, device) = identity(&root, "").trying(what)?;
        Ok(Self { path, device, mount_id, root, writable })
    }

    /// Its fd, for a child to keep.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The number of the mount on a volume's mountpoint, and the device that it shows.
    pub(crate) fn mounted(&self, id: Id) -> Result<Option<(u64, Device)>, Fault> {
        match identity(&self.root, &id.to_string()) {
            Ok(found) => Ok(Some(found).filter(|(mount_id, _)| *mount_id != self.mount_id)),
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
    pub(crate) fn attach(&self, id: Id, tree: &OwnedFd) -> Result<(), Fault> {
        let name = id.to_string();
        match rustix::fs::mkdirat(&self.writable, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => mount::move_mount(tree, "", &self.root, &name, ATTACH)
                .trying(format_args!("attach a mount to `{id}`")),
            Err(e) => Err(e).trying(format_args!("make mountpoint `{id}`")),
        }
    }

    /// Unmounts a volume; `false` if it is busy. Lazily only what others keep: what is busy stays.
    pub(crate) fn detach(&self, id: Id, how: mount::UnmountFlags) -> Result<bool, Fault> {
        let what = format_args!("unmount `{id}`");
        rustix::process::fchdir(&self.root).trying(what)?;
        match mount::unmount(id.to_string(), mount::UnmountFlags::NOFOLLOW | how) {
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
}

fn make(path: &str) -> Result<(), Fault> {
    let what = format_args!("make the anchor `{path}`");
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o711)) {
        Err(Errno::EXIST) => {}
        other => other.trying(what)?,
    }
    let tree = superblock("tmpfs", &OPTIONS.map(|(key, value)| (key, value.to_owned())), false)?;
    mount_setattr(&tree, FLAGS, NONE, Propagation::PRIVATE).trying(what)?;
    mount::move_mount(&tree, "", CWD, path, ATTACH).trying(what)
}

/// Makes sure that the lowest mount at its path is the anchor, and takes away what a container mounted over it.
fn uncover(path: &str, here: &[&Entry<'_>]) -> Result<(), Fault> {
    if here.last().is_none_or(|line| line.filesystem != "tmpfs" || line.source != SOURCE) {
        let cure = "unmount it, or use another runtime directory";
        return fault(FaultKind::Busy, format!("something else is mounted at `{path}`: {cure}"));
    }
    for _ in 1..here.len() {
        say(format_args!("something is mounted over `{path}`: unmounting it"));
        mount::unmount(path, mount::UnmountFlags::NOFOLLOW)
            .trying(format_args!("unmount what covers `{path}`"))?;
    }
    Ok(())
}

/// Makes a superblock; an option without a value is a flag, and one that the kernel refuses is told in its own words.
pub(crate) fn superblock(
    kind: &str,
    options: &[(&str, String)],
    read_only: bool,
) -> Result<OwnedFd, Fault> {
    create(kind, options, read_only)
        .or_else(|(e, words)| Err(e).trying(format_args!("make a {kind}{words}")))
}

/// Makes a superblock, of options of which an empty one is a flag; what fails comes with the kernel's own words.
pub(crate) fn create(
    kind: &str,
    options: &[(impl AsRef<str>, String)],
    read_only: bool,
) -> Result<OwnedFd, (Errno, String)> {
    let context =
        mount::fsopen(kind, mount::FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| (e, String::new()))?;
    let configure = || {
        for (key, value) in options {
            match value.as_str() {
                "" => mount::fsconfig_set_flag(&context, key.as_ref())?,
                value => mount::fsconfig_set_string(&context, key.as_ref(), value)?,
            }
        }
        if read_only {
            mount::fsconfig_set_flag(&context, "ro")?;
        }
        mount::fsconfig_create(&context)?;
        mount::fsmount(&context, mount::FsMountFlags::FSMOUNT_CLOEXEC, NONE)
    };
    configure().map_err(|e| (e, complaint(&context)))
}

/// What the kernel wrote about a failure, if anything: `e tmpfs: Bad value for 'size'`.
fn complaint(context: &OwnedFd) -> String {
    let mut message = [0u8; 512];
    let Ok(length) = rustix::io::read(context, &mut message) else { return String::new() };
    let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
    format!(" ({})", text.trim().trim_start_matches("e ").replace(char::is_control, " "))
}
