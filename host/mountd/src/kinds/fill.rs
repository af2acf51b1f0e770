//! A volume that does not start empty: the root of its new storage is handed out for its driver to fill, and what is in it afterwards is
//! looked through and taken over for the volume's owner.
//!
//! Called in a child. The daemon gets a mount that is attached nowhere and shows nothing else, so there is no way out of it, and no link
//! and no rename leads into it or out of it. It is looked through from the top down: each directory becomes root's before its entries are
//! read, so nobody changes them meanwhile. Nothing is opened but as a place until it is known what it is; then that very file is changed,
//! whatever its name leads to by now.

use std::ffi::CStr;
use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::open_tree;
use wasmvol_plan::name::escaped;
use wasmvol_plan::{DriverName, Fault, FaultKind, Id, Owner, Storage};

use super::{directory, image};
use crate::anchor::{CLONE, NONE};
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, own, path_of};
use crate::reaper;
use crate::sys::{Flags, Propagation, mount_setattr};

/// Most files, directories and symlinks that a driver fills in: more than a child can take over within its time on a slow disk.
const ENTRIES_MAX: u64 = 1_000_000;
/// Most directories in each other: a path has room for 2,000 of them, and each takes memory while those below it are looked through.
const LEVELS_MAX: usize = 16_000;
/// Most characters that are told of a path.
const PATH_TOLD: usize = 200;
/// What a directory and a program are opened to, and what another file is: a driver knows no modes.
const SEARCHED: u32 = 0o755;
const READ: u32 = 0o644;
/// What the daemon gets nothing of.
const NOTHING: Flags =
    Flags::MOUNT_ATTR_NOSUID.union(Flags::MOUNT_ATTR_NODEV).union(Flags::MOUNT_ATTR_NOEXEC);

