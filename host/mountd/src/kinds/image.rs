//! A file with a file system inside, `volumes/ID/image`, on a loop device: made, checked, mounted, made larger.
//!
//! What makes and mounts it runs in a child. A loop device that backs the file is in use by whoever still has its file system, so that
//! one is mounted again: there is never a second. Nothing here makes an image smaller.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, openat, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, FaultKind, Filesystem, Id, Image};

use super::loops::{BLOCK, Loop};
use super::{Assembled, Shows, tool};
use crate::anchor::{CLONE, superblock};
use crate::attach::tag;
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, Places, make_and_open, own};
use crate::storage::{open_subpath, sync};
use crate::sys::{ioctl, ioctl_size};

/// The file's name in the volume's directory, and while it is being made.
const NAME: &str = "image";
const NEW: &str = "image.new";

/// The ioctls that grow a file system. Their arguments: how many blocks; a `struct xfs_fsop_geom_v1` and a `struct xfs_growfs_data`; a
/// `struct btrfs_ioctl_vol_args`.
const EXT4_RESIZE: u32 = 0x4008_6610;
const XFS_GEOMETRY: u32 = 0x8070_5864;
const XFS_GROW: u32 = 0x4010_586e;
const BTRFS_RESIZE: u32 = 0x5000_9403;
/// How long a device that nobody has mounted may take to free itself, and how often that is looked at: udev looks at new ones.
const FREE_WAIT: Duration = Duration::from_secs(5);
const FREE_AGAIN: Duration = Duration::from_millis(10);

/// Makes the file whole beside its name, and then renames it: killed in between, the next one begins anew.
pub(super) fn make(places: &Places, id: Id, wanted: &Image) -> Result<Vec<OwnedFd>, Fault> {
    let what = format_args!("make the image of volume `{id}`");
    if wanted.encrypt.is_some() {
        return super::unserved("encrypted images");
    }
    let outer = make_and_open(&places.volumes, &id.to_string(), BENEATH).trying(what)?;
    if rustix::fs::accessat(&outer, NAME, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
        return Ok(vec![outer]);
    }
    match rustix::fs::unlinkat(&outer, NEW, AtFlags::empty()) {
        Err(Errno::NOENT) => {}
        other => other.trying(what)?,
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&outer, NEW, flags, Mode::RUSR | Mode::WUSR).trying(what)?;
    extend(&file, 0, whole(wanted.size), wanted.thin)?;
    let device = Loop::attach(&file, &tag(id), false)?;
    format(wanted.filesystem, &device.path())?;
    let root = root(&mount(wanted, &device, false)?)?;
    // An engine copies an image's files into an empty volume only, and databases want theirs empty, too.
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => {}
        other => other.trying(what)?,
    }
    let owner = wanted.owner;
    own(&root, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
    rustix::fs::syncfs(&root).trying(what)?;
    drop((root, device));
    sync(&file, NEW)?;
    rustix::fs::renameat(&outer, NEW, &outer, NAME).trying(what)?;
    Ok(vec![outer])
}

/// Makes the file larger. Not thin, every block is taken from the disk now: then a write in the volume never finds the disk full.
fn extend(file: &OwnedFd, from: u64, to: u64, thin: bool) -> Result<(), Fault> {
    let what = format_args!("give an image {} MiB", to >> 20);
    let reserved = match thin {
        true => Ok(()),
        false => rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, to - from),
    };
    if matches!(reserved, Err(Errno::OPNOTSUPP)) {
        let why = "the file system of the state directory reserves no blocks: use `-o thin`";
        return fault(FaultKind::Failed, why);
    }
    let grown = reserved.and_then(|()| rustix::fs::ftruncate(file, to));
    grown
        .or_else(|e| {
            // What was reserved until the disk was full is given back.
            rustix::fs::ftruncate(file, from).and(Err(e))
        })
        .trying(what)
}

