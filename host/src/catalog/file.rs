//! The file of a store: made whole or not at all, opened by one process, and never trusted after a failed sync.
//!
//! Used by the catalog and the mount table when they open, and again after a failed write.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};

use crate::catalog::StoreError;
use crate::catalog::store::words;

/// How long a start waits for the store. A daemon that is killed while it starts a compiling child leaves a copy of all its open
/// files in that child until the child has begun its program: milliseconds, on a busy machine more.
const HANDOVER: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const HANDOVER_POLL: Duration = Duration::from_millis(10);

/// A store's file.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreFile {
    /// The store's name in messages.
    pub(super) store: &'static str,
    /// The file's name in its directory.
    pub(super) name: &'static str,
    /// Memory for pages, in bytes. redb's own default of 1 GiB is meant for data that is read again and again; ours is read once.
    pub(super) cache: usize,
}

impl StoreFile {
    /// Opens the file in `dir`. If it is not there it is made: `init` fills it under another name first, so that a crash never
    /// leaves half a store behind. Waits up to [`HANDOVER`] for a process that still has it open.
    pub(super) fn open(
        self,
        dir: &Path,
        init: impl FnOnce(&Database) -> Result<(), redb::Error>,
    ) -> Result<Database, StoreError> {
        let path = dir.join(self.name);
        if path.try_exists().map_err(|e| self.unreadable(&e.into()))? {
            return self.take_over(&path);
        }
        let draft = dir.join(format!("{}.new", self.name));
        let make = || -> Result<Database, redb::Error> {
            let database = self.database(&draft, true)?;
            init(&database)?;
            std::fs::rename(&draft, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(database)
        };
        make().map_err(|e| StoreError::Write { store: self.store, why: words(&e) })
    }

    /// Opens a file that a daemon which was killed may still seem to have.
    fn take_over(self, path: &Path) -> Result<Database, StoreError> {
        let until = Instant::now() + HANDOVER;
        loop {
            match self.database(path, false) {
                Err(redb::Error::DatabaseAlreadyOpen) if Instant::now() < until => {
                    std::thread::sleep(HANDOVER_POLL);
                }
                opened => return opened.map_err(|e| self.unreadable(&e)),
            }
        }
    }

    /// Opens the file that is in `dir`.
    pub(super) fn open_again(self, dir: &Path) -> Result<Database, StoreError> {
        self.database(&dir.join(self.name), false).map_err(|e| self.unreadable(&e))
    }

    fn database(self, path: &Path, fresh: bool) -> Result<Database, redb::Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(fresh)
            .truncate(fresh)
            .mode(0o600)
            .open(path)?;
        let same_file = file.try_clone()?;
        let disk = Disk { store: self.store, file: FileBackend::new(file)?, same_file };
        Ok(Database::builder().set_cache_size(self.cache).create_with_backend(disk)?)
    }

    fn unreadable(self, error: &redb::Error) -> StoreError {
        StoreError::Read { store: self.store, why: words(error) }
    }
}

/// redb's own backend, but for two things. After a failed sync the process ends, because the kernel may have dropped pages that it
/// said were written. And the file never has holes: what is free in it can be written on a full disk too, so that volumes can
/// still be removed there.
#[derive(Debug)]
struct Disk {
    store: &'static str,
    file: FileBackend,
    same_file: File,
}

impl Disk {
    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        let [offset, length] = [from, to - from].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        match fallocate(&self.same_file, FallocateFlags::empty(), offset, length) {
            // Some file systems cannot: there it is as good as with holes.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => {
                // A part may have been added; the error says more than a failure to take it back.
                let _ = self.file.set_len(from);
                Err(e.into())
            }
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.file.len()?;
        if len > now {
            self.reserve(now, len)?;
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().or_else(|e| end(self.store, &format!("cannot be synced: {e}")))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// Ends the process: going on would risk an answer that is not kept.
#[expect(clippy::exit, reason = "nothing may be answered on top of a store in an unknown state")]
fn end(store: &str, why: &str) -> ! {
    tracing::error!(
        "{store}: {why}: the daemon ends now, so that nothing is answered that was not kept"
    );
    std::process::exit(1)
}
