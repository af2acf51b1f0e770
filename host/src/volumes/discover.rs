//! Discovery: volumes that a backend knows and the catalog does not become records.
//!
//! Asked by the slow round, by `wasmvol volume scan`, and by Create of a new name, so that a second host finds instead of makes. A
//! found name that is free becomes a volume whose data is never deleted from here; a taken one is left alone; a volume that its
//! driver lists no more is shown as missing, never forgotten.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use wasmvol_driver::{CallError, Found, LIST_MAX, Marked, Reclaim, Root, Roots, Scope};
use wasmvol_plan::{DriverName, Id, Storage, VolumeName};

use super::marker::Marker;
use super::swap::some_of;
use super::world::{Catalog, Drivers, Machine, Mounter, World};
use super::{State, VOLUMES_MAX, VolumeError, Volumes, options};
use crate::catalog::Change;
use crate::catalog::record::{Phase, RECORD_VERSION, Record};

/// Most volumes that are taken over from one driver: the rest of [`VOLUMES_MAX`] is for the others.
const FOUND_MAX: usize = 1000;
/// How long a volume that was found and removed must have been gone from its backend to be forgotten. A backend that is away comes back
/// within that, if it does at all, and what was removed must not come back with it.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a Create waits for its driver to find the name: podman gives the whole request 5 s.
const FIND: Duration = Duration::from_secs(1);
/// Drivers that are asked at once: one that hangs delays its own volumes only.
const AT_ONCE: usize = 16;

/// What came of asking drivers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Scanned {
    /// Ordered by driver and name.
    pub(crate) volumes: Vec<Sighting>,
    /// Drivers that gave no answer.
    pub(crate) failed: Vec<Failed>,
}

/// One volume that a driver's list shows, or should.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Sighting {
    pub(crate) driver: DriverName,
    /// As the backend spells it, without control characters.
    pub(crate) name: String,
    pub(crate) state: Sight,
}

/// What a listed volume is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sight {
    /// It is a volume from now on.
    Found,
    /// It was one already.
    Known,
    /// Another volume has its name.
    Taken,
    /// It was removed here, and its data kept.
    Kept,
    /// A verb is at it, or there are too many volumes: another time.
    Later,
    /// Its name is none that Docker takes.
    Refused,
    /// It is a volume, and its driver lists it no more.
    Missing,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Found => "found",
            Self::Known => "known",
            Self::Taken => "taken",
            Self::Kept => "kept",
            Self::Later => "later",
            Self::Refused => "refused",
            Self::Missing => "missing",
        })
    }
}

/// A driver that gave no answer, and why.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) driver: DriverName,
    pub(crate) error: String,
}

impl<W: World> Volumes<W> {
    /// Asks one driver, or all, if recovery after the start has ended. Nobody waits for what they say.
    pub(crate) async fn discover(&self, driver: Option<DriverName>) {
        if self.until_recovered().await.is_err() {
            return;
        }
        let drivers = driver.map_or_else(|| self.world.drivers().names(), |driver| vec![driver]);
        for Failed { driver, error } in self.scan_all(drivers).await.failed {
            tracing::warn!("driver `{driver}` cannot list its volumes: {error}");
        }
    }

    /// Asks one driver, or all, and tells what was found.
    pub(crate) async fn scan(&self, driver: Option<DriverName>) -> Result<Scanned, VolumeError> {
        self.until_recovered().await?;
        let drivers = self.world.drivers();
        let Some(driver) = driver else { return Ok(self.scan_all(drivers.names()).await) };
        drivers.until_loaded(&driver).await;
        let volumes = self.scan_of(&driver).await?;
        Ok(Scanned { volumes, failed: Vec::new() })
    }

    async fn scan_all(&self, drivers: Vec<DriverName>) -> Scanned {
        let scan = |driver: DriverName| async move {
            let result = self.scan_of(&driver).await;
            (driver, result)
        };
        let mut all = Scanned::default();
        let mut answers = stream::iter(drivers).map(scan).buffer_unordered(AT_ONCE);
        while let Some((driver, result)) = answers.next().await {
            match result {
                Ok(volumes) => all.volumes.extend(volumes),
                Err(VolumeError::Driver { error, .. }) => {
                    all.failed.push(Failed { driver, error: error.to_string() });
                }
                Err(error) => all.failed.push(Failed { driver, error: error.to_string() }),
            }
        }
        all.volumes.sort();
        all
    }