/// A whole number of blocks: a file system cannot use the rest.
fn whole(size: u64) -> u64 {
    size - size % u64::from(BLOCK)
}

/// Makes a file system. The blocks are BLOCK's, whatever the disk has; nothing is discarded, since all is empty.
fn format(filesystem: Filesystem, device: &str) -> Result<(), Fault> {
    match filesystem {
        Filesystem::Ext4 => {
            let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
            tool::MKFS_EXT4.succeed(&["-q", "-F", "-b", "4096", "-m", "0", "-E", lazy, device])
        }
        Filesystem::Xfs => tool::MKFS_XFS.succeed(&["-q", "-f", "-K", "-s", "size=4096", device]),
        Filesystem::Btrfs => tool::MKFS_BTRFS.succeed(&["-q", "-f", "-K", "-s", "4096", device]),
    }
}

/// The file system of a device, attached nowhere; the one that is there already, if anybody has it.
fn mount(image: &Image, device: &Loop, read_only: bool) -> Result<OwnedFd, Fault> {
    // What is deleted in a thin image goes back to the disk as it is deleted: a run of fstrim now and then would need somebody who
    // starts it. One that is not thin keeps what it was given.
    let discard = match (image.filesystem, image.thin) {
        (_, false) => ("nodiscard", ""),
        (Filesystem::Btrfs, true) => ("discard", "async"),
        (_, true) => ("discard", ""),
    };
    let own = match image.filesystem {
        // They are zero already, as the file was. To write zeros would take blocks of a thin image, and give back another's.
        Filesystem::Ext4 => Some(("noinit_itable", "")),
        // A copy of an image may be mounted beside it.
        Filesystem::Xfs => Some(("nouuid", "")),
        Filesystem::Btrfs => None,
    };
    let mut options = vec![("source", device.path())];
    options.extend(
        [Some(discard), own].into_iter().flatten().map(|(key, value)| (key, value.to_owned())),
    );
    superblock(image.filesystem.name(), &options, read_only)
}

fn root(tree: &OwnedFd) -> Result<OwnedFd, Fault> {
    openat(tree, ".", DIRECTORY, Mode::empty()).trying("open the root of an image")
}

fn open(places: &Places, id: Id) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&places.volumes, format!("{id}/{NAME}"), flags, Mode::empty(), BENEATH)
}

/// The device of a volume's image, which was checked before if nobody has it mounted.
fn device(places: &Places, id: Id, image: &Image, read_only: bool) -> Result<Loop, Fault> {
    let what = format_args!("open the image of volume `{id}`");
    let file = open(places, id).trying(what)?;
    if let Some(there) = Loop::of(&file)? {
        return Ok(there);
    }
    if !image.thin {
        // What somebody trimmed from inside is reserved again, if the disk has room.
        let size = rustix::fs::fstat(&file).trying(what)?.st_size.unsigned_abs();
        let _as_far_as_it_goes = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size);
    }
    let device = Loop::attach(&file, &tag(id), false)?;
    if image.filesystem == Filesystem::Ext4 {
        let ended = tool::E2FSCK.run(&["-p", &device.path()])?;
        // 1 and 2: it has mended what was wrong.
        if !matches!(ended.status, Some(0..=2)) {
            let why = tool::E2FSCK.failure(&ended);
            let cure = format!("run `e2fsck` on `{}/volumes/{id}/{NAME}`", places.state);
            return fault(FaultKind::Failed, format!("the image is damaged, {why}: {cure}"));
        }
    }
    if !read_only {
        return Ok(device);
    }
    // The journal is written back before nothing can be written any more.
    drop(mount(image, &device, false)?);
    drop(device);
    let until = Instant::now() + FREE_WAIT;
    while let Some(there) = Loop::of(&file)? {
        if Instant::now() > until {
            let why = format!("`{}` is opened by somebody: see `fuser`", there.path());
            return fault(FaultKind::Busy, why);
        }
        drop(there);
        std::thread::sleep(FREE_AGAIN);
    }
    Loop::attach(&file, &tag(id), true)
}

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    image: &Image,
) -> Result<Assembled, Fault> {
    let device = device(&mounter.places, wanted.id, image, wanted.plan.read_only)?;
    let mut tree = mount(image, &device, wanted.plan.read_only)?;
    if let Some(subpath) = &wanted.plan.subpath {
        let inside = open_subpath(&tree, subpath)?;
        // Before Linux 6.15 only what is attached can be cloned.
        tree =
            rustix::mount::open_tree(&inside, "", CLONE).trying("show a directory of an image")?;
    }
    Ok(Assembled { tree, shows: Shows::Unknown })
}

