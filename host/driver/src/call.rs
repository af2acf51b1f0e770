//! One call: a store with limits and a deadline, made for it and dropped after it.
//!
//! Called by `contract` for each verb. It tells apart why a call ended without an answer, and never looks at an answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use wasmtime::component::{ResourceTable, ResourceTableError};
use wasmtime::{ResourceLimiter, Store, Trap, UpdateDeadline};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{FieldMapError, WasiHttpCtxView, WasiHttpView};

use crate::answer::{MESSAGE_MAX, one_line};
use crate::config::{INSTANCES_MAX, MEMORIES_MAX, MEMORY_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use crate::http::{Budget, HEADERS_MAX, Http, Names, Refusal};
use crate::journal::{Journal, Log, Shared};
use crate::meter::{Cost, Meter};
use crate::pace::{self, Course, LOOK, Lane, Look, Pace};
use crate::reserve::Reserve;
use crate::store::{Access, Uses, View};
use crate::types::{Answer, CallError, Reclaim, Reveal, Roots, Scope};

/// Most bytes that one random-number call may ask for: a driver needs a key, not a file.
pub(crate) const RANDOM_MAX: u64 = 4 << 10;
/// Most host resources (streams, pollables, headers) at once in a call.
pub(crate) const RESOURCES_MAX: usize = 128;
/// Most secrets that a call may ask for: each is a question to the one process that mounts.
pub(crate) const REVEALS_MAX: u32 = 16;
/// What a driver that asks a backend by HTTP gets, instead of the few seconds of one that only thinks: an engine that waits no longer has
/// the volume when it asks again.
const NETWORK: Duration = Duration::from_secs(30);
/// What a verb may ask for by HTTP: pages of an API, not data.
pub(crate) const TALK: Budget = Budget { requests: 64, bytes: 16 << 20 };
/// What the filling of a volume may: an archive of a large project, or thousands of files.
pub(crate) const FETCH: Budget = Budget { requests: 4096, bytes: 4 << 30 };

/// A verb's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb {
    /// How long it may take, waiting for a pass included; and how long it may compute, where it may wait for longer.
    pub(crate) deadline: Duration,
    /// The same where the driver may speak with a backend.
    pub(crate) network: Duration,
    /// Most bytes that may pass from the driver to the host in one answer or host call.
    pub(crate) answer_max: usize,
    /// What it may do with the driver's store.
    pub(crate) store: Access,
    /// What it may ask for by HTTP.
    pub(crate) http: Budget,
    /// Where it waits if its answer may be large.
    pub(crate) wide: Option<Wide>,
}

/// Verbs whose answers may be so large that few of them are asked at once, each for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wide {
    List,
    Populate,
}

/// `describe`: once at load, and nothing to wait for.
pub(crate) const DESCRIBE: Verb = Verb::pure(2);
/// `create`, `remove` and `resize`: podman gives us 5 s for the whole of a request, mountd needs its part.
pub(crate) const CHANGE: Verb = Verb::asking(2, Access::Write);
/// `path`: pure, and asked at every mount.
pub(crate) const PATH: Verb = Verb::pure(2);
/// `list`: in the background, where its caller waits no shorter, and up to ten thousand volumes long.
pub(crate) const LIST: Verb =
    Verb { answer_max: 16 << 20, wide: Some(Wide::List), ..Verb::asking(10, Access::Read) };
/// `attach` and `detach`: one step of what may take many.
pub(crate) const ATTACH: Verb = Verb { network: Duration::from_secs(10), ..CHANGE };
/// `populate`: dockerd waits 120 s for the whole Create.
pub(crate) const POPULATE: Verb = Verb {
    http: FETCH,
    answer_max: 16 << 20,
    wide: Some(Wide::Populate),
    ..Verb::asking(90, Access::Write)
};
/// `check` of health: in the background.
pub(crate) const CHECK: Verb =
    Verb { network: Duration::from_secs(10), ..Verb::asking(5, Access::Read) };
/// `migrate`: one for each live volume, while an operator waits. What it may not write no rollback has to take back.
pub(crate) const MIGRATE: Verb =
    Verb { network: Duration::from_secs(10), ..Verb::asking(2, Access::Read) };

impl Verb {
    /// One whose answer depends on nothing but its arguments and the settings.
    const fn pure(seconds: u64) -> Self {
        let deadline = Duration::from_secs(seconds);
        let http = Budget { requests: 0, bytes: 0 };
        // Twice the largest state, doubled once more for the host's own representation of lists.
        let (answer_max, store, wide) = (1 << 20, Access::None, None);
        Self { deadline, network: deadline, answer_max, store, http, wide }
    }

