//! A directory that is named by its volume, beneath a granted root that other hosts may share: `host-directory=ROOT` grants it.
//!
//! What mountd makes it marks: `ROOT/.wasmvol/NAME` says whose `ROOT/NAME` is. The marker lies beside the directory and not in it: a
//! container neither sees nor changes it, and what engines and images do with an empty volume they do with this one.

use serde::{Deserialize, Serialize};

use super::directory::check_limit;
use super::{denied, invalid};
use crate::grants::cure;
use crate::name::Quoted;
use crate::path::{PATH_MAX, is_plain};
use crate::{DriverName, Fault, Grants, Id, Owner, VolumeName};

/// The directory of a root that holds its markers.
pub const MARKS: &str = ".wasmvol";
/// The directory of a root that holds what waits to be deleted, each under its id.
pub const TRASH: &str = ".wasmvol-trash";
/// Most bytes of a marker: one block of a disk, one read.
pub const MARKER_MAX: usize = 4096;
/// Most bytes that the daemon may write into one; the rest is for the first line, whose path is as long as a root allows.
pub const NOTE_MAX: usize = 3072;
/// The word that a marker begins with.
const WORD: &str = "wasmvol";

/// A named directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedDirectory {
    /// A granted root, as the grant spells it.
    pub root: String,
    /// The volume's name.
    pub name: VolumeName,
    /// The volume's directory, relative to the root: its name, unless the user chose a place.
    pub directory: String,
    /// Its owner, where it is made.
    pub owner: Owner,
    /// The user chose the place: what is there already is used as it is, and nothing of it is ever deleted.
    pub adopt: bool,
    /// Most bytes it may hold: a project quota of the root's file system.
    #[serde(default)]
    pub limit: Option<u64>,
}

impl NamedDirectory {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        let Self { root, name, directory, adopt, limit, .. } = self;
        if !grants.host_directories.contains(root) {
            let root = Quoted::new(root);
            let cure = cure(grants.driver.as_ref(), "host-directory=PATH");
            return denied(format!("{root} is no granted root: use one that is, or {cure} for it"));
        }
        let hidden = |part: &str| part == MARKS || part == TRASH;
        if !is_plain(directory) || directory.split('/').any(hidden) {
            let directory = Quoted::new(directory);
            return invalid(format!(
                "directory {directory} is not allowed: use plain names, with `/` between"
            ));
        }
        if self.path().len() > PATH_MAX || directory.len() > MARKER_MAX - NOTE_MAX - 128 {
            return invalid("the path of the directory is too long: use a shorter one");
        }
        if !adopt && directory != name.as_str() {
            return invalid(format!("a directory that is made is named by its volume, `{name}`"));
        }
        if *adopt && limit.is_some() {
            return invalid("a place that was chosen is used as it is: leave its `size` out");
        }
        check_limit(*limit)?;
        self.owner.check()
    }

    /// Where it is.
    pub fn path(&self) -> String {
        format!("{}/{}", self.root, self.directory)
    }
}

/// A marker, and the root that it lies beneath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The granted root.
    pub root: String,
    /// The volume's name, as the marker's file has it.
    pub name: VolumeName,
    /// Whose the directory is.
    pub id: Id,
    /// Where it is, relative to the root.
    pub directory: String,
    /// What the daemon wrote that made it.
    pub note: Vec<u8>,
}

/// Which markers are asked for: those above `after`, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Whose roots.
    pub driver: DriverName,
    /// Number of the root in the operator's order, and the last name of the page before.
    pub after: Option<(u32, VolumeName)>,
}

/// Some markers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Those whose directories are there.
    pub marks: Vec<Mark>,
    /// What the next page comes after, if there is one.
    pub next: Option<(u32, VolumeName)>,
}

/// The first line of a marker: what mountd knows a directory by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marking {
    /// Whose the directory is.
    pub id: Id,
    /// The directory's inode, by which what took its place is told from it; 0 for one that is never deleted.
    pub inode: u64,
    /// Where it is, relative to the root.
    pub directory: String,
}

impl Marking {
    /// A marker's bytes.
    pub fn with(&self, note: &[u8]) -> Vec<u8> {
        let Self { id, inode, directory } = self;
        [format!("{WORD} {id} {inode} {directory}\n").as_bytes(), note, b"\n"].concat()
    }

    /// Reads a marker's bytes; answers its first line and what follows. None if it is no marker of this form: not ours to touch.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, note) = bytes.split_at_checked(end + 1)?;
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let mut words = line.splitn(4, ' ');
        if words.next()? != WORD {
            return None;
        }
        let id = Id::parse(words.next()?).ok()?;
        let inode = words.next()?.parse().ok()?;
        let directory = words.next().filter(|path| is_plain(path))?.to_owned();
        Some((Self { id, inode, directory }, note))
    }
}
