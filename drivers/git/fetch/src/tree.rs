//! The files of a commit, written into a directory. Names that a file system, or git itself, would take for something else are refused.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::budget::Budget;
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
/// The pack lacks something, or holds what cannot be a file here, or too much.
pub fn check_out<F: Read + Write + Seek>(
    objects: &mut Objects<F>,
    commit: Oid,
    directory: &Path,
) -> Result<Files, Error> {
    check_out_within(Budget::default(), objects, commit, directory)
}

fn check_out_within<F: Read + Write + Seek>(
    mut budget: Budget,
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
        // A copy: the objects have only two large buffers, and its files need both.
        let bytes = objects.bytes(tree, Kind::Tree)?.to_vec();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (mode, name, oid, after) = entry(rest)?;
            rest = after;
            check_name(name)?;
            let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            if path.len() > PATH_MAX {
                return Err(Error::Content(format!("a path has over {PATH_MAX} bytes")));
            }
            budget.entry()?;
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
                    objects.blob(oid, |piece| {
                        budget.bytes(piece.len())?;
                        Ok(file.write_all(piece)?)
                    })?;
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use sha1::{Digest, Sha1};

    use super::*;
    use crate::pack::index;

    /// A pack of whole objects, none of which zlib has made smaller, and the name of the last one.
    fn pack(objects: &[(u8, &str, &[u8])]) -> (Vec<u8>, Oid) {
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend((objects.len() as u32).to_be_bytes());
        let mut last = Oid([0; 20]);
        for (kind, name, content) in objects {
            pack.push((kind << 4) | 0x80 | (content.len() & 15) as u8);
            pack.push((content.len() >> 4) as u8);
            let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::none());
            zlib.write_all(content).unwrap();
            pack.extend(zlib.finish().unwrap());
            last = name_of(name, content);
        }
        let sum = Sha1::digest(&pack);
        pack.extend(sum);
        (pack, last)
    }

    fn name_of(kind: &str, content: &[u8]) -> Oid {
        let head = format!("{kind} {}\0", content.len());
        Oid(Sha1::digest([head.as_bytes(), content].concat()).into())
    }

    #[test]
    fn a_commit_may_hold_as_much_as_a_volume_and_no_more() {
        // One file of 100 bytes, ten times in a directory.
        let blob = [7; 100];
        let Oid(name) = name_of("blob", &blob);
        let files = (0..10).flat_map(|n| [format!("100644 {n}\0").as_bytes(), &name].concat());
        let files: Vec<u8> = files.collect();
        let Oid(directory) = name_of("tree", &files);
        let root = [b"40000 all\0".as_slice(), &directory].concat();
        let commit = format!("tree {}\n\na commit", name_of("tree", &root));
        let (bytes, commit) = pack(&[
            (3, "blob", &blob),
            (2, "tree", &files),
            (2, "tree", &root),
            (1, "commit", commit.as_bytes()),
        ]);
        let with = |bytes_left, entries_left| {
            let mut objects = index(Cursor::new(bytes.clone())).unwrap();
            let place = tempfile::tempdir().unwrap();
            let budget = Budget { bytes_left, entries_left };
            let files = check_out_within(budget, &mut objects, commit, place.path());
            files.map_err(|error| error.to_string())
        };
        assert_eq!(with(1000, 11), Ok(Files::default()));
        assert!(with(999, 11).unwrap_err().contains("more bytes"));
        assert!(with(1000, 10).unwrap_err().contains("more entries"));
    }
}
