//! One thread per store that commits: everything queued while a commit runs goes into the next transaction together.
//!
//! Used by the catalog and the mount table, which differ only in their [`Layout`]. A failed sync ends the process: what the disk
//! holds is then unknown, and nothing may be answered on top of it. A full disk does not: the file is opened again and goes on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use redb::{Database, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::catalog::StoreError;

/// Most changes in one transaction, and most that wait. Every one belongs to a request that is waiting, so this bounds requests.
const GROUP_MAX: usize = 1024;

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

#[derive(Debug, Default)]
struct Counters {
    transactions: AtomicU64,
    changes: AtomicU64,
}

enum Order<C> {
    Commit { change: C, done: oneshot::Sender<Result<(), StoreError>> },
    Read(Box<dyn FnOnce(&Database) + Send>),
}

/// The thread that commits, as its clients see it.
pub(super) struct Writer<L: Layout> {
    /// None only while dropping: the thread ends when the queue is closed.
    queue: Option<mpsc::Sender<Order<L::Change>>>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl<L: Layout> fmt::Debug for Writer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Writer").field(&L::STORE).finish()
    }
}

impl<L: Layout> Writer<L> {
    /// Starts the thread over an open database. `open` opens it again after a failed write.
    pub(super) fn start(
        database: Database,
        open: impl Fn() -> Result<Database, StoreError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (queue, orders) = mpsc::channel(GROUP_MAX);
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let thread = std::thread::Builder::new()
            .name(L::STORE.replace(' ', "-"))
            .spawn(move || serve::<L>(database, open, orders, &counted))
            .map_err(|e| write_error::<L>(format!("no thread could be started: {e}")))?;
        Ok(Self { queue: Some(queue), counters, thread: Some(thread) })
    }

    /// Commits a change; on return it is as durable as the store is.
    pub(super) async fn commit(&self, change: L::Change) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Commit { change, done }).await?;
        answer.await.unwrap_or_else(|_| Err(ended::<L>()))
    }

    /// Reads on the store's thread, after every commit that was queued before.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        let job = move |database: &Database| {
            // Nobody waits any more: nothing was changed, so nothing is lost.
            let _ = done.send(read(database));
        };
        self.order(Order::Read(Box::new(job))).await?;
        answer.await.unwrap_or_else(|_| Err(ended::<L>()))
    }

    /// How often it committed.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            transactions: self.counters.transactions.load(Ordering::Relaxed),
            changes: self.counters.changes.load(Ordering::Relaxed),
        }
    }

    async fn order(&self, order: Order<L::Change>) -> Result<(), StoreError> {
        let Some(queue) = &self.queue else { return Err(ended::<L>()) };
        queue.send(order).await.map_err(|_| ended::<L>())
    }
}

impl<L: Layout> Drop for Writer<L> {
    /// Waits until what is queued is committed and the file is closed.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("{}: its thread panicked", L::STORE);
        }
    }
}

fn serve<L: Layout>(
    mut database: Database,
    open: impl Fn() -> Result<Database, StoreError>,
    mut orders: mpsc::Receiver<Order<L::Change>>,
    counters: &Counters,
) {
    let mut taken = Vec::new();
    while orders.blocking_recv_many(&mut taken, GROUP_MAX) > 0 {
        let mut group = Vec::new();
        let mut reads = Vec::new();
        for order in taken.drain(..) {
            match order {
                Order::Commit { change, done } => group.push((change, done)),
                Order::Read(read) => reads.push(read),
            }
        }
        if !group.is_empty() {
            let result = write::<L>(&database, group.iter().map(|(change, _)| change));
            if result.is_ok() {
                counters.transactions.fetch_add(1, Ordering::Relaxed);
                counters.changes.fetch_add(group.len() as u64, Ordering::Relaxed);
            } else {
                // After a failed write redb refuses all others until the file is opened anew.
                drop(database);
                database = match open() {
                    Ok(database) => database,
                    Err(e) => end(L::STORE, &format!("cannot be opened after a failed write: {e}")),
                };
            }
            for (_, done) in group {
                // A request that has gone does not make its commit undone.
                let _ = done.send(result.clone());
            }
        }
        for read in reads {
            read(&database);
        }
    }
}

/// Writes changes in one transaction.
pub(super) fn write<'a, L: Layout>(
    database: &Database,
    changes: impl Iterator<Item = &'a L::Change>,
) -> Result<(), StoreError> {
    let changes: Vec<_> = changes.collect();
    let commit = || -> Result<(), redb::Error> {
        let mut tx = database.begin_write()?;
        tx.set_two_phase_commit(L::OUTLIVES_POWER);
        tx.set_quick_repair(L::OUTLIVES_POWER);
        L::apply(&tx, &changes)?;
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

/// Ends the process: going on would risk an answer that is not kept.
#[expect(clippy::exit, reason = "nothing may be answered on top of a store in an unknown state")]
pub(super) fn end(store: &str, why: &str) -> ! {
    tracing::error!(
        "{store}: {why}: the daemon ends now, so that nothing is answered that was not kept"
    );
    std::process::exit(1)
}

fn write_error<L: Layout>(why: String) -> StoreError {
    StoreError::Write { store: L::STORE, why }
}

fn ended<L: Layout>() -> StoreError {
    write_error::<L>("its thread has ended".to_owned())
}
