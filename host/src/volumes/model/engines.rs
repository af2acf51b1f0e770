//! Two dockerds and a podman, with the manners that were recorded of them: the same ID during `docker cp`, Unmounts that are lost,
//! crashes after which the same ID comes again, live-restore, hang-ups, retries with nothing in them.
//!
//! What they ask goes over a `desk`, which notes what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::desk::Desk;
use super::drivers::DRIVERS;
use super::world::Sim;
use crate::volumes::holders::{Caller, Process};
use crate::volumes::{Insist, VolumeError};

pub(super) const NAMES: [&str; 5] = ["aa", "bb", "cc", "dd", "ee"];
/// podman's mount ID is the same for every container and volume.
const PODMAN: &str = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";

/// Which engine a container belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Docker(usize),
    Podman,
}

/// A container that runs with a volume.
#[derive(Debug, Clone)]
struct Container {
    number: u64,
    engine: Engine,
    name: &'static str,
    holder: String,
}

/// What one call is.
#[derive(Debug, Clone)]
enum Action {
    Recover,
    Create { name: &'static str, driver: &'static str, size: &'static str, is_kept: bool },
    Remove { name: &'static str, by: usize, insist: Insist },
    Run { name: &'static str, engine: Engine, holder: Option<String> },
    Copy(Container),
    Stop { container: Container, is_lost: bool },
    HangUp { name: &'static str, by: usize },
    Nothing { name: &'static str },
    Purge,
    Tinker,
    Swap,
    Wait,
}

pub(super) struct Engines {
    epochs: [Process; 2],
    next: u64,
    containers: Vec<Container>,
    /// Containers of a dockerd that crashed: they start again with the same ID.
    stopped: Vec<(usize, &'static str, String)>,
    podman: BTreeMap<&'static str, u32>,
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
        }
    }

    /// One to six calls at once; where the daemon has just begun, beside its recovery. False if the daemon died.
    pub(super) async fn round(&mut self, desk: &Desk) -> bool {
        let sim = &desk.sim;
        let mut actions = Vec::new();
        if !sim.has_recovered() {
            actions.push(Action::Recover);
        }
        if sim.has_recovered() || sim.chance(500) {
            for _ in 0..=sim.pick(6) {
                if let Some(action) = self.choose(sim, &actions) {
                    actions.push(action);
                }
            }
        }
        let calls: Vec<_> = actions
            .iter()
            .map(|action| tokio::task::unconstrained(self.call(desk, action.clone())))
            .collect();
        let Some(outcomes) = sim.until_death(join(calls)).await else {
            desk.ledger.borrow_mut().die();
            for action in actions {
                sim.tell(|| format!("killed under {action:?}"));
                self.lose(sim, action);
            }
            return false;
        };
        for (action, outcome) in actions.into_iter().zip(outcomes) {
            sim.tell(|| format!("{action:?}: {:?}", outcome.result));
            self.learn(sim, action, outcome);
        }
        true
    }

    /// What engines and the machine do while the daemon is away.
    pub(super) fn after_death(&mut self, desk: &Desk) {
        let (sim, ledger) = (&desk.sim, &desk.ledger);
        if !sim.is_rude() {
            return;
        }
        if sim.chance(20) {
            sim.drop_stranger();
        }
        if sim.chance(50) {
            sim.drop_stray_mount();
        }
        if sim.chance(100) {
            sim.lose_mount();
        }
        if sim.chance(50) {
            sim.reboot();
            self.containers.clear();
            self.stopped.clear();
            self.podman.clear();
            ledger.borrow_mut().reboot();
            self.new_epoch(sim, 0);
            self.new_epoch(sim, 1);
        } else if sim.chance(200) {
            self.crash(sim, 0);
            ledger.borrow_mut().leave_rests();
        }
    }

    fn new_epoch(&mut self, sim: &Sim, at: usize) {
        sim.end_process(self.epochs[at]);
        self.epochs[at].start += 1;
        sim.begin_process(self.epochs[at]);
    }

    /// kill -9 of a dockerd: half of the time its containers live on (live-restore).
    fn crash(&mut self, sim: &Sim, at: usize) {
        sim.tell(|| format!("dockerd {at} is killed"));
        self.new_epoch(sim, at);
        if sim.chance(500) {
            return;
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            self.containers.drain(..).partition(|c| c.engine == Engine::Docker(at));
        self.containers = others;
        for container in ours {
            sim.kernel.borrow_mut().forget_copy(container.number);
            self.stopped.push((at, container.name, container.holder));
        }
    }

    fn choose(&mut self, sim: &Sim, chosen: &[Action]) -> Option<Action> {
        let name = NAMES[sim.pick(NAMES.len())];
        let by = sim.pick(2);
        let driver = DRIVERS[sim.pick(2)];
        let busy = |number: u64| {
            chosen.iter().any(|action| match action {
                Action::Copy(c) | Action::Stop { container: c, .. } => c.number == number,
                _ => false,
            })
        };
        // podman has a lock of its own for each volume.
        let is_podmans = |name: &str| {
            chosen.iter().any(|action| match action {
                Action::Run { name: n, engine, .. } => *engine == Engine::Podman && *n == name,
                Action::Stop { container: c, .. } => c.engine == Engine::Podman && c.name == name,
                _ => false,
            })
        };
        let container = || {
            let free: Vec<_> = self.containers.iter().filter(|c| !busy(c.number)).collect();
            (!free.is_empty()).then(|| free[sim.pick(free.len())].clone())
        };
        let rude = sim.is_rude();
        Some(match sim.pick(15) {
            0 | 1 if chosen.iter().any(|action| action.insists_on(name)) => return None,
            0 | 1 => {
                let size = if rude { ["1m", "2m"][sim.pick(2)] } else { "1m" };
                // A polite engine knows what it has made.
                let driver = if rude { driver } else { DRIVERS[usize::from(name < "cc")] };
                Action::Create { name, driver, size, is_kept: rude && sim.chance(200) }
            }
            2 => {
                // dockerd asks only when none of its own containers has the volume.
                let mine = |c: &Container| c.name == name && c.engine == Engine::Docker(by);
                let runs = |a: &Action| matches!(a, Action::Run { name: n, .. } if *n == name);
                if self.containers.iter().any(mine) || chosen.iter().any(runs) {
                    return None;
                }
                // Who insists has looked at the volume: it is not another one a moment later.
                let is_alone = !chosen.iter().any(|action| action.decides(name));
                let insists = rude && is_alone && sim.chance(150);
                let insist = if insists { Insist::Yes } else { Insist::No };
                Action::Remove { name, by, insist }
            }
            3 | 4 => Action::Run { name, engine: Engine::Docker(by), holder: None },
            5 if is_podmans(name) => return None,
            5 => Action::Run { name, engine: Engine::Podman, holder: None },
            6 => {
                let (at, name, holder) = self.stopped.pop()?;
                Action::Run { name, engine: Engine::Docker(at), holder: Some(holder) }
            }
            7 => Action::Copy(container().filter(|c| c.engine != Engine::Podman)?),
            8 | 9 => {
                let container =
                    container().filter(|c| c.engine != Engine::Podman || !is_podmans(c.name))?;
                Action::Stop { container, is_lost: rude && sim.chance(150) }
            }
            10 if rude && sim.chance(500) => Action::HangUp { name, by },
            10 => Action::Nothing { name },
            11 if rude => Action::Tinker,
            12 if rude => Action::Purge,
            14 if sim.odds.swaps => Action::Swap,
            _ if chosen.iter().any(|action| matches!(action, Action::Wait)) => return None,
            _ => Action::Wait,
        })
    }

    fn caller(&self, engine: Engine) -> Caller {
        match engine {
            Engine::Docker(at) => Caller::Engine(self.epochs[at]),
            Engine::Podman => Caller::Podman(Process { pid: 300, start: self.next }),
        }
    }

    /// podman asks only for its first container, and gives back with its last. Whether it says nothing this time.
    fn is_silent(&mut self, action: &Action) -> bool {
        match action {
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
        }
    }

    /// The call itself, and what the engine does right after it.
    fn call(&mut self, desk: &Desk, action: Action) -> impl Future<Output = Outcome> + use<> {
        let desk = desk.clone();
        self.next += 1;
        let number = self.next;
        let fresh = format!("{number:064x}");
        let caller = match &action {
            Action::Run { engine, .. } => self.caller(*engine),
            Action::Copy(c) | Action::Stop { container: c, .. } => self.caller(c.engine),
            Action::Remove { insist: Insist::No, by, .. } | Action::HangUp { by, .. } => {
                self.caller(Engine::Docker(*by))
            }
            _ => Caller::Cli,
        };
        let is_silent = self.is_silent(&action);
        async move {
            let mut container = None;
            let result = match action {
                Action::Recover => {
                    desk.volumes.recover().await;
                    desk.sim.recovery_has_ended();
                    Ok(())
                }
                Action::Create { name, driver, size, is_kept } => {
                    desk.create(name, driver, size, is_kept).await
                }
                Action::Remove { name, insist, .. } => desk.remove(name, caller, insist).await,
                Action::Run { name, engine, holder } => {
                    let holder = match engine {
                        Engine::Podman => PODMAN.to_owned(),
                        Engine::Docker(_) => holder.unwrap_or(fresh),
                    };
                    let result = match is_silent {
                        true => Ok(()),
                        false => desk.mount(name, &holder, caller).await,
                    };
                    if result.is_ok() {
                        let is_there = desk.start(name, number, &holder);
                        assert!(
                            is_there || is_silent,
                            "I5: {name} was acknowledged, and nothing is there"
                        );
                        container = is_there.then_some(Container { number, engine, name, holder });
                    }
                    result
                }
                Action::Copy(c) => desk.docker_cp(c.name, c.number, &c.holder, caller).await,
                Action::Stop { container: c, is_lost } => {
                    desk.sim.kernel.borrow_mut().forget_copy(c.number);
                    match is_lost || is_silent {
                        true => Ok(()),
                        false => desk.unmount(c.name, &c.holder).await,
                    }
                }
                Action::HangUp { name, .. } => match desk.mount(name, &fresh, caller).await {
                    Ok(()) => desk.unmount(name, &fresh).await,
                    refused => refused,
                },
                Action::Nothing { name } => {
                    assert!(desk.volumes.create("", [].into()).await.is_err());
                    assert!(desk.volumes.mount(name, "", caller).await.is_err());
                    assert!(desk.volumes.remove("../x", caller, Insist::No).await.is_err());
                    desk.unmount(name, &fresh).await
                }
                Action::Purge => desk.purge().await,
                Action::Tinker => {
                    desk.tinker();
                    Ok(())
                }
                Action::Swap => {
                    // What is refused leaves everything as it was.
                    let swapped = desk.sim.swap_driver(&desk.volumes).await;
                    desk.sim.tell(|| format!("{swapped:?}"));
                    Ok(())
                }
                Action::Wait => {
                    tokio::time::sleep(Duration::from_secs(70)).await;
                    desk.volumes.tick().await;
                    desk.volumes.slow_tick().await;
                    desk.sim.end_round();
                    Ok(())
                }
            };
            Outcome { result, container, is_silent }
        }
    }

    /// What an answer teaches the engine.
    fn learn(&mut self, sim: &Sim, action: Action, outcome: Outcome) {
        let Outcome { result, container, is_silent } = outcome;
        if !sim.is_rude() {
            expect_success(&action, &result);
        }
        match action {
            Action::Remove { name, .. } if result.is_ok() => {
                self.stopped.retain(|(_, n, _)| *n != name);
            }
            Action::Run { name, engine, .. } => match container {
                Some(container) => self.containers.push(container),
                None if engine == Engine::Podman => self.one_less_of_podmans(name),
                None => {}
            },
            Action::Stop { container, .. } => {
                assert!(result.is_ok() || !is_silent, "nobody was asked, and yet: {result:?}");
                self.containers.retain(|c| c.number != container.number);
            }
            _ => {}
        }
    }

    /// The daemon died under a call.
    fn lose(&mut self, sim: &Sim, action: Action) {
        match action {
            Action::Run { name, engine, .. } => {
                if engine == Engine::Podman {
                    self.one_less_of_podmans(name);
                }
                // A container that had been started in this round has not been heard of: it ends.
                let kept: BTreeSet<u64> = self.containers.iter().map(|c| c.number).collect();
                sim.kernel.borrow_mut().copies.retain(|copy| kept.contains(&copy.container));
            }
            Action::Stop { container, .. } => {
                sim.kernel.borrow_mut().forget_copy(container.number);
                self.containers.retain(|c| c.number != container.number);
            }
            _ => {}
        }
    }

    fn one_less_of_podmans(&mut self, name: &'static str) {
        let count = self.podman.entry(name).or_default();
        *count = count.saturating_sub(1);
    }
}

fn expect_success(action: &Action, result: &Result<(), VolumeError>) {
    let Err(error) = result else { return };
    let is_polite_refusal = match action {
        Action::Run { .. } | Action::Remove { .. } | Action::Copy(_) => {
            matches!(error, VolumeError::NotFound | VolumeError::InUse(_))
        }
        _ => false,
    };
    assert!(is_polite_refusal, "nothing failed, and yet {action:?} was refused: {error}");
}

impl Action {
    /// Whether it makes or removes the volume of that name.
    fn decides(&self, wanted: &str) -> bool {
        matches!(self, Self::Create { name, .. } | Self::Remove { name, .. } if *name == wanted)
    }

    fn insists_on(&self, wanted: &str) -> bool {
        matches!(self, Self::Remove { name, insist: Insist::Yes, .. } if *name == wanted)
    }
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
