//! The reaper: empties the trash, in a child process of its own.
//!
//! It works on a clone of the trash that shows no mount but its own, so that it cannot reach what is mounted below. It never
//! descends: a directory that is not empty is moved up into the trash and done later, so two files are open however deep a
//! container has built. Killed, it goes on where it was. What it cannot delete it reports and leaves.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, RenameFlags, openat, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;
use wasmvol_plan::Id;
use wasmvol_plan::name::Quoted;

use crate::anchor::CLONE;
use crate::places::{BENEATH, DIRECTORY};
use crate::{fault, say, scan};

/// How a directory that was moved up is called: this, the volume's id, a dash and a number.
const MOVED: &str = ".reap-";
/// Stuck entries that are named in one run.
const NAMED_MAX: u32 = 10;

struct Reaper {
    trash: OwnedFd,
    /// Entries of the trash still to do; the last one first, so that few wait at a time.
    queue: Vec<String>,
    moved: u64,
    stuck: u32,
}

/// The volume that an entry of the trash belongs to; none if it is a stranger.
pub(crate) fn volume_of(entry: &str) -> Option<Id> {
    let id = entry.strip_prefix(MOVED).and_then(|rest| rest.get(..32)).unwrap_or(entry);
    Id::parse(id).ok()
}

/// Empties the trash as far as it can; answers how many entries are stuck.
pub(crate) fn run(trash: &OwnedFd) -> Result<u32, Errno> {
    let clone = rustix::mount::open_tree(trash, "", CLONE)?;
    let trash = openat(&clone, ".", DIRECTORY, Mode::empty())?;
    let mut queue = scan::names(&trash)?;
    queue.retain(|name| volume_of(name).is_some());
    let mut reaper = Reaper { trash, queue, moved: 0, stuck: 0 };
    while let Some(name) = reaper.queue.pop() {
        if let Err(e) = reaper.delete(&name) {
            reaper.report(&name, c"", e);
        }
    }
    Ok(reaper.stuck)
}

impl Reaper {
    /// Deletes one entry of the trash; directories inside that are not empty come into the queue.
    fn delete(&mut self, name: &str) -> Result<(), Errno> {
        match unlinkat(&self.trash, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => return unlinkat(&self.trash, name, AtFlags::empty()),
            Err(Errno::NOTEMPTY) => {}
            other => return other,
        }
        let directory = openat2(&self.trash, name, DIRECTORY, Mode::empty(), BENEATH)?;
        let (mut progress, before) = (false, self.stuck);
        let mut entries = Dir::read_from(&directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let inner = entry.file_name();
            if matches!(inner.to_bytes(), b"." | b"..") {
                continue;
            }
            match self.clear(&directory, name, inner, entry.file_type()) {
                Ok(()) => progress = true,
                Err(e) => self.report(name, inner, e),
            }
        }
        match unlinkat(&self.trash, name, AtFlags::REMOVEDIR) {
            // What is stuck in it was reported already.
            Err(Errno::NOTEMPTY) if self.stuck > before => Ok(()),
            // A file system may leave entries out while others are deleted.
            Err(Errno::NOTEMPTY) if progress => {
                self.queue.push(name.to_owned());
                Ok(())
            }
            other => other,
        }
    }

    /// Takes one entry out of a directory: deletes it, or moves it up.
    fn clear(
        &mut self,
        directory: &OwnedFd,
        name: &str,
        inner: &CStr,
        kind: FileType,
    ) -> Result<(), Errno> {
        if kind != FileType::Directory {
            match unlinkat(directory, inner, AtFlags::empty()) {
                Err(Errno::ISDIR) => {}
                other => return other,
            }
        }
        match unlinkat(directory, inner, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {}
            other => return other,
        }
        let id = volume_of(name).ok_or(Errno::INVAL)?;
        loop {
            self.moved += 1;
            let up = format!("{MOVED}{id}-{}", self.moved);
            match renameat_with(directory, inner, &self.trash, &up, RenameFlags::NOREPLACE) {
                // Left by a run that was killed.
                Err(Errno::EXIST) => {}
                other => {
                    self.queue.extend(other.is_ok().then_some(up));
                    return other;
                }
            }
        }
    }

    fn report(&mut self, name: &str, inner: &CStr, errno: Errno) {
        self.stuck += 1;
        if self.stuck <= NAMED_MAX {
            let (inner, why) = (Quoted::new(&inner.to_string_lossy()), fault::text(errno));
            say(format_args!("cannot delete {inner} in `trash/{name}`: {why}; it is tried again"));
        }
    }
}
