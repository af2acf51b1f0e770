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
use wasmvol_plan::{DriverName, Fault, FaultKind, Filesystem, Id, Image};

use super::crypt::{self, Key, Mapping};
use super::filesystem::{format, grow_inside, mount};
use super::loops::{BLOCK, Loop};
use super::{Assembled, Shows, tool};
use crate::attach::tag;
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, Places, make_and_open, own};
use crate::storage::sync;

/// The file's name in the volume's directory, and while it is being made.
const NAME: &str = "image";
const NEW: &str = "image.new";

/// How long a device that nobody has mounted may take to free itself, and how often that is looked at: udev looks at new ones.
const FREE_WAIT: Duration = Duration::from_secs(5);
const FREE_AGAIN: Duration = Duration::from_millis(10);

/// The block device that the file system lies on: a loop device, or what an encrypted one maps to.
struct Disk {
    device: Loop,
    mapping: Option<Mapping>,
}

impl Disk {
    fn of(device: Loop, id: Id, image: &Image, key: Option<&Key>, ro: bool) -> Result<Self, Fault> {
        let open = |key| Mapping::open(&device, id, key, ro, image.thin);
        let mapping = key.map(|key| Mapping::of(id)?.map_or_else(|| open(key), Ok)).transpose()?;
        Ok(Self { device, mapping })
    }

    fn path(&self) -> String {
        self.mapping.as_ref().map_or_else(|| self.device.path(), Mapping::path)
    }
}

/// What encrypts an image, if one shall be or is.
fn key<'a>(
    places: &Places,
    driver: &DriverName,
    image: &'a Image,
) -> Result<Option<Key<'a>>, Fault> {
    let read = |name: &'a String| Ok(Key { name, secret: places.secret(name, driver, None)? });
    image.encrypt.as_ref().map(read).transpose()
}

/// Makes the file whole beside its name, and then renames it: killed in between, the next one begins anew.
pub(super) fn make(
    places: &Places,
    id: Id,
    driver: &DriverName,
    wanted: &Image,
) -> Result<Vec<OwnedFd>, Fault> {
    let what = format_args!("make the image of volume `{id}`");
    let key = key(places, driver, wanted)?;
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
    if let Some(key) = &key {
        // One that was killed may have left its own.
        crypt::forget(id).trying(what)?;
        crypt::format(&device, key)?;
    }
    let disk = Disk::of(device, id, wanted, key.as_ref(), false)?;
    format(wanted.filesystem, &disk.path())?;
    let root = root(&mount(wanted, disk.path(), false)?)?;
    // An engine copies an image's files into an empty volume only, and databases want theirs empty, too.
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => {}
        other => other.trying(what)?,
    }
    let owner = wanted.owner;
    own(&root, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
    rustix::fs::syncfs(&root).trying(what)?;
    drop((root, disk));
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

fn root(tree: &OwnedFd) -> Result<OwnedFd, Fault> {
    openat(tree, ".", DIRECTORY, Mode::empty()).trying("open the root of an image")
}

fn open(places: &Places, id: Id) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&places.volumes, format!("{id}/{NAME}"), flags, Mode::empty(), BENEATH)
}

