//! A file system on a block device that an operator granted.
//!
//! Called in a child: a broken disk may take its time. A device lies beneath `/dev`, where root alone makes names; links are followed
//! that stay there, as those in `/dev/disk` and `/dev/mapper` do. The file system may be mounted elsewhere too, so nobody holds it. A device
//! is written to in one case only: it is blank, nobody has it, and the plan says that a file system is to be made then. One that shows what
//! wasmvol keeps is refused, whatever was granted: other volumes lie there.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, openat, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::{Entry, is_beneath};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::path::rest;
use wasmvol_plan::{Device, Fault, FaultKind, Filesystem, Id, MountOption, MountValue, Owner};

use super::{Assembled, Shows, filesystem};
use crate::anchor::{create, superblock};
use crate::attach::TAG;
use crate::fault::{Context, fault, text};
use crate::mounter::Mounter;
use crate::places::{DIRECTORY, Places, own, path_of};
use crate::scan::parse;
use crate::sys::{Flags, Propagation, mount_setattr};

/// Where devices lie.
const DEV: &str = "/dev";
/// Beneath `/dev`, links included; `/dev/shm`, where others than root make names, is a mount of its own.
const IN_DEV: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// How long a device may take to appear after its driver has attached it, and how often that is looked at.
const APPEAR_WAIT: Duration = Duration::from_secs(10);
const APPEAR_AGAIN: Duration = Duration::from_millis(50);
/// A device is blank if it begins and ends with so many zeros: there every file system, partition table, volume group and array has
/// something.
const BLANK: u64 = 1 << 20;
/// What can be made on a blank one.
const MADE: [Filesystem; 3] = [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs];
/// What belongs to a mount and not to its file system: when the time of an access is written.
const ATTRIBUTES: [(&str, Flags); 4] = [
    ("noatime", Flags::MOUNT_ATTR_NOATIME),
    ("nodiratime", Flags::MOUNT_ATTR_NODIRATIME),
    ("relatime", Flags::MOUNT_ATTR_RELATIME),
    ("strictatime", Flags::MOUNT_ATTR_STRICTATIME),
];

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    device: &Device,
) -> Result<Assembled, Fault> {
    let (filesystem, path) = (&device.filesystem, Quoted::new(&device.path));
    let found = match device.make {
        None => open(mounter, device)?,
        Some(owner) => {
            let found = appeared(mounter, device)?;
            if is_blank(&found).trying(format_args!("see whether device {path} is blank"))? {
                make(device, &found, owner)?;
            }
            found
        }
    };
    let source = path_of(&found)?;
    let (mut options, mut attributes) = (vec![("source", source)], Flags::empty());
    for MountOption { key, value } in &device.options {
        if let Some((_, flag)) = ATTRIBUTES.iter().find(|(name, _)| name == key) {
            attributes |= *flag;
            continue;
        }
        let value = match value {
            MountValue::Present => String::new(),
            MountValue::Text(text) => text.clone(),
            MountValue::Number(number) => number.to_string(),
            MountValue::Secret(_) => {
                let why = format!("{filesystem} takes no secret");
                return fault(FaultKind::Invalid, why);
            }
        };
        options.push((key, value));
    }
    let tree = create(filesystem, &options, wanted.plan.read_only).map_err(|(errno, words)| {
        let (why, cure) = (text(errno), cure(errno));
        let message = format!("cannot mount the {filesystem} on {path}: {why}{words}{cure}");
        Fault::new(FaultKind::Failed, message)
    })?;
    // From here on it shows nothing else: a loop may have got another file until a moment ago.
    refuse_own(mounter, device, &found)?;
    let tree = match &wanted.plan.subpath {
        None => tree,
        Some(subpath) => mounter.only(&tree, subpath)?,
    };
    if !attributes.is_empty() {
        // The kernel wants to hear that the former way of counting is over.
        mount_setattr(&tree, attributes, Flags::MOUNT_ATTR__ATIME, Propagation::PRIVATE)
            .trying("set how times of access are written")?;
    }
    Ok(Assembled { tree, shows: Shows::Unknown })
}