    async fn scan_of(&self, driver: &DriverName) -> Result<Vec<Sighting>, VolumeError> {
        let _kept = self.keep(driver).await?;
        // What comes while the driver is asked cannot be in its answer.
        let before = self.names(|entry| entry.record.is_listed_by(driver));
        // Its other calls may have all the turns.
        let listed = tokio::time::timeout(LIST_MAX, self.list_of(driver, LIST_MAX)).await;
        let late = |_| {
            let error = CallError::TimedOut(LIST_MAX);
            VolumeError::Driver { driver: driver.clone(), error }
        };
        let listed = listed.map_err(late).flatten().inspect_err(|_| {
            // What nobody tells of is not known to be gone.
            let mut state = self.state.borrow_mut();
            let State { retained, gone, .. } = &mut *state;
            gone.retain(|id, _| retained.get(id).is_some_and(|record| record.driver != *driver));
        })?;
        let ids: BTreeSet<Id> = listed.iter().filter_map(|volume| volume.id).collect();
        let (mut sightings, mut there) = (Vec::new(), BTreeSet::new());
        let (mut room, mut refused) = (self.room_for_found(driver), Vec::new());
        for volume in listed {
            let shown = volume.name.clone();
            let state = match VolumeName::parse(&shown) {
                Ok(name) => {
                    let state = self.take_in(driver, name.clone(), volume, room > 0).await;
                    if matches!(state, Sight::Found | Sight::Known) {
                        there.insert(name);
                    }
                    state
                }
                Err(_) => Sight::Refused,
            };
            room -= usize::from(state == Sight::Found);
            let name: String =
                shown.chars().take(128).flat_map(wasmvol_plan::name::escaped).collect();
            if state == Sight::Refused {
                refused.push(name.clone());
            }
            sightings.push(Sighting { driver: driver.clone(), name, state });
            // There may be thousands, and others ask meanwhile.
            tokio::task::yield_now().await;
        }
        self.tell_refused(driver, &refused);
        for name in before {
            let is_there = there.contains(&name);
            self.write(&name, |entry| {
                entry.missing = (!is_there).then_some("its driver does not find it any more");
            });
            if !is_there {
                let (driver, name) = (driver.clone(), name.to_string());
                sightings.push(Sighting { driver, name, state: Sight::Missing });
            }
        }
        self.forget_kept(driver, &ids).await;
        Ok(sightings)
    }

    /// Logs which names of a driver's Docker would not take, unless these were the last.
    fn tell_refused(&self, driver: &DriverName, refused: &[String]) {
        let mut state = self.state.borrow_mut();
        if refused.is_empty() {
            state.refused.remove(driver);
            return;
        }
        let named = some_of(refused);
        if state.refused.get(driver) != Some(&named) {
            tracing::warn!("driver `{driver}` knows volumes whose names are not allowed: {named}");
            state.refused.insert(driver.clone(), named);
        }
    }

    /// Makes a volume of one that was found, if its name is free.
    async fn take_in(
        &self,
        driver: &DriverName,
        name: VolumeName,
        volume: Found,
        has_room: bool,
    ) -> Sight {
        let lock = self.locks.try_hold(&name);
        if let Some(is_it) = self.read(&name, |entry| entry.record.is_it(driver, volume.id)) {
            return if is_it { Sight::Known } else { Sight::Taken };
        }
        if self.kept(driver, volume.id).is_some() {
            return Sight::Kept;
        }
        if lock.is_none() || !has_room || self.state.borrow().volumes.len() >= VOLUMES_MAX {
            return Sight::Later;
        }
        // It may have been unloaded while it was asked, and from here on is not.
        let _intent = self.intent(&name, driver);
        if self.world.drivers().description(driver).is_none() {
            return Sight::Later;
        }
        // Another look may have filled it.
        if self.room_for_found(driver) == 0 {
            return Sight::Later;
        }
        let record = self.found_record(driver, name.clone(), volume);
        if let Err(error) = self.put(record).await {
            tracing::warn!("volume `{name}` was found and could not be kept: {error}");
            return Sight::Later;
        }
        Sight::Found
    }