impl Mounter {
    /// Empties a volume's storage, and gives its root to the daemon.
    pub(super) fn open_to_fill(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<OwnedFd, Fault> {
        let what = format_args!("open volume `{id}` to be filled");
        if self.anchor.mounted(id)?.is_some() || !self.scan(id, None)?.is_free() {
            return fault(FaultKind::Busy, format!("volume `{id}` is in use: it cannot be filled"));
        }
        let (tree, _) = self.to_be_filled(id, driver, storage)?;
        let root = seal(openat(&tree, ".", DIRECTORY, Mode::empty()).trying(what)?).trying(what)?;
        let again = root.try_clone().trying(what)?;
        if reaper::empty(&id.to_string(), again).trying(what)? > 0 {
            let why = "holds what cannot be deleted: see mountd's log";
            return fault(FaultKind::Failed, format!("volume `{id}` {why}"));
        }
        let (uid, gid) = self.places.daemon;
        own(&root, uid, gid, Mode::RWXU).trying(what)?;
        mount_setattr(&tree, NOTHING, NONE, Propagation::PRIVATE).trying(what)?;
        Ok(tree)
    }

    /// Takes over what was filled in, durably.
    pub(super) fn settle(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<(), Fault> {
        let what = format_args!("take over what volume `{id}` was filled with");
        let (tree, owner) = self.to_be_filled(id, driver, storage)?;
        let root = openat(&tree, ".", DIRECTORY, Mode::empty()).trying(what)?;
        let daemon = self.places.daemon.0;
        if rustix::fs::fstat(&root).trying(what)?.st_uid != daemon {
            return fault(FaultKind::Invalid, format!("volume `{id}` is not being filled"));
        }
        let root = Settling { daemon, owner, entries: 0 }.take_all(seal(root).trying(what)?)?;
        own(&root, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
        rustix::fs::syncfs(&root).trying(what)
    }

    /// A volume's whole storage, attached nowhere, and its owner.
    fn to_be_filled(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<(OwnedFd, Owner), Fault> {
        storage.check_fill()?;
        let clone = || {
            let what = format_args!("clone the directory of `{id}`");
            open_tree(directory::open(&self.places, id)?, "", CLONE).trying(what)
        };
        match storage {
            Storage::Image(wanted) => {
                Ok((image::tree(&self.places, id, driver, wanted)?, wanted.owner))
            }
            Storage::Directory(wanted) => Ok((clone()?, wanted.owner)),
            Storage::Subvolume(wanted) => Ok((clone()?, wanted.owner)),
            Storage::None | Storage::NamedDirectory(_) => {
                fault(FaultKind::Invalid, "nothing was made that could be filled")
            }
        }
    }
}

/// Makes a directory root's alone: from now on nobody else changes what is in it.
fn seal(directory: OwnedFd) -> Result<OwnedFd, Errno> {
    own(&directory, 0, 0, Mode::RWXU).map(|()| directory)
}

/// Which file an opened one is.
type Identity = (u64, u64);

fn identity(file: &OwnedFd) -> Result<Identity, Errno> {
    rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Looks through what was filled in, with few files open however deep it is.
struct Settling {
    /// Whose all of it must be: what anybody else owns came from elsewhere.
    daemon: u32,
    owner: Owner,
    entries: u64,
}

impl Settling {
    /// Takes over all that is beneath a sealed root.
    fn take_all(&mut self, root: OwnedFd) -> Result<OwnedFd, Fault> {
        // Directories that are not done, and where each goes on.
        let mut above: Vec<(Identity, i64)> = Vec::new();
        let (mut here, mut from) = (root, 0);
        loop {
            if let Some((inside, next)) = self.take(&here, from)? {
                if above.len() >= LEVELS_MAX {
                    let most = format!("more than {LEVELS_MAX} directories in each other");
                    return fault(FaultKind::Invalid, format!("what was filled in has {most}"));
                }
                above.push((identity(&here).trying("look at a directory")?, next));
                (here, from) = (inside, 0);
                continue;
            }
            let Some((outer, next)) = above.pop() else { return Ok(here) };
            let place = Inside(&here, c"..");
            let what = format_args!("go back to {place}");
            let up = openat(&here, "..", DIRECTORY, Mode::empty()).trying(what)?;
            if identity(&up).trying(what)? != outer {
                return fault(FaultKind::Failed, "what was filled in was moved meanwhile");
            }
            let Owner { uid, gid, .. } = self.owner;
            own(&here, uid, gid, Mode::from_raw_mode(SEARCHED)).trying(what)?;
            (here, from) = (up, next);
        }
    }

    /// Takes over the entries of a sealed directory from a place in it on, up to the next directory: that one is answered, sealed, with the
    /// place behind it.
    fn take(&mut self, here: &OwnedFd, from: i64) -> Result<Option<(OwnedFd, i64)>, Fault> {
        let place = Inside(here, c".");
        let what = format_args!("look through {place}");
        let mut entries = Dir::read_from(here).trying(what)?;
        entries.seek(from).trying(what)?;
        while let Some(entry) = entries.read() {
            let entry = entry.trying(what)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                let most = format!("more than {ENTRIES_MAX} files");
                return fault(FaultKind::Invalid, format!("what was filled in has {most}"));
            }
            if let Some(inside) = self.take_one(here, name)? {
                return Ok(Some((inside, entry.offset())));
            }
        }
        Ok(None)
    }

    /// Takes over one entry; a directory is only sealed, and answered.
    fn take_one(&self, here: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Fault> {
        let place = Inside(here, name);
        let what = format_args!("take over {place}");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat2(here, name, flags, Mode::empty(), BENEATH).trying(what)?;
        let stat = rustix::fs::fstat(&found).trying(what)?;
        if let Some(why) = self.refusal(&stat) {
            return fault(FaultKind::Invalid, format!("{place} {why}"));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let inside = openat(&found, ".", DIRECTORY, Mode::empty()).and_then(seal);
            return inside.map(Some).trying(what);
        }
        let Owner { uid, gid, .. } = self.owner;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&found, "", uid, gid, AtFlags::EMPTY_PATH).trying(what)?;
        if kind == FileType::RegularFile {
            // Only now, when the daemon can change it no more. What was opened as a place gets a mode by a path alone: this one is its own.
            let mode = if stat.st_mode & 0o111 == 0 { READ } else { SEARCHED };
            let path = format!("/proc/self/fd/{}", found.as_raw_fd());
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).trying(what)?;
        }
        Ok(None)
    }

    /// Why something is not taken over, if it is not.
    fn refusal(&self, stat: &Stat) -> Option<&'static str> {
        match FileType::from_raw_mode(stat.st_mode) {
            _ if stat.st_uid != self.daemon => Some("is nothing that its driver has made"),
            FileType::Directory => None,
            FileType::RegularFile | FileType::Symlink if stat.st_nlink == 1 => None,
            FileType::RegularFile | FileType::Symlink => {
                Some("has a second name: a driver writes it twice, or makes a symlink")
            }
            _ => Some("is no file, directory or symlink, which alone a driver may fill in"),
        }
    }
}

/// A path inside of the volume, as it may stand in a line. The kernel tells it of what is attached nowhere from its root on.
struct Inside<'a>(&'a OwnedFd, &'a CStr);

impl Display for Inside<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // One that is too long to be told is told by its end.
        let outer = path_of(self.0).unwrap_or_else(|_| "…".to_owned());
        let path = format!("{}/{}", outer.trim_end_matches('/'), self.1.to_string_lossy());
        let path = path.trim_matches('/').chars().flat_map(escaped).take(PATH_TOLD);
        write!(f, "`{}`", path.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES_MAX, LEVELS_MAX};
    use crate::kinds::wait::DEADLINE;

    #[test]
    fn the_guide_says_how_much_is_taken_over() {
        let guide = include_str!("../../../../guest-sdk/README.md");
        let what = "files that `populate` leaves; directories in each other; taking them over";
        let time = DEADLINE.as_secs();
        let row = format!("| {what} | {ENTRIES_MAX}; {LEVELS_MAX}; {time} s |");
        assert!(guide.contains(&row), "guest-sdk/README.md lacks this row:\n{row}");
    }
}
