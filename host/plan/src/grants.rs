//! Grants: what the operator lets a driver ask for, one a line in `grants.d/DRIVER`.
//!
//! The CLI, run as root, writes the file; daemon and mountd both read and parse it here. Directories beneath the state directory
//! and tmpfs need no grant.

use serde::{Deserialize, Serialize};

use crate::name::Quoted;
use crate::path::{PATH_MAX, is_plain, rest};
use crate::{Fault, FaultKind};

/// Most bytes of a grants file: two hundred lines with their comments. Who reads it stops one byte later.
pub const GRANTS_MAX: usize = 16 * 1024;

/// What one driver was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Mounts keep set-user-id bits.
    pub suid: bool,
    /// Mounts keep device nodes.
    pub dev: bool,
    /// Directories of the host; what is beneath each is granted with it.
    pub host_directories: Vec<String>,
}

impl Grants {
    /// Parses a grants file: one grant a line, `#` starts a comment.
    ///
    /// # Errors
    /// `Invalid` with the line that is no grant, or if the text is longer than [`GRANTS_MAX`].
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let invalid = |why| Fault::new(FaultKind::Invalid, why);
        if text.len() > GRANTS_MAX {
            return Err(invalid(format!("grants have over {GRANTS_MAX} bytes: shorten them")));
        }
        let mut grants = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = without_comment(line);
            let add = |why: &str| {
                invalid(format!("line {number}, {}, is no grant: {why}", Quoted::new(line)))
            };
            match line.split_once('=').unwrap_or((line, "")) {
                ("", "") => {}
                ("suid", "") => grants.suid = true,
                ("dev", "") => grants.dev = true,
                ("host-directory", path) if is_directory(path) => {
                    grants.host_directories.push(path.to_owned());
                }
                ("host-directory", _) => {
                    return Err(add("use an absolute path without `.`, `..` and `//`, not `/`"));
                }
                _ => return Err(add("use `suid`, `dev` or `host-directory=PATH`")),
            }
        }
        Ok(grants)
    }

    /// The granted root that a path is beneath, and what is left of the path, which is empty for the root itself.
    ///
    /// # Errors
    /// `Denied` names the grant to add.
    pub fn host_directory<'a>(&'a self, path: &'a str) -> Result<(&'a str, &'a str), Fault> {
        let found =
            self.host_directories.iter().find_map(|root| Some((root.as_str(), rest(root, path)?)));
        found.ok_or_else(|| {
            let path = Quoted::new(path);
            let cure = "load the driver again with `--grant host-directory=PATH` for it or a directory above it";
            Fault::new(FaultKind::Denied, format!("directory {path} of the host is not granted: {cure}"))
        })
    }
}

/// A `#` begins a comment where a word could begin: a path may hold one.
fn without_comment(line: &str) -> &str {
    let starts = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(starts);
    comment.map_or(line, |at| &line[..at]).trim()
}

/// All of the host is no directory to grant: who has it is root.
fn is_directory(path: &str) -> bool {
    path.len() <= PATH_MAX && path.strip_prefix('/').is_some_and(is_plain)
}
