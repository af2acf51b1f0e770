//! Archives: `.tar`, as it is or compressed by gzip, unpacked as it comes.

use std::collections::{BTreeMap, BTreeSet};
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
/// A later entry takes the place of an earlier one of the same path. A hard link becomes a copy.
///
/// # Errors
/// It is no archive or not whole, holds what is neither file, directory nor link, leads out of the directory, or has too much in it.
pub fn unpack(from: impl Read, strip: usize, directory: &Path) -> Result<Files, Error> {
    unpack_within(Budget::default(), from, strip, directory)
}

fn unpack_within(
    budget: Budget,
    from: impl Read,
    strip: usize,
    directory: &Path,
) -> Result<Files, Error> {
    let mut from = BufReader::new(from);
    let is_gzip = from.fill_buf().map_err(odd)?.starts_with(GZIP);
    let bytes: Box<dyn Read + '_> =
        if is_gzip { Box::new(MultiGzDecoder::new(from)) } else { Box::new(from) };
    let (executables, links) = (BTreeSet::new(), BTreeMap::new());
    let mut unpacked = Unpacked { directory, strip, budget, executables, links };
    let mut archive = tar::Archive::new(Watched { bytes, has_ended: false });
    for entry in archive.entries().map_err(odd)? {
        unpacked.take(entry.map_err(odd)?)?;
    }
    let mut bytes = archive.into_inner();
    // Its last block is of zeros. Without one nobody knows what came after the last file.
    if bytes.has_ended {
        return Err(Error::Server("the archive is cut off: its end is missing".to_owned()));
    }
    // What is behind it is padding; gzip's checksum comes after that.
    io::copy(&mut bytes, &mut io::sink()).map_err(odd)?;
    Ok(Files {
        executables: unpacked.executables.into_iter().collect(),
        links: unpacked.links.into_iter().collect(),
        submodules: 0,
    })
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

/// What came out of the archive so far. Symlinks are made when all of it has: until then no path leads anywhere else.
struct Unpacked<'a> {
    directory: &'a Path,
    strip: usize,
    budget: Budget,
    executables: BTreeSet<String>,
    /// Targets by path.
    links: BTreeMap<String, String>,
}

