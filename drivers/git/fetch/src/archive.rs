//! Archives: `.tar`, as it is or compressed by gzip, unpacked as it comes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path};

use flate2::bufread::MultiGzDecoder;
use tar::{Entry, EntryType};

use crate::budget::{Budget, copy};
use crate::{Error, Files};

/// The first bytes of what gzip has compressed.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Unpacks an archive into a directory, without the first `strip` names of each path: what has no more names than these is left out.
/// A later file of the same path takes the place of an earlier one.
///
/// # Errors
/// It is no archive or not whole, holds what is neither file, directory nor symlink, leads out of the directory, or has too much in it.
pub fn unpack(from: impl Read, strip: usize, directory: &Path) -> Result<Files, Error> {
    unpack_within(Budget::default(), from, strip, directory)
}

fn unpack_within(
    mut budget: Budget,
    from: impl Read,
    strip: usize,
    directory: &Path,
) -> Result<Files, Error> {
    let mut from = BufReader::new(from);
    let is_gzip = from.fill_buf().map_err(odd)?.starts_with(GZIP);
    let bytes: Box<dyn Read + '_> =
        if is_gzip { Box::new(MultiGzDecoder::new(from)) } else { Box::new(from) };
    let mut files = Files::default();
    let mut archive = tar::Archive::new(Watched { bytes, has_ended: false });
    for entry in archive.entries().map_err(odd)? {
        let entry = entry.map_err(odd)?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        if let Some(path) = inside(&entry.path().map_err(odd)?, strip)? {
            take(entry, path, directory, &mut files, &mut budget)?;
        }
    }
    let mut bytes = archive.into_inner();
    // Its last block is of zeros. Without one nobody knows what came after the last file.
    if bytes.has_ended {
        return Err(Error::Server("the archive is cut off: its end is missing".to_owned()));
    }
    // What is behind it is padding; gzip's checksum comes after that.
    io::copy(&mut bytes, &mut io::sink()).map_err(odd)?;
    Ok(files)
}

/// Bytes, and whether their end was met.
struct Watched<R> {
    bytes: R,
    has_ended: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        self.has_ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

fn take(
    mut entry: Entry<'_, impl Read>,
    path: String,
    directory: &Path,
    files: &mut Files,
    budget: &mut Budget,
) -> Result<(), Error> {
    let place = directory.join(&path);
    let kind = entry.header().entry_type();
    let is_directory = kind == EntryType::Directory;
    make_directories(if is_directory { Some(&place) } else { place.parent() }, budget)?;
    match kind {
        EntryType::Directory => {}
        EntryType::Regular | EntryType::Continuous => {
            budget.entry()?;
            let mut file = File::create(&place)?;
            copy(&mut entry, &mut file, budget, odd)?;
            if entry.header().mode().unwrap_or(0) & 0o111 != 0 {
                files.executables.push(path);
            }
        }
        EntryType::Symlink => {
            budget.entry()?;
            let target = entry.link_name().map_err(odd)?.unwrap_or_default();
            files.links.push((path, target.to_string_lossy().into_owned()));
        }
        _ => {
            return Err(Error::Content(format!(
                "the archive holds `{}`, which is no file, directory or symlink",
                path.escape_debug()
            )));
        }
    }
    Ok(())
}

/// Makes a directory and what is missing above it: one path may be of thousands.
fn make_directories(directory: Option<&Path>, budget: &mut Budget) -> Result<(), Error> {
    let missing = directory.into_iter().flat_map(Path::ancestors).take_while(|path| !path.is_dir());
    let missing: Vec<_> = missing.collect();
    for directory in missing.into_iter().rev() {
        budget.entry()?;
        fs::create_dir(directory)?;
    }
    Ok(())
}

/// A path in the directory; none where nothing is left of it.
fn inside(path: &Path, strip: usize) -> Result<Option<String>, Error> {
    let mut names: Vec<&str> = Vec::new();
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name.to_str(),
            Component::CurDir => continue,
            _ => None,
        };
        names.push(name.ok_or_else(|| {
            let shown = path.to_string_lossy();
            let why = "leads out of the volume, or is no text";
            Error::Content(format!("the archive holds `{}`: that {why}", shown.escape_debug()))
        })?);
    }
    let left = names.get(strip..).filter(|left| !left.is_empty());
    Ok(left.map(|left| left.join("/")))
}