/// A device may have got another name since, but not another kind of source.
pub(super) fn is_it(device: &Device, line: &Entry<'_>) -> bool {
    line.filesystem == device.filesystem && line.source.starts_with(DEV)
}

/// Finds a block device, and opens it only as a name: to open the device itself could do something.
fn open(mounter: &Mounter, device: &Device) -> Result<OwnedFd, Fault> {
    let path = Quoted::new(&device.path);
    let what = format!("find device {path}");
    let dev =
        rustix::fs::open(DEV, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let inside = device.path.trim_start_matches(DEV).trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = match openat2(dev.trying(&what)?, inside, flags, Mode::empty(), IN_DEV) {
        Err(Errno::XDEV | Errno::LOOP) => {
            let why = "it leads out of `/dev`: name the device itself";
            return fault(FaultKind::Denied, format!("cannot {what}: {why}"));
        }
        other => other.trying(&what)?,
    };
    let stat = rustix::fs::fstat(&found).trying(&what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return fault(FaultKind::Invalid, format!("{path} is no block device: use one"));
    }
    refuse_own(mounter, device, &found)?;
    Ok(found)
}

fn refuse_own(mounter: &Mounter, device: &Device, found: &OwnedFd) -> Result<(), Fault> {
    let path = Quoted::new(&device.path);
    let what = format!("see what device {path} shows");
    let number = rustix::fs::fstat(found).trying(&what)?.st_rdev;
    if is_own(mounter, number)? {
        let why = "wasmvol keeps its own files there: use another device";
        return fault(FaultKind::Denied, format!("device {path} is refused: {why}"));
    }
    Ok(())
}

/// Whether a device shows what is wasmvol's: an image of a volume, in clear or not, or a disk beneath its directories.
fn is_own(mounter: &Mounter, device: u64) -> Result<bool, Fault> {
    let Places { state, config, .. } = &mounter.places;
    let told = |what: &str| {
        let told = std::fs::read_to_string(format!("/sys/dev/block/{}/{what}", shown(device)));
        told.unwrap_or_default()
    };
    let (file, mapping) = (told("loop/backing_file"), told("dm/name"));
    let is_image = mapping.trim_end().strip_prefix(TAG).is_some_and(|id| Id::parse(id).is_ok());
    let is_file = |directory: &String| rest(directory, file.trim_end()).is_some();
    if is_image || [state, config].into_iter().any(is_file) {
        return Ok(true);
    }
    let text = mounter.processes.own_mounts()?;
    let lines = parse(&text)?;
    Ok([state, config].into_iter().any(|directory| {
        let disk = disk_beneath(directory, &lines);
        disk == Some(device) || disk.is_some_and(|disk| are_of_one_btrfs(disk, device))
    }))
}

/// A device as sysfs calls it.
fn shown(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// The device that a directory lies on. btrfs shows its files one that there is not, so it is asked for by the name of what was mounted.
fn disk_beneath(directory: &str, lines: &[Entry<'_>]) -> Option<u64> {
    let stat = rustix::fs::stat(directory).ok()?;
    if rustix::fs::major(stat.st_dev) != 0 {
        return Some(stat.st_dev);
    }
    let covers = |line: &&Entry<'_>| is_beneath(directory, &line.mount_point);
    let line = lines.iter().filter(covers).max_by_key(|line| line.mount_point.len())?;
    let source = rustix::fs::stat(&*line.source).ok()?;
    (FileType::from_raw_mode(source.st_mode) == FileType::BlockDevice).then_some(source.st_rdev)
}

/// Whether two devices are disks of one btrfs.
fn are_of_one_btrfs(one: u64, other: u64) -> bool {
    let names = |directory: &Path| std::fs::read_dir(directory).into_iter().flatten().flatten();
    names(Path::new("/sys/fs/btrfs")).any(|filesystem| {
        let numbers: Vec<_> = names(&filesystem.path().join("devices"))
            .filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok())
            .collect();
        [one, other].iter().all(|disk| numbers.iter().any(|dev| dev.trim_end() == shown(*disk)))
    })
}

/// Finds a device that its driver has attached: what a cloud does may be seen a moment later.
fn appeared(mounter: &Mounter, device: &Device) -> Result<OwnedFd, Fault> {
    let until = Instant::now() + APPEAR_WAIT;
    loop {
        let missing = match open(mounter, device) {
            Ok(found) if has_disk(&found) => return Ok(found),
            Ok(_) => format!("device {} has no disk", Quoted::new(&device.path)),
            Err(missing) if missing.kind == FaultKind::Missing => missing.message,
            Err(other) => return Err(other),
        };
        if Instant::now() > until {
            let waited = format!("it did not appear within {} s", APPEAR_WAIT.as_secs());
            return fault(FaultKind::Missing, format!("{missing}: {waited}"));
        }
        std::thread::sleep(APPEAR_AGAIN);
    }
}

/// Opens what was found by its name.
fn opened(found: &OwnedFd, more: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty())
}

/// Whether there is anything behind a device's name. What cannot be told so is told by whoever mounts it.
fn has_disk(found: &OwnedFd) -> bool {
    let size = opened(found, OFlags::empty()).and_then(|it| rustix::fs::seek(it, SeekFrom::End(0)));
    !matches!(size, Ok(0) | Err(Errno::NXIO | Errno::NOMEDIUM))
}

/// Whether there is nothing on a device, as far as its begin and its end tell. One that somebody has, mounted or as a part of something, is
/// not.
fn is_blank(found: &OwnedFd) -> Result<bool, Errno> {
    // Exclusively: not beside anybody who uses it.
    let opened = match opened(found, OFlags::EXCL) {
        Err(Errno::BUSY) => return Ok(false),
        other => other?,
    };
    let size = rustix::fs::seek(&opened, SeekFrom::End(0))?;
    let ends = [0..BLANK.min(size), size.saturating_sub(BLANK)..size];
    let mut bytes = [0; 1 << 16];
    for mut range in ends {
        while !range.is_empty() {
            let most = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let room = bytes.get_mut(..most.min(1 << 16)).unwrap_or_default();
            let read = rustix::io::pread(&opened, &mut *room, range.start)?;
            if read == 0 || room.iter().take(read).any(|byte| *byte != 0) {
                return Ok(false);
            }
            range.start += read as u64;
        }
    }
    Ok(size > 0)
}

/// Makes the file system of a blank device, whose root has that owner, durably.
fn make(device: &Device, found: &OwnedFd, owner: Owner) -> Result<(), Fault> {
    let (name, source) = (device.filesystem.as_str(), path_of(found)?);
    let what = format!("make the {name} on {}", Quoted::new(&device.path));
    let Some(made) = MADE.into_iter().find(|made| made.name() == name) else {
        return fault(FaultKind::Invalid, format!("cannot {what}: it is made of nothing here"));
    };
    // Whoever has taken the device meanwhile keeps it: none of these programs writes to what is in use.
    filesystem::format(made, &source)?;
    let tree = superblock(name, &[("source", source)], false)?;
    let root = openat(&tree, ".", DIRECTORY, Mode::empty()).trying(&what)?;
    // Engines copy an image's files into an empty volume only.
    match rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => {}
        other => other.trying(&what)?,
    }
    own(&root, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(&what)?;
    rustix::fs::syncfs(&root).trying(what)
}

/// What a person can do about a device that cannot be mounted.
fn cure(errno: Errno) -> &'static str {
    match errno {
        Errno::NODEV => ": this kernel has no such file system: load its module",
        Errno::INVAL => ": see with `blkid` what is on it, and whether the options are its own",
        Errno::BUSY => ": it is mounted elsewhere in another way, or something else has it",
        Errno::ROFS | Errno::ACCESS => ": it can only be read: give the option for that",
        _ => "",
    }
}
