//! The thread that commits to the catalog: everything queued while a commit runs goes into the next transaction together.
//!
//! Called by `durable` alone. What a commit is, and what becomes of one that fails, is `store`'s.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use crate::catalog::StoreError;
use crate::catalog::store::{Counters, Counts, Layout, Store, write_error};

/// Most changes in one transaction, and most that wait. Every one belongs to a request that is waiting, so this bounds requests.
const GROUP_MAX: usize = 1024;

enum Order<C> {
    Commit { change: C, done: oneshot::Sender<Result<(), StoreError>> },
    Read(Read),
}

type Read = Box<dyn FnOnce(Result<&Database, StoreError>) + Send>;

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
    /// Starts the thread over an open store.
    pub(super) fn start(store: Store<L>) -> Result<Self, StoreError> {
        let (queue, orders) = mpsc::channel(GROUP_MAX);
        let counters = Arc::clone(store.counters());
        let thread = std::thread::Builder::new()
            .name(L::STORE.replace(' ', "-"))
            .spawn(move || serve(store, orders))
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
        let job = move |database: Result<&Database, StoreError>| {
            // Nobody waits any more: nothing was changed, so nothing is lost.
            let _ = done.send(database.and_then(read));
        };
        self.order(Order::Read(Box::new(job))).await?;
        answer.await.unwrap_or_else(|_| Err(ended::<L>()))
    }

    /// How often it committed.
    pub(super) fn counts(&self) -> Counts {
        self.counters.read()
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

fn serve<L: Layout>(mut store: Store<L>, mut orders: mpsc::Receiver<Order<L::Change>>) {
    let mut taken = Vec::new();
    while orders.blocking_recv_many(&mut taken, GROUP_MAX) > 0 {
        let (mut group, mut reads) = (Vec::new(), Vec::new());
        for order in taken.drain(..) {
            match order {
                Order::Commit { change, done } => group.push((change, done)),
                Order::Read(read) => reads.push(read),
            }
        }
        if !group.is_empty() {
            let changes: Vec<_> = group.iter().map(|(change, _)| change).collect();
            let result = store.commit(&changes);
            for (_, done) in group {
                // A request that has gone does not make its commit undone.
                let _ = done.send(result.clone());
            }
        }
        for read in reads {
            read(store.database());
        }
    }
}

fn ended<L: Layout>() -> StoreError {
    write_error::<L>("its thread has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::backends::InMemoryBackend;
    use redb::{ReadableDatabase, StorageBackend, TableDefinition, WriteTransaction};

    use super::*;
    use crate::catalog::store::words;

    const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

    struct Numbers;

    impl Layout for Numbers {
        type Change = u64;
        const STORE: &'static str = "store of numbers";
        const OUTLIVES_POWER: bool = true;

        fn apply(tx: &WriteTransaction, changes: &[&u64]) -> Result<(), redb::Error> {
            let mut rows = tx.open_table(ROWS)?;
            for number in changes {
                rows.insert(**number, [7; 1000].as_slice())?;
            }
            Ok(())
        }
    }

    /// A disk that can be full, and outlives who has it open.
    #[derive(Debug, Clone, Default)]
    struct Disk {
        memory: Arc<InMemoryBackend>,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn open(&self) -> Result<Database, StoreError> {
            let made = Database::builder().create_with_backend(self.clone());
            made.map_err(|e| write_error::<Numbers>(words(&e.into())))
        }

        fn space(&self) -> io::Result<()> {
            let full = self.full.load(Ordering::Relaxed);
            if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.space().and_then(|()| self.memory.set_len(len))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.memory.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.space().and_then(|()| self.memory.write(offset, data))
        }
    }

    fn start(disk: &Disk) -> Writer<Numbers> {
        let again = disk.clone();
        Writer::start(Store::new(disk.open().unwrap(), move || again.open())).unwrap()
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test)
    }

    async fn numbers(writer: &Writer<Numbers>) -> Vec<u64> {
        let read = |database: &Database| {
            let tx = database.begin_read().unwrap();
            let rows = tx.open_table(ROWS).unwrap();
            Ok(rows.range::<u64>(..).unwrap().map(|row| row.unwrap().0.value()).collect())
        };
        writer.read(read).await.unwrap()
    }

    #[test]
    fn commits_that_wait_for_another_share_one_transaction() {
        run(async {
            let writer = start(&Disk::default());
            let (go, gate) = std::sync::mpsc::channel::<()>();
            let (begun, has_begun) = oneshot::channel();
            // The thread is busy with this, which it took alone, until all others are queued.
            let busy = writer.read(move |_| {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok(())
            });
            let commits = async {
                has_begun.await.unwrap();
                let commits: Vec<_> = (0..100).map(|n| writer.commit(n)).collect();
                let mut commits = std::pin::pin!(join(commits));
                tokio::select! {
                    biased;
                    _ = &mut commits => panic!("answered before the gate was opened"),
                    () = std::future::ready(()) => {}
                }
                go.send(()).unwrap();
                commits.await
            };
            let (_, results) = tokio::join!(busy, commits);
            assert!(results.into_iter().all(|result| result.is_ok()));
            assert_eq!(writer.counts(), Counts { transactions: 1, changes: 100 });
            assert_eq!(numbers(&writer).await.len(), 100);
        });
    }

    async fn join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
        let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
        let mut results: Vec<Option<T>> = pinned.iter().map(|_| None).collect();
        std::future::poll_fn(|cx| {
            for (future, result) in pinned.iter_mut().zip(&mut results) {
                if result.is_none()
                    && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
                {
                    *result = Some(value);
                }
            }
            match results.iter().all(Option::is_some) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        results.into_iter().flatten().collect()
    }

    #[test]
    fn a_full_disk_fails_a_commit_whole_and_the_store_goes_on() {
        run(async {
            let disk = Disk::default();
            let writer = start(&disk);
            writer.commit(1).await.unwrap();
            disk.full.store(true, Ordering::Relaxed);
            for number in [2, 3] {
                let error = writer.commit(number).await.unwrap_err().to_string();
                assert!(
                    error.starts_with("store of numbers cannot be written: no space left"),
                    "{error}"
                );
            }
            disk.full.store(false, Ordering::Relaxed);
            writer.commit(4).await.unwrap();
            assert_eq!(numbers(&writer).await, [1, 4]);
        });
    }

    #[test]
    fn what_was_queued_is_committed_before_the_writer_has_gone() {
        let disk = Disk::default();
        run(async {
            let writer = start(&disk);
            tokio::select! {
                biased;
                _ = writer.commit(1) => {}
                () = std::future::ready(()) => {}
            }
            drop(writer);
            assert_eq!(numbers(&start(&disk)).await, [1]);
        });
    }
}
