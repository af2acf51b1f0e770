//! Two dockerds and a podman, with the manners that were recorded of them: the same ID during `docker cp`, Unmounts that are lost,
//! crashes after which the same ID comes again, live-restore, hang-ups, retries with nothing in them.
//!
//! They remember what was acknowledged to them; `check` compares that with what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use wasmvol_plan::Id;

use super::sim::{Copy, Sim};
use crate::catalog::record::Phase;
use crate::volumes::holders::{Caller, Process};
use crate::volumes::{Insist, VolumeError, Volumes};

const NAMES: [&str; 4] = ["aa", "bb", "cc", "dd"];
/// podman's mount ID is the same for every container and volume.
const PODMAN: &str = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";

/// Which engine a container belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Docker(usize),
    Podman,
}

/// A container that runs with a volume.
#[derive(Debug, Clone)]
pub(super) struct Container {
    number: u64,
    engine: Engine,
    pub(super) name: &'static str,
    holder: String,
}

/// What one call is.
#[derive(Debug, Clone)]
enum Action {
    Create { name: &'static str, driver: &'static str, size: &'static str },
    Remove { name: &'static str, by: usize },
    Run { name: &'static str, engine: Engine, holder: Option<String> },
    Copy(Container),
    Stop { container: Container, is_lost: bool },
    HangUp { name: &'static str, by: usize },
    Nothing { name: &'static str },
    Wait,
}

pub(super) struct Engines {
    epochs: [Process; 2],
    next: u64,
    pub(super) containers: Vec<Container>,
    /// Containers of a dockerd that crashed: they start again with the same ID.
    stopped: Vec<(usize, &'static str, String)>,
    podman: BTreeMap<&'static str, u32>,
    /// Volumes whose create was acknowledged and whose remove was not.
    pub(super) known: BTreeMap<&'static str, Id>,
    /// Names for which a call was lost: either outcome is right.
    pub(super) unsure: BTreeSet<&'static str>,
    /// Names whose remove failed half way: it is finished some time later.
    fading: BTreeSet<&'static str>,
    /// Acknowledged Mounts less acknowledged Unmounts.
    pub(super) counts: BTreeMap<&'static str, BTreeMap<String, u32>>,
    /// Names whose counts nobody can know: a Mount or Unmount was lost.
    pub(super) tainted: BTreeSet<&'static str>,
}

impl Engines {
    pub(super) fn new(sim: &Sim) -> Self {
        let epochs = [Process { pid: 100, start: 1 }, Process { pid: 200, start: 1 }];
        epochs.iter().for_each(|epoch| sim.begin_process(*epoch));
        Self {
            epochs,
            next: 1,
            containers: Vec::new(),
            stopped: Vec::new(),
            podman: BTreeMap::new(),
            known: BTreeMap::new(),
            unsure: BTreeSet::new(),
            fading: BTreeSet::new(),
            counts: BTreeMap::new(),
            tainted: BTreeSet::new(),
        }
    }

    /// One to six calls at once. False if the daemon died.
    pub(super) async fn round(&mut self, sim: &Sim, volumes: &Rc<Volumes<Sim>>) -> bool {
        let mut actions = Vec::new();
        for _ in 0..=sim.pick(6) {
            if let Some(action) = self.choose(sim, &actions) {
                actions.push(action);
            }
        }
        let calls: Vec<_> = actions
            .iter()
            .map(|action| tokio::task::unconstrained(self.call(sim, volumes, action.clone())))
            .collect();
        let outcomes = sim.until_death(join(calls)).await;
        let Some(outcomes) = outcomes else {
            for action in actions {
                sim.tell(|| format!("killed under {action:?}"));
                self.lose(sim, action);
            }
            return false;
        };
        for name in NAMES {
            if actions.iter().filter(|action| action.decides(name)).count() > 1 {
                self.unsure.insert(name);
            }
        }
        for (action, outcome) in actions.into_iter().zip(outcomes) {
            sim.tell(|| format!("{action:?}: {:?}", outcome.result));
            self.learn(sim, volumes, action, outcome);
        }
        true
    }

    /// What engines and the machine do while the daemon is away.
    pub(super) fn after_death(&mut self, sim: &Sim) {
        if !sim.is_rude() {
            return;
        }
        if sim.chance(20) {
            sim.drop_stranger();
        }
        if sim.chance(100) {
            sim.lose_mount();
        }
        if sim.chance(50) {
            sim.reboot();
            self.containers.clear();
            self.stopped.clear();
            self.podman.clear();
            self.counts.clear();
            self.tainted.clear();
            self.new_epoch(sim, 0);
            self.new_epoch(sim, 1);
        } else if sim.chance(200) {
            self.crash(sim, 0);
        }
    }

    fn new_epoch(&mut self, sim: &Sim, at: usize) {
        sim.end_process(self.epochs[at]);
        self.epochs[at].start += 1;
        sim.begin_process(self.epochs[at]);
    }

    /// kill -9 of a dockerd: half of the time its containers live on (live-restore).
    fn crash(&mut self, sim: &Sim, at: usize) {
        self.new_epoch(sim, at);
        let is_live_restore = sim.chance(500);
        let (ours, others): (Vec<_>, Vec<_>) =
            self.containers.drain(..).partition(|c| c.engine == Engine::Docker(at));
        self.containers = others;
        for container in ours {
            self.tainted.insert(container.name);
            if is_live_restore {
                self.containers.push(container);
            } else {
                forget_copy(sim, container.number);
                self.stopped.push((at, container.name, container.holder));
            }
        }
    }

    fn choose(&mut self, sim: &Sim, chosen: &[Action]) -> Option<Action> {
        let name = NAMES[sim.pick(NAMES.len())];
        let by = sim.pick(2);
        let driver = ["local", "tmpfs"][sim.pick(2)];
        let busy = |number: u64| {
            chosen.iter().any(|action| match action {
                Action::Copy(c) | Action::Stop { container: c, .. } => c.number == number,
                _ => false,
            })
        };
        let container = || {
            let free: Vec<_> = self.containers.iter().filter(|c| !busy(c.number)).collect();
            (!free.is_empty()).then(|| free[sim.pick(free.len())].clone())
        };
        let rude = sim.is_rude();
        Some(match sim.pick(12) {
            0 | 1 => {
                let size = if rude { ["1m", "2m"][sim.pick(2)] } else { "1m" };
                let driver = if rude { driver } else { "local" };
                Action::Create { name, driver, size }
            }
            2 => {
                // dockerd asks only when none of its own containers has the volume.
                let mine = |c: &Container| c.name == name && c.engine == Engine::Docker(by);
                let runs = |a: &Action| matches!(a, Action::Run { name: n, .. } if *n == name);
                if self.containers.iter().any(mine) || chosen.iter().any(runs) {
                    return None;
                }
                Action::Remove { name, by }
            }
            3 | 4 => Action::Run { name, engine: Engine::Docker(by), holder: None },
            5 => Action::Run { name, engine: Engine::Podman, holder: None },
            6 => {
                let (at, name, holder) = self.stopped.pop()?;
                Action::Run { name, engine: Engine::Docker(at), holder: Some(holder) }
            }
            7 => Action::Copy(container().filter(|c| c.engine != Engine::Podman)?),
            8 | 9 => Action::Stop { container: container()?, is_lost: rude && sim.chance(150) },
            10 if rude && sim.chance(500) => Action::HangUp { name, by },
            10 => Action::Nothing { name },
            _ => Action::Wait,
        })
    }

    fn caller(&self, engine: Engine) -> Caller {
        match engine {
            Engine::Docker(at) => Caller::Engine(self.epochs[at]),
            Engine::Podman => Caller::Podman(Process { pid: 300, start: self.next }),
        }
    }

    /// The call itself, and what the engine does right after it.
    fn call(
        &mut self,
        sim: &Sim,
        volumes: &Rc<Volumes<Sim>>,
        action: Action,
    ) -> impl Future<Output = Outcome> + use<> {
        let volumes = Rc::clone(volumes);
        let sim = sim.clone();
        self.next += 1;
        let number = self.next;
        let fresh = format!("{number:064x}");
        let caller = match &action {
            Action::Run { engine, .. } => self.caller(*engine),
            Action::Copy(c) | Action::Stop { container: c, .. } => self.caller(c.engine),
            Action::Remove { by, .. } | Action::HangUp { by, .. } => {
                self.caller(Engine::Docker(*by))
            }
            _ => Caller::Cli,
        };
        // podman asks only for its first container, and gives back with its last.
        let is_silent = match &action {
            Action::Run { name, engine: Engine::Podman, .. } => {
                let count = self.podman.entry(name).or_default();
                *count += 1;
                *count > 1
            }
            Action::Stop { container, .. } if container.engine == Engine::Podman => {
                let count = self.podman.entry(container.name).or_default();
                *count = count.saturating_sub(1);
                *count > 0
            }
            _ => false,
        };
        async move {
            let mut outcome = Outcome { result: Ok(()), container: None, is_silent };
            match action {
                Action::Create { name, driver, size } => {
                    let options = [("driver", driver), ("size", size)];
                    let options = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
                    outcome.result = volumes.create(name, options).await;
                }
                Action::Remove { name, .. } => {
                    outcome.result = volumes.remove(name, caller, Insist::No).await;
                }
                Action::Run { name, engine, holder } => {
                    let holder = match engine {
                        Engine::Podman => PODMAN.to_owned(),
                        Engine::Docker(_) => holder.unwrap_or(fresh),
                    };
                    if !is_silent {
                        outcome.result = volumes.mount(name, &holder, caller).await.map(drop);
                    }
                    if outcome.result.is_ok() && start_copy(&sim, &volumes, name, number) {
                        outcome.container = Some(Container { number, engine, name, holder });
                    }
                }
                Action::Copy(c) => {
                    outcome.result = volumes.mount(c.name, &c.holder, caller).await.map(drop);
                    if outcome.result.is_ok() {
                        outcome.result = volumes.unmount(c.name, &c.holder).await;
                    }
                }
                Action::Stop { container: c, is_lost } => {
                    forget_copy(&sim, c.number);
                    if !is_lost && !is_silent {
                        outcome.result = volumes.unmount(c.name, &c.holder).await;
                    }
                }
                Action::HangUp { name, .. } => {
                    outcome.result = volumes.mount(name, &fresh, caller).await.map(drop);
                    if outcome.result.is_ok() {
                        outcome.result = volumes.unmount(name, &fresh).await;
                    }
                }
                Action::Nothing { name } => {
                    assert!(volumes.create("", [].into()).await.is_err());
                    assert!(volumes.mount(name, "", caller).await.is_err());
                    assert!(volumes.remove("../x", caller, Insist::No).await.is_err());
                    outcome.result = volumes.unmount(name, &fresh).await;
                }
                Action::Wait => {
                    tokio::time::sleep(Duration::from_secs(70)).await;
                    volumes.tick().await;
                    volumes.slow_tick().await;
                }
            }
            outcome
        }
    }

    /// Where calls crossed or were lost, whatever is there now is what happened.
    pub(super) fn look_again(&mut self, volumes: &Volumes<Sim>) {
        let removing = volumes.names(|entry| entry.record.phase == Phase::Removing);
        self.fading.extend(NAMES.iter().filter(|n| removing.iter().any(|r| r.as_str() == **n)));
        let mut names = std::mem::take(&mut self.unsure);
        names.extend(&self.fading);
        for name in names {
            match shown_id(volumes, name) {
                Some(id) => drop(self.known.insert(name, id)),
                None => drop(self.known.remove(name)),
            }
        }
    }

    /// What an answer teaches the engine.
    fn learn(&mut self, sim: &Sim, volumes: &Volumes<Sim>, action: Action, outcome: Outcome) {
        let Outcome { result, container, is_silent } = outcome;
        if !sim.is_rude() {
            self.expect_success(&action, &result);
        }
        match action {
            Action::Create { name, .. } => {
                let is_new = !self.known.contains_key(name) || self.fading.contains(name);
                if result.is_ok() && !self.unsure.contains(name) && is_new {
                    let id = shown_id(volumes, name);
                    self.known.insert(name, id.expect("I7: an acknowledged volume is shown"));
                }
                if result.is_ok() {
                    self.fading.remove(name);
                }
            }
            Action::Remove { name, .. } => {
                if result.is_ok() {
                    self.known.remove(name);
                    self.counts.remove(name);
                    self.tainted.remove(name);
                    self.stopped.retain(|(_, n, _)| *n != name);
                } else if !matches!(result, Err(VolumeError::NotFound | VolumeError::InUse(_))) {
                    self.fading.insert(name);
                    self.tainted.insert(name);
                }
            }
            Action::Run { name, engine, .. } => match (result, container) {
                (Ok(()), Some(container)) => {
                    if !is_silent {
                        let counts = self.counts.entry(name).or_default();
                        *counts.entry(container.holder.clone()).or_default() += 1;
                    }
                    self.containers.push(container);
                }
                _ => {
                    if engine == Engine::Podman {
                        let count = self.podman.entry(name).or_default();
                        *count = count.saturating_sub(1);
                    }
                    self.tainted.insert(name);
                }
            },
            Action::Copy(c) if result.is_err() => drop(self.tainted.insert(c.name)),
            Action::Stop { container, is_lost } => {
                self.containers.retain(|c| c.number != container.number);
                if is_lost || result.is_err() {
                    self.tainted.insert(container.name);
                } else if !is_silent && let Some(counts) = self.counts.get_mut(container.name) {
                    counts.remove(&container.holder);
                }
            }
            Action::HangUp { name, .. } if result.is_err() => drop(self.tainted.insert(name)),
            _ => {}
        }
    }

    /// The daemon died under a call.
    fn lose(&mut self, sim: &Sim, action: Action) {
        match action {
            Action::Create { name, .. } | Action::Remove { name, .. } => {
                self.unsure.insert(name);
                self.tainted.insert(name);
            }
            Action::Run { name, engine, .. } => {
                if engine == Engine::Podman {
                    let count = self.podman.entry(name).or_default();
                    *count = count.saturating_sub(1);
                }
                self.tainted.insert(name);
                // A container that had been started in this round has not been heard of: it ends.
                let kept: BTreeSet<u64> = self.containers.iter().map(|c| c.number).collect();
                sim.kernel.borrow_mut().copies.retain(|copy| kept.contains(&copy.container));
            }
            Action::Copy(c) => drop(self.tainted.insert(c.name)),
            Action::Stop { container, .. } => {
                forget_copy(sim, container.number);
                self.containers.retain(|c| c.number != container.number);
                self.tainted.insert(container.name);
            }
            Action::HangUp { name, .. } => drop(self.tainted.insert(name)),
            Action::Nothing { .. } | Action::Wait => {}
        }
    }

    fn expect_success(&self, action: &Action, result: &Result<(), VolumeError>) {
        let Err(error) = result else { return };
        let is_polite_refusal = match action {
            Action::Run { .. } | Action::Remove { .. } | Action::Copy(_) => {
                matches!(error, VolumeError::NotFound | VolumeError::InUse(_))
            }
            _ => false,
        };
        assert!(is_polite_refusal, "nothing failed, and yet {action:?} was refused: {error}");
    }
}

impl Action {
    /// Whether it makes or removes the volume of that name.
    fn decides(&self, wanted: &str) -> bool {
        matches!(self, Self::Create { name, .. } | Self::Remove { name, .. } if *name == wanted)
    }
}

fn shown_id(volumes: &Volumes<Sim>, name: &str) -> Option<Id> {
    volumes.get(name, |view| view.status.id).ok()
}

/// How one call ended.
struct Outcome {
    result: Result<(), VolumeError>,
    container: Option<Container>,
    /// podman did not ask.
    is_silent: bool,
}

/// Runs all futures at once, in one task, and answers in their order.
async fn join<F: Future<Output = Outcome>>(calls: Vec<F>) -> Vec<Outcome> {
    let mut calls: Vec<_> = calls.into_iter().map(Box::pin).collect();
    let mut outcomes: Vec<Option<Outcome>> = calls.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (call, outcome) in calls.iter_mut().zip(&mut outcomes) {
            if outcome.is_none()
                && let std::task::Poll::Ready(value) = call.as_mut().poll(context)
            {
                *outcome = Some(value);
            }
        }
        if outcomes.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outcomes.into_iter().flatten().collect()
}

/// The engine binds what is at the mountpoint into a container. False if there is nothing: the engine was lied to.
fn start_copy(sim: &Sim, volumes: &Volumes<Sim>, name: &str, container: u64) -> bool {
    let Ok(mountpoint) = volumes.path(name) else { return false };
    let id = mountpoint.rsplit('/').next().and_then(|id| Id::parse(id).ok()).expect("an id");
    let mut kernel = sim.kernel.borrow_mut();
    let facts = kernel.anchor.get(&id).and_then(|stack| stack.last()).cloned();
    let Some(facts) = facts else { return false };
    kernel.copies.push(Copy { container, id, device: facts.device });
    true
}

fn forget_copy(sim: &Sim, container: u64) {
    sim.kernel.borrow_mut().copies.retain(|copy| copy.container != container);
}
