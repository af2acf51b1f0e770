//! The calls of the suite: each with what its verb may reach, counted, and its writes kept.
//!
//! Used by the checks through [`Subject`]. A call that was refused for want of what only an operator gives is told from one that failed.

use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmvol_driver::{
    Answer, CallError, Cost, Created, Driver, Found, Marked, Populated, Progress, Reclaim, Report,
    Resized, Reveal, Root, Roots, Scope, Volume,
};
use wasmvol_plan::frame::REVEAL_MAX;
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{Fault, FaultKind, Plan, SecretName};

use super::Subject;
use crate::conformance::{milliseconds, needs_grant, refusal};

/// What the calls of one verb took at most; of those alone that were answered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) calls: u64,
    #[serde(rename = "slowest-ms", with = "milliseconds")]
    pub(crate) slowest: Duration,
    #[serde(skip)]
    pub(crate) deadline: Duration,
    /// Bytes of linear memory.
    pub(crate) memory: usize,
    /// Bytes that it logged.
    pub(crate) log: usize,
    /// Bytes of the answer, as a host gets it.
    pub(crate) answer: usize,
    #[serde(skip)]
    pub(crate) answer_max: usize,
    /// Bytes of state in it.
    #[serde(skip)]
    pub(crate) state: usize,
}

/// How large an answer is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    pub(super) whole: usize,
    /// The largest state in it.
    pub(super) state: usize,
}

impl Size {
    /// Of an answer with one state, and so many bytes beside that.
    fn with(state: &[u8], beside: usize) -> Self {
        Self { whole: state.len() + beside, state: state.len() }
    }
}

impl Subject {
    pub(in crate::conformance) fn create(&mut self, volume: &Volume) -> Result<Created, CallError> {
        let Volume { id, name, options, .. } = volume;
        self.ask("create", |driver, scope| driver.create(*id, name, options, scope))
    }

    /// Asks as before a crash: what was written into the store is lost, and whoever asks keeps nothing of the answer.
    pub(in crate::conformance) fn in_vain<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> T {
        let store = Arc::clone(&self.store);
        let answer = ask(self);
        self.store = store;
        answer
    }

    pub(in crate::conformance) fn remove(&mut self, volume: &Volume) -> Result<Reclaim, CallError> {
        self.ask("remove", |driver, scope| driver.remove(volume, scope))
    }

    pub(in crate::conformance) fn path(&mut self, volume: &Volume) -> Result<Plan, CallError> {
        self.ask("path", |driver, _| driver.path(volume).map(Answer::from))
    }

    /// One step.
    pub(in crate::conformance) fn attach_once(
        &mut self,
        volume: &Volume,
    ) -> Result<Progress, CallError> {
        self.ask("attach", |driver, scope| driver.attach(volume, scope))
    }

    /// One step.
    pub(in crate::conformance) fn detach_once(
        &mut self,
        volume: &Volume,
    ) -> Result<Progress, CallError> {
        self.ask("detach", |driver, scope| driver.detach(volume, scope))
    }

    /// What it knows, where this is marked beneath its granted roots.
    pub(in crate::conformance) fn list(
        &mut self,
        marked: &[Marked],
    ) -> Result<Vec<Found>, CallError> {
        let roots = self.roots(marked);
        self.ask("list", |driver, scope| {
            driver.list(Scope { roots, ..scope }, Duration::MAX).map(Answer::from)
        })
    }

    pub(in crate::conformance) fn resize(
        &mut self,
        volume: &Volume,
        size: u64,
    ) -> Result<Resized, CallError> {
        self.ask("resize", |driver, scope| driver.resize(volume, size, scope))
    }

    pub(in crate::conformance) fn populate(
        &mut self,
        volume: &Volume,
        directory: OwnedFd,
    ) -> Result<Populated, CallError> {
        self.ask("populate", |driver, scope| driver.populate(volume, directory, scope))
    }

    pub(in crate::conformance) fn check(&mut self, volume: &Volume) -> Result<Report, CallError> {
        self.ask("check", |driver, scope| driver.check(volume, scope).map(Answer::from))
    }

    pub(in crate::conformance) fn migrate(
        &mut self,
        volume: &Volume,
        from: &str,
    ) -> Result<Vec<u8>, CallError> {
        self.ask("migrate", |driver, scope| driver.migrate(volume, from, scope).map(Answer::from))
    }

