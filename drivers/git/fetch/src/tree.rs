//! The files of a commit, written into a directory. Names that a file system, or git itself, would take for something else are refused.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::pack::{Kind, Objects};
use crate::{Error, Oid};

/// Longest path of a file, in bytes, and deepest directory.
const PATH_MAX: usize = 4096;
/// Most bytes of a symlink.
const LINK_MAX: usize = 4096;

/// What was written beside files and directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Programs, by their paths in the directory.
    pub executables: Vec<String>,
    /// Links to be made: path and target.
    pub links: Vec<(String, String)>,
    /// Directories of other repositories, which stay empty.
    pub submodules: usize,
}

/// Writes the files of a commit, or of the commit that a tag names, into an empty directory. Links are told and not made: how that is
/// done is the caller's.
///
/// # Errors
/// The pack lacks something, or holds what cannot be a file here.
pub fn check_out<F: Read + Write + Seek>(
    objects: &mut Objects<F>,
    commit: Oid,
    directory: &Path,
) -> Result<Files, Error> {
    let commit = match objects.kind(commit)? {
        Kind::Tag => named(&objects.bytes(commit, Kind::Tag)?, "object ")?,
        _ => commit,
    };
    let root = named(&objects.bytes(commit, Kind::Commit)?, "tree ")?;
    let mut files = Files::default();
    let mut trees = vec![(String::new(), root)];
    while let Some((at, tree)) = trees.pop() {
        let bytes = objects.bytes(tree, Kind::Tree)?;
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let (mode, name, oid, after) = entry(rest)?;
            rest = after;
            check_name(name)?;
            let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            if path.len() > PATH_MAX {
                return Err(Error::Content(format!("a path has over {PATH_MAX} bytes")));
            }
            let place: PathBuf = directory.join(&path);
            match mode {
                "40000" => {
                    std::fs::create_dir(&place)?;
                    trees.push((path, oid));
                }
                "120000" => files.links.push((path, link(objects, oid)?)),
                "160000" => {
                    std::fs::create_dir(&place)?;
                    files.submodules += 1;
                }
                _ => {
                    let mut file = File::create_new(&place)?;
                    objects.blob(oid, |piece| Ok(file.write_all(piece)?))?;
                    if mode == "100755" {
                        files.executables.push(path);
                    }
                }
            }
        }
    }
    Ok(files)
}

fn link<F: Read + Write + Seek>(objects: &mut Objects<F>, oid: Oid) -> Result<String, Error> {
    let mut target = Vec::new();
    objects.blob(oid, |piece| {
        target.extend_from_slice(piece);
        match target.len() {
            0..=LINK_MAX => Ok(()),
            _ => Err(Error::Content(format!("a link has over {LINK_MAX} bytes"))),
        }
    })?;
    String::from_utf8(target).map_err(|_| Error::Content("a link is no text".to_owned()))
}

/// The object that a header of a commit or a tag names.
fn named(object: &[u8], header: &str) -> Result<Oid, Error> {
    let text = String::from_utf8_lossy(object);
    let line =
        text.lines().take_while(|line| !line.is_empty()).find_map(|l| l.strip_prefix(header));
    line.and_then(Oid::parse).ok_or_else(|| Error::Server("the commit cannot be read".to_owned()))
}

/// The first entry of a tree, and what comes after it.
fn entry(tree: &[u8]) -> Result<(&str, &str, Oid, &[u8]), Error> {
    let read = || {
        let end = tree.iter().position(|byte| *byte == 0)?;
        let (mode, name) = std::str::from_utf8(tree.get(..end)?).ok()?.split_once(' ')?;
        let oid = tree.get(end + 1..end + 21)?.try_into().ok()?;
        Some((mode, name, Oid(oid), tree.get(end + 21..)?))
    };
    read().ok_or_else(|| Error::Content("a directory has a name that is no text".to_owned()))
}

/// Refuses what is no name of a file, and what would be a repository.
fn check_name(name: &str) -> Result<(), Error> {
    let is_odd = matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
    if is_odd || name.eq_ignore_ascii_case(".git") {
        let shown = name.escape_debug();
        return Err(Error::Content(format!("the repository holds a file named `{shown}`")));
    }
    Ok(())
}
