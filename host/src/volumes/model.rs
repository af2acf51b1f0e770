//! The model test: random verbs, kills and bad manners of engines drive the real verbs in a simulated world.
//!
//! A run is made from one seed. After every round, and after every restart, the invariants of `check` must hold; a failure prints
//! the seed. `MODEL_SEED=N` replays one run, `MODEL_RUNS=N` sets how many are made.

mod check;
mod engines;
mod sim;

use std::collections::BTreeMap;
use std::rc::Rc;

use wasmvol_plan::DriverName;

use super::holders::Caller;
use super::{Settings, Volumes};
use engines::Engines;
use sim::{Odds, Sim};

/// Runs of `make test`; each has [`ROUNDS`] rounds of up to six calls at once.
const RUNS: u64 = 150;
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

#[tokio::test(start_paused = true)]
async fn a_volume_that_its_backend_has_lost_is_missing_whether_it_is_mounted_or_not() {
    let sim = Sim::new(1, Odds::SMOOTH);
    let volumes = start(&sim).await;
    sim.exports.borrow_mut().insert("found".into());
    volumes.slow_tick().await;
    let is_missing =
        || volumes.get("found", |view| view.status.health.starts_with("missing: ")).unwrap();
    assert!(!is_missing(), "its driver lists it");

    sim.exports.borrow_mut().clear();
    volumes.slow_tick().await;
    assert!(is_missing(), "its driver lists it no more");
    volumes.mount("found", "id", Caller::Cli).await.unwrap();
    assert!(is_missing(), "a Mount does not bring it back");
    volumes.unmount("found", "id").await.unwrap();
    assert!(is_missing(), "nor does an Unmount");

    sim.exports.borrow_mut().insert("found".into());
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
        let mut engines = Engines::new(&sim);
        for _ in 0..ROUNDS {
            let volumes = start(&sim).await;
            recovery_is_idempotent(&sim, &volumes).await;
            check::invariants(&sim, &volumes, &mut engines);
            while engines.round(&sim, &volumes).await {
                check::invariants(&sim, &volumes, &mut engines);
                if sim.chance(10) {
                    break;
                }
            }
            // Killed in the middle, or between two rounds: the next start must cope with either.
            engines.after_death(&sim);
        }
    });
}

/// Starts the daemon, as often as it takes until recovery is not killed.
async fn start(sim: &Sim) -> Rc<Volumes<Sim>> {
    loop {
        sim.revive();
        let volumes = Volumes::new(sim.clone(), settings(), sim.records(), sim.rows());
        let recovered = {
            let volumes = Rc::clone(&volumes);
            sim.until_death(async move { volumes.recover().await }).await
        };
        if recovered.is_some() {
            return volumes;
        }
    }
}

/// I19: where nothing is left to do, a second recovery changes nothing.
async fn recovery_is_idempotent(sim: &Sim, volumes: &Volumes<Sim>) {
    if !volumes.names(|entry| entry.waiting.is_some()).is_empty() {
        return;
    }
    let before = sim.snapshot();
    sim.calm(true);
    Volumes::new(sim.clone(), settings(), sim.records(), sim.rows()).recover().await;
    sim.calm(false);
    assert_eq!(before, sim.snapshot(), "I19: a second recovery changed something");
}

/// A daemon over `names` in a world where nothing fails, for tests of what stands above the verbs. Recovery has not run.
pub(crate) async fn quiet(names: &[&str]) -> Rc<Volumes<impl super::world::World>> {
    let sim = Sim::new(1, Odds::SMOOTH);
    let volumes = start(&sim).await;
    for name in names {
        volumes.create(name, BTreeMap::new()).await.expect("nothing fails");
    }
    Volumes::new(sim.clone(), settings(), sim.records(), sim.rows())
}

fn settings() -> Settings {
    Settings {
        mountpoints: "/run/wasmvol/mnt".into(),
        state_dir: "/var/lib/wasmvol".into(),
        default_driver: DriverName::parse("local").expect("a name"),
        plugin: "wasmvol".into(),
    }
}
