//! A loaded driver: what it says of itself, and its verbs.
//!
//! The verbs block until there is an answer or the deadline is over, so they are called from threads that may block; any number
//! of threads may call at once. Every verb may be called twice: that is the contract.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmvol_plan::{DriverName, Id, Plan, VolumeName};

use crate::call::{CREATE, Call, LIST, PATH, REMOVE, Verb};
use crate::contract::Contract;
use crate::engine;
use crate::journal::Log;
use crate::turnstile::Turnstile;
use crate::types::{
    CallError, Created, Description, ErrorCode, Found, Options, Reclaim, Roots, Volume,
};

/// The interface by which a driver sees its granted roots.
const ROOTS: &str = "wasmvol:driver/roots@";

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
    pub(crate) contract: Contract,
    pub(crate) engine: Arc<engine::Inner>,
    pub(crate) turnstile: Turnstile,
    pub(crate) log: Arc<Log>,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
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

    /// Whether its backend may know volumes that the host does not: whether its component has any use for its granted roots. What
    /// sees neither them nor a network has nothing to find volumes in but its settings.
    #[must_use]
    pub fn finds(&self) -> bool {
        self.imports().iter().any(|name| name.starts_with(ROOTS))
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
        roots: Roots,
    ) -> Result<Created, CallError> {
        self.ask_with(&CREATE, roots, |contract, call| contract.create(call, id, name, options))
    }

    /// Tells that a volume goes, and asks what becomes of its data. A volume that the driver does not know is gone already.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn remove(&self, volume: &Volume) -> Result<Reclaim, CallError> {
        match self.ask(&REMOVE, |contract, call| contract.remove(call, volume)) {
            Err(CallError::Failed { code: ErrorCode::NotFound, .. }) => Ok(Reclaim::Delete),
            answer => answer,
        }
    }

    /// Asks how a volume is mounted.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn path(&self, volume: &Volume) -> Result<Plan, CallError> {
        self.ask(&PATH, |contract, call| contract.path(call, volume))
    }

    /// Asks which volumes the backend knows, and waits `within` for the answer, and never longer than 10 s.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn list(&self, roots: Roots, within: Duration) -> Result<Vec<Found>, CallError> {
        let verb = Verb { deadline: within.min(LIST.deadline), ..LIST };
        self.ask_with(&verb, roots, |contract, call| contract.list(call))
    }

    fn facts(&self) -> &Facts {
        &self.inner.1
    }

    fn ask<T>(
        &self,
        verb: &Verb,
        body: impl FnOnce(&Contract, Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.ask_with(verb, Roots::default(), body)
    }

    fn ask_with<T>(
        &self,
        verb: &Verb,
        roots: Roots,
        body: impl FnOnce(&Contract, Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.inner.0.ask(verb, roots, body)
    }
}

impl Calls {
    /// Lets `body` make one call, as soon as there is a pass for it.
    pub(crate) fn ask<T>(
        &self,
        verb: &Verb,
        roots: Roots,
        body: impl FnOnce(&Contract, Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let until = Instant::now() + verb.deadline;
        // The driver's own turnstile first: its waiting calls must not hold the engine's passes.
        let late = || CallError::TimedOut(verb.deadline);
        let _own = self.turnstile.enter(until).ok_or_else(late)?;
        let _common = self.engine.turnstile.enter(until).ok_or_else(late)?;
        let _running = self.engine.ticker.run();
        let (engine, log, settings) = (&self.engine.wasmtime, &self.log, &self.settings);
        body(&self.contract, Call { engine, log, settings, roots, verb: *verb, until })
    }
}
