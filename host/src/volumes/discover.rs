//! Discovery: volumes that a backend knows and the catalog does not become records.
//!
//! Called by the slow round, never inside a request. A found name that is free becomes a volume whose data is never deleted; a
//! taken one is left alone; a found volume that vanished is shown as missing, never forgotten.

use std::collections::BTreeSet;

use wasmvol_driver::{Found, Reclaim};
use wasmvol_plan::{DriverName, Storage, VolumeName};

use super::world::{Drivers, Machine, World};
use super::{VOLUMES_MAX, Volumes};
use crate::catalog::record::{Phase, RECORD_VERSION, Record};

/// Most volumes that are taken over from one driver: the rest of [`VOLUMES_MAX`] is for the others.
const FOUND_MAX: usize = 1000;
/// The word that marks a discovered volume in its record's further fields.
const FOUND: &str = "found";

impl<W: World> Volumes<W> {
    /// Asks every driver once.
    pub(super) async fn discover(&self) {
        for driver in self.world.drivers().names() {
            match self.world.drivers().list(&driver).await {
                Ok(found) => self.take_in(&driver, found).await,
                Err(error) => tracing::warn!("driver `{driver}` cannot list its volumes: {error}"),
            }
        }
    }

    async fn take_in(&self, driver: &DriverName, found: Vec<Found>) {
        let mut seen = BTreeSet::new();
        for volume in found {
            let Ok(name) = VolumeName::parse(&volume.name) else {
                let name = wasmvol_plan::name::Quoted::new(&volume.name);
                tracing::warn!(
                    "driver `{driver}` knows a volume whose name is not allowed: {name}"
                );
                continue;
            };
            let lock = self.locks.try_hold(&name);
            let is_known = self.read(&name, |_| ()).is_some();
            if lock.is_some() && !is_known && self.has_room_for_found(driver) {
                let record = self.found_record(driver, name.clone(), volume);
                if let Err(error) = self.put(record).await {
                    tracing::warn!("volume `{name}` was found and could not be kept: {error}");
                }
            }
            seen.insert(name);
        }
        for name in self.names(|entry| entry.is_found_by(driver)) {
            let is_there = seen.contains(&name);
            self.write(&name, |entry| {
                entry.missing = (!is_there).then_some("its driver does not find it any more");
            });
        }
    }

    fn has_room_for_found(&self, driver: &DriverName) -> bool {
        let state = self.state.borrow();
        let found = |entry: &&super::Entry| entry.is_found_by(driver);
        state.volumes.len() < VOLUMES_MAX
            && state.volumes.values().filter(found).count() < FOUND_MAX
    }

    fn found_record(&self, driver: &DriverName, name: VolumeName, volume: Found) -> Record {
        let version = self.world.drivers().description(driver).map(|d| d.version.clone());
        let mut extra = serde_json::Map::new();
        extra.insert(FOUND.into(), true.into());
        Record {
            v: RECORD_VERSION,
            id: self.world.machine().mint(),
            name,
            driver: driver.clone(),
            driver_version: version.unwrap_or_default(),
            options: volume.options,
            reclaim: Some(Reclaim::Retain),
            created_at: self.now(),
            phase: Phase::Ready,
            storage: Storage::None,
            state: volume.state,
            plugin: self.settings.plugin.clone(),
            extra,
        }
    }
}

impl super::Entry {
    fn is_found_by(&self, driver: &DriverName) -> bool {
        &self.record.driver == driver && self.record.extra.contains_key(FOUND)
    }
}
