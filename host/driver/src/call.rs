//! One call: a store with limits and a deadline, made for it and dropped after it.
//!
//! Called by `contract` for each verb. It tells apart why a call ended without an answer, and never looks at an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{Linker, Resource, ResourceTable, ResourceTableError};
use wasmtime::{ResourceLimiter, Store, Trap};
use wasmtime_wasi::clocks::WasiClocksCtxView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::answer::{MESSAGE_MAX, one_line};
use crate::config::{INSTANCES_MAX, MEMORIES_MAX, MEMORY_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use crate::journal::{Log, Shared};
use crate::ticker::TICK;
use crate::types::{CallError, Roots};

/// Most bytes that one random-number call may ask for: a driver needs a key, not a file.
const RANDOM_MAX: u64 = 4 << 10;
/// Most host resources (streams, pollables) at once in a call.
const RESOURCES_MAX: usize = 128;

/// A verb's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb {
    /// How long it may take, waiting for a pass included.
    pub(crate) deadline: Duration,
    /// Most bytes that may pass from the driver to the host in one answer or host call.
    pub(crate) answer_max: usize,
}

/// `describe`: once at load, and nothing to wait for.
pub(crate) const DESCRIBE: Verb = Verb::new(2);
/// `create` and `remove`: podman gives us 5 s for the whole of a request, mountd needs its part.
pub(crate) const CREATE: Verb = Verb::new(3);
/// See [`CREATE`].
pub(crate) const REMOVE: Verb = Verb::new(3);
/// `path`: pure, and asked at every mount.
pub(crate) const PATH: Verb = Verb::new(2);
/// `list`: in the background, where its caller waits no shorter, and up to ten thousand volumes long.
pub(crate) const LIST: Verb = Verb { deadline: Duration::from_secs(10), answer_max: 16 << 20 };

impl Verb {
    const fn new(seconds: u64) -> Self {
        // Twice the largest state, doubled once more for the host's own representation of lists.
        Self { deadline: Duration::from_secs(seconds), answer_max: 1 << 20 }
    }
}

/// Everything that belongs to one call.
pub(crate) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: Limits,
    until: Instant,
    pub(crate) journal: Shared,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
    pub(crate) roots: Roots,
}

/// A call that has not begun.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) engine: &'a wasmtime::Engine,
    pub(crate) log: &'a Arc<Log>,
    pub(crate) settings: &'a Arc<BTreeMap<String, String>>,
    /// What it may see of its granted roots.
    pub(crate) roots: Roots,
    pub(crate) verb: Verb,
    /// When its deadline is over.
    pub(crate) until: Instant,
}

impl Call<'_> {
    /// Gives `body` a store of its own: it makes the instance, calls the verb and takes the answer.
    ///
    /// # Errors
    /// The kind of [`CallError`] that tells why there is no answer.
    pub(crate) fn run<T>(
        mut self,
        body: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        let left = self.until.saturating_duration_since(Instant::now());
        let journal = Shared::new(self.log);
        let roots = std::mem::take(&mut self.roots);
        let mut store = Store::new(self.engine, self.state(&journal, roots));
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(self.verb.answer_max);
        store.set_epoch_deadline(ticks(left));
        let result = body(&mut store);
        let mut journal = journal.lock();
        journal.finish();
        // A sleep is cut short at the deadline: what a driver says after that is not what it would have said.
        if result.is_ok() && Instant::now() >= self.until {
            return Err(CallError::TimedOut(self.verb.deadline));
        }
        let limits = &store.data().limits;
        result.map_err(|error| self.why(&error, limits, journal.last_words()))
    }

    fn state(&self, journal: &Shared, roots: Roots) -> State {
        let mut wasi = WasiCtxBuilder::new();
        // Nothing else is given: no directory, no variable, no argument, no network; stdin is at its end.
        wasi.stdout(journal.stdout()).stderr(journal.stderr()).max_random_size(RANDOM_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        State {
            wasi: wasi.build(),
            table,
            limits: Limits::default(),
            until: self.until,
            journal: journal.clone(),
            settings: Arc::clone(self.settings),
            roots,
        }
    }

    fn why(&self, error: &wasmtime::Error, limits: &Limits, last_words: &str) -> CallError {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return CallError::Exited(exit.0);
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return match trap {
                Trap::Interrupt => CallError::TimedOut(self.verb.deadline),
                Trap::StackOverflow => CallError::OutOfBounds("512 KiB of stack".to_owned()),
                _ if limits.exceeded.is_some() => limits.error(),
                _ if last_words.is_empty() => CallError::Crashed(trap.to_string()),
                _ => CallError::Crashed(last_words.to_owned()),
            };
        }
        if limits.exceeded.is_some() {
            return limits.error();
        }
        if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
            return CallError::OutOfBounds(format!("{RESOURCES_MAX} host resources"));
        }
        let why = one_line(&error.root_cause().to_string(), MESSAGE_MAX);
        // Memory that the kernel does not give. WASI's own errors go to the driver as answers and never get here.
        if error.chain().any(|cause| cause.is::<std::io::Error>()) {
            return CallError::Host(why);
        }
        // wasmtime has no type for this error.
        if why.contains("fuel allocated for hostcalls") {
            let limit = self.verb.answer_max >> 20;
            return CallError::OutOfBounds(format!("{limit} MiB in one answer"));
        }
        CallError::Contract(why)
    }
}

/// Epochs until a deadline; the one that is running counts for nothing.
fn ticks(left: Duration) -> u64 {
    let ticks = left.as_millis() / TICK.as_millis();
    u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
}

/// What one call has taken of memory, over all of its memories and tables.
#[derive(Debug, Default)]
struct Limits {
    memory: usize,
    elements: usize,
    exceeded: Option<&'static str>,
}

impl Limits {
    fn error(&self) -> CallError {
        CallError::OutOfBounds(self.exceeded.unwrap_or_default().to_owned())
    }

    fn grow(used: &mut usize, current: usize, desired: usize, max: usize) -> bool {
        let next = used.saturating_add(desired.saturating_sub(current));
        let fits = next <= max;
        if fits {
            *used = next;
        }
        fits
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = Self::grow(&mut self.memory, current, desired, MEMORY_MAX);
        if !fits {
            self.exceeded = Some("64 MiB of memory");
        }
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = Self::grow(&mut self.elements, current, desired, TABLE_ELEMENTS_MAX);
        if !fits {
            self.exceeded = Some("20000 table elements");
        }
        Ok(fits)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Offers what every driver may import of WASI.
pub(crate) fn offer_wasi(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<State, Clock>(linker, Clock::of)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// WASI's clock, but for sleeps: they end with the call's deadline. An interrupt reaches only WebAssembly code, and a sleep is
/// the one thing on offer that waits in the host.
struct Clock;

struct ClockView<'a> {
    inner: WasiClocksCtxView<'a>,
    until: Instant,
}

impl wasmtime::component::HasData for Clock {
    type Data<'a> = ClockView<'a>;
}

impl Clock {
    fn of(state: &mut State) -> ClockView<'_> {
        let until = state.until;
        ClockView { inner: wasmtime_wasi::clocks::WasiClocksView::clocks(state), until }
    }
}

impl ClockView<'_> {
    /// Nanoseconds until the deadline.
    fn left(&self) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now());
        u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl monotonic_clock::Host for ClockView<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.inner.now()
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.inner.resolution()
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let latest = self.inner.now()?.saturating_add(self.left());
        self.inner.subscribe_instant(when.min(latest))
    }

    fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let left = self.left();
        self.inner.subscribe_duration(when.min(left))
    }
}
