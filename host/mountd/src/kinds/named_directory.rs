//! Named directories: made beneath a granted root with a marker beside, listed by their markers, moved into the root's own trash.
//!
//! Every step may be the last one, and another host may be at the same root: a directory comes whole or not at all, of two hosts one
//! wins the name, and nothing is moved away but what a marker with its id and its inode says is ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat2, renameat_with, unlinkat};
use rustix::io::Errno;
use wasmvol_plan::frame::Mark;
use wasmvol_plan::kinds::named_directory::{MARKER_MAX, MARKS, Marking, TRASH};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{
    DriverName, Fault, FaultKind, Grants, HostDirectory, Id, NamedDirectory, Owner, Reply, Storage,
    VolumeName,
};

use super::host_directory::{self, INSIDE, refuse_own};
use crate::fault::{Context, fault};
use crate::mounter::{Mounter, Place};
use crate::places::{BENEATH, DIRECTORY, PLACE, Places, make_and_open, own, path_of};
use crate::scan::{Target, names, parse};
use crate::{say, storage};

/// Who owns what is not a volume's.
const ROOTS: Owner = Owner { uid: 0, gid: 0, mode: 0o755 };
/// Most bytes of the markers of one page; the last one may go beyond it by a marker and a path.
const PAGE_BYTES: usize = 40 * 1024;

/// An opened root and its markers.
struct Root {
    top: OwnedFd,
    marks: OwnedFd,
    path: String,
}

/// What lies where a marker may be.
enum Found {
    Nothing,
    Marker(Marking, Vec<u8>),
    /// Whatever it is, we did not write it.
    Stranger,
}

impl Places {
    /// Opens a root and makes its directory of markers; none if there is neither and `make` is not said.
    fn open_root(&self, path: &str, make: bool) -> Result<Option<Root>, Fault> {
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
                own(&marks, ROOTS.uid, ROOTS.gid, Mode::from_raw_mode(ROOTS.mode)).trying(&what)?;
                marks
            }
            opened => opened.trying(format_args!("open the markers of {}", Quoted::new(path)))?,
        };
        Ok(Some(Root { top, marks, path: path.to_owned() }))
    }
}

