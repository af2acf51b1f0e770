//! A loaded driver: what it says of itself, and its verbs.
//!
//! The verbs block until there is an answer or the deadline is over, so they are called from threads that may block; any number
//! of threads may call at once. Every verb may be called twice: that is the contract.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, fstatvfs, openat2};
use rustix::io::Errno;
use wasmvol_plan::{DriverName, Id, Plan, VolumeName};

use crate::answer::{HELP_MAX, Unfit, broken, one_line};
use crate::call::{ATTACH, CHANGE, CHECK, Call, LIST, MIGRATE, PATH, POPULATE, Verb, Wide};
use crate::contract::Contract;
use crate::engine;
use crate::http::Names;
use crate::journal::Log;
use crate::pace::Lane;
use crate::turnstile::{Late, Turnstile};
use crate::types::{
    Abilities, Answer, CallError, Created, Description, ErrorCode, Found, Options, Populated,
    Progress, Reclaim, Report, Resized, Scope, Volume,
};

/// The interface that every driver exports.
const VOLUMES: &str = "wasmvol:driver/volumes@";
/// The interfaces by which a driver reaches what may know volumes that the host does not, or holds.
const ROOTS: &str = "wasmvol:driver/roots@";
const SECRETS: &str = "wasmvol:driver/secrets@";
const HTTP: &str = "wasi:http/outgoing-handler@";

/// The longest that `list` may take.
pub const LIST_MAX: Duration = LIST.network;

/// Bytes without which a volume is full: the rests that a file system keeps for itself.
const ROOM_MIN: u64 = 64 << 10;
/// Calls of one driver at once whose answers may have many megabytes.
pub(crate) const WIDE_MAX: usize = 4;

/// A component that was loaded. Cheap to clone; the last clone that is dropped unloads it.
#[derive(Clone)]
pub struct Driver {
    inner: Arc<(Calls, Facts)>,
}

/// What was learnt at load.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) name: DriverName,
    pub(crate) description: Description,
    pub(crate) digest: String,
    pub(crate) size: usize,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) calls_max: usize,
}

/// What it takes to call.
pub(crate) struct Calls {
    pub(crate) contract: Arc<dyn Contract>,
    pub(crate) engine: Arc<engine::Inner>,
    /// Its part of the engine's.
    pub(crate) turnstiles: [Turnstile; 2],
    /// For `list`, and for `populate`: what they answer may be large.
    pub(crate) wide: [Turnstile; 2],
    pub(crate) names: Names,
    /// For calls that compute much, and for those that fill volumes.
    pub(crate) lanes: [Lane; 2],
    pub(crate) log: Arc<Log>,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
    pub(crate) speaks_http: bool,
}

/// Whether a component with these imports may ask hosts by HTTP.
pub(crate) fn speaks_http(imports: &[String]) -> bool {
    imports.iter().any(|name| name.starts_with(HTTP))
}

impl Driver {
    pub(crate) fn new(calls: Calls, facts: Facts) -> Self {
        Self { inner: Arc::new((calls, facts)) }
    }

    /// The name under which it was loaded.
    #[must_use]
    pub fn name(&self) -> &DriverName {
        &self.facts().name
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.facts().description
    }

