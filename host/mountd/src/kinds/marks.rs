//! The markers of a granted root: opened, read, written so that of two hosts one wins, taken away.
//!
//! What `named_directory` does stands on this. What lies among the markers and is none is never touched.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat2, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use wasmvol_plan::kinds::named_directory::{MARKER_MAX, MARKS, Marking};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, Id, VolumeName};

use super::host_directory::{INSIDE, refuse_own};
use crate::fault::Context;
use crate::places::{BENEATH, DIRECTORY, PLACE, Places, make_and_open, own, path_of};
use crate::storage;

/// An opened root and its markers.
pub(super) struct Root {
    pub(super) top: OwnedFd,
    pub(super) marks: OwnedFd,
    path: String,
}

/// What lies where a marker may be.
pub(super) enum Found {
    Nothing,
    Marker(Marking, Vec<u8>),
    /// Whatever it is, we did not write it.
    Stranger,
}

impl Places {
    /// Opens a root and makes its directory of markers; none if there is neither and `make` is not said.
    pub(super) fn open_root(&self, path: &str, make: bool) -> Result<Option<Root>, Fault> {
        let what = format!("open the granted root {}", Quoted::new(path));
        // The root is the operator's word, and may be a link.
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let top = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) if !make => return Ok(None),
            opened => opened.trying(&what)?,
        };
        refuse_own(self, &path_of(&top)?)?;
        let marks = match openat2(&top, MARKS, DIRECTORY, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) if !make => return Ok(None),
            Err(Errno::NOENT) => {
                let marks = make_and_open(&top, MARKS, BENEATH).trying(&what)?;
                own(&marks, 0, 0, Mode::from_raw_mode(0o755)).trying(&what)?;
                marks
            }
            opened => opened.trying(format_args!("open the markers of {}", Quoted::new(path)))?,
        };
        Ok(Some(Root { top, marks, path: path.to_owned() }))
    }
}

impl Root {
    /// What lies where a volume's marker would be.
    pub(super) fn read(&self, name: &VolumeName) -> Result<Found, Fault> {
        let what = format_args!("read the marker `{name}` of `{}`", self.path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat2(&self.marks, name.as_str(), flags, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::LOOP | Errno::XDEV) => return Ok(Found::Stranger),
            opened => File::from(opened.trying(what)?),
        };
        if !file.metadata().trying(what)?.is_file() {
            return Ok(Found::Stranger);
        }
        let mut bytes = Vec::new();
        file.take(MARKER_MAX as u64 + 1).read_to_end(&mut bytes).trying(what)?;
        let marker = Some(&bytes).filter(|bytes| bytes.len() <= MARKER_MAX);
        Ok(marker
            .and_then(|bytes| Marking::parse(bytes))
            .map_or(Found::Stranger, |(marking, note)| Found::Marker(marking, note.to_vec())))
    }

    /// Whether the directory of a marker is there, and the one that was made for it.
    pub(super) fn has(&self, marking: &Marking) -> bool {
        // Mounts of the operator's may lie on the way to a chosen place, and nowhere else.
        let resolve = if marking.inode == 0 { INSIDE } else { BENEATH };
        let opened = openat2(&self.top, &marking.directory, PLACE, Mode::empty(), resolve);
        let inode =
            opened.and_then(|directory| rustix::fs::fstat(&directory)).map(|stat| stat.st_ino);
        inode.is_ok_and(|inode| marking.inode == 0 || marking.inode == inode)
    }

    /// Writes a volume's marker; of two hosts one wins.
    pub(super) fn mark(
        &self,
        name: &VolumeName,
        marking: &Marking,
        note: &[u8],
    ) -> Result<(), Fault> {
        let temporary = self.write(name, marking, note)?;
        rename_new(&self.marks, &temporary, &self.marks, name.as_str()).trying(self.writing(name))
    }

    /// Writes another marker in the place of a volume's own.
    pub(super) fn mark_again(
        &self,
        name: &VolumeName,
        marking: &Marking,
        note: &[u8],
    ) -> Result<(), Fault> {
        let temporary = self.write(name, marking, note)?;
        renameat(&self.marks, &temporary, &self.marks, name.as_str()).trying(self.writing(name))
    }

    /// What becomes a marker, durably; answers where.
    fn write(&self, name: &VolumeName, marking: &Marking, note: &[u8]) -> Result<String, Fault> {
        let what = self.writing(name);
        let temporary = writing(marking.id);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let mut file =
            File::from(openat2(&self.marks, &temporary, flags, mode, BENEATH).trying(&what)?);
        file.write_all(&marking.with(note)).and_then(|()| file.sync_all()).trying(&what)?;
        Ok(temporary)
    }

    /// What is tried, for an error.
    fn writing(&self, name: &VolumeName) -> String {
        format!("write the marker `{name}` of `{}`", self.path)
    }

    pub(super) fn unmark(&self, name: &str) -> Result<(), Fault> {
        match unlinkat(&self.marks, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            other => other.trying(format_args!("take the marker `{name}` of `{}` away", self.path)),
        }
    }

    pub(super) fn sync(&self) -> Result<(), Fault> {
        storage::sync(&self.marks, "the markers of a granted root")?;
        storage::sync(&self.top, "a granted root")
    }
}

/// What becomes a volume's directory. No volume's name begins so.
pub(super) fn coming(id: Id) -> String {
    format!(".new-{id}")
}

/// What becomes a volume's marker.
pub(super) fn writing(id: Id) -> String {
    format!(".mark-{id}")
}

pub(super) fn exists(directory: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Renames to a name that must be free. NFS has no such call: there a file is linked, which fails where there is one, and of a
/// directory only an empty one could be replaced.
pub(super) fn rename_new(from: impl AsFd, old: &str, to: &OwnedFd, new: &str) -> Result<(), Errno> {
    match renameat_with(&from, old, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL) => {}
        done => return done,
    }
    if exists(to, new)? {
        return Err(Errno::EXIST);
    }
    match rustix::fs::linkat(&from, old, to, new, AtFlags::empty()) {
        Ok(()) => unlinkat(&from, old, AtFlags::empty()),
        // It is a directory.
        Err(Errno::PERM) => renameat(&from, old, to, new),
        Err(e) => Err(e),
    }
}