impl Mounter {
    /// Makes a named directory and its marker, durably.
    pub(super) fn make_named(
        &self,
        id: Id,
        wanted: &NamedDirectory,
        note: &[u8],
        grants: &Grants,
    ) -> Result<(), Fault> {
        Storage::NamedDirectory(wanted.clone()).check(grants)?;
        let shown = Quoted::new(&wanted.path()).to_string();
        let what = format_args!("make the directory {shown}");
        let Some(root) = self.places.open_root(&wanted.root, true)? else { return Ok(()) };
        match root.read(&wanted.name)? {
            Found::Marker(there, _) if there.id == id && root.has(&there) => return root.sync(),
            Found::Nothing => {}
            // Killed before the directory was in its place.
            Found::Marker(there, _) if there.id == id => root.unmark(wanted.name.as_str())?,
            Found::Marker(there, _) => {
                let why = format!("{shown} is a volume already, made as {}", there.id);
                let cure = "create it once more to find it, or use another name";
                return fault(FaultKind::Busy, format!("{why}: {cure}"));
            }
            Found::Stranger => {
                let why = format!("the marker of {shown} is none that wasmvol wrote");
                return fault(FaultKind::Busy, format!("{why}: use another name"));
            }
        }
        let directory = wanted.directory.clone();
        if wanted.adopt {
            let place = HostDirectory { path: wanted.path(), make: Some(wanted.owner) };
            let place = host_directory::open(&self.places, &place, grants)?;
            let place = openat2(&place, ".", DIRECTORY, Mode::empty(), BENEATH).trying(what)?;
            storage::sync(&place, &shown)?;
            root.mark(&wanted.name, &Marking { id, inode: 0, directory }, note)?;
            return root.sync();
        }
        if exists(&root.top, &directory).trying(what)? {
            let cure = "use another name, or choose it as the volume's place to use it as it is";
            return fault(FaultKind::Busy, format!("{shown} is there and is no volume: {cure}"));
        }
        let coming = coming(id);
        let made = make_and_open(&root.marks, &coming, BENEATH).trying(what)?;
        let owner = wanted.owner;
        own(&made, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
        storage::sync(&made, &shown)?;
        let inode = rustix::fs::fstat(&made).trying(what)?.st_ino;
        self.kill.at("named.made");
        root.mark(&wanted.name, &Marking { id, inode, directory }, note)?;
        self.kill.at("named.marked");
        rename_new(&root.marks, &coming, &root.top, wanted.name.as_str()).trying(what)?;
        self.kill.at("named.moved");
        root.sync()
    }

    /// Moves a named directory into its root's trash and takes its marker away, durably. What is not marked as this volume's is left
    /// alone, and nothing there is done already.
    pub(super) fn discard_named(
        &self,
        id: Id,
        wanted: &NamedDirectory,
        grants: &Grants,
    ) -> Result<(), Fault> {
        Storage::NamedDirectory(wanted.clone()).check(grants)?;
        if self.anchor.mounted(id)?.is_some() {
            return fault(FaultKind::Busy, format!("volume `{id}` is mounted: unmount it"));
        }
        let shown = Quoted::new(&wanted.path()).to_string();
        let what = format_args!("move {shown} into the trash");
        let Some(root) = self.places.open_root(&wanted.root, false)? else { return Ok(()) };
        // Left by a Make that was killed: nobody has ever seen it.
        for (name, flags) in [(coming(id), AtFlags::REMOVEDIR), (writing(id), AtFlags::empty())] {
            match unlinkat(&root.marks, &name, flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                other => other.trying(what)?,
            }
        }
        let Found::Marker(there, _) = root.read(&wanted.name)? else { return root.sync() };
        if there.id != id || there.directory != wanted.directory {
            return root.sync();
        }
        if there.inode != 0 && root.has(&there) {
            let directory = openat2(&root.top, &there.directory, PLACE, Mode::empty(), BENEATH);
            self.refuse_held(&directory.trying(what)?)?;
            let trash = make_and_open(&root.top, TRASH, BENEATH).trying(what)?;
            own(&trash, 0, 0, Mode::RWXU).trying(what)?;
            rename_new(&root.top, &there.directory, &trash, &id.to_string()).trying(what)?;
            self.kill.at("named.trashed");
            storage::sync(&trash, "the trash of a granted root")?;
        } else if there.inode != 0 {
            say(format_args!(
                "{shown} is not the directory that was made for `{id}`: it is left alone"
            ));
        }
        root.unmark(wanted.name.as_str())?;
        self.kill.at("named.unmarked");
        root.sync()
    }

    /// Refuses while a container has a directory, also one whose engine has forgotten it.
    fn refuse_held(&self, directory: &OwnedFd) -> Result<(), Fault> {
        let text = self.processes.own_mounts()?;
        let Place { device, root, .. } = Place::of(directory, &parse(&text)?)?;
        let (root, lost, anchor) = (Some(root), None, self.anchor.device);
        let evidence = self.processes.scan(&Target { device, root, lost, anchor })?;
        match evidence.holders.first() {
            None if evidence.unknown == 0 => Ok(()),
            None => fault(
                FaultKind::Failed,
                format!("{} processes cannot be looked into", evidence.unknown),
            ),
            Some(holder) => {
                let (pid, path) = (holder.pid, &holder.path);
                fault(FaultKind::Failed, format!("process {pid} has it at `{path}`: end that one"))
            }
        }
    }

    /// One page of the markers beneath a driver's roots.
    pub(crate) fn marks(
        &self,
        driver: &DriverName,
        after: Option<(u32, VolumeName)>,
    ) -> Result<Reply, Fault> {
        let grants = self.grants(driver)?;
        let (first, mut last) = after.map_or((0, None), |(root, name)| (root, Some(name)));
        let (mut marks, mut bytes) = (Vec::new(), 0);
        for (number, path) in (0_u32..).zip(&grants.host_directories).skip(first as usize) {
            let Some(root) = self.places.open_root(path, false)? else { continue };
            let listed = names(&root.marks).trying(format_args!("list the markers of `{path}`"))?;
            let mut volumes: Vec<_> =
                listed.iter().filter_map(|name| VolumeName::parse(name).ok()).collect();
            volumes.sort();
            let after = last.take();
            for name in
                volumes.into_iter().filter(|name| after.as_ref().is_none_or(|after| name > after))
            {
                if bytes >= PAGE_BYTES {
                    let Some(Mark { name, .. }) = marks.last() else { break };
                    return Ok(Reply::Marked { next: Some((number, Clone::clone(name))), marks });
                }
                if let Found::Marker(marking, note) = root.read(&name)?
                    && root.has(&marking)
                {
                    let Marking { id, directory, .. } = marking;
                    bytes += note.len() + directory.len() + path.len() + name.as_str().len() + 40;
                    marks.push(Mark { root: path.clone(), name, id, directory, note });
                }
            }
        }
        Ok(Reply::Marked { marks, next: None })
    }

    /// The trash directories of all roots that are granted to anybody, where there are any.
    pub(crate) fn root_trashes(&self) -> Vec<String> {
        let drivers = names(&self.places.grants).unwrap_or_default();
        let grants = drivers.iter().filter_map(|name| {
            DriverName::parse(name).ok().and_then(|driver| self.grants(&driver).ok())
        });
        let mut roots: Vec<String> = grants.flat_map(|grants| grants.host_directories).collect();
        roots.sort();
        roots.dedup();
        roots
    }
}

impl Root {
    /// What lies where a volume's marker would be.
    fn read(&self, name: &VolumeName) -> Result<Found, Fault> {
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
    fn has(&self, marking: &Marking) -> bool {
        // Mounts of the operator's may lie on the way to a chosen place, and nowhere else.
        let resolve = if marking.inode == 0 { INSIDE } else { BENEATH };
        let opened = openat2(&self.top, &marking.directory, PLACE, Mode::empty(), resolve);
        let inode =
            opened.and_then(|directory| rustix::fs::fstat(&directory)).map(|stat| stat.st_ino);
        inode.is_ok_and(|inode| marking.inode == 0 || marking.inode == inode)
    }

    /// Writes a volume's marker; of two hosts one wins.
    fn mark(&self, name: &VolumeName, marking: &Marking, note: &[u8]) -> Result<(), Fault> {
        let what = format_args!("write the marker `{name}` of `{}`", self.path);
        let temporary = writing(marking.id);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let mut file =
            File::from(openat2(&self.marks, &temporary, flags, mode, BENEATH).trying(what)?);
        file.write_all(&marking.with(note)).and_then(|()| file.sync_all()).trying(what)?;
        rename_new(&self.marks, &temporary, &self.marks, name.as_str()).trying(what)
    }

    fn unmark(&self, name: &str) -> Result<(), Fault> {
        match unlinkat(&self.marks, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            other => other.trying(format_args!("take the marker `{name}` of `{}` away", self.path)),
        }
    }

    fn sync(&self) -> Result<(), Fault> {
        storage::sync(&self.marks, "the markers of a granted root")?;
        storage::sync(&self.top, "a granted root")
    }
}

/// What becomes a volume's directory. No volume's name begins so.
fn coming(id: Id) -> String {
    format!(".new-{id}")
}

/// What becomes a volume's marker.
fn writing(id: Id) -> String {
    format!(".mark-{id}")
}

fn exists(directory: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Renames to a name that must be free. NFS has no such call: there a file is linked, which fails where there is one, and of a
/// directory only an empty one could be replaced.
fn rename_new(from: impl AsFd, old: &str, to: &OwnedFd, new: &str) -> Result<(), Errno> {
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
        Err(Errno::PERM) => rustix::fs::renameat(&from, old, to, new),
        Err(e) => Err(e),
    }
}
