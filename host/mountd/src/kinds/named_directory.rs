//! Named directories: made beneath a granted root with a marker beside, listed by their markers, moved into the root's own trash.
//!
//! Every step may be the last one, and another host may be at the same root: a directory comes whole or not at all, of two hosts one
//! wins the name, and nothing is moved away but what a marker with its id and its inode says is ours.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat2, unlinkat};
use rustix::io::Errno;
use wasmvol_plan::kinds::named_directory::{Look, Mark, Marking, Page, TRASH};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{
    DriverName, Fault, FaultKind, Grants, HostDirectory, Id, NamedDirectory, Reply, Request,
    Storage, VolumeName,
};

use super::marks::{Found, coming, exists, rename_new, writing};
use super::{host_directory, quota};
use crate::fault::{Context, fault};
use crate::mounter::{Mounter, Place};
use crate::places::{BENEATH, DIRECTORY, PLACE, make_and_open, own};
use crate::scan::{Target, names, parse};
use crate::{reaper, say, storage};

/// Most bytes of the markers of one page; the last one may go beyond it by a marker and a path.
const PAGE_BYTES: usize = 40 * 1024;

/// The number of the child that reads a driver's markers: one works for a driver, and hangs with its roots alone. No minted id is
/// like it.
pub(super) fn id_of(driver: &DriverName) -> Id {
    Id::from_bits(driver.as_str().bytes().fold(0, |bits, byte| bits << 8 | u128::from(byte)))
}

/// Empties the trash of a granted root, if it has one; answers how many entries are stuck. What lies there under an id was moved there by
/// a wasmvol, on whatever host.
pub(crate) fn reap(root: &str) -> Result<u32, Errno> {
    let flags = PLACE.difference(OFlags::NOFOLLOW);
    let trash = rustix::fs::open(root, flags, Mode::empty())
        .and_then(|root| openat2(root, TRASH, DIRECTORY, Mode::empty(), BENEATH));
    match trash {
        Err(Errno::NOENT) => Ok(0),
        trash => reaper::run(&trash?),
    }
}

impl Mounter {
    /// Answers a request about named directories.
    pub(super) fn answer_named(&self, request: &Request) -> Result<Reply, Fault> {
        match request {
            Request::Make { id, driver, storage: Storage::NamedDirectory(wanted), note } => {
                self.make_named(*id, wanted, note, &self.grants(driver)?).map(|()| Reply::Made)
            }
            Request::Grow { id, driver, storage: Storage::NamedDirectory(wanted), note } => {
                self.grow_named(*id, wanted, note, &self.grants(driver)?).map(|()| Reply::Grown)
            }
            Request::Trash { id, driver, storage: Storage::NamedDirectory(wanted) } => {
                self.discard_named(*id, wanted, &self.grants(driver)?).map(|()| Reply::Trashed)
            }
            Request::Marks(wanted) => self.marks(wanted),
            _ => fault(FaultKind::Invalid, "this request needs no child"),
        }
    }

    /// Wakes the reaper: the child that has moved something into a root's trash could not.
    pub(super) fn was_discarded(&self, reply: Reply) -> Reply {
        self.discarded.set(true);
        reply
    }

    /// Makes a named directory and its marker, durably.
    fn make_named(
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
            // The marker first: where there is no room for it, no directory is made that nobody would delete.
            root.mark(&wanted.name, &Marking { id, inode: 0, directory }, note)?;
            let place = HostDirectory { path: wanted.path(), make: Some(wanted.owner) };
            let placed = host_directory::open(&self.places, &place, grants).and_then(|place| {
                let place = openat2(&place, ".", DIRECTORY, Mode::empty(), BENEATH).trying(what)?;
                storage::sync(&place, &shown)
            });
            if placed.is_err() {
                root.unmark(wanted.name.as_str())?;
            }
            return placed.and_then(|()| root.sync());
        }
        if exists(&root.top, &directory).trying(what)? {
            let cure = "use another name, or choose it as the volume's place to use it as it is";
            return fault(FaultKind::Busy, format!("{shown} is there and is no volume: {cure}"));
        }
        let coming = coming(id);
        if wanted.limit.is_some() {
            quota::check_parent(&root.top, &wanted.root)?;
        }
        let made = make_and_open(&root.marks, &coming, BENEATH).trying(what)?;
        if let Some(bytes) = wanted.limit {
            quota::limit(&made, id, bytes)?;
        }
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

