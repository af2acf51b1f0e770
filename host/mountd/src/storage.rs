//! Storage beneath the state directory: made, moved into the trash, listed. Everything durable before the answer.
//!
//! `volumes/ID/data` is a volume's directory. Nothing in it is ever resolved by path here but `data` itself.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use wasmvol_plan::frame::PAGE;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Facts, Fault, FaultKind, Id, Owner, Reply, Storage};

use crate::fault::{Context, fault};
use crate::places::{BENEATH, DIRECTORY, Places, own};
use crate::scan::names;

/// Most strangers that are named.
const STRANGERS_MAX: usize = 100;
/// Most bytes of the entries of one page, and of its strangers: together with the last entry's root they fit a frame.
const PAGE_BYTES: usize = 40 * 1024;
const STRANGERS_BYTES: usize = 16 * 1024;

impl Places {
    /// Makes one volume's storage; what has to be synced comes back.
    pub(crate) fn make(&self, id: Id, storage: &Storage) -> Result<Vec<OwnedFd>, Fault> {
        match storage {
            Storage::None => Ok(Vec::new()),
            Storage::Directory(directory) => self.make_directory(id, directory.owner),
        }
    }

    fn make_directory(&self, id: Id, owner: Owner) -> Result<Vec<OwnedFd>, Fault> {
        let what = || format!("make the directory of volume `{id}`");
        let name = id.to_string();
        let outer = make_and_open(&self.volumes, &name).trying(what)?;
        let data = make_and_open(&outer, "data").trying(what)?;
        own(&data, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
        Ok(vec![data, outer])
    }

    /// Moves a volume's storage into the trash; `false` if there is none.
    pub(crate) fn discard(&self, id: Id) -> Result<bool, Fault> {
        let name = id.to_string();
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.volumes, &name, &self.trash, &name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e).trying(|| format!("move volume `{id}` into the trash")),
        }
    }

    /// Opens a volume's directory, or one inside it.
    pub(crate) fn open_data(&self, id: Id, subpath: Option<&str>) -> Result<OwnedFd, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = match rustix::fs::openat2(
            &self.volumes,
            format!("{id}/data"),
            flags,
            Mode::empty(),
            BENEATH,
        ) {
            Err(Errno::NOENT) => {
                return fault(
                    FaultKind::Missing,
                    format!(
                        "the directory of volume `{id}` is gone: restore it, or remove the volume"
                    ),
                );
            }
            other => other.trying(|| format!("open the directory of volume `{id}`"))?,
        };
        let Some(subpath) = subpath else { return Ok(data) };
        let shown = Quoted::new(subpath);
        match rustix::fs::openat2(data, subpath, flags, Mode::empty(), BENEATH) {
            Err(Errno::LOOP) => fault(
                FaultKind::Denied,
                format!("subpath {shown} leads over a symbolic link: use a plain directory"),
            ),
            Err(Errno::XDEV) => fault(
                FaultKind::Denied,
                format!("subpath {shown} leads out of the volume: use a directory inside it"),
            ),
            other => other.trying(|| format!("open subpath {shown}")),
        }
    }
}

fn make_and_open(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), BENEATH)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync(directory: &OwnedFd, name: &str) -> Result<(), Fault> {
    rustix::fs::fsync(directory).trying(|| format!("sync `{name}`"))
}

/// One page of a survey: what lies in `directory`, told apart by `id_of`. Of mounts, `facts` has what is mounted; the rest is left
/// out.
pub(crate) fn page(
    directory: impl AsFd,
    id_of: impl Fn(&str) -> Option<Id>,
    facts: Option<&HashMap<Id, Facts>>,
    after: Option<Id>,
) -> Result<Reply, Fault> {
    let (mut ids, mut strangers) = (BTreeSet::new(), BTreeSet::new());
    for name in names(directory).trying(|| "list a directory".to_owned())? {
        match id_of(&name) {
            Some(id) if facts.is_none_or(|facts| facts.contains_key(&id)) => {
                ids.insert(id);
            }
            Some(_) => {}
            None if after.is_none() => {
                strangers.insert(Quoted::new(&name).to_string());
            }
            None => {}
        }
    }
    let first = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = ids.range((first, Bound::Unbounded)).peekable();
    let mut entries = Vec::new();
    let mut bytes = 0;
    while let Some(id) = rest.peek()
        && entries.len() < PAGE
        && bytes < PAGE_BYTES
    {
        let facts = facts.and_then(|facts| facts.get(id)).cloned();
        // An id has at most 19 bytes, the numbers of its facts 30.
        bytes +=
            20 + facts.as_ref().map_or(0, |facts| 30 + facts.root.len() + facts.filesystem.len());
        entries.push((**id, facts));
        rest.next();
    }
    let more = rest.peek().is_some();
    let mut room = STRANGERS_BYTES;
    let fits = |name: &String| {
        room = room.saturating_sub(name.len() + 2);
        room > 0
    };
    let strangers = strangers.into_iter().take(STRANGERS_MAX).take_while(fits).collect();
    Ok(Reply::Surveyed { entries, strangers, more })
}
