//! A store: redb over one file, committed to on the thread that calls. It goes on after a full disk, by opening its file again.
//!
//! The mount table commits here itself: on a tmpfs that takes less time than waking another thread. The catalog's commits wait for a
//! disk, so `writer` makes them on a thread of their own. A failed sync ends the process: what the disk holds is then unknown, and nothing
//! may be answered on top of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, WriteTransaction};

use crate::catalog::StoreError;

/// What a store keeps, and how.
pub(super) trait Layout: Send + 'static {
    /// One change.
    type Change: Send + 'static;
    /// The store's name in messages.
    const STORE: &'static str;
    /// Whether a commit must outlive a power cut and the next start must not repair: two phases, allocator state saved.
    const OUTLIVES_POWER: bool;

    /// Writes changes, in order.
    fn apply(tx: &WriteTransaction, changes: &[&Self::Change]) -> Result<(), redb::Error>;
}

/// How often a store committed since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counts {
    /// Transactions.
    pub(crate) transactions: u64,
    /// Changes in them.
    pub(crate) changes: u64,
}

/// Counts that other threads may read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    transactions: AtomicU64,
    changes: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> Counts {
        Counts {
            transactions: self.transactions.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
        }
    }
}

/// An open store.
pub(super) struct Store<L> {
    /// None after a failed write, until it is opened again: redb refuses everything on that handle.
    database: Option<Database>,
    open: Box<dyn Fn() -> Result<Database, StoreError> + Send>,
    counters: Arc<Counters>,
    layout: std::marker::PhantomData<L>,
}

impl<L: Layout> fmt::Debug for Store<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&L::STORE).finish()
    }
}

impl<L: Layout> Store<L> {
    /// Takes over an open database. `open` opens it again after a failed write.
    pub(super) fn new(
        database: Database,
        open: impl Fn() -> Result<Database, StoreError> + Send + 'static,
    ) -> Self {
        Self {
            database: Some(database),
            open: Box::new(open),
            counters: Arc::default(),
            layout: std::marker::PhantomData,
        }
    }

    /// How often it committed.
    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Commits changes in one transaction; on return they are as durable as the store is.
    pub(super) fn commit(&mut self, changes: &[&L::Change]) -> Result<(), StoreError> {
        let result = self.database().and_then(|database| write::<L>(database, changes));
        if result.is_ok() {
            self.counters.transactions.fetch_add(1, Ordering::Relaxed);
            self.counters.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
        } else {
            self.database = None;
        }
        result
    }

    /// The database, opened again where a write has failed; until that succeeds, the error says why not.
    pub(super) fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        Ok(self.database.insert(database))
    }
}

/// Writes changes in one transaction.
pub(super) fn write<L: Layout>(
    database: &Database,
    changes: &[&L::Change],
) -> Result<(), StoreError> {
    let commit = || -> Result<(), redb::Error> {
        let mut tx = database.begin_write()?;
        tx.set_two_phase_commit(L::OUTLIVES_POWER);
        tx.set_quick_repair(L::OUTLIVES_POWER);
        L::apply(&tx, changes)?;
        Ok(tx.commit()?)
    };
    commit().map_err(|e| write_error::<L>(words(&e)))
}

/// An error of redb's in one line, with what to do about a full disk.
pub(super) fn words(error: &redb::Error) -> String {
    match error {
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => {
            "no space left on the file system that holds it: free some, then try again".to_owned()
        }
        redb::Error::Io(e) => e.to_string(),
        redb::Error::DatabaseAlreadyOpen => "another process has it open".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn write_error<L: Layout>(why: String) -> StoreError {
    StoreError::Write { store: L::STORE, why }
}