    /// sha256 of its component, 64 hex digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.facts().digest
    }

    /// Size of its component in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.facts().size
    }

    /// The line of the contract that it speaks: `0.1`.
    #[must_use]
    pub fn contract(&self) -> &str {
        let version = self.exports().iter().find_map(|name| name.strip_prefix(VOLUMES));
        version.and_then(|version| Some(version.rsplit_once('.')?.0)).unwrap_or_default()
    }

    /// The interfaces that its component imports, with their versions.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.facts().imports
    }

    /// The interfaces that its component exports, with their versions.
    #[must_use]
    pub fn exports(&self) -> &[String] {
        &self.facts().exports
    }

    /// How many of its calls run at once. A caller who starts more has their threads wait until the deadline, so one with few
    /// threads queues by itself.
    #[must_use]
    pub fn calls_max(&self) -> usize {
        self.facts().calls_max
    }

    /// How many of its calls fill volumes at once; more would wait as above.
    #[must_use]
    pub fn fills_max(&self) -> usize {
        WIDE_MAX.min(self.facts().calls_max)
    }

    /// What it can do beside the verbs of every driver.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        self.inner.0.contract.abilities()
    }

    /// Whether its component has any use for its granted roots.
    #[must_use]
    pub fn sees_roots(&self) -> bool {
        self.imports_some(ROOTS)
    }

    /// Whether its component has any use for the bytes of secrets.
    #[must_use]
    pub fn reveals(&self) -> bool {
        self.imports_some(SECRETS)
    }

    /// Whether its component speaks HTTP with a backend.
    #[must_use]
    pub fn speaks_http(&self) -> bool {
        self.inner.0.speaks_http
    }

    fn imports_some(&self, interface: &str) -> bool {
        self.imports().iter().any(|name| name.starts_with(interface))
    }

    /// Asks what storage a new volume needs.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn create(
        &self,
        id: Id,
        name: &VolumeName,
        options: &Options,
        scope: Scope,
    ) -> Result<Answer<Created>, CallError> {
        self.ask(&CHANGE, scope, |contract, call| contract.create(call, id, name, options))
    }

    /// Tells that a volume goes, and asks what becomes of its data. A volume that the driver does not know is gone already.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn remove(&self, volume: &Volume, scope: Scope) -> Result<Answer<Reclaim>, CallError> {
        self.ask(&CHANGE, scope, |contract, call| contract.remove(call, volume))
    }

    /// Asks how a volume is mounted.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn path(&self, volume: &Volume) -> Result<Plan, CallError> {
        self.ask(&PATH, Scope::default(), |contract, call| contract.path(call, volume))
    }

    /// Asks which volumes the backend knows, and waits `within` for the answer, and never longer than the verb may take.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn list(&self, scope: Scope, within: Duration) -> Result<Vec<Found>, CallError> {
        let deadline = within.min(LIST.deadline);
        let verb = Verb { deadline, network: within.min(LIST.network), ..LIST };
        self.ask(&verb, scope, |contract, call| contract.list(call))
    }

    /// Asks for one step towards a volume that is reachable on this machine.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn attach(&self, volume: &Volume, scope: Scope) -> Result<Answer<Progress>, CallError> {
        self.ask(&ATTACH, scope, |contract, call| contract.attach(call, volume))
    }

    /// Asks for one step towards a volume that is not reachable here any more.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn detach(&self, volume: &Volume, scope: Scope) -> Result<Answer<Progress>, CallError> {
        self.ask(&ATTACH, scope, |contract, call| contract.detach(call, volume))
    }

    /// Asks the backend for another size, and what storage the volume has then.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn resize(
        &self,
        volume: &Volume,
        size: u64,
        scope: Scope,
    ) -> Result<Answer<Resized>, CallError> {
        self.ask(&CHANGE, scope, |contract, call| contract.resize(call, volume, size))
    }

    /// Lets it fill a new volume: a directory that holds nothing yet, and that nobody else uses.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn populate(
        &self,
        volume: &Volume,
        directory: OwnedFd,
        scope: Scope,
    ) -> Result<Answer<Populated>, CallError> {
        let host = |error: io::Error| CallError::Host(format!("its directory: {error}"));
        let again = directory.try_clone().map_err(host)?;
        let filled = self.ask(&POPULATE, scope, |contract, call| {
            contract.populate(Call { directory: Some(directory), ..call }, volume)
        });
        let filled = filled.map_err(|error| match error {
            // A stream of WASI has no word for it, so its driver knows of no more than an error of input or output.
            CallError::Failed { code: _, message } if is_full(&again) => {
                let message = format!("{message}: its volume is full");
                CallError::Failed { code: ErrorCode::Exhausted, message }
            }
            error => error,
        });
        let filled = filled?;
        let Populated { executables, journal, .. } = &filled.value;
        for path in executables {
            make_executable(&again, path).map_err(|error| {
                let shown = one_line(path, HELP_MAX);
                let error = broken(format!("`{shown}` cannot be made executable: {error}"));
                Unfit::repeats(path, error).told(&journal.lock())
            })?;
        }
        Ok(filled)
    }

    /// Asks how a volume is where its backend keeps it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn check(&self, volume: &Volume, scope: Scope) -> Result<Report, CallError> {
        self.ask(&CHECK, scope, |contract, call| contract.check(call, volume))
    }

    /// Asks for a volume's state as this version writes it. `from` is the version that wrote the one that it has.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn migrate(&self, volume: &Volume, from: &str, scope: Scope) -> Result<Vec<u8>, CallError> {
        self.ask(&MIGRATE, scope, |contract, call| contract.migrate(call, volume, from))
    }

    fn facts(&self) -> &Facts {
        &self.inner.1
    }

    fn ask<T>(
        &self,
        verb: &Verb,
        scope: Scope,
        body: impl FnOnce(&dyn Contract, Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.inner.0.ask(verb, scope, body)
    }
}

