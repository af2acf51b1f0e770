//! What a download has brought so far, in a file of the user's cache, so that the next try goes on from there.
//!
//! Used by `fetch`. The file is trusted for nothing: whoever wrote it, its bytes count only if the whole has the digest. Where there is
//! no place for it, or another process has it, the download is kept in memory alone.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::RegistryError;
use crate::digest::Digest;

/// Ending of what is not whole yet.
const ENDING: &str = ".part";
/// Nobody goes on with what was left longer ago.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The bytes of one download.
pub(crate) struct Partial {
    pub(crate) bytes: Vec<u8>,
    file: Option<(File, PathBuf)>,
}

impl Partial {
    /// What is there of it; at most `size` bytes are.
    pub(crate) fn open(digest: &Digest, size: u64) -> Result<Self, RegistryError> {
        let Some(directory) = directory() else {
            return Ok(Self { bytes: Vec::new(), file: None });
        };
        sweep(&directory);
        let place = directory.join(format!("{}{ENDING}", digest.hex()));
        match read(&place, size) {
            Ok((bytes, file)) => Ok(Self { bytes, file: file.map(|file| (file, place)) }),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
                ) =>
            {
                Ok(Self { bytes: Vec::new(), file: None })
            }
            Err(why) => Err(cache(&place, why)),
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.bytes.extend_from_slice(bytes);
        match &mut self.file {
            Some((file, place)) => file.write_all(bytes).map_err(|why| cache(place, why)),
            None => Ok(()),
        }
    }

    /// Begins anew.
    pub(crate) fn clear(&mut self) -> Result<(), RegistryError> {
        self.bytes.clear();
        match &mut self.file {
            // It is written to its end.
            Some((file, place)) => file.set_len(0).map_err(|why| cache(place, why)),
            None => Ok(()),
        }
    }

    /// The bytes, which are whole: the file has done its work.
    pub(crate) fn finish(self) -> Vec<u8> {
        if let Some((_, place)) = &self.file {
            // What stays is swept away some day.
            let _ = std::fs::remove_file(place);
        }
        self.bytes
    }
}

fn cache(place: &Path, why: io::Error) -> RegistryError {
    RegistryError::Cache { place: place.to_owned(), why }
}

/// The directory, made where it is missing; none where it is not this user's own.
fn directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    let directory = base.join("wasmvol");
    // What is there already is looked at as what was made.
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    let about = std::fs::symlink_metadata(&directory).ok()?;
    let is_own = about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0;
    (about.is_dir() && is_own).then_some(directory)
}

/// The file's bytes, and the file if nobody else has it.
fn read(place: &Path, size: u64) -> io::Result<(Vec<u8>, Option<File>)> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(place)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok((Vec::new(), None)),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let mut bytes = Vec::new();
    (&file).take(size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > size {
        bytes.clear();
        file.set_len(0)?;
    }
    Ok((bytes, Some(file)))
}

/// Takes away what was left long ago.
fn sweep(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(ENDING)) {
        let age = entry.metadata().and_then(|about| about.modified()).map(|time| time.elapsed());
        if age.is_ok_and(|age| age.is_ok_and(|age| age > KEPT)) {
            // Another process may have done it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