    /// The volume of a new name, if the driver's backend knows it, as it would be recorded: what was kept here comes back under the
    /// id that it had. No answer in time is none: what is there already stands in the way of what would be made.
    pub(super) async fn find(&self, name: &VolumeName, driver: &DriverName) -> Option<Record> {
        if !self.world.drivers().finds(driver) {
            return None;
        }
        let listed = match tokio::time::timeout(FIND, self.list_of(driver, FIND)).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                tracing::warn!("whether `{name}` is there already cannot be told: {error}");
                return None;
            }
            Err(_) => {
                let limit = FIND.as_secs();
                tracing::warn!(
                    "driver `{driver}` did not tell within {limit} s whether `{name}` is there"
                );
                return None;
            }
        };
        let volume = listed.into_iter().find(|volume| volume.name == name.as_str())?;
        match self.kept(driver, volume.id) {
            Some(kept) => Some(self.brought_back(kept, &volume)),
            None => Some(self.found_record(driver, name.clone(), volume)),
        }
    }

    /// Asks a driver, with what is marked beneath its roots if it has use for that.
    async fn list_of(
        &self,
        driver: &DriverName,
        within: Duration,
    ) -> Result<Vec<Found>, VolumeError> {
        let drivers = self.world.drivers();
        let roots = match drivers.finds(driver) {
            true => self.roots_of(driver).await?,
            false => Roots::default(),
        };
        let scope = Scope { roots, ..self.scope(driver) };
        let listed = drivers.list(driver, scope, within).await;
        listed.map_err(|error| VolumeError::Driver { driver: driver.clone(), error })
    }

    /// What is marked beneath a driver's roots as this driver's own.
    async fn roots_of(&self, driver: &DriverName) -> Result<Roots, VolumeError> {
        let Some(description) = self.world.drivers().description(driver) else {
            let error = CallError::NotLoaded(driver.to_string());
            return Err(VolumeError::Driver { driver: driver.clone(), error });
        };
        let granted = self.world.drivers().grants(driver)?.host_directories;
        let mut roots: Vec<Root> =
            granted.into_iter().map(|path| Root { path, marked: Vec::new() }).collect();
        for mark in self.world.mounter().marks(driver).await? {
            let Some(root) = roots.iter_mut().find(|root| root.path == mark.root) else { continue };
            match Marker::read(&mark) {
                Some(Marker { driver, .. }) if driver != description.name => {}
                Some(Marker { id, name, options, .. }) => {
                    root.marked.push(Marked { name, id, directory: mark.directory, options });
                }
                None => tracing::warn!(
                    "the marker `{}/.wasmvol/{}` cannot be understood: it is left alone",
                    mark.root,
                    mark.name
                ),
            }
        }
        Ok(Roots(roots))
    }

    /// The record of what was removed here and kept, of a volume that a driver's backend calls so.
    fn kept(&self, driver: &DriverName, id: Option<Id>) -> Option<Record> {
        let state = self.state.borrow();
        let mut kept = state.retained.values().filter(|record| record.phase == Phase::Retained);
        kept.find(|record| id.is_some() && record.is_it(driver, id)).cloned()
    }

    /// The latest volume of a name that was kept here and lies at its driver's backend, as it would be recorded again.
    pub(super) fn kept_at_backend(&self, name: &VolumeName, driver: &DriverName) -> Option<Record> {
        let state = self.state.borrow();
        let kept = state.retained.values().filter(|record| {
            let is_its = record.name == *name && record.driver == *driver;
            is_its && record.phase == Phase::Retained && self.stays_at_backend(record) == Some(true)
        });
        let latest = kept.max_by_key(|record| record.created_at)?;
        Some(Record { phase: Phase::Ready, ..latest.clone() })
    }

    /// A volume that was kept here is there again. What another version of its driver has written of it, this one may not be able to read.
    fn brought_back(&self, kept: Record, volume: &Found) -> Record {
        let mut record = Record { phase: Phase::Ready, ..kept };
        let version = self.version_of(&record.driver);
        if record.driver_version != version {
            record.set_state(&volume.state, &version);
        }
        record
    }

    /// The version of a driver that is loaded; empty if there is none.
    pub(super) fn version_of(&self, driver: &DriverName) -> String {
        let description = self.world.drivers().description(driver);
        description.map(|description| description.version.clone()).unwrap_or_default()
    }

    /// What was found once, removed here, and has been gone from its backend for long is nothing to remember. For less, the backend may
    /// be away: a root that is not mounted has no volumes, either.
    async fn forget_kept(&self, driver: &DriverName, listed: &BTreeSet<Id>) {
        let now = Instant::now();
        let gone: Vec<Record> = {
            let mut state = self.state.borrow_mut();
            let State { retained, gone, .. } = &mut *state;
            let is_gone = |record: &&Record| {
                let Some(Some(there)) = record.found() else { return false };
                if listed.contains(&there) {
                    gone.remove(&record.id);
                    return false;
                }
                now >= *gone.entry(record.id).or_insert(now) + FORGOTTEN
            };
            let its = retained.values().filter(|record| record.driver == *driver);
            its.filter(is_gone).cloned().collect()
        };
        for record in gone {
            let Some(_lock) = self.locks.try_hold(&record.name) else { continue };
            // A Create may have brought it back meanwhile.
            if !self.state.borrow().retained.contains_key(&record.id) {
                continue;
            }
            match self.world.catalog().commit(Change::Delete(record.id)).await {
                Ok(()) => {
                    let mut state = self.state.borrow_mut();
                    state.retained.remove(&record.id);
                    state.gone.remove(&record.id);
                }
                Err(error) => tracing::warn!("what was kept of `{}`: {error}", record.name),
            }
        }
    }

    /// How many more volumes may be taken over from a driver.
    fn room_for_found(&self, driver: &DriverName) -> usize {
        let state = self.state.borrow();
        let found = |entry: &&super::Entry| {
            &entry.record.driver == driver && entry.record.found().is_some()
        };
        FOUND_MAX.saturating_sub(state.volumes.values().filter(found).count())
    }

    fn found_record(&self, driver: &DriverName, name: VolumeName, volume: Found) -> Record {
        let mut record = Record {
            v: RECORD_VERSION,
            id: self.world.machine().mint(),
            name,
            driver: driver.clone(),
            driver_version: self.version_of(driver),
            options: volume.options,
            options_version: None,
            left_out: BTreeSet::new(),
            added: BTreeSet::new(),
            reclaim: Some(Reclaim::Retain),
            created_at: self.now(),
            phase: Phase::Ready,
            storage: Storage::None,
            state: volume.state,
            former: None,
            plugin: self.settings.plugin.clone(),
            attached: false,
            extra: Record::mark_found(volume.id),
        };
        // Another version may have made it, on another machine.
        if let Some(description) = self.world.drivers().description(driver) {
            options::follow(&mut record, &description);
        }
        record
    }
}
