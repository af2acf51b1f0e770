//! Swaps whose versions answer as a test wants, in a world where nothing fails.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use wasmvol_driver::{CallError, Description, Scope, Volume};
use wasmvol_plan::{DriverName, Storage};

use super::drivers::described;
use super::smooth;
use super::world::Sim;
use crate::catalog::DriverRow;
use crate::catalog::record::Record;
use crate::volumes::holders::Caller;
use crate::volumes::swap::{States, Swap, SwapError};
use crate::volumes::world::{NoMount, Version};
use crate::volumes::{Insist, Volumes};

/// One that takes over what another wrote.
struct Other {
    description: Description,
    /// How long it takes over each volume.
    takes: Duration,
    /// The volume that it cannot take over.
    refuses: &'static str,
}

impl Version for Other {
    fn description(&self) -> &Description {
        &self.description
    }

    fn migrates(&self) -> bool {
        true
    }

    async fn migrate(&self, volume: &Volume, from: &str, _: Scope) -> Result<Vec<u8>, CallError> {
        tokio::time::sleep(self.takes).await;
        if volume.name.as_str() == self.refuses {
            return Err(CallError::Host(format!("{from} wrote nothing")));
        }
        Ok(self.description.version.clone().into())
    }

    async fn mounts(&self, _: &Volume, _: &Storage) -> Result<(), NoMount> {
        Ok(())
    }
}

struct World {
    sim: Sim,
    volumes: std::rc::Rc<Volumes<Sim>>,
}

impl World {
    /// With this many volumes of `local`: `v0`, `v1`, …
    async fn with(count: usize) -> Self {
        let (sim, volumes) = smooth().await;
        for number in 0..count {
            volumes.create(&format!("v{number}"), BTreeMap::new()).await.unwrap();
        }
        Self { sim, volumes }
    }

    async fn swap(&self, new: Other, states: States) -> Result<(), SwapError> {
        let driver = DriverName::parse("local").unwrap();
        let before = self.sim.drivers.borrow()[&driver].clone();
        let row = DriverRow { version: new.description.version.clone(), ..before };
        let swap = Swap { driver: &driver, own_name: None, old: None, new, states };
        self.volumes.swap(swap, row, || ()).await
    }

    /// The version that is loaded, durably, and what is known of each volume.
    fn stands(&self) -> (String, Vec<Record>) {
        let driver = DriverName::parse("local").unwrap();
        let version = self.sim.drivers.borrow()[&driver].version.clone();
        (version, self.sim.records.borrow().values().cloned().collect())
    }
}

fn other(version: &str) -> Other {
    let description = described(&DriverName::parse("local").unwrap(), version);
    Other { description, takes: Duration::ZERO, refuses: "" }
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_slow_for_its_volumes_is_refused_and_says_how_far_it_got() {
    let world = World::with(200).await;
    let before = world.stands();
    let begin = Instant::now();
    let slow = Other { takes: Duration::from_secs(90), ..other("2.0") };
    let error = world.swap(slow, States::Forward).await.unwrap_err();
    assert!(begin.elapsed() <= Duration::from_secs(301), "{:?}", begin.elapsed());
    let says = "version 2.0 has answered for 192 of 200 volumes in 300 s, so what is loaded stays";
    assert_eq!(error.to_string(), says);
    assert_eq!(world.stands(), before);
    // It holds up nobody, and later one that is fast is taken.
    world.volumes.mount("v0", "id", Caller::Cli).await.unwrap();
    world.swap(other("2.0"), States::Forward).await.unwrap();
    let (version, records) = world.stands();
    assert_eq!(version, "2.0");
    assert!(records.iter().all(|record| record.state == b"2.0"));
}

#[tokio::test(start_paused = true)]
async fn the_first_refusal_ends_the_questions() {
    let world = World::with(2000).await;
    let begin = Instant::now();
    let refusing = Other { takes: Duration::from_secs(2), refuses: "v0", ..other("2.0") };
    let error = world.swap(refusing, States::Forward).await.unwrap_err();
    assert!(matches!(&error, SwapError::Migrate { volume, .. } if volume == "v0"), "{error}");
    // Of 2000 volumes, 64 at a time, each takes two seconds.
    assert!(begin.elapsed() < Duration::from_secs(63), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_of_a_removed_volume_is_taken_over_and_brought_back_with_the_others() {
    let world = World::with(1).await;
    let options = [("reclaim", "retain")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    world.volumes.create("kept", options.into()).await.unwrap();
    world.volumes.remove("kept", Caller::Cli, Insist::No).await.unwrap();
    let before = world.stands();
    world.swap(other("2.0"), States::Forward).await.unwrap();
    let mut kept = world.volumes.get_kept(|record, _, _| record.clone());
    let kept = kept.pop().unwrap();
    assert_eq!((kept.state.as_slice(), kept.driver_version.as_str()), (&b"2.0"[..], "2.0"));
    assert!(world.stands().1.contains(&kept), "it is durable");
    world.swap(other("1.0"), States::Back).await.unwrap();
    assert_eq!(world.stands(), before);
    assert!(before.1.contains(&world.volumes.get_kept(|record, _, _| record.clone())[0]));
    // And where it cannot be taken over it stays as it is, and holds up nothing.
    let refusing = Other { refuses: "kept", ..other("2.0") };
    world.swap(refusing, States::Forward).await.unwrap();
    let states: Vec<_> = world.stands().1.into_iter().map(|record| record.state).collect();
    assert!(
        states.contains(&b"2.0".to_vec()) && states.contains(&b"1/filled".to_vec()),
        "{states:?}"
    );
}
