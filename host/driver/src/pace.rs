//! How much a call may compute, and at whose cost.
//!
//! Used by `call`. Most calls compute for microseconds. A driver whose calls compute more, all together, has used up its head start for a
//! while: they go on in threads of their own, behind everybody else's, and take turns with others of their kind. So drivers that loop cost a
//! processor that nobody else wants, and leave one over. A call that may wait long for a backend may not compute long.

use std::future::{Future, poll_fn};
use std::io;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;
use wasmtime::UpdateDeadline;

/// Epochs from one look at a call to the next, which is a turn of those behind: the one that is running, which may be nearly over.
pub(crate) const LOOK: u64 = 1;
/// What a driver's calls may compute at once, all together, before they go behind the others. A call of a Rust driver takes 10 us; one of
/// Python, whose first words take 20 ms, loses nothing there while a processor is free.
const HEAD_START: Duration = Duration::from_millis(10);
/// What they may compute after that: one part in so many of a processor, which holds up about one in a hundred of everybody else's.
const SHARE: u32 = 64;
/// What a call may take for which that does not count, since it holds up nobody.
const SHORT: Duration = Duration::from_millis(1);
/// The name of the threads of those that go on behind the others.
pub const BEHIND_THREAD: &str = "behind";
/// The kernel's lowest priority: such a thread gets a hundredth of a processor that others want, and all of one that nobody does.
const BEHIND: i32 = 19;
/// That of everybody else, for those that write to a disk: who is held up in the middle of a file system's transaction holds up all that
/// sync.
const AMONG: i32 = 0;

/// Turns of the calls that go on behind the others: those of one driver, and those of all. Calls that fill volumes have turns of their own,
/// since a disk may hold one up in the middle.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    /// When what one driver's calls have computed ahead of the others is made up for.
    even: Arc<Mutex<Instant>>,
    /// The kernel's priority of those that go on behind the others.
    priority: i32,
}

impl Lane {
    /// The turns of all drivers for calls that compute alone.
    pub(crate) fn computing() -> Self {
        Self::of_all(BEHIND)
    }

    /// The same for calls that fill volumes.
    pub(crate) fn filling() -> Self {
        Self::of_all(AMONG)
    }

    /// One processor is left over, if there are two.
    fn of_all(priority: i32) -> Self {
        let all = Arc::new(Semaphore::new(processors().saturating_sub(1).max(1)));
        let even = Arc::new(Mutex::new(Instant::now()));
        Self { own: Arc::clone(&all), all, even, priority }.of_one()
    }

    /// The turns of one driver.
    pub(crate) fn of_one(&self) -> Self {
        let own = Arc::new(Semaphore::new((processors() / 2).max(1)));
        let even = Arc::new(Mutex::new(Instant::now()));
        Self { own, all: Arc::clone(&self.all), even, priority: self.priority }
    }

    /// Whether a call of this driver may begin ahead of the others.
    fn has_head_start(&self) -> bool {
        *self.even() <= Instant::now() + HEAD_START * SHARE
    }

    /// Notes what a call has computed ahead of the others.
    fn note(&self, computed: Duration) {
        let mut even = self.even();
        *even = Instant::now().max(*even) + computed * SHARE;
    }

    /// Notes what a call has computed since it was noted last. Called on its first thread.
    fn note_course(&self, course: &Course) {
        let computed = nanos(thread_time().saturating_sub(course.used));
        let before = course.noted.swap(computed, Ordering::Relaxed);
        self.note(Duration::from_nanos(computed.saturating_sub(before)));
    }

    fn even(&self) -> MutexGuard<'_, Instant> {
        self.even.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one. Neither is ever closed.
    async fn turn(self) -> [Option<OwnedSemaphorePermit>; 2] {
        [self.own.acquire_owned().await.ok(), self.all.acquire_owned().await.ok()]
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How a call goes: what who looks at it and who polls it tell each other.
#[derive(Debug)]
pub(crate) struct Course {
    begun: Instant,
    /// The processor time that its first thread had used before.
    used: Duration,
    /// Nanoseconds that it has computed there, as far as its driver's lane knows.
    noted: AtomicU64,
    /// It is to go on behind the others.
    behind: AtomicBool,
    /// It has given up its turn, and waits for nothing else.
    yielded: AtomicBool,
    /// Nanoseconds for which it has waited for the host.
    waited: AtomicU64,
    /// Bytes of linear memory that it has.
    memory: AtomicUsize,
}

impl Course {
    /// That of a call that begins now, on this thread.
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            used: thread_time(),
            noted: AtomicU64::new(0),
            behind: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            waited: AtomicU64::new(0),
            memory: AtomicUsize::new(0),
        })
    }

    /// Bytes of linear memory that the call has, or had in the end.
    pub(crate) fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// Notes how many that are.
    pub(crate) fn note_memory(&self, bytes: usize) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    /// Notes that a call has waited.
    fn note(&self, waited: Duration) {
        self.waited.fetch_add(nanos(waited), Ordering::Relaxed);
    }
}

/// What one call may compute. wasmtime asks it at every deadline of epochs.
pub(crate) struct Pace {
    until: Instant,
    /// How long it may take beside waiting for the host.
    compute: Duration,
    course: Arc<Course>,
    lane: Lane,
}

/// What a look at a call came to.
pub(crate) enum Look {
    /// It goes on, or its deadline is over.
    On(UpdateDeadline),
    /// It has computed for this long, which is too long.
    Over(Duration),
}

