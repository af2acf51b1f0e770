//! The model test: random verbs, kills and bad manners of engines drive the real verbs in a simulated world.
//!
//! A run is made from one seed. After every step, a verb's or the world's, the invariants of `check` must hold; a failure prints the
//! seed. `MODEL_SEED=N` replays one run, `MODEL_RUNS=N` sets how many are made.

mod check;
mod desk;
mod drivers;
mod engines;
mod kernel;
mod ledger;
mod swaps;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use wasmvol_plan::{DriverName, VolumeName};

use super::holders::Caller;
use super::{Insist, Settings, Volumes};
use crate::catalog::durable::Contents;
use crate::catalog::record::Phase;
use desk::Desk;
use engines::Engines;
use ledger::Ledger;
use world::{Odds, Sim};

/// Runs of `make test`; each has [`ROUNDS`] rounds of up to six calls at once.
const RUNS: u64 = 100;
const ROUNDS: usize = 60;

#[test]
fn whatever_engines_do_and_wherever_the_daemon_dies_the_invariants_hold() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("MODEL_SEED") {
        Some(seed) => run(seed, Odds::ROUGH),
        None => (0..number("MODEL_RUNS").unwrap_or(RUNS)).for_each(|seed| run(seed, Odds::ROUGH)),
    }
}

#[test]
fn where_nothing_fails_every_call_of_a_polite_engine_succeeds() {
    (10_000..10_003).for_each(|seed| run(seed, Odds::SMOOTH));
}

#[test]
fn whatever_replaces_a_driver_every_call_of_a_polite_engine_succeeds() {
    (20_000..20_020).for_each(|seed| run(seed, Odds::SWAPPED));
}

/// Volumes in a world where nothing fails.
async fn smooth() -> (Sim, Rc<Volumes<Sim>>) {
    let sim = Sim::new(1, Odds::SMOOTH);
    sim.revive();
    let volumes = Volumes::new(sim.clone(), settings(), Contents::default(), Vec::new());
    volumes.recover().await;
    (sim, volumes)
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_does_not_come_back_with_a_backend_that_was_away_for_hours() {
    let (sim, volumes) = smooth().await;
    // It has an id, by which it is known again.
    sim.change_exports("ee");
    volumes.slow_tick().await;
    volumes.remove("ee", Caller::Cli, Insist::No).await.unwrap();
    let kept = || volumes.get_kept(|record, _, _| record.name.to_string());
    for _ in 0..3 {
        sim.change_exports("ee");
        for hours in [0, 23] {
            tokio::time::sleep(Duration::from_secs(hours * 60 * 60)).await;
            volumes.slow_tick().await;
        }
        sim.change_exports("ee");
        volumes.slow_tick().await;
        volumes.list(|name, _| panic!("`{name}` is there again"));
        assert_eq!(kept(), ["ee"]);
    }
    sim.change_exports("ee");
    for hours in [0, 24] {
        tokio::time::sleep(Duration::from_secs(hours * 60 * 60)).await;
        volumes.slow_tick().await;
    }
    assert!(kept().is_empty(), "it is gone for good");
}

#[tokio::test(start_paused = true)]
async fn what_one_version_told_of_a_backend_goes_with_its_ability_to_tell() {
    let (_sim, volumes) = smooth().await;
    volumes.create("data", BTreeMap::new()).await.unwrap();
    volumes.mount("data", "id", Caller::Cli).await.unwrap();
    let name = VolumeName::parse("data").unwrap();
    volumes.write(&name, |entry| entry.ailing = Some("a disk is slow".into()));
    let health = || volumes.get("data", |view| view.status.health.to_string()).unwrap();
    assert_eq!(health(), "degraded: a disk is slow");
    volumes.look_after_health().await;
    assert_eq!(health(), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_its_backend_has_lost_is_missing_whether_it_is_mounted_or_not() {
    let (sim, volumes) = smooth().await;
    sim.change_exports("found");
    volumes.slow_tick().await;
    let is_missing =
        || volumes.get("found", |view| view.status.health.starts_with("missing: ")).unwrap();
    assert!(!is_missing(), "its driver lists it");

    sim.change_exports("found");
    volumes.slow_tick().await;
    assert!(is_missing(), "its driver lists it no more");
    volumes.mount("found", "id", Caller::Cli).await.unwrap();
    assert!(is_missing(), "a Mount does not bring it back");
    volumes.unmount("found", "id").await.unwrap();
    assert!(is_missing(), "nor does an Unmount");

    sim.change_exports("found");
    volumes.slow_tick().await;
    assert!(!is_missing(), "its driver lists it again");
}

/// Prints how to see a failing run again.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with MODEL_SEED={} cargo test --release -p wasmvol model", self.0);
        }
    }
}

