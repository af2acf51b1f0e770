//! Directories of the host that an operator granted: opened beneath their granted root, made where a plan says so.
//!
//! The root is the operator's word and may be a link; beneath it nothing is followed, so that who may write there cannot lead a
//! mount elsewhere. What holds wasmvol's own directories is refused, whatever was granted: secrets lie there.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::path::rest;
use wasmvol_plan::{Fault, FaultKind, Grants, HostDirectory, NamedDirectory, Owner, Storage};

use super::{Assembled, directory, quota};
use crate::fault::{Context, fault};
use crate::mounter::{Mounter, Place};
use crate::places::{BENEATH, DIRECTORY, PLACE, Places, own, path_of};
use crate::scan::parse;
use crate::storage::{open_beneath, open_subpath};

/// Beneath a granted root; mounts of the operator's may lie there.
pub(super) const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Who owns the missing parents of a directory that is made.
const PARENT: Owner = Owner { uid: 0, gid: 0, mode: 0o755 };

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    directory: &HostDirectory,
    grants: &Grants,
) -> Result<Assembled, Fault> {
    let found = open(&mounter.places, directory, grants)?;
    if let Storage::NamedDirectory(NamedDirectory { limit: Some(bytes), root, .. }) =
        &wanted.storage
    {
        // Quotas may have been turned off since, or the data come from another disk.
        let place = openat2(&found, ".", DIRECTORY, Mode::empty(), BENEATH);
        let place = place.trying(format_args!("open the directory of volume `{}`", wanted.id))?;
        quota::check(&place, root)?;
        quota::limit(&place, wanted.id, *bytes)?;
    }
    let found = match &wanted.plan.subpath {
        None => found,
        Some(subpath) => open_subpath(&found, subpath)?,
    };
    directory::show(mounter, wanted, &found, || {
        let text = mounter.processes.own_mounts()?;
        Place::of(&found, &parse(&text)?)
    })
}

/// Opens a granted directory; makes it and its missing parents if the plan says so.
pub(super) fn open(
    places: &Places,
    wanted: &HostDirectory,
    grants: &Grants,
) -> Result<OwnedFd, Fault> {
    let (root, inside) = grants.host_directory(&wanted.path)?;
    let what = format!("open the host's directory {}", Quoted::new(&wanted.path));
    let flags = PLACE.difference(OFlags::NOFOLLOW);
    let root = rustix::fs::open(root, flags, Mode::empty()).trying(&what)?;
    // Before anything is made: nothing is followed from there on, so this is where it will be.
    let will_be = format!("{}/{inside}", path_of(&root)?.trim_end_matches('/'));
    refuse_own(places, will_be.trim_end_matches('/'))?;
    let place = descend(root, inside, wanted.make, &what)?;
    refuse_own(places, &path_of(&place)?)?;
    Ok(place)
}

/// Opens a directory beneath another; makes it and its missing parents if that is wanted. `what` is tried.
pub(super) fn descend(
    mut place: OwnedFd,
    inside: &str,
    wanted: Option<Owner>,
    what: &str,
) -> Result<OwnedFd, Fault> {
    let mut parts = inside.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let open = || open_beneath(&place, part, INSIDE, what);
        place = match (open(), wanted) {
            (Err(missing), Some(owner)) if missing.kind == FaultKind::Missing => {
                let owner = if parts.peek().is_some() { PARENT } else { owner };
                make(&place, part, owner).trying(what)?;
                open()?
            }
            (opened, _) => opened?,
        };
    }
    Ok(place)
}

/// Refuses a directory that holds one of ours, or lies in one.
pub(super) fn refuse_own(places: &Places, path: &str) -> Result<(), Fault> {
    for own in [&places.runtime, &places.state, &places.config] {
        if rest(own, path).is_some() || rest(path, own).is_some() || path == "/" {
            let why = "wasmvol keeps its own files there: use another directory";
            return fault(FaultKind::Denied, format!("{} is refused: {why}", Quoted::new(path)));
        }
    }
    Ok(())
}

fn make(parent: &OwnedFd, name: &str, owner: Owner) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        // Somebody else made it meanwhile, and it is theirs.
        Err(Errno::EXIST) => return Ok(()),
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat2(parent, name, flags, Mode::empty(), INSIDE)?;
    own(&made, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode))
}