    /// One that may ask a backend, and the host for what is kept.
    const fn asking(seconds: u64, store: Access) -> Self {
        let pure = Self::pure(seconds);
        let network = if seconds > NETWORK.as_secs() { pure.deadline } else { NETWORK };
        Self { network, store, http: TALK, ..pure }
    }

    /// Whether its answer may depend on more than its arguments and the settings.
    pub(crate) fn asks(&self) -> bool {
        self.http.requests > 0
    }
}

/// Where a driver that fills a volume finds it.
const VOLUME: &str = "/volume";

/// How a call ended that gave an answer.
pub(crate) struct Ran<T> {
    pub(crate) value: T,
    pub(crate) uses: Uses,
    /// Why the host refused one of its requests.
    pub(crate) refusal: Option<Refusal>,
    /// It got what it asked for: secrets, and an answer to its last request. Else it cannot know what its backend knows.
    has_asked: bool,
    /// It knows what of the driver's words may be told.
    pub(crate) journal: Shared,
}

impl<T, E> Ran<Result<T, E>> {
    /// What a `remove` comes to that the driver refuses because it does not know the volume: it is gone already, and what the driver noted
    /// on the way stays. None where it cannot know.
    pub(crate) fn gone(&mut self, is_unknown: impl FnOnce(&E) -> bool) -> Option<Answer<Reclaim>> {
        let is_gone = self.has_asked && self.value.as_ref().is_err_and(is_unknown);
        is_gone.then(|| Answer { value: Reclaim::Delete, uses: std::mem::take(&mut self.uses) })
    }
}

/// Everything that belongs to one call.
pub(crate) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: Limits,
    pace: Pace,
    /// What it must leave of the disk that it writes to.
    reserve: Option<Reserve>,
    /// The limit for which it was interrupted.
    over: Option<String>,
    pub(crate) http: Http,
    pub(crate) until: Instant,
    pub(crate) journal: Shared,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
    pub(crate) roots: Roots,
    pub(crate) store: View,
    pub(crate) secrets: Option<Reveal>,
    /// How many of them it may still ask for.
    reveals: u32,
    /// One of them was refused.
    pub(crate) is_unrevealed: bool,
}

impl State {
    /// Takes one of the secrets that the call may ask for.
    pub(crate) fn take_reveal(&mut self) -> bool {
        let left = self.reveals.checked_sub(1);
        self.reveals = left.unwrap_or(0);
        left.is_some()
    }

    /// Notes that it has waited in one of the host's functions since then.
    pub(crate) fn note_waited(&self, since: Instant) {
        self.pace.note_waited(since.elapsed());
    }

    /// Looks at a call that computes.
    fn look(&mut self) -> UpdateDeadline {
        let over = self.reserve.as_ref().and_then(Reserve::over);
        self.over = match (over, self.pace.look()) {
            (None, Look::On(next)) => return next,
            (None, Look::Over(time)) => Some(format!("{} s of computing", time.as_secs_f64())),
            (over, _) => over,
        };
        UpdateDeadline::Interrupt
    }
}

/// A call that has not begun.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) engine: &'a wasmtime::Engine,
    /// Where it waits for the host.
    pub(crate) waits: Handle,
    /// Where it waits for its turn, if it computes much.
    pub(crate) lane: &'a Lane,
    /// The disk that everybody shares.
    pub(crate) disk: &'a Arc<OwnedFd>,
    /// Who looks up names for its driver.
    pub(crate) names: &'a Names,
    pub(crate) log: &'a Arc<Log>,
    pub(crate) settings: &'a Arc<BTreeMap<String, String>>,
    /// What it may reach.
    pub(crate) scope: Scope,
    /// The one directory that it has.
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) verb: Verb,
    /// When its deadline is over.
    pub(crate) until: Instant,
    /// How long that was.
    pub(crate) deadline: Duration,
    /// Who wants to know what it took.
    pub(crate) meter: Option<&'a Meter>,
}

