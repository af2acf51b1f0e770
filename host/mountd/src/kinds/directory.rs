//! A directory of the volume's own, `volumes/ID/data`: made, opened, and shown at the mountpoint. Read-only, it is an overlay without an
//! upper layer: that refuses writes whatever an engine's remount says.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, openat2};
use rustix::io::Errno;
use rustix::mount::open_tree;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Directory, Fault, FaultKind, Id, IdMap, Storage};

use super::{Assembled, Shows, id_map, quota};
use crate::anchor::{CLONE, create};
use crate::attach::tag;
use crate::fault::{Context, text};
use crate::mounter::{Mounter, Place};
use crate::places::{BENEATH, DIRECTORY, PLACE, Places, make_and_open, own};
use crate::storage::open_subpath;

pub(super) fn make(places: &Places, id: Id, wanted: &Directory) -> Result<Vec<OwnedFd>, Fault> {
    let what = format_args!("make the directory of volume `{id}`");
    if wanted.limit.is_some() {
        quota::check_parent(&places.volumes, &places.state)?;
    }
    let outer = make_and_open(&places.volumes, &id.to_string(), BENEATH).trying(what)?;
    let data = make_and_open(&outer, "data", BENEATH).trying(what)?;
    // Before the owner is set: what syncs that syncs this, too.
    limit(places, id, wanted.limit)?;
    let owner = wanted.owner;
    own(&data, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
    Ok(vec![data, outer])
}

/// Sets the limit of a volume's directory, if it has one.
pub(super) fn limit(places: &Places, id: Id, limit: Option<u64>) -> Result<(), Fault> {
    let Some(bytes) = limit else { return Ok(()) };
    let data = openat2(&places.volumes, format!("{id}/data"), DIRECTORY, Mode::empty(), BENEATH)
        .trying(format_args!("open the directory of volume `{id}`"))?;
    quota::check(&data, &places.state)?;
    quota::limit(&data, id, bytes)
}

/// Opens a volume's directory.
pub(super) fn open(places: &Places, id: Id) -> Result<OwnedFd, Fault> {
    openat2(&places.volumes, format!("{id}/data"), PLACE, Mode::empty(), BENEATH)
        .trying(format_args!("open the directory of volume `{id}`"))
}

pub(super) fn assemble(mounter: &Mounter, wanted: &Mount) -> Result<Assembled, Fault> {
    let directory = open(&mounter.places, wanted.id)?;
    if let Storage::Directory(Directory { limit: bytes, .. }) = wanted.storage {
        // Quotas may have been turned off since, or the data come from another machine.
        limit(&mounter.places, wanted.id, bytes)?;
    }
    let subpath = wanted.plan.subpath.as_deref();
    let directory = match subpath {
        None => directory,
        Some(subpath) => open_subpath(&directory, subpath)?,
    };
    let root = mounter.store.data(wanted.id, subpath);
    show(mounter, wanted, &directory, || Ok(mounter.store.at(root)))
}

pub(super) fn is_it(mounter: &Mounter, wanted: &Mount, line: &Entry<'_>) -> bool {
    let root = mounter.store.data(wanted.id, wanted.plan.subpath.as_deref());
    line.device == mounter.store.device && line.root == root
}

/// Shows a directory at the mountpoint. `place` tells where it lies.
pub(super) fn show(
    mounter: &Mounter,
    wanted: &Mount,
    directory: &OwnedFd,
    place: impl FnOnce() -> Result<Place, Fault>,
) -> Result<Assembled, Fault> {
    if wanted.plan.read_only {
        let directory = layer(directory, wanted.plan.id_map.as_ref())?;
        return frozen(mounter, wanted.id, [&directory]);
    }
    let what = format_args!("clone the directory of `{}`", wanted.id);
    let tree = open_tree(directory, "", CLONE).trying(what)?;
    Ok(Assembled { tree, shows: Shows::Place(place()?) })
}

/// An overlay without an upper layer. It needs two lower ones: the last is always empty.
pub(super) fn frozen<'a>(
    mounter: &'a Mounter,
    id: Id,
    lower: impl IntoIterator<Item = &'a OwnedFd>,
) -> Result<Assembled, Fault> {
    let layers = lower.into_iter().chain([&mounter.places.empty]);
    let options = [("source", tag(id)), ("lowerdir", joined(layers))];
    let tree = overlay(&options, true)?;
    Ok(Assembled { tree, shows: Shows::Own("overlay") })
}

/// Makes an overlay.
pub(super) fn overlay(options: &[(&str, String)], read_only: bool) -> Result<OwnedFd, Fault> {
    create("overlay", options, read_only).map_err(|(errno, words)| match errno {
        // So overlayfs calls it.
        Errno::LOOP => {
            let why = "of the directories below, one is there twice or lies in another";
            Fault::new(FaultKind::Invalid, format!("{why}: name them apart"))
        }
        errno => {
            let why = text(errno);
            Fault::new(FaultKind::Failed, format!("cannot make an overlay: {why}{words}"))
        }
    })
}

/// Opened directories as overlayfs is told them: whatever their paths are, and whoever renames them meanwhile.
pub(super) fn joined<'a>(layers: impl IntoIterator<Item = &'a OwnedFd>) -> String {
    let path = |layer: &OwnedFd| format!("/proc/self/fd/{}", layer.as_raw_fd());
    layers.into_iter().map(path).collect::<Vec<_>>().join(":")
}

/// A directory as a layer of an overlay: an overlay's own ids cannot be mapped, so its layers' are. Linux 6.15 takes such a layer.
pub(super) fn layer(directory: &OwnedFd, map: Option<&IdMap>) -> Result<OwnedFd, Fault> {
    let Some(map) = map else { return directory.try_clone().trying("use a directory as a layer") };
    let tree = open_tree(directory, "", CLONE).trying("clone a layer")?;
    id_map::apply(&tree, map).map(|()| tree)
}