impl Unpacked<'_> {
    fn take(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let Some(path) = inside(&entry.path().map_err(odd)?, self.strip)? else { return Ok(()) };
        match kind {
            EntryType::Directory => {
                self.clear(&path, true)?;
                self.make_directories(&path, &path)
            }
            EntryType::Regular | EntryType::Continuous => {
                let is_executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
                self.file(path, &mut entry, is_executable, odd)
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(odd)?.unwrap_or_default();
                self.symlink(path, target.to_string_lossy().into_owned())
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(odd)?.unwrap_or_default();
                let shown = target.to_string_lossy().escape_debug().to_string();
                self.hard_link(path, inside(&target, self.strip)?, &shown)
            }
            _ => Err(Error::Content(format!(
                "the archive holds `{}`, which is no file, directory or link",
                path.escape_debug()
            ))),
        }
    }

    fn file(
        &mut self,
        path: String,
        content: &mut impl Read,
        is_executable: bool,
        odd: impl Fn(io::Error) -> Error,
    ) -> Result<(), Error> {
        self.make_room(&path)?;
        let mut file = File::create_new(self.directory.join(&path))?;
        copy(content, &mut file, &mut self.budget, odd)?;
        if is_executable {
            self.executables.insert(path);
        }
        Ok(())
    }

    fn symlink(&mut self, path: String, target: String) -> Result<(), Error> {
        self.make_room(&path)?;
        self.links.insert(path, target);
        Ok(())
    }

    /// A second name of what an earlier entry made: `tar` writes one by itself. A volume may start with none, so it gets a copy.
    fn hard_link(&mut self, path: String, to: Option<String>, shown: &str) -> Result<(), Error> {
        let to = to.unwrap_or_default();
        if path == to {
            return Ok(());
        }
        if let Some(target) = self.links.get(&to) {
            return self.symlink(path, target.clone());
        }
        let place = self.directory.join(&to);
        if !place.is_file() {
            return Err(Error::Content(format!(
                "the archive holds `{}`, a hard link to `{shown}`, which is no file before it",
                path.escape_debug()
            )));
        }
        let is_executable = self.executables.contains(&to);
        self.file(path, &mut File::open(place)?, is_executable, Error::Io)
    }

    /// Makes a path free, and the directory that it lies in.
    fn make_room(&mut self, path: &str) -> Result<(), Error> {
        self.clear(path, false)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_directories(parent, path)?;
        }
        self.budget.entry()
    }

    /// Takes away what an earlier entry left at a path; a directory stays where another one comes.
    fn clear(&mut self, path: &str, is_directory: bool) -> Result<(), Error> {
        self.executables.remove(path);
        self.links.remove(path);
        let place = self.directory.join(path);
        let Ok(about) = fs::metadata(&place) else { return Ok(()) };
        if !about.is_dir() {
            return Ok(fs::remove_file(place)?);
        }
        if is_directory {
            return Ok(());
        }
        let below = format!("{path}/");
        let mut later = self.links.range(below.clone()..);
        if later.next().is_some_and(|(link, _)| link.starts_with(&below))
            || fs::read_dir(&place)?.next().is_some()
        {
            return Err(Error::Content(format!(
                "the archive holds `{}` as a directory with something in it, and as something else",
                path.escape_debug()
            )));
        }
        Ok(fs::remove_dir(place)?)
    }

    /// Makes a directory for `path` and what is missing above it: one path may be of thousands.
    fn make_directories(&mut self, directory: &str, path: &str) -> Result<(), Error> {
        let is_missing = |at: &&Path| !self.directory.join(at).is_dir();
        let missing: Vec<_> = Path::new(directory).ancestors().take_while(is_missing).collect();
        for at in missing.into_iter().rev() {
            let place = self.directory.join(at);
            if at.to_str().is_some_and(|at| self.links.contains_key(at)) || place.exists() {
                return Err(Error::Content(format!(
                    "the archive holds `{}` below `{}`, which is no directory",
                    path.escape_debug(),
                    at.to_string_lossy().escape_debug()
                )));
            }
            self.budget.entry()?;
            fs::create_dir(place)?;
        }
        Ok(())
    }
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
        Ok(names(directory.path()))
    }

    /// The files in a directory.
    fn names(directory: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![directory.to_owned()];
        while let Some(next) = left.pop() {
            for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    left.push(path);
                } else {
                    let name = path.strip_prefix(directory).unwrap();
                    found.push(name.to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
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

    /// What an entry is, beside its path.
    enum Kind {
        Plain(&'static str),
        Program(&'static str),
        Directory,
        Symlink(&'static str),
        HardLink(&'static str),
    }
    use Kind::{Directory, HardLink, Plain, Program, Symlink};

    type Entries<'a> = &'a [(&'a str, Kind)];

    /// An archive of entries of all kinds, unpacked: each file's path and content, and what is told beside.
    fn made(entries: Entries<'_>, strip: usize) -> Result<(Vec<String>, Files), String> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kind) in entries {
            let (entry_type, mode, text) = match kind {
                Plain(text) => (EntryType::Regular, 0o644, *text),
                Program(text) => (EntryType::Regular, 0o755, *text),
                Directory => (EntryType::Directory, 0o755, ""),
                Symlink(target) => (EntryType::Symlink, 0o777, *target),
                HardLink(target) => (EntryType::Link, 0o644, *target),
            };
            let mut header = tar::Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_entry_type(entry_type);
            header.set_mode(mode);
            let is_file = entry_type == EntryType::Regular;
            if !is_file && !text.is_empty() {
                header.set_link_name_literal(text).unwrap();
            }
            let content = if is_file { text.as_bytes() } else { b"" };
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.append(&header, content).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files = unpack(&*bytes, strip, directory.path()).map_err(|error| error.to_string())?;
        let read = |path: String| {
            let content = fs::read_to_string(directory.path().join(&path)).unwrap();
            format!("{path}={content}")
        };
        let names = names(directory.path()).into_iter().map(read);
        Ok((names.collect(), files))
    }

    fn told(executables: &[&str], links: &[(&str, &str)]) -> Files {
        let texts = |(path, target): &(&str, &str)| ((*path).to_owned(), (*target).to_owned());
        Files {
            executables: executables.iter().map(|path| (*path).to_owned()).collect(),
            links: links.iter().map(texts).collect(),
            submodules: 0,
        }
    }

    #[test]
    fn a_later_entry_takes_the_place_of_an_earlier_one_of_its_path() {
        let links: &[_] = &[("a", "b")];
        let cases: [(Entries<'_>, &[&str], Files); 9] = [
            (&[("a", Plain("old")), ("a", Plain("x"))], &["a=x"], told(&[], &[])),
            (&[("a", Program("old")), ("a", Plain("x"))], &["a=x"], told(&[], &[])),
            (&[("a", Plain("old")), ("a", Program("x"))], &["a=x"], told(&["a"], &[])),
            (&[("a", Program("old")), ("a", Symlink("b"))], &[], told(&[], links)),
            (&[("a", Symlink("old")), ("a", Symlink("b"))], &[], told(&[], links)),
            (&[("a", Symlink("old")), ("a", Plain("x"))], &["a=x"], told(&[], &[])),
            (&[("a", Directory), ("a", Directory), ("a", Symlink("b"))], &[], told(&[], links)),
            (
                &[("a", Symlink("old")), ("a", Directory), ("a/b", Plain("x"))],
                &["a/b=x"],
                told(&[], &[]),
            ),
            (
                &[("a", Program("old")), ("a", Directory), ("a/b", Plain("x"))],
                &["a/b=x"],
                told(&[], &[]),
            ),
        ];
        for (number, (entries, files, beside)) in cases.into_iter().enumerate() {
            let (found, told) = made(entries, 0).unwrap();
            assert_eq!(
                (found, told),
                (files.iter().map(|f| f.to_string()).collect(), beside),
                "{number}"
            );
        }
    }

    #[test]
    fn what_cannot_be_in_one_directory_together_is_refused_by_its_path() {
        let cases: [(Entries<'_>, &str); 4] = [
            (
                &[("a", Plain("x")), ("a/b/c", Plain("y"))],
                "`a/b/c` below `a`, which is no directory",
            ),
            (&[("a", Symlink("b")), ("a/b", Plain("y"))], "`a/b` below `a`, which is no directory"),
            (&[("a/b", Plain("x")), ("a", Plain("y"))], "`a` as a directory with something in it"),
            (&[("a/b", Symlink("x")), ("a", Symlink("y"))], "`a` as a directory with something in"),
        ];
        for (entries, words) in cases {
            let error = made(entries, 0).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_hard_link_becomes_a_copy_of_what_came_before_it_and_of_nothing_else() {
        let entries = [
            ("top/run", Program("x")),
            ("top/deep/again", HardLink("top/run")),
            ("top/link", Symlink("run")),
            ("top/deep/link", HardLink("top/link")),
            ("top/run", HardLink("top/run")),
            ("top/run", Plain("later")),
        ];
        let links = [("deep/link", "run"), ("link", "run")];
        let files = ["deep/again=x", "run=later"].map(str::to_owned).to_vec();
        assert_eq!(made(&entries, 1).unwrap(), (files, told(&["deep/again"], &links)));
        for (target, words) in [
            ("later", "the archive holds `b`, a hard link to `later`, which is no file before it"),
            ("a", "a hard link to `a`, which is no file"),
            ("../up", "`../up`: that leads out"),
            ("/etc/passwd", "`/etc/passwd`: that leads out"),
        ] {
            let entries = [("a", Directory), ("b", HardLink(target)), ("later", Plain("x"))];
            let error = made(&entries, 0).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let error = made(&[("top", Plain("x")), ("top/b", HardLink("top"))], 1).unwrap_err();
        assert!(error.contains("`b`, a hard link to `top`, which is no file before it"), "{error}");
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