fn run(seed: u64, odds: Odds) {
    let _announce = Announce(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let sim = Sim::new(seed, odds);
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let mut engines = Engines::new(&sim);
        for _ in 0..ROUNDS {
            let desk = start(&sim, &ledger);
            let mut is_first = true;
            while engines.round(&desk).await {
                sim.look();
                if is_first {
                    recovery_is_idempotent(&desk).await;
                }
                is_first = false;
                if sim.chance(100) {
                    break;
                }
            }
            // Killed in the middle, or between two rounds: the next start must cope with either.
            sim.end_watch();
            engines.after_death(&desk);
        }
    });
}

/// Starts the daemon, which is watched from now on at every step.
fn start(sim: &Sim, ledger: &Rc<RefCell<Ledger>>) -> Desk {
    sim.revive();
    let volumes = Volumes::new(sim.clone(), settings(), sim.contents(), sim.rows());
    let desk = Desk { sim: sim.clone(), volumes, ledger: Rc::clone(ledger) };
    let watched = desk.clone();
    sim.watch(move || {
        let Desk { sim, volumes, ledger } = &watched;
        check::always(sim);
        if sim.has_recovered() {
            check::at_rest(sim, volumes);
        }
        let volumes = sim.has_recovered().then_some(&**volumes);
        check::promised(sim, volumes, &mut ledger.borrow_mut());
    });
    desk
}

/// I19: where nothing is left to do, a second recovery changes nothing.
async fn recovery_is_idempotent(desk: &Desk) {
    let Desk { sim, volumes, .. } = desk;
    let is_done = {
        let state = volumes.state.borrow();
        state.stray_mounts.is_empty()
            && state.retained.values().all(|record| record.phase == Phase::Retained)
            && state.volumes.values().all(|entry| entry.waiting.is_none())
    };
    if !is_done {
        return;
    }
    let before = sim.snapshot();
    sim.calm(true);
    Volumes::new(sim.clone(), settings(), sim.contents(), sim.rows()).recover().await;
    sim.calm(false);
    let after = sim.snapshot();
    assert!(before == after, "I19: a second recovery changed something:\n{before}\n{after}");
}

/// A daemon over `names` in a world where nothing fails, for tests of what stands above the verbs. Recovery has not run.
pub(crate) async fn quiet(names: &[&str]) -> Rc<Volumes<impl super::world::World>> {
    let sim = Sim::new(1, Odds::SMOOTH);
    sim.revive();
    let volumes = Volumes::new(sim.clone(), settings(), Contents::default(), Vec::new());
    volumes.recover().await;
    for name in names {
        volumes.create(name, BTreeMap::new()).await.expect("nothing fails");
    }
    Volumes::new(sim.clone(), settings(), sim.contents(), sim.rows())
}

fn settings() -> Settings {
    Settings {
        mountpoints: "/run/wasmvol/mnt".into(),
        state_dir: "/var/lib/wasmvol".into(),
        default_driver: DriverName::parse("local").expect("a name"),
        plugin: "wasmvol".into(),
    }
}
