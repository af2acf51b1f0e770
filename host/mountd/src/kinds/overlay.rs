//! A layer of the volume's own over directories that stay as they are.
//!
//! The volume's directory `data` is the layer, `work` beside it is the kernel's own. A volatile layer is never synced, so it lasts as
//! long as the machine runs: after a restart it begins anew, and what it held goes into the trash.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, RenameFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::{Directory, Fault, Grants, HostDirectory, Id, Overlay, Storage};

use super::{Assembled, Shows, directory, host_directory};
use crate::anchor::superblock;
use crate::attach::tag;
use crate::fault::Context;
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, PLACE, make_and_open, own};

/// What overlayfs leaves in its work directory so that nobody uses a volatile layer again, what is in that, and the boot that the layer was used in.
const MARK: &str = "work/work/incompat/volatile";
const MARKED: &str = "work/work/incompat/volatile/dirty";
const BOOT: &str = "boot";
/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
    let lower: Vec<_> = overlay.lower.iter().map(open).collect::<Result<_, _>>()?;
    if wanted.plan.read_only {
        return directory::frozen(mounter, id, &lower);
    }
    // An id map is for what lies below: the layer is the volume's own, and has owners as they are shown.
    let home = prepare(mounter, wanted, overlay.volatile)?;
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
    let tree = superblock("overlay", &options, false)?;
    Ok(Assembled { tree, shows })
}

/// Opens `volumes/ID` with a layer that can be used in it.
fn prepare(mounter: &Mounter, wanted: &Mount, volatile: bool) -> Result<OwnedFd, Fault> {
    let what = format!("prepare the layer of volume `{}`", wanted.id);
    let (places, name) = (&mounter.places, wanted.id.to_string());
    let home = openat2(&places.volumes, name, DIRECTORY, Mode::empty(), BENEATH).trying(&what)?;
    if volatile {
        let boot = std::fs::read_to_string(BOOT_ID).trying(&what)?.trim().replace('-', "");
        let used_in = rustix::fs::readlinkat(&home, BOOT, Vec::new()).unwrap_or_default();
        let is_same = used_in.as_bytes() == boot.as_bytes();
        if openat2(&home, MARK, PLACE, Mode::empty(), BENEATH).is_ok() {
            if is_same {
                // All that was written is in the kernel's memory, or on the disk.
                gone(rustix::fs::unlinkat(&home, MARKED, AtFlags::empty())).trying(&what)?;
                rustix::fs::unlinkat(&home, MARK, AtFlags::REMOVEDIR).trying(&what)?;
            } else {
                renew(mounter, wanted, &home, &boot).trying(&what)?;
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

/// Begins a layer anew. The mark goes last: killed before, it is done again.
fn renew(mounter: &Mounter, wanted: &Mount, home: &OwnedFd, boot: &str) -> Result<(), Errno> {
    let bits = u128::from_str_radix(boot, 16).unwrap_or_default() ^ wanted.id.bits();
    let discard = |name: &str, bits: u128| {
        let (trash, as_what) = (&mounter.places.trash, Id::from_bits(bits).to_string());
        gone(rustix::fs::renameat_with(home, name, trash, as_what, RenameFlags::NOREPLACE))
    };
    discard("data", bits)?;
    let data = make_and_open(home, "data", BENEATH)?;
    if let Storage::Directory(Directory { owner, .. }) = wanted.storage {
        own(&data, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode))?;
    }
    discard("work", !bits)?;
    mounter.discarded.set(true);
    Ok(())
}

/// What is not there is gone already.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    result.or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })
}
