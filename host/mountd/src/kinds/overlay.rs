//! A layer of the volume's own over directories that stay as they are.
//!
//! The volume's directory `data` is the layer, `work` beside it is the kernel's own. A volatile layer is never synced, so it lasts as
//! long as the machine runs: after a restart it begins anew, and what it held goes into the trash. One that is reset begins anew at each
//! mount but those that take back or repeat an earlier one.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, RenameFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::{Directory, Fault, FaultKind, Grants, HostDirectory, Id, Overlay, Storage};

use super::{Assembled, Shows, directory, host_directory};
use crate::attach::tag;
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, PLACE, make_and_open, own};

/// What overlayfs leaves in its work directory so that nobody uses a volatile layer again, what is in that, and the boot that the layer was used in.
const MARK: &str = "work/work/incompat/volatile";
const MARKED: &str = "work/work/incompat/volatile/dirty";
const BOOT: &str = "boot";
/// Where the kernel tells which boot this is, and a number that is nobody's yet.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NEW_ID: &str = "/proc/sys/kernel/random/uuid";

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    overlay: &Overlay,
    grants: &Grants,
) -> Result<Assembled, Fault> {
    let (id, map) = (wanted.id, wanted.plan.id_map.as_ref());
    let (tag, shows) = (tag(id), Shows::Own("overlay"));
    // A second overlay over one layer would do to it what nobody can foresee.
    if let Some(last) = wanted.last.as_ref().filter(|last| last.filesystem == "overlay")
        && let Some(tree) = mounter.processes.take_back(last, &tag)?
    {
        return Ok(Assembled { tree, shows });
    }
    let open = |path: &String| {
        let wanted = HostDirectory { path: path.clone(), make: None };
        directory::layer(&host_directory::open(&mounter.places, &wanted, grants)?, map)
    };
    let mut lower: Vec<_> = overlay.lower.iter().map(open).collect::<Result<_, _>>()?;
    if let Some(below) = wanted.storage.below() {
        let Some(id) = below.id else {
            return fault(FaultKind::Invalid, "nobody has looked up which volume lies below");
        };
        lower.push(directory::layer(&directory::open(&mounter.places, id)?, map)?);
    }
    if wanted.plan.read_only {
        return directory::frozen(mounter, id, &lower);
    }
    // An id map is for what lies below: the layer is the volume's own, and has owners as they are shown.
    let home = prepare(mounter, wanted, overlay)?;
    let what = format!("open the layer of volume `{id}`");
    let open = |name: &str| openat2(&home, name, PLACE, Mode::empty(), BENEATH).trying(&what);
    let (upper, work) = (open("data")?, open("work")?);
    let mut options = vec![
        ("source", tag),
        ("lowerdir", directory::joined(&lower)),
        ("upperdir", directory::joined([&upper])),
        ("workdir", directory::joined([&work])),
    ];
    if overlay.volatile {
        options.push(("volatile", String::new()));
    }
    let tree = directory::overlay(&options, false)?;
    Ok(Assembled { tree, shows })
}

/// Opens `volumes/ID` with a layer that can be used in it.
fn prepare(mounter: &Mounter, wanted: &Mount, overlay: &Overlay) -> Result<OwnedFd, Fault> {
    let what = format!("prepare the layer of volume `{}`", wanted.id);
    let (places, name) = (&mounter.places, wanted.id.to_string());
    let home = openat2(&places.volumes, name, DIRECTORY, Mode::empty(), BENEATH).trying(&what)?;
    // What is mounted again has holders, who go on with what they wrote.
    if overlay.reset && wanted.last.is_none() {
        refuse_held(mounter, wanted.id)?;
        renew(mounter, wanted, &home).trying(&what)?;
    }
    if overlay.volatile {
        let boot = std::fs::read_to_string(BOOT_ID).trying(&what)?.trim().replace('-', "");
        let used_in = rustix::fs::readlinkat(&home, BOOT, Vec::new()).unwrap_or_default();
        let is_same = used_in.as_bytes() == boot.as_bytes();
        if openat2(&home, MARK, PLACE, Mode::empty(), BENEATH).is_ok() {
            if is_same {
                // All that was written is in the kernel's memory, or on the disk.
                gone(rustix::fs::unlinkat(&home, MARKED, AtFlags::empty())).trying(&what)?;
                rustix::fs::unlinkat(&home, MARK, AtFlags::REMOVEDIR).trying(&what)?;
            } else {
                renew(mounter, wanted, &home).trying(&what)?;
            }
        }
        if !is_same {
            gone(rustix::fs::unlinkat(&home, BOOT, AtFlags::empty())).trying(&what)?;
            rustix::fs::symlinkat(boot, &home, BOOT).trying(&what)?;
        }
    }
    make_and_open(&home, "work", BENEATH).trying(&what)?;
    Ok(home)
}

/// Refuses while somebody still has the layer mounted, whom nothing but the kernel remembers.
fn refuse_held(mounter: &Mounter, id: Id) -> Result<(), Fault> {
    let evidence = mounter.scan(id, None)?;
    let who = match evidence.holders.first() {
        None if evidence.is_free() => return Ok(()),
        None => "a process that cannot be looked into may have it".to_owned(),
        Some(holder) => format!("process {} has it at `{}`", holder.pid, holder.path),
    };
    fault(FaultKind::Busy, format!("its layer cannot be emptied: {who}, end that one"))
}

/// Begins a layer anew, durably. The mark goes last: killed before, it is done again. What is reset is reset again by the next mount
/// in any case.
fn renew(mounter: &Mounter, wanted: &Mount, home: &OwnedFd) -> Result<(), Errno> {
    let trash = &mounter.places.trash;
    let discard = |name: &str| {
        let new = std::fs::read_to_string(NEW_ID).map_err(|_| Errno::IO)?;
        let as_what = new.trim().replace('-', "");
        gone(rustix::fs::renameat_with(home, name, trash, as_what, RenameFlags::NOREPLACE))
    };
    discard("data")?;
    mounter.kill.at("layer.emptied");
    let data = make_and_open(home, "data", BENEATH)?;
    if let Storage::Directory(Directory { owner, .. }) = wanted.storage {
        own(&data, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode))?;
    }
    mounter.kill.at("layer.made");
    discard("work")?;
    [&data, home, trash].into_iter().try_for_each(rustix::fs::fsync)?;
    mounter.kill.at("layer.synced");
    mounter.discarded.set(true);
    Ok(())
}

/// What is not there is gone already.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    result.or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })
}
