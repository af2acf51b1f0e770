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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
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

/// How a call goes: what who looks at it and who polls it tell each other.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// It is to go on behind the others.
    behind: AtomicBool,
    /// It has given up its turn, and waits for nothing else.
    yielded: AtomicBool,
    /// Nanoseconds for which it has waited for the host.
    waited: AtomicU64,
}

/// What one call may compute. wasmtime asks it at every deadline of epochs.
pub(crate) struct Pace {
    until: Instant,
    /// How long it may take beside waiting for the host.
    compute: Duration,
    begun: Instant,
    /// The processor time that its first thread had used before.
    used: Duration,
    course: Arc<Course>,
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
        course: &Arc<Course>,
        shared: Option<OwnedFd>,
    ) -> Self {
        let (begun, used) = (Instant::now(), thread_time());
        Self { until, compute, begun, used, course: Arc::clone(course), shared }
    }

    /// Looks at the call, on its own thread.
    pub(crate) fn look(&self) -> Look {
        if Instant::now() >= self.until {
            return Look::On(UpdateDeadline::Interrupt);
        }
        if let Some(limit) = self.shared.as_ref().and_then(over_reserve) {
            return Look::Over(limit);
        }
        let waited = Duration::from_nanos(self.course.waited.load(Ordering::Relaxed));
        if self.begun.elapsed().saturating_sub(waited) >= self.compute {
            return Look::Over(format!("{} s of computing", self.compute.as_secs_f64()));
        }
        let is_behind = self.course.behind.load(Ordering::Relaxed);
        if !is_behind && thread_time().saturating_sub(self.used) < TURN {
            return Look::On(UpdateDeadline::Continue(self.ticks()));
        }
        self.course.behind.store(true, Ordering::Relaxed);
        self.course.yielded.store(true, Ordering::Relaxed);
        Look::On(UpdateDeadline::Yield(self.ticks()))
    }

    /// Epochs until the next look; the one that is running counts for nothing.
    pub(crate) fn ticks(&self) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now()).min(TURN);
        let ticks = left.as_millis() / TICK.as_millis();
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Runs a call to its end on this thread, or behind the others as soon as its course says so; nothing if it is not there by `until`.
pub(crate) fn run<T: Send>(
    io: &Handle,
    lane: &Lane,
    call: impl Future<Output = T> + Send,
    until: Instant,
    course: &Course,
) -> Option<T> {
    let mut call = pin!(call);
    let until = until.into();
    let begun = io.block_on(async {
        let mut ahead = pin!(ahead(call.as_mut(), course));
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
        io.block_on(async { timeout_at(until, in_turns(call, lane, course)).await.ok() })
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("behind".to_owned());
        // A machine that has no thread left has none for such a call.
        thread.spawn_scoped(scope, rest).ok()?.join().ok()?
    })
}

impl Course {
    /// Polls a call; `since` is when it began to wait for the host, if it does.
    fn poll<T>(
        &self,
        call: Pin<&mut impl Future<Output = T>>,
        since: &mut Option<Instant>,
        context: &mut Context<'_>,
    ) -> Poll<T> {
        let ended = call.poll(context);
        let waits = ended.is_pending() && !self.yielded.swap(false, Ordering::Relaxed);
        *since = waits.then(Instant::now);
        ended
    }

    /// Notes that a call goes on, if it has waited.
    fn go_on(&self, since: &mut Option<Instant>) {
        let waited = since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Ordering::Relaxed);
    }
}

/// A call until its end, or until it is to go on behind the others.
async fn ahead<T>(mut call: Pin<&mut impl Future<Output = T>>, course: &Course) -> Option<T> {
    let mut since = None;
    poll_fn(|context| {
        course.go_on(&mut since);
        match course.poll(call.as_mut(), &mut since, context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if course.behind.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A call that gives its turn back whenever it waits.
async fn in_turns<T>(
    mut call: Pin<&mut impl Future<Output = T>>,
    lane: &Lane,
    course: &Course,
) -> T {
    let mut turn = Box::pin(lane.clone().turn());
    let mut since = None;
    poll_fn(|context| {
        // Waiting for a turn is no waiting for the host.
        course.go_on(&mut since);
        let _turn = ready!(turn.as_mut().poll(context));
        turn = Box::pin(lane.clone().turn());
        course.poll(call.as_mut(), &mut since, context)
    })
    .await
}

/// The processor time that this thread has used.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// The limit of a disk that has no more room than its reserve, for bytes or for files.
fn over_reserve(directory: &OwnedFd) -> Option<String> {
    // Who cannot be asked has no limit of its own.
    let disk = rustix::fs::fstatvfs(directory).ok()?;
    let (share, most) = RESERVE;
    let (bytes, files) = (most.min(disk.f_blocks * disk.f_frsize / share), disk.f_files / share);
    if disk.f_bavail * disk.f_frsize < bytes {
        return Some(format!("all but {} MiB of the disk", bytes >> 20));
    }
    // A file system that does not count its files has none.
    (files > 0 && disk.f_favail < files).then(|| format!("all but {files} files of the disk"))
}
