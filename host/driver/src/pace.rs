//! How much a call may compute, and at whose cost.
//!
//! Used by `call`. Most calls compute for microseconds. One that has used up its head start goes on in a thread of its own, behind everybody
//! else's, and takes turns with others of its kind: drivers that loop cost a processor that nobody else wants, and leave one over. A call
//! that may wait long for a backend may not compute long.

use std::future::{Future, poll_fn};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;
use wasmtime::UpdateDeadline;

use crate::ticker::TICK;

/// What a call may compute before it goes behind the others, and how long a turn is there. A call of a Rust driver takes 10 us; in Python
/// the first words take 20 ms.
const TURN: Duration = Duration::from_millis(20);
/// The kernel's lowest priority: such a thread gets a hundredth of a processor that others want, and all of one that nobody does.
const BEHIND: i32 = 19;
/// What a driver that fills a volume leaves of a disk that it shares with the daemon: one part in so many, and at most so many bytes.
const RESERVE: (u64, u64) = (20, 1 << 30);

/// Turns of the calls that go on behind the others: those of one driver, and those of all.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl Lane {
    /// The turns of all drivers: one processor is left over, if there are two.
    pub(crate) fn of_all() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(processors().saturating_sub(1).max(1)))
    }

    /// The turns of one driver.
    pub(crate) fn new(all: &Arc<Semaphore>) -> Self {
        let own = Arc::new(Semaphore::new((processors() / 2).max(1)));
        Self { own, all: Arc::clone(all) }
    }

    /// Waits for one. Neither is ever closed.
    async fn turn(self) -> [Option<OwnedSemaphorePermit>; 2] {
        [self.own.acquire_owned().await.ok(), self.all.acquire_owned().await.ok()]
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What one call may compute. wasmtime asks it at every deadline of epochs.
pub(crate) struct Pace {
    until: Instant,
    /// The processor time that it may use.
    compute: Duration,
    /// The processor time that its thread had used before.
    begun: Duration,
    /// Set once the call is to go on behind the others.
    behind: Arc<AtomicBool>,
    /// A directory on a disk that it must not fill.
    shared: Option<OwnedFd>,
}

/// What a look at a call came to.
pub(crate) enum Look {
    /// It goes on, or its deadline is over.
    On(UpdateDeadline),
    /// It is over this limit.
    Over(String),
}

impl Pace {
    pub(crate) fn new(
        until: Instant,
        compute: Duration,
        behind: &Arc<AtomicBool>,
        shared: Option<OwnedFd>,
    ) -> Self {
        Self { until, compute, begun: thread_time(), behind: Arc::clone(behind), shared }
    }

    /// Looks at the call, on its own thread.
    pub(crate) fn look(&mut self) -> Look {
        if Instant::now() >= self.until {
            return Look::On(UpdateDeadline::Interrupt);
        }
        if self.shared.as_ref().is_some_and(is_full) {
            return Look::Over("the disk: the rest is for others".to_owned());
        }
        let used = thread_time().saturating_sub(self.begun);
        let is_behind = self.behind.load(Ordering::Relaxed);
        if is_behind && used >= self.compute {
            return Look::Over(format!("{} s of processor time", self.compute.as_secs_f64()));
        }
        if !is_behind && used < TURN {
            return Look::On(UpdateDeadline::Continue(self.ticks()));
        }
        if !is_behind {
            self.behind.store(true, Ordering::Relaxed);
            // Its next thread's time begins with it.
            self.begun = Duration::ZERO;
        }
        // The turn is over.
        Look::On(UpdateDeadline::Yield(self.ticks()))
    }

    /// Epochs until the next look; the one that is running counts for nothing.
    pub(crate) fn ticks(&self) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now()).min(TURN);
        let ticks = left.as_millis() / TICK.as_millis();
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Runs a call to its end on this thread, or behind the others as soon as `behind` is set; nothing if it is not there by `until`.
pub(crate) fn run<T: Send>(
    io: &Handle,
    lane: &Lane,
    call: impl Future<Output = T> + Send,
    until: Instant,
    behind: &AtomicBool,
) -> Option<T> {
    let mut call = pin!(call);
    let until = until.into();
    let begun = io.block_on(async {
        let mut ahead = pin!(ahead(call.as_mut(), behind));
        // Most calls wait for nothing, and need no timer.
        match poll_fn(|context| Poll::Ready(ahead.as_mut().poll(context))).await {
            Poll::Ready(ended) => Some(ended),
            // An interrupt ends what runs, this what waits for the host: it is dropped where it is.
            Poll::Pending => timeout_at(until, ahead).await.ok(),
        }
    });
    if let Some(ended) = begun? {
        return Some(ended);
    }
    let rest = || {
        // It may always be lowered, and only this thread's is.
        let _ = rustix::process::setpriority_process(None, BEHIND);
        io.block_on(async { timeout_at(until, in_turns(call, lane)).await.ok() })
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("behind".to_owned());
        // A machine that has no thread left has none for such a call.
        thread.spawn_scoped(scope, rest).ok()?.join().ok()?
    })
}

/// A call that gives its turn back whenever it waits.
async fn in_turns<T>(mut call: Pin<&mut impl Future<Output = T>>, lane: &Lane) -> T {
    let mut turn = Box::pin(lane.clone().turn());
    poll_fn(|context| {
        let _turn = ready!(turn.as_mut().poll(context));
        turn = Box::pin(lane.clone().turn());
        call.as_mut().poll(context)
    })
    .await
}

/// A call until its end, or until it is to go on behind the others.
async fn ahead<T>(mut call: Pin<&mut impl Future<Output = T>>, behind: &AtomicBool) -> Option<T> {
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if behind.load(Ordering::Relaxed) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// The processor time that this thread has used.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Whether a disk has no more room than its reserve, for files or for bytes.
fn is_full(directory: &OwnedFd) -> bool {
    let Ok(disk) = rustix::fs::fstatvfs(directory) else { return false };
    let (share, most) = RESERVE;
    let reserve = (disk.f_blocks / share).min(most / disk.f_frsize.max(1));
    // A file system that does not count its files has none.
    disk.f_bavail < reserve || (disk.f_files > 0 && disk.f_favail < disk.f_files / share)
}