impl Pace {
    pub(crate) fn new(
        until: Instant,
        compute: Duration,
        course: &Arc<Course>,
        lane: &Lane,
    ) -> Self {
        Self { until, compute, course: Arc::clone(course), lane: lane.clone() }
    }

    /// Looks at the call, on its own thread.
    pub(crate) fn look(&self) -> Look {
        if Instant::now() >= self.until {
            return Look::On(UpdateDeadline::Interrupt);
        }
        let waited = Duration::from_nanos(self.course.waited.load(Ordering::Relaxed));
        if self.course.begun.elapsed().saturating_sub(waited) >= self.compute {
            return Look::Over(self.compute);
        }
        if !self.course.behind.load(Ordering::Relaxed) {
            self.lane.note_course(&self.course);
            if self.lane.has_head_start() {
                return Look::On(UpdateDeadline::Continue(LOOK));
            }
        }
        self.course.behind.store(true, Ordering::Relaxed);
        self.course.yielded.store(true, Ordering::Relaxed);
        Look::On(UpdateDeadline::Yield(LOOK))
    }

    /// Notes that the call has waited in one of the host's functions.
    pub(crate) fn note_waited(&self, waited: Duration) {
        self.course.note(waited);
    }
}

/// Runs a call to its end on this thread, or behind the others as soon as its course says so; nothing if it is not there by `until`.
///
/// # Errors
/// There is no thread for it to go on in.
pub(crate) fn run<T: Send>(
    io: &Handle,
    lane: &Lane,
    call: impl Future<Output = T> + Send,
    until: Instant,
    course: &Course,
) -> io::Result<Option<T>> {
    let mut call = pin!(call);
    if lane.has_head_start() {
        let begun = io.block_on(begin(call.as_mut(), until, course));
        if course.begun.elapsed() >= SHORT {
            lane.note_course(course);
        }
        let Some(None) = begun else { return Ok(begun.flatten()) };
    } else {
        course.behind.store(true, Ordering::Relaxed);
    }
    let rest = || {
        // It may always be lowered, and only this thread's is.
        let _ = rustix::process::setpriority_process(None, lane.priority);
        io.block_on(async { timeout_at(until.into(), in_turns(call, lane, course)).await.ok() })
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(BEHIND_THREAD.to_owned());
        Ok(thread.spawn_scoped(scope, rest)?.join().unwrap_or_else(|panic| resume_unwind(panic)))
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
        if let Some(since) = since.take() {
            self.note(since.elapsed());
        }
    }
}

/// A call until its end, or until it is to go on behind the others; nothing if neither is there by `until`.
async fn begin<T>(
    call: Pin<&mut impl Future<Output = T>>,
    until: Instant,
    course: &Course,
) -> Option<Option<T>> {
    let mut ahead = pin!(ahead(call, course));
    // Most calls wait for nothing, and need no timer.
    match poll_fn(|context| Poll::Ready(ahead.as_mut().poll(context))).await {
        Poll::Ready(ended) => Some(ended),
        // An interrupt ends what runs, this what waits for the host: it is dropped where it is.
        Poll::Pending => timeout_at(until.into(), ahead).await.ok(),
    }
}

/// The same without a deadline.
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

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::runtime::Runtime;
    use tokio::sync::oneshot;

    use super::*;

    /// What has computed too much to begin ahead of the others, with one turn for all of its calls.
    fn lane() -> Lane {
        let one = || Arc::new(Semaphore::new(1));
        let even = Arc::new(Mutex::new(Instant::now()));
        let lane = Lane { own: one(), all: one(), even, priority: BEHIND };
        lane.note(2 * HEAD_START);
        lane
    }

    fn run<T: Send>(
        lane: &Lane,
        within: Duration,
        call: impl Future<Output = T> + Send,
    ) -> io::Result<Option<T>> {
        let runtime = Runtime::new()?;
        super::run(runtime.handle(), lane, call, Instant::now() + within, &Course::begin())
    }

    #[test]
    fn a_driver_that_computes_much_has_no_head_start_and_others_have() {
        let all = Lane::computing();
        let (one, other) = (all.of_one(), all.of_one());
        one.note(HEAD_START);
        assert!(one.has_head_start());
        one.note(HEAD_START);
        assert!(!one.has_head_start() && other.has_head_start());
    }

    #[test]
    fn a_call_that_gets_no_turn_ends_at_its_deadline_and_keeps_none() {
        let lane = lane();
        let taken = lane.all.try_acquire().expect("free");
        assert_eq!(run(&lane, Duration::from_millis(50), async { 1 }).expect("a thread"), None);
        drop(taken);
        assert_eq!(run(&lane, Duration::from_secs(60), async { 1 }).expect("a thread"), Some(1));
        assert_eq!((lane.own.available_permits(), lane.all.available_permits()), (1, 1));
    }

    #[test]
    fn a_call_that_waits_for_the_host_gives_its_turn_to_others() {
        let lane = lane();
        let (sender, receiver) = oneshot::channel();
        let minute = Duration::from_secs(60);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| run(&lane, minute, receiver));
            let other = run(&lane, minute, async { sender.send(2).is_ok() });
            assert_eq!(other.expect("a thread"), Some(true));
            assert_eq!(waiting.join().expect("no panic").expect("a thread"), Some(Ok(2)));
        });
    }
}