    /// Makes a call with what its verb may reach, and keeps what came of it.
    pub(super) fn ask<T: Measured>(
        &mut self,
        verb: &'static str,
        call: impl FnOnce(&Driver, Scope) -> Result<Answer<T>, CallError>,
    ) -> Result<T, CallError> {
        *self.lacking() = None;
        let scope = Scope {
            roots: self.roots(&[]),
            store: Arc::clone(&self.store),
            http: self.setup.grants.http.clone().into(),
            secrets: Some(self.reveal()),
            ..Scope::default()
        };
        let answer = call(&self.driver, scope);
        for cost in self.meter.take() {
            if let Some(why) = &cost.refusal {
                *self.lacking() = Some(needs_grant(why));
            }
            let answered = answer.as_ref().map(|answer| answer.value.size());
            if answered.is_ok() || answered.is_err_and(|error| refusal(error).is_some()) {
                self.count(verb, &cost, answered.unwrap_or_default());
            }
        }
        let Answer { value, uses } = answer?;
        // Nobody else writes: what was read is still so.
        if let Some(store) = uses.applied(&self.store) {
            self.store = Arc::new(store);
        }
        Ok(value)
    }

    pub(super) fn count(&mut self, verb: &'static str, cost: &Cost, answer: Size) {
        let told = self.told.entry(verb).or_default();
        told.calls += 1;
        told.slowest = told.slowest.max(cost.time);
        told.deadline = cost.deadline;
        told.memory = told.memory.max(cost.memory);
        told.log = told.log.max(cost.log);
        told.answer = told.answer.max(answer.whole);
        told.answer_max = cost.answer_max;
        told.state = told.state.max(answer.state);
    }

    fn roots(&self, marked: &[Marked]) -> Roots {
        if !self.driver.sees_roots() {
            return Roots::default();
        }
        let root = |path: &String| Root { path: path.clone(), marked: marked.to_vec() };
        Roots(self.setup.grants.host_directories.iter().map(root).collect())
    }

    pub(super) fn lacking(&self) -> MutexGuard<'_, Option<String>> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out secrets by mountd's rules.
    fn reveal(&self) -> Reveal {
        let driver = self.driver.name().clone();
        let (grants, secrets) = (self.setup.grants.clone(), self.setup.secrets.clone());
        let lacking = Arc::clone(&self.lacking);
        Arc::new(move |name: &str, _| {
            let name = SecretName::parse(name)
                .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
            let lacks = |kind, what: &str, why: String| {
                let needs = format!("needs a {what}: {why}");
                *lacking.lock().unwrap_or_else(PoisonError::into_inner) = Some(needs);
                Err(Fault::new(kind, why))
            };
            if !grants.reveals.contains(&name) {
                let why = format!("secret `{name}` may not be revealed: `--grant reveal={name}`");
                return lacks(FaultKind::Denied, "grant", why);
            }
            let Some(secret) = secrets.get(&name) else {
                let why = format!("no secret `{name}` is kept: `--secret {name}=FILE`");
                return lacks(FaultKind::Missing, "secret", why);
            };
            secret.check(&name, &driver, None)?;
            if secret.bytes().len() > REVEAL_MAX {
                let most = REVEAL_MAX >> 10;
                let why = format!("secret `{name}` is too long: at most {most} KiB are revealed");
                return Err(Fault::new(FaultKind::Exhausted, why));
            }
            Ok(Bytes::new(secret.bytes().to_vec()))
        })
    }
}

/// What has a size.
pub(super) trait Measured {
    fn size(&self) -> Size;
}

/// Bytes of what no driver writes itself, nearly: those of the same as JSON.
pub(super) fn written(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

impl Measured for Created {
    fn size(&self) -> Size {
        Size::with(&self.state, written(&self.storage))
    }
}

impl Measured for Resized {
    fn size(&self) -> Size {
        Size::with(&self.state, written(&self.storage))
    }
}

impl Measured for Plan {
    fn size(&self) -> Size {
        Size::with(&[], written(self))
    }
}

impl Measured for Reclaim {
    fn size(&self) -> Size {
        Size::with(&[], written(self))
    }
}

impl Measured for Vec<Found> {
    fn size(&self) -> Size {
        let each = |found: &Found| found.name.len() + written(&found.options) + found.state.len();
        Size {
            whole: self.iter().map(each).sum(),
            state: self.iter().map(|found| found.state.len()).max().unwrap_or_default(),
        }
    }
}

impl Measured for Vec<u8> {
    fn size(&self) -> Size {
        Size::with(self, 0)
    }
}

impl Measured for Populated {
    fn size(&self) -> Size {
        Size::with(&self.state, self.executables.iter().map(String::len).sum())
    }
}

impl Measured for Progress {
    fn size(&self) -> Size {
        match self {
            Self::Done(state) | Self::Again { state, .. } => Size::with(state, 0),
        }
    }
}

impl Measured for Report {
    fn size(&self) -> Size {
        Size::with(&[], self.message.len())
    }
}
