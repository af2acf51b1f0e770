//! The reaper: empties the trash, in a child process of its own.
//!
//! It works on a clone of the trash that shows no mount but its own, so that it cannot reach what is mounted below. It never
//! descends: a directory that is not empty is moved up to the top of its volume and done later, so few files are open however deep
//! a container has built. Killed, it goes on where it was. What it cannot delete it reports and leaves.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, RenameFlags, openat, openat2, renameat_with, unlinkat};
use rustix::io::Errno;
use wasmvol_plan::Id;
use wasmvol_plan::name::Quoted;

use crate::anchor::CLONE;
use crate::kinds::{quota, subvolume};
use crate::places::{BENEATH, DIRECTORY};
use crate::scan::names;
use crate::{fault, say};

/// Stuck entries that are named of one volume.
const NAMED_MAX: u32 = 10;

/// One volume in the trash.
struct Volume<'a> {
    id: &'a str,
    top: OwnedFd,
    /// Entries of the top still to do; the last one first, so that few wait at a time.
    queue: Vec<String>,
    moved: u64,
    stuck: u32,
    /// Where subvolumes go that have others in them, if this is one in a volume: nothing else of it may be moved out.
    outer: Option<&'a OwnedFd>,
    raised: Vec<String>,
}

/// Empties the trash as far as it can; answers how many entries are stuck. Strangers are not touched.
pub(crate) fn run(trash: &OwnedFd) -> Result<u32, Errno> {
    let clone = rustix::mount::open_tree(trash, "", CLONE)?;
    let trash = openat(&clone, ".", DIRECTORY, Mode::empty())?;
    let mut stuck = 0;
    for id in names(&trash)?.iter().filter(|name| Id::parse(name).is_ok()) {
        stuck += reap(&trash, id).unwrap_or_else(|e| {
            report(id, c"", e);
            1
        });
    }
    Ok(stuck)
}

fn reap(trash: &OwnedFd, id: &str) -> Result<u32, Errno> {
    if let Ok(volume) = Id::parse(id) {
        quota::release(trash, id, volume);
    }
    if remove(trash, id)? {
        return Ok(0);
    }
    let top = openat2(trash, id, DIRECTORY, Mode::empty(), BENEATH)?;
    let stuck = empty(id, top)?;
    Ok(if remove(trash, id)? { 0 } else { stuck.max(1) })
}

/// Deletes all that is in a directory of a volume; answers how many entries are stuck.
pub(crate) fn empty(id: &str, top: OwnedFd) -> Result<u32, Errno> {
    let queue = names(&top)?;
    let (outer, raised) = (None, Vec::new());
    let mut volume = Volume { id, top, queue, moved: 0, stuck: 0, outer, raised };
    volume.empty();
    Ok(volume.stuck)
}

/// Removes a file or an empty directory; `false` if the directory is not empty.
fn remove(directory: &OwnedFd, name: impl rustix::path::Arg + Copy) -> Result<bool, Errno> {
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR) => unlinkat(directory, name, AtFlags::empty()).map(|()| true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Moves an entry up to a top, under a name that is free there, and answers the name.
fn raise(
    from: &OwnedFd,
    name: impl rustix::path::Arg + Copy,
    top: &OwnedFd,
    moved: &mut u64,
) -> Result<String, Errno> {
    loop {
        *moved += 1;
        let up = format!(".reap-{moved}");
        match renameat_with(from, name, top, &up, RenameFlags::NOREPLACE) {
            // Left by a run that was killed.
            Err(Errno::EXIST) => {}
            done => return done.map(|()| up),
        }
    }
}

fn report(id: &str, name: &CStr, errno: Errno) {
    let (name, why) = (Quoted::new(&name.to_string_lossy()), fault::text(errno));
    say(format_args!("cannot delete {name} of volume `{id}`: {why}; it is tried again"));
}

impl Volume<'_> {
    fn empty(&mut self) {
        while let Some(name) = self.queue.pop() {
            if let Err(e) = self.delete(&name) {
                self.keep(c"", e);
            }
        }
    }

    /// Deletes a subvolume. The kernel does that at once, unless a container has made others in it: then they go first, each by
    /// itself, and come to the top of the volume where they have others in turn.
    fn delete_subvolume(&mut self, name: &str, top: OwnedFd) -> Result<(), Errno> {
        if subvolume::destroy(&self.top, name)? {
            return Ok(());
        }
        if let Some(outer) = self.outer {
            let up = raise(&self.top, name, outer, &mut self.moved)?;
            self.raised.push(up);
            return Ok(());
        }
        let (queue, outer, raised) = (names(&top)?, Some(&self.top), Vec::new());
        let mut inner =
            Volume { id: self.id, top, queue, moved: self.moved, stuck: 0, outer, raised };
        inner.empty();
        let Volume { moved, stuck, raised, .. } = inner;
        (self.moved, self.stuck) = (moved, self.stuck + stuck);
        if !subvolume::destroy(&self.top, name)? && stuck == 0 {
            self.queue.push(name.to_owned());
        }
        self.queue.extend(raised);
        Ok(())
    }

    /// Deletes one entry of the top; directories inside that are not empty come to the top and into the queue.
    fn delete(&mut self, name: &str) -> Result<(), Errno> {
        if remove(&self.top, name)? {
            return Ok(());
        }
        let directory = openat2(&self.top, name, DIRECTORY, Mode::empty(), BENEATH)?;
        if subvolume::is_root(&directory)? {
            return self.delete_subvolume(name, directory);
        }
        let (mut progress, before) = (false, self.stuck);
        let mut entries = Dir::read_from(&directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let inner = entry.file_name();
            if matches!(inner.to_bytes(), b"." | b"..") {
                continue;
            }
            match self.clear(&directory, inner) {
                Ok(()) => progress = true,
                Err(e) => self.keep(inner, e),
            }
        }
        // A file system may leave entries out while others are deleted; what is stuck was reported.
        if !remove(&self.top, name)? && self.stuck == before {
            self.queue.extend(progress.then(|| name.to_owned()));
        }
        Ok(())
    }

    /// Takes one entry out of a directory: deletes it, or moves it to the top.
    fn clear(&mut self, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        if !remove(directory, name)? {
            let up = raise(directory, name, &self.top, &mut self.moved)?;
            self.queue.push(up);
        }
        Ok(())
    }

    fn keep(&mut self, name: &CStr, errno: Errno) {
        self.stuck += 1;
        if self.stuck <= NAMED_MAX {
            report(self.id, name, errno);
        }
    }
}