/// Makes an image as large as `image` says, and the file system in it, mounted or not. May be repeated: what is done is done.
pub(super) fn grow(places: &Places, id: Id, image: &Image) -> Result<(), Fault> {
    let what = format_args!("grow the image of volume `{id}`");
    let file = open(places, id).trying(what)?;
    let there = rustix::fs::fstat(&file).trying(what)?.st_size.unsigned_abs();
    let wanted = whole(image.size);
    if wanted < there {
        let why = format!("it has {there} bytes, and an image never gets smaller");
        return fault(FaultKind::Invalid, why);
    }
    if wanted > there {
        extend(&file, there, wanted, image.thin)?;
        sync(&file, NAME)?;
    }
    let device = device(places, id, image, false)?;
    device.grow().trying(what)?;
    let root = root(&mount(image, &device, false)?)?;
    match grow_inside(image.filesystem, &root, wanted) {
        Err(Errno::PERM) => {
            let why = "the kernel lets only CAP_SYS_RESOURCE grow a file system, which wasmvol was started without";
            return fault(FaultKind::Denied, why);
        }
        other => other.trying(what)?,
    }
    rustix::fs::syncfs(&root).trying(what)
}

/// What resize2fs, xfs_growfs and `btrfs filesystem resize max` ask the kernel for.
fn grow_inside(filesystem: Filesystem, root: &OwnedFd, size: u64) -> Result<(), Errno> {
    let blocks = (size / u64::from(BLOCK)).to_ne_bytes();
    match filesystem {
        Filesystem::Ext4 => ioctl(root, EXT4_RESIZE, &mut blocks.clone())?,
        Filesystem::Xfs => {
            let mut geometry = [0; ioctl_size(XFS_GEOMETRY)];
            ioctl(root, XFS_GEOMETRY, &mut geometry)?;
            // The share of it that inodes may take stays as it is.
            let share = geometry.get(28..32).unwrap_or_default();
            let mut wanted = [&blocks, share, &[0; 4]].concat();
            ioctl(root, XFS_GROW, &mut wanted)?
        }
        Filesystem::Btrfs => {
            let mut wanted = [0; ioctl_size(BTRFS_RESIZE)];
            wanted.iter_mut().skip(8).zip(b"max").for_each(|(to, from)| *to = *from);
            ioctl(root, BTRFS_RESIZE, &mut wanted)?
        }
    };
    Ok(())
}

/// The source of an image that is mounted somewhere.
pub(crate) fn mounted(places: &Places, id: Id) -> Result<Option<String>, Fault> {
    let file = match open(places, id) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened.trying(format_args!("open the image of volume `{id}`"))?,
    };
    let Some(device) = Loop::of(&file)? else { return Ok(None) };
    let is_mounted = device.is_mounted().trying("look at a loop device")?;
    Ok(is_mounted.then(|| device.path()))
}

/// Whether a line shows the file system of a volume's image.
pub(super) fn is_it(id: Id, image: &Image, line: &Entry<'_>) -> bool {
    line.filesystem == image.filesystem.name() && backs(id, line)
}

/// Whether the device of a line was made of a volume's image.
pub(super) fn backs(id: Id, line: &Entry<'_>) -> bool {
    matches!(Loop::open(&line.source), Ok(Some(device)) if device.has_name(&tag(id)))
}