/// Whether there is no room left for another file.
fn is_full(directory: &OwnedFd) -> bool {
    fstatvfs(directory).is_ok_and(|all| {
        let has_no_inodes = all.f_files > 0 && all.f_ffree == 0;
        has_no_inodes || all.f_bavail.saturating_mul(all.f_frsize) < ROOM_MIN
    })
}

/// Gives a file beneath a directory the bits of a program, whatever is planted on the way.
fn make_executable(directory: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(directory, path, flags, Mode::empty(), beneath)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    fchmod(&file, Mode::from_raw_mode(stat.st_mode) | Mode::XUSR | Mode::XGRP | Mode::XOTH)
}

impl Calls {
    /// Lets `body` make one call, as soon as there is a pass for it.
    pub(crate) fn ask<T>(
        &self,
        verb: &Verb,
        scope: Scope,
        body: impl FnOnce(&dyn Contract, Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let deadline = if self.speaks_http { verb.network } else { verb.deadline };
        let until = Instant::now() + deadline;
        let fills = matches!(verb.wide, Some(Wide::Populate));
        let is_long = fills || (self.speaks_http && verb.asks());
        let late = |late| not_begun(late, deadline);
        // The narrowest first: who waits there must not hold the passes of others.
        let wide = verb.wide.and_then(|wide| self.wide.get(wide as usize));
        let [all, long] = &self.turnstiles;
        let _wide = wide.map(|wide| wide.enter(until).map_err(late)).transpose()?;
        let _long = is_long.then(|| long.enter(until).map_err(late)).transpose()?;
        let _pass = all.enter(until).map_err(late)?;
        let _running = self.engine.ticker.run();
        let [computing, filling] = &self.lanes;
        let call = Call {
            engine: &self.engine.wasmtime,
            waits: self.engine.waits(self.speaks_http || fills)?,
            lane: if fills { filling } else { computing },
            disk: &self.engine.disk,
            names: &self.names,
            log: &self.log,
            settings: &self.settings,
            scope,
            directory: None,
            verb: *verb,
            until,
            deadline,
            meter: self.engine.meter.as_ref(),
        };
        body(&*self.contract, call).map_err(|error| as_loaded(error, self.log.driver()))
    }
}

/// Why a call has not begun: its driver's others have not ended, or those of other drivers.
fn not_begun(late: Late, deadline: Duration) -> CallError {
    match late {
        Late::Own => CallError::TimedOut(deadline),
        Late::Others => {
            let waited = deadline.as_millis();
            let why = format!(
                "the calls of other drivers left no room for it within {waited} ms: try again"
            );
            CallError::Host(why)
        }
    }
}

/// What a driver says, where it tells its operator what to type: it knows what it calls itself, and not the name that it is loaded under.
fn as_loaded(error: CallError, driver: &DriverName) -> CallError {
    match error {
        CallError::Failed { code, message } => {
            let commands =
                ["wasmvol driver grant NAME ", "wasmvol driver set NAME ", " --driver NAME`"];
            let named = commands.into_iter().fold(message, |message, command| {
                message.replace(command, &command.replace("NAME", driver.as_str()))
            });
            CallError::Failed { code, message: named }
        }
        error => error,
    }
}
