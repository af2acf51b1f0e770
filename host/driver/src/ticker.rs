//! The clock of deadlines: a thread that moves wasmtime's epoch on while calls run.
//!
//! A daemon at rest must not wake a hundred times a second, so the thread parks when nothing has been called for a while.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Length of one epoch: a call is ended at most this much after its deadline.
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// Ticks without a new call after which the thread parks, if nothing runs.
const IDLE_TICKS: u32 = 100;

/// The thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Calls that run now.
    running: AtomicU64,
    /// Calls ever begun: how the thread sees that it was not idle.
    begun: AtomicU64,
    parked: AtomicBool,
    over: AtomicBool,
}

/// Keeps the clock going; held while a call runs.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(engine: wasmtime::Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("epoch".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.tick(&engine)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes that a call begins.
    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        self.shared.begun.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(&self.shared)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Shared {
    fn tick(&self, engine: &wasmtime::Engine) {
        let mut seen = 0;
        let mut idle = 0;
        while !self.over.load(Ordering::SeqCst) {
            thread::sleep(TICK);
            engine.increment_epoch();
            let begun = self.begun.load(Ordering::SeqCst);
            idle = if begun == seen { idle + 1 } else { 0 };
            seen = begun;
            if idle < IDLE_TICKS {
                continue;
            }
            // The flag is set before the counts are read, and `run` counts before it reads the flag: one of the two sees the other.
            self.parked.store(true, Ordering::SeqCst);
            while self.begun.load(Ordering::SeqCst) == seen
                && self.running.load(Ordering::SeqCst) == 0
                && !self.over.load(Ordering::SeqCst)
            {
                thread::park();
            }
            self.parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It returns within a tick, and has nothing to say.
            let _ = thread.join();
        }
    }
}