    /// Gives a named directory another limit, and lets its marker say so, durably. May be repeated.
    fn grow_named(
        &self,
        id: Id,
        wanted: &NamedDirectory,
        note: &[u8],
        grants: &Grants,
    ) -> Result<(), Fault> {
        Storage::NamedDirectory(wanted.clone()).check(grants)?;
        let shown = Quoted::new(&wanted.path()).to_string();
        let found = self.places.open_root(&wanted.root, false)?;
        let found = found.map(|root| root.read(&wanted.name).map(|found| (root, found)));
        let (root, marking) = match found.transpose()? {
            Some((root, Found::Marker(there, _))) if there.id == id && root.has(&there) => {
                (root, there)
            }
            _ => {
                let why = format!("{shown} is not there, or is not the directory that was made");
                return fault(FaultKind::Missing, format!("{why} for this volume"));
            }
        };
        let place = openat2(&root.top, &marking.directory, DIRECTORY, Mode::empty(), BENEATH);
        let place = place.trying(format_args!("open the directory {shown}"))?;
        if let Some(bytes) = wanted.limit {
            quota::check(&place, &wanted.root)?;
            quota::limit(&place, id, bytes)?;
        }
        root.mark_again(&wanted.name, &marking, note)?;
        root.sync()
    }

    /// Moves a named directory into its root's trash and takes its marker away, durably. What is not marked as this volume's is left
    /// alone, and nothing there is done already.
    fn discard_named(&self, id: Id, wanted: &NamedDirectory, grants: &Grants) -> Result<(), Fault> {
        Storage::NamedDirectory(wanted.clone()).check(grants)?;
        if self.anchor.mounted(id)?.is_some() {
            return fault(FaultKind::Busy, format!("volume `{id}` is mounted: unmount it"));
        }
        let shown = Quoted::new(&wanted.path()).to_string();
        let what = format_args!("move {shown} into the trash");
        let Some(root) = self.places.open_root(&wanted.root, false)? else { return Ok(()) };
        // Left by a Make that was killed: nobody has ever seen it.
        quota::release(&root.marks, &coming(id), id);
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
    pub(crate) fn marks(&self, wanted: &Look) -> Result<Reply, Fault> {
        let grants = self.grants(&wanted.driver)?;
        let mut last = wanted.after.clone();
        let (mut marks, mut bytes) = (Vec::new(), 0);
        for (number, path) in (0_u32..).zip(&grants.host_directories) {
            if last.as_ref().is_some_and(|(root, _)| number < *root) {
                continue;
            }
            let Some(root) = self.places.open_root(path, false)? else { continue };
            let listed = names(&root.marks).trying(format_args!("list the markers of `{path}`"))?;
            let mut volumes: Vec<_> =
                listed.iter().filter_map(|name| VolumeName::parse(name).ok()).collect();
            volumes.sort();
            let was_seen = last.as_ref().filter(|(root, _)| *root == number).map(|(_, name)| name);
            let from = volumes.partition_point(|name| was_seen.is_some_and(|seen| name <= seen));
            for name in volumes.split_off(from) {
                if bytes >= PAGE_BYTES {
                    return Ok(Reply::Marked(Page { marks, next: last }));
                }
                last = Some((number, name.clone()));
                if let Found::Marker(marking, note) = root.read(&name)?
                    && root.has(&marking)
                {
                    let Marking { id, directory, .. } = marking;
                    bytes += note.len() + directory.len() + path.len() + name.as_str().len() + 40;
                    marks.push(Mark { root: path.clone(), name, id, directory, note });
                }
            }
        }
        Ok(Reply::Marked(Page { marks, next: None }))
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