/// The disk of a volume's image, which was checked before if nobody has it mounted.
fn disk(
    places: &Places,
    id: Id,
    driver: &DriverName,
    image: &Image,
    read_only: bool,
) -> Result<Disk, Fault> {
    let what = format_args!("open the image of volume `{id}`");
    let file = open(places, id).trying(what)?;
    let key = key(places, driver, image)?;
    let disk = |device, read_only| Disk::of(device, id, image, key.as_ref(), read_only);
    if let Some(there) = Loop::of(&file)? {
        return disk(there, read_only);
    }
    if !image.thin {
        // What somebody trimmed from inside is reserved again, if the disk has room.
        let size = rustix::fs::fstat(&file).trying(what)?.st_size.unsigned_abs();
        let _as_far_as_it_goes = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size);
    }
    let writable = disk(Loop::attach(&file, &tag(id), false)?, false)?;
    if image.filesystem == Filesystem::Ext4 {
        let ended = tool::E2FSCK.run(&["-p", &writable.path()])?;
        // 1 and 2: it has mended what was wrong.
        if !matches!(ended.status, Some(0..=2)) {
            let why = tool::E2FSCK.failure(&ended);
            let file = format!("`{}/volumes/{id}/{NAME}`", places.state);
            let cure = match image.encrypt {
                None => format!("run `e2fsck` on {file}"),
                Some(_) => format!("open {file} by `cryptsetup`, and run `e2fsck` on what it maps"),
            };
            return fault(FaultKind::Failed, format!("the image is damaged, {why}: {cure}"));
        }
    }
    if !read_only {
        return Ok(writable);
    }
    // The journal is written back before nothing can be written any more.
    drop(mount(image, writable.path(), false)?);
    drop(writable);
    let until = Instant::now() + FREE_WAIT;
    while let Some(there) = Loop::of(&file)? {
        if Instant::now() > until {
            let why = format!("`{}` is opened by somebody: see `fuser`", there.path());
            return fault(FaultKind::Busy, why);
        }
        drop(there);
        std::thread::sleep(FREE_AGAIN);
    }
    disk(Loop::attach(&file, &tag(id), true)?, true)
}

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    image: &Image,
) -> Result<Assembled, Fault> {
    let read_only = wanted.plan.read_only;
    let disk = disk(&mounter.places, wanted.id, &wanted.driver, image, read_only)?;
    let mut tree = mount(image, disk.path(), read_only)?;
    if let Some(subpath) = &wanted.plan.subpath {
        tree = mounter.only(&tree, subpath)?;
    }
    Ok(Assembled { tree, shows: Shows::Unknown })
}

/// All of an image, to be written, attached nowhere.
pub(super) fn tree(
    places: &Places,
    id: Id,
    driver: &DriverName,
    image: &Image,
) -> Result<OwnedFd, Fault> {
    let disk = disk(places, id, driver, image, false)?;
    mount(image, disk.path(), false)
}

/// Makes an image as large as `image` says, and the file system in it, mounted or not. May be repeated: what is done is done.
pub(super) fn grow(
    places: &Places,
    id: Id,
    driver: &DriverName,
    image: &Image,
) -> Result<(), Fault> {
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
    let disk = disk(places, id, driver, image, false)?;
    disk.device.grow().trying(what)?;
    if let (Some(mapping), Some(key)) = (&disk.mapping, key(places, driver, image)?) {
        mapping.grow(&key)?;
    }
    let root = root(&mount(image, disk.path(), false)?)?;
    match grow_inside(image.filesystem, &root, wanted - image.header()) {
        Err(Errno::PERM) => {
            let why = "the kernel lets only CAP_SYS_RESOURCE grow a file system, which wasmvol was started without";
            return fault(FaultKind::Denied, why);
        }
        other => other.trying(what)?,
    }
    rustix::fs::syncfs(&root).trying(what)
}

/// The source of an image that is mounted somewhere.
pub(crate) fn mounted(places: &Places, id: Id) -> Result<Option<String>, Fault> {
    let file = match open(places, id) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened.trying(format_args!("open the image of volume `{id}`"))?,
    };
    let Some(device) = Loop::of(&file)? else { return Ok(None) };
    let what = "look at the device of an image";
    if let Some(mapping) = Mapping::of(id)? {
        let path = mapping.path();
        return Ok(mapping.is_mounted().trying(what)?.then_some(path));
    }
    Ok(device.is_mounted().trying(what)?.then(|| device.path()))
}

/// Whether a line shows the file system of a volume's image.
pub(super) fn is_it(id: Id, image: &Image, line: &Entry<'_>) -> bool {
    line.filesystem == image.filesystem.name() && backs(id, line)
}

/// Whether the device of a line was made of a volume's image.
pub(super) fn backs(id: Id, line: &Entry<'_>) -> bool {
    line.source == crypt::path(id)
        || matches!(Loop::open(&line.source), Ok(Some(device)) if device.has_name(&tag(id)))
}
