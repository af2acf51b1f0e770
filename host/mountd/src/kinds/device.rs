//! A file system on a block device that an operator granted.
//!
//! Called in a child: a broken disk may take its time. A device lies beneath `/dev`, where root alone makes names; links are followed
//! that stay there, as those in `/dev/disk` and `/dev/mapper` do. The file system may be mounted elsewhere too, so nobody holds it.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Device, Fault, FaultKind, MountOption, MountValue};

use super::{Assembled, Shows};
use crate::anchor::create;
use crate::fault::{Context, fault, text};
use crate::mounter::Mounter;
use crate::places::path_of;
use crate::sys::{Flags, Propagation, mount_setattr};

/// Where devices lie.
const DEV: &str = "/dev";
/// Beneath `/dev`, links included; `/dev/shm`, where others than root make names, is a mount of its own.
const IN_DEV: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
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
    let source = path_of(&open(device)?)?;
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
fn open(device: &Device) -> Result<OwnedFd, Fault> {
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
    Ok(found)
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
