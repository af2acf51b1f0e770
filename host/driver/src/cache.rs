//! Compiled components: machine code under the sha256 of its component.
//!
//! A file is named `COMPONENT-ENGINE.cwasm`: the component's digest, and a hash of everything in wasmtime and its configuration
//! that shapes the code. Behind the code stand the 32 bytes of its own sha256. Files are written beside, synced and renamed, so a
//! file under its name is whole; what rots later is noticed by the digest and compiled anew. Hashing costs 0.2 ms for a driver in
//! Rust and is done at each load: machine code with a flipped bit runs outside of every sandbox.
//!
//! wasmtime must trust this code, so the directory is the daemon's own, and nothing is read that was not written here.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

/// Ending of a whole file.
const ENDING: &str = ".cwasm";
/// Ending of a file that is being written.
const HALF: &str = ".half";
/// Bytes of the digest behind the code.
const DIGEST_LEN: u64 = 32;

/// The directory of compiled components, as one engine sees it.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    engine: wasmtime::Engine,
    /// `-ENGINE.cwasm`.
    suffix: String,
    writes: AtomicU64,
}

impl Cache {
    /// Opens the cache, and takes away what nobody can use: halves of files, and code for another engine.
    pub(crate) fn open(directory: PathBuf, engine: &wasmtime::Engine) -> io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let suffix = format!("-{:016x}{ENDING}", hasher.finish());
        for entry in std::fs::read_dir(&directory)? {
            let name = entry?.file_name();
            let stale = name.to_str().is_some_and(|name| {
                name.ends_with(HALF) || (name.ends_with(ENDING) && !name.ends_with(&suffix))
            });
            if stale {
                std::fs::remove_file(directory.join(name))?;
            }
        }
        Ok(Self { directory, engine: engine.clone(), suffix, writes: AtomicU64::new(0) })
    }

    /// The compiled component with this digest, if it is here and whole.
    pub(crate) fn find(&self, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        match is_whole(&path) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(
                    "compiled driver `{}` is damaged: compiling it again",
                    path.display()
                );
                return None;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("compiled driver `{}` cannot be read: {error}", path.display());
                return None;
            }
        }
        #[expect(unsafe_code, reason = "machine code cannot be loaded without trusting it")]
        // SAFETY: the file is in the daemon's own directory, its name says that `store` wrote it from our compiler's output for
        // this very engine, and its bytes have just been compared with the digest that was written with them.
        let component = unsafe { Component::deserialize_file(&self.engine, &path) };
        component
            .inspect_err(|error| tracing::warn!("compiled driver is of no use: {error:#}"))
            .ok()
    }

    /// Puts machine code under a component's digest: `write` fills the file.
    pub(crate) fn store<E: From<io::Error>>(
        &self,
        digest: &str,
        write: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let half = self.directory.join(format!("{digest}.{}.{number}{HALF}", std::process::id()));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&half)?;
        let written = write(&file).and_then(|()| {
            seal(&mut file)?;
            file.sync_all()?;
            Ok(std::fs::rename(&half, self.path(digest))?)
        });
        if written.is_err() {
            // A half that stays is taken away at the next start.
            let _ = std::fs::remove_file(&half);
        }
        written
    }

    /// Deletes what was compiled of a component. A driver that is still in use keeps its mapping.
    pub(crate) fn forget(&self, digest: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Deletes what was compiled of every component but these.
    pub(crate) fn keep_only(&self, digests: &BTreeSet<String>) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(&self.suffix));
            if digest.is_some_and(|digest| !digests.contains(digest)) {
                std::fs::remove_file(self.directory.join(name))?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{digest}{}", self.suffix))
    }
}

/// Writes the digest of a file's bytes behind them.
fn seal(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    let mut hasher = Sha256::new();
    io::copy(file, &mut hasher)?;
    file.write_all(&hasher.finalize())
}

/// Whether a file ends with the digest of the rest.
fn is_whole(path: &std::path::Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(length) = file.metadata()?.len().checked_sub(DIGEST_LEN) else { return Ok(false) };
    let mut hasher = Sha256::new();
    io::copy(&mut (&mut file).take(length), &mut hasher)?;
    let mut digest = Vec::new();
    file.take(DIGEST_LEN).read_to_end(&mut digest)?;
    Ok(hasher.finalize().as_slice() == digest.as_slice())
}
