//! Storage beneath the state directory: moved into the trash, opened for a mount, listed. What it is made of is its kind's.
//!
//! No path inside a volume is ever resolved here but a subpath, and that beneath it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Bound;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::{PAGE, STRANGERS_MAX};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Facts, Fault, FaultKind, Id, Reply};

use crate::fault::{Context, fault};
use crate::places::{BENEATH, PLACE, Places};

/// Most bytes of the entries of one page: with the strangers and the last entry's root they fit a frame.
const PAGE_BYTES: usize = 40 * 1024;

impl Places {
    /// Moves a volume's storage into the trash, if there is any.
    pub(crate) fn discard(&self, id: Id) -> Result<(), Fault> {
        let (name, flags) = (id.to_string(), RenameFlags::NOREPLACE);
        match rustix::fs::renameat_with(&self.volumes, &name, &self.trash, &name, flags) {
            Err(Errno::NOENT) => Ok(()),
            other => other.trying(format_args!("move volume `{id}` into the trash")),
        }
    }
}

/// Opens a directory inside a volume's source.
pub(crate) fn open_subpath(directory: &OwnedFd, subpath: &str) -> Result<OwnedFd, Fault> {
    let shown = Quoted::new(subpath);
    open_beneath(directory, subpath, BENEATH, format_args!("open subpath {shown}"))
}

/// Opens a directory beneath another; nothing on the way is followed. `what` is tried.
pub(crate) fn open_beneath(
    directory: &OwnedFd,
    path: &str,
    resolve: ResolveFlags,
    what: impl Display,
) -> Result<OwnedFd, Fault> {
    // Without NOFOLLOW the kernel says that it met a link.
    let flags = PLACE.difference(OFlags::NOFOLLOW);
    match openat2(directory, path, flags, Mode::empty(), resolve) {
        Err(Errno::LOOP | Errno::XDEV) => {
            let why = "it leads over a link or a mount: use a directory";
            fault(FaultKind::Denied, format!("cannot {what}: {why}"))
        }
        other => other.trying(what),
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync(directory: &OwnedFd, name: &str) -> Result<(), Fault> {
    rustix::fs::fsync(directory).trying(format_args!("sync `{name}`"))
}

/// One page of a survey; the strangers come with the first.
pub(crate) fn page(
    found: &BTreeMap<Id, Option<Facts>>,
    strangers: BTreeSet<String>,
    after: Option<Id>,
) -> Reply {
    let first = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = found.range((first, Bound::Unbounded)).peekable();
    // An id has at most 19 bytes, the numbers of its facts 30.
    let size = |facts: &Facts| 30 + facts.root.len() + facts.filesystem.len();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while entries.len() < PAGE
        && bytes < PAGE_BYTES
        && let Some((id, facts)) = rest.next()
    {
        bytes += 20 + facts.as_ref().map_or(0, size);
        entries.push((*id, facts.clone()));
    }
    let named = if after.is_none() { STRANGERS_MAX } else { 0 };
    let strangers = strangers.into_iter().take(named).collect();
    Reply::Surveyed { entries, strangers, more: rest.peek().is_some() }
}