fn odd(error: io::Error) -> Error {
    Error::Server(format!("the archive cannot be unpacked: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// An archive of files, with its end.
    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            // Not by `set_path`, which refuses some of these.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.append(&header, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The names that were unpacked.
    fn unpacked(bytes: &[u8], strip: usize, budget: Budget) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let unpacked = unpack_within(budget, bytes, strip, directory.path());
        unpacked.map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        let mut left = vec![directory.path().to_owned()];
        while let Some(next) = left.pop() {
            for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    left.push(path);
                } else {
                    let name = path.strip_prefix(directory.path()).unwrap();
                    found.push(name.to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    #[test]
    fn a_path_loses_its_first_names_and_one_that_leads_out_is_refused() {
        for (path, strip, left) in
            [("top/a/b", 1, Some("a/b")), ("./a", 0, Some("a")), ("top", 1, None), ("./", 0, None)]
        {
            assert_eq!(inside(Path::new(path), strip).unwrap().as_deref(), left, "{path}");
        }
        for (path, strip) in [("../a", 0), ("../a", 1), ("a/../../b", 0), ("/etc/passwd", 1)] {
            let error = inside(Path::new(path), strip).unwrap_err().to_string();
            assert!(error.contains(&format!("`{path}`")), "{error}");
        }
    }

    #[test]
    fn a_path_that_leads_out_is_not_left_out_in_silence() {
        for path in ["/etc/passwd", "../up", "a/../../b"] {
            let bytes = archive(&[("first", b"1"), (path, b"2")]);
            let error = unpacked(&bytes, 0, Budget::default()).unwrap_err();
            assert!(error.contains(&format!("`{path}`: that leads out")), "{error}");
        }
    }

    #[test]
    fn gzip_of_several_members_is_unpacked_whole() {
        let bytes = archive(&[("first", &[1; 3000]), ("second", &[2; 3000])]);
        let (one, two) = bytes.split_at(4096);
        let members = [gzip(one), gzip(two)].concat();
        assert_eq!(unpacked(&members, 0, Budget::default()).unwrap(), ["first", "second"]);
    }

    #[test]
    fn an_archive_that_is_damaged_or_cut_is_refused() {
        let whole = archive(&[("first", &[1; 3000]), ("second", &[2; 3000])]);
        assert!(unpacked(&whole, 0, Budget::default()).is_ok());
        // In the middle of a file, and after each of them: 512 for its head, 3072 for its blocks.
        for length in [100, 512, 2000, 3584, 3584 + 100, 7168] {
            for bytes in [whole[..length].to_vec(), gzip(&whole[..length])] {
                assert!(unpacked(&bytes, 0, Budget::default()).is_err(), "{length}");
            }
        }
        // As tar itself takes one with a warning.
        assert!(unpacked(&whole[..7168 + 512], 0, Budget::default()).is_ok());
        let packed = gzip(&whole);
        for at in packed.len() - 8..packed.len() {
            let mut bytes = packed.clone();
            bytes[at] ^= 1;
            assert!(unpacked(&bytes, 0, Budget::default()).is_err(), "byte {at}");
        }
        for length in [packed.len() - 1, packed.len() - 8, packed.len() - 9] {
            assert!(unpacked(&packed[..length], 0, Budget::default()).is_err(), "{length}");
        }
    }

    #[test]
    fn an_archive_may_hold_as_much_as_a_volume_and_no_more() {
        let bytes = archive(&[("a/b/c/file", &[1; 3000]), ("a/b/other", &[2; 3000])]);
        let with = |bytes_left, entries_left| Budget { bytes_left, entries_left };
        assert!(unpacked(&bytes, 0, with(6000, 5)).is_ok());
        assert!(unpacked(&bytes, 0, with(5999, 5)).unwrap_err().contains("bytes"));
        assert!(unpacked(&bytes, 0, with(6000, 4)).unwrap_err().contains("entries"));
    }
}
