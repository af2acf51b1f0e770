//! Archives: `.tar`, as it is or compressed by gzip, unpacked as it comes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path};

use flate2::read::GzDecoder;
use tar::{Entry, EntryType};

use crate::{Error, Files};

/// The first bytes of what gzip has compressed.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Unpacks an archive into a directory, without the first `strip` names of each path. What leads out of it is left out; a later file
/// of the same path takes the place of an earlier one.
///
/// # Errors
/// It is no archive, or holds what is neither file, directory nor symlink.
pub fn unpack(from: impl Read, strip: usize, directory: &Path) -> Result<Files, Error> {
    let mut from = BufReader::new(from);
    let is_gzip = from.fill_buf().map_err(odd)?.starts_with(GZIP);
    let bytes: Box<dyn Read + '_> =
        if is_gzip { Box::new(GzDecoder::new(from)) } else { Box::new(from) };
    let (mut files, mut archive) = (Files::default(), tar::Archive::new(bytes));
    for entry in archive.entries().map_err(odd)? {
        let entry = entry.map_err(odd)?;
        let path = inside(&entry.path().map_err(odd)?, strip);
        if let Some(path) = path {
            take(entry, path, directory, &mut files)?;
        }
    }
    Ok(files)
}

fn take(
    mut entry: Entry<'_, impl Read>,
    path: String,
    directory: &Path,
    files: &mut Files,
) -> Result<(), Error> {
    let place = directory.join(&path);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    match entry.header().entry_type() {
        EntryType::Directory => fs::create_dir_all(&place)?,
        EntryType::Regular | EntryType::Continuous => {
            let mut file = File::create(&place)?;
            io::copy(&mut entry, &mut file).map_err(odd)?;
            if entry.header().mode().unwrap_or(0) & 0o111 != 0 {
                files.executables.push(path);
            }
        }
        EntryType::Symlink => {
            let target = entry.link_name().map_err(odd)?.unwrap_or_default();
            files.links.push((path, target.to_string_lossy().into_owned()));
        }
        EntryType::XGlobalHeader => {}
        _ => {
            return Err(Error::Content(format!(
                "the archive holds `{path}`, which is no file, directory or symlink"
            )));
        }
    }
    Ok(())
}

/// A path in the directory; none where nothing is left of it, or it would lead out.
fn inside(path: &Path, strip: usize) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    let left = names.get(strip..).filter(|left| !left.is_empty())?;
    Some(left.join("/"))
}

fn odd(error: io::Error) -> Error {
    Error::Server(format!("the archive cannot be unpacked: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_loses_its_first_names_and_never_leads_out() {
        for (path, strip, left) in [
            ("top/a/b", 1, Some("a/b")),
            ("./a", 0, Some("a")),
            ("top", 1, None),
            ("../a", 0, None),
            ("a/../../b", 0, None),
            ("/etc/passwd", 0, None),
        ] {
            assert_eq!(inside(Path::new(path), strip).as_deref(), left, "{path}");
        }
    }
}