impl Call<'_> {
    /// Gives `body` a store of its own: it makes the instance, calls the verb, takes the answer, and gives the store back. Beside the answer
    /// comes what the call did with its driver's space, whether the driver then said yes or no.
    ///
    /// # Errors
    /// The kind of [`CallError`] that tells why there is no answer.
    pub(crate) fn run<T, F>(
        mut self,
        body: impl FnOnce(Store<State>) -> F,
    ) -> Result<Ran<T>, CallError>
    where
        F: Future<Output = (wasmtime::Result<T>, Store<State>)> + Send,
        T: Send,
    {
        let begin = Instant::now();
        let journal = Shared::new(self.log);
        let course = Course::begin();
        let pace = Pace::new(self.until, self.verb.deadline, &course, self.lane);
        let mut store = Store::new(self.engine, self.state(&journal, &course, pace)?);
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(self.verb.answer_max);
        store.set_epoch_deadline(LOOK);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().look()));
        let ended = pace::run(&self.waits, self.lane, body(store), self.until, &course)
            .map_err(|error| CallError::Host(format!("no thread for what it computes: {error}")))?;
        journal.lock().finish();
        if let Some(meter) = self.meter {
            let refusal = ended.as_ref().and_then(|(_, store)| store.data().http.refusal());
            meter.note(Cost {
                time: begin.elapsed(),
                deadline: self.deadline,
                answer_max: self.verb.answer_max,
                memory: course.memory(),
                log: journal.lock().logged(),
                refusal: refusal.and_then(|refusal| refusal.grant()),
            });
        }
        match ended {
            Some((Ok(value), store)) if Instant::now() < self.until => {
                let State { store, http, is_unrevealed, .. } = store.into_data();
                let (uses, refusal) = (store.into_uses(), http.refusal());
                let has_asked = !is_unrevealed && refusal.is_none();
                Ok(Ran { value, uses, refusal, has_asked, journal })
            }
            // What a driver says after its deadline is not what it would have said.
            None | Some((Ok(_), _)) => Err(CallError::TimedOut(self.deadline)),
            Some((Err(error), store)) => Err(self.why(&error, store.data(), &journal.lock())),
        }
    }

    fn state(
        &mut self,
        journal: &Shared,
        course: &Arc<Course>,
        pace: Pace,
    ) -> Result<State, CallError> {
        let mut wasi = WasiCtxBuilder::new();
        // Nothing else is given: no variable, no argument, no socket; stdin is at its end.
        wasi.stdout(journal.stdout()).stderr(journal.stderr()).max_random_size(RANDOM_MAX);
        let mut reserve = None;
        if let Some(directory) = self.directory.take() {
            reserve = Reserve::of(&directory, self.scope.is_thin, self.disk)
                .map_err(|error| CallError::Host(error.to_string()))?;
            // It has this thread anyway.
            wasi.allow_blocking_current_thread(true);
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            wasi.preopened_dir(path, VOLUME, FsPerms::ReadWrite)
                .map_err(|error| CallError::Host(format!("{error:#}")))?;
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let Scope { roots, store, http, secrets, is_thin: _ } = std::mem::take(&mut self.scope);
        Ok(State {
            wasi: wasi.build(),
            table,
            limits: Limits { course: Arc::clone(course), memory: 0, elements: 0, exceeded: None },
            pace,
            reserve,
            over: None,
            http: Http::new(self.log, http, self.verb.http, self.until, self.names),
            until: self.until,
            journal: journal.clone(),
            settings: Arc::clone(self.settings),
            roots,
            store: View::new(store, self.verb.store),
            secrets: secrets.filter(|_| self.verb.asks()),
            reveals: REVEALS_MAX,
            is_unrevealed: false,
        })
    }

    fn why(&self, error: &wasmtime::Error, state: &State, journal: &Journal) -> CallError {
        let (limits, last_words) = (&state.limits, journal.last_words());
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return CallError::Exited(exit.0);
        }
        if let Some(trap) = error.downcast_ref::<Trap>() {
            let crashed = |words: &str| match state.http.refusal() {
                Some(refusal) => CallError::Crashed(refusal.behind(words, journal)),
                None => CallError::Crashed(words.to_owned()),
            };
            return match trap {
                Trap::Interrupt => match &state.over {
                    Some(limit) => CallError::OutOfBounds(limit.clone()),
                    None => CallError::TimedOut(self.deadline),
                },
                Trap::StackOverflow => CallError::OutOfBounds("512 KiB of stack".to_owned()),
                _ if limits.exceeded.is_some() => limits.error(),
                _ if last_words.is_empty() => crashed(&trap.to_string()),
                _ => crashed(last_words),
            };
        }
        if limits.exceeded.is_some() {
            return limits.error();
        }
        if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
            return CallError::OutOfBounds(format!("{RESOURCES_MAX} host resources"));
        }
        if matches!(error.downcast_ref(), Some(FieldMapError::TotalSizeTooBig)) {
            let most = HEADERS_MAX >> 10;
            return CallError::OutOfBounds(format!("{most} KiB of headers in one request"));
        }
        let why = one_line(journal.told(&error.root_cause().to_string()), MESSAGE_MAX);
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

/// What one call has taken of memory, over all of its memories and tables.
#[derive(Debug)]
struct Limits {
    course: Arc<Course>,
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
        self.course.note_memory(self.memory);
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

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let Http { context, client } = &mut self.http;
        WasiHttpCtxView { hooks: client, table: &mut self.table, ctx: context }
    }
}
