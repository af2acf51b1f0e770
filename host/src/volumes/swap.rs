//! Swap: another version of a driver takes the place of the one that is loaded, while its volumes are in use.
//!
//! Called by the loader, once at a time for one driver. The new version is asked about every volume while all goes on; then, for a moment
//! in which no verb asks the driver, about those that have changed meanwhile; and then the driver's row and all states that the new version
//! has taken over become durable in one transaction. So after whatever crash either version is there, whole. Mounts are not touched.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use wasmvol_plan::{DriverName, Id, Storage};

use super::world::{Catalog, NoMount, Version, World};
use super::{Volumes, options};
use crate::catalog::record::{Phase, Record};
use crate::catalog::{Change, DriverRow, StoreError};

/// Volumes that are asked about at once: as many calls as the engine runs.
const AT_ONCE: usize = 64;
/// How long the new version may be asked while all goes on: an operator waits. It is 10,000 volumes of a driver that asks a server for
/// half a second about each, 16 at once.
const ALL: Duration = Duration::from_secs(5 * 60);
/// How long verbs may be held up by what the new version is asked at last. With what they have waited for already that is less than
/// they wait at all.
const ALONE: Duration = Duration::from_secs(10);

/// What becomes of the states that volumes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum States {
    /// The new version takes them over.
    Forward,
    /// The same from a version that is lost. A rollback goes to the one before that, so what this one had left stays for it.
    PastLost,
    /// They become what they were before the version that is loaded took them over.
    Back,
    /// They stay: it is the same component, with other settings or grants.
    Stay,
    /// They stay, and nothing is another: who waits goes on waiting.
    Same,
}

/// One version in the place of another.
pub(crate) struct Swap<'a, V> {
    pub(crate) driver: &'a DriverName,
    /// What the component calls itself that is loaded, or was to be at the start and could not be.
    pub(crate) own_name: Option<String>,
    /// The one that is loaded, if one is, with what it was granted so far.
    pub(crate) old: Option<V>,
    pub(crate) new: V,
    pub(crate) states: States,
}

/// Why the version that is loaded stays. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwapError {
    /// Its plans would pass, and show other data.
    #[error(
        "it calls itself `{new}`, and the volumes of `{name}` were made by `{old}`: load it under another name"
    )]
    Another { name: DriverName, old: String, new: String },
    #[error(
        "volume `{volume}` could not be mounted with {version}, so what is loaded stays: {why}"
    )]
    Volume { volume: String, version: String, why: String },
    #[error(
        "volume `{volume}` cannot be taken over by {version}, so what is loaded stays: its `migrate` failed: {why}"
    )]
    Migrate { volume: String, version: String, why: String },
    /// It was asked about each, and there are many, or it is slow.
    #[error(
        "{version} has answered for {known} of {all} volumes in {} s, so what is loaded stays", within.as_secs()
    )]
    Slow { version: String, known: usize, all: usize, within: Duration },
    /// With the names of volumes.
    #[error(
        "its calls have not ended in time, so what is loaded stays: try again, it is busy with {0}"
    )]
    Busy(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<V: Version> Swap<'_, V> {
    /// What the volumes were made by, if that calls itself otherwise than the new one.
    fn another(&self) -> Option<&String> {
        self.own_name.as_ref().filter(|name| **name != self.new.description().name)
    }
}

/// What the new version makes of each volume: its record as it is, and as it will be.
type Looks = BTreeMap<Id, (Record, Record)>;

impl<W: World> Volumes<W> {
    /// Makes `row` the driver's durable row, with the states that belong to it, and calls `put`, from which on every call is one of the new
    /// version. If it is refused nothing has changed.
    pub(crate) async fn swap<V: Version>(
        &self,
        swap: Swap<'_, V>,
        row: DriverRow,
        put: impl FnOnce(),
    ) -> Result<(), SwapError> {
        // Nobody is held up for what is refused anyway.
        let mut looks = Looks::new();
        self.look(&swap, &mut looks, ALL).await?;
        self.step("swap.checked").await;
        let busy = || SwapError::Busy(self.gates.busy(swap.driver));
        let _closed = self.gates.close(swap.driver).await.ok_or_else(busy)?;
        self.look(&swap, &mut looks, ALONE).await?;
        self.step("swap.migrated").await;
        let changed = looks.into_values().filter(|(before, after)| before != after);
        let records: Vec<_> = changed.map(|(_, after)| after).collect();
        let puts = records.iter().map(|record| Change::Put(Box::new(record.clone())));
        // What another component stored under this name is not this one's.
        let is_another = swap.another().is_some();
        let gone = is_another.then(|| Change::DeleteDriver(swap.driver.clone()));
        let row = gone.into_iter().chain([Change::PutDriver(Box::new(row))]);
        self.world.catalog().commit(Change::Together(puts.chain(row).collect())).await?;
        if is_another {
            self.forget_store(swap.driver);
        }
        self.step("swap.committed").await;
        for record in records {
            self.replace_record(record);
        }
        put();
        Ok(())
    }

    /// Whether every volume of the driver that can be mounted as it is can be mounted with the new version, too.
    pub(crate) async fn check<V: Version>(&self, swap: Swap<'_, V>) -> Result<(), SwapError> {
        self.look(&swap, &mut Looks::new(), ALL).await
    }

    /// Asks about the volumes that are not known yet as they are now, until one is refused.
    async fn look<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        looks: &mut Looks,
        within: Duration,
    ) -> Result<(), SwapError> {
        let ask_all = async {
            while let Err((before, why)) = self.ask_new(swap, looks).await {
                // What a verb has changed meanwhile is asked about again.
                if self.is_as_it_was(&before) {
                    return Err(why);
                }
            }
            Ok(())
        };
        match tokio::time::timeout(within, ask_all).await {
            Ok(asked) => asked,
            Err(_) => {
                let (known, all) = (looks.len(), self.records_of(swap.driver).len());
                Err(SwapError::Slow { version: shown(&swap.new), known, all, within })
            }
        }
    }

    async fn ask_new<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        looks: &mut Looks,
    ) -> Result<(), (Record, SwapError)> {
        let records = self.records_of(swap.driver);
        // One that has gone meanwhile is none of them.
        let mut known = std::mem::take(looks);
        let mut unknown = Vec::new();
        for record in records {
            match known.remove(&record.id).filter(|(before, _)| *before == record) {
                Some(look) => drop(looks.insert(record.id, look)),
                None => unknown.push(record),
            }
        }
        let ask = |before: Record| async move {
            let after = self.taken_over(swap, &before).await;
            (before, after)
        };
        let mut answers = stream::iter(unknown).map(ask).buffer_unordered(AT_ONCE);
        while let Some((before, after)) = answers.next().await {
            match after {
                Ok(after) => drop(looks.insert(before.id, (before, after))),
                Err(why) => return Err((before, why)),
            }
        }
        Ok(())
    }

    /// Of the volumes of a driver, and of what was kept of those that were removed.
    fn records_of(&self, driver: &DriverName) -> Vec<Record> {
        let state = self.state.borrow();
        let live = state.volumes.values().map(|entry| &entry.record);
        let all = live.chain(state.retained.values());
        all.filter(|record| record.driver == *driver).cloned().collect()
    }

    fn is_as_it_was(&self, before: &Record) -> bool {
        let state = self.state.borrow();
        let live = state.volumes.get(&before.name).map(|entry| &entry.record);
        live == Some(before) || state.retained.get(&before.id) == Some(before)
    }

    fn replace_record(&self, record: Record) {
        let mut state = self.state.borrow_mut();
        match state.retained.get_mut(&record.id) {
            Some(kept) => *kept = record,
            None => {
                let entry = state.volumes.get_mut(&record.name);
                entry.into_iter().for_each(|entry| entry.record = record.clone());
            }
        }
    }

    /// What becomes of a volume's record.
    async fn taken_over<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        before: &Record,
    ) -> Result<Record, SwapError> {
        let Swap { driver, old, new, states, .. } = swap;
        let description = new.description();
        if let Some(old) = swap.another() {
            // It has data here, and will not be mounted. What lies at a backend is still to be told of its purge.
            let lies_here = before.storage != Storage::None || before.found().is_some();
            if before.phase.is_kept() && lies_here {
                return Ok(before.clone());
            }
            let (old, new) = (old.clone(), description.name.clone());
            return Err(SwapError::Another { name: (*driver).clone(), old, new });
        }
        let mut after = before.clone();
        options::follow(&mut after, description);
        let after = match states {
            States::Forward | States::PastLost => self.migrated(swap, after).await?,
            States::Back => after.rolled_back(),
            States::Stay | States::Same => after,
        };
        // What is half done is not mounted any more.
        if before.phase != Phase::Ready {
            return Ok(after);
        }
        let Err(NoMount { why, waits_for_grant }) =
            new.mounts(&after.volume(), &after.storage).await
        else {
            return Ok(after);
        };
        // Who waits for a grant, or for an attachment, waits with either.
        if let Some(old) = old
            && old.mounts(&before.volume(), &before.storage).await.is_err()
        {
            return Ok(after);
        }
        // So it does where nothing is loaded; and what could not be loaded for a while is no other version.
        if old.is_none() && (waits_for_grant || *states == States::Same) {
            return Ok(after);
        }
        let is_foreign = *states == States::Back && after.driver_version != description.version;
        let writer = || format!("its state is of version {}: {why}", after.driver_version);
        let why = if is_foreign { writer() } else { why };
        let version = match states {
            States::Stay | States::Same => "these settings".to_owned(),
            States::Forward | States::PastLost | States::Back => shown(new),
        };
        Err(SwapError::Volume { volume: before.name.to_string(), version, why })
    }

    /// The record with its state as the new version writes it, where that says how.
    async fn migrated<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        before: Record,
    ) -> Result<Record, SwapError> {
        let (new, from) = (&swap.new, &before.driver_version);
        let version = &new.description().version;
        // One that is half made may have none.
        let has_state = before.phase == Phase::Ready || !before.state.is_empty();
        // What an earlier version has left is of no use to a rollback from this one, unless that is where it goes.
        let goes_past = swap.states == States::PastLost;
        let former = before.former.clone().filter(|_| goes_past);
        if !new.migrates() || from == version || !has_state {
            return Ok(Record { former, ..before });
        }
        match new.migrate(&before.volume(), from, self.scope(swap.driver)).await {
            Ok(state) if goes_past => Ok(Record { former, ..before.migrated(state, version) }),
            Ok(state) => Ok(before.migrated(state, version)),
            // Its backend may have lost it already, and the next call of its driver decides.
            Err(_) if before.phase != Phase::Ready => Ok(Record { former, ..before }),
            Err(error) => {
                let (volume, why) = (before.name.to_string(), error.to_string());
                Err(SwapError::Migrate { volume, version: shown(new), why })
            }
        }
    }
}

fn shown(version: &impl Version) -> String {
    format!("version {}", version.description().version)
}

/// Names for a refusal: three, and how many more.
pub(crate) fn some_of(volumes: &[String]) -> String {
    const NAMED_MAX: usize = 3;
    let named: Vec<_> = volumes.iter().take(NAMED_MAX).map(|v| format!("`{v}`")).collect();
    let count = volumes.len();
    let rest = count.saturating_sub(NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let noun = if count == 1 { "volume" } else { "volumes" };
    format!("{count} {noun}: {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::some_of;

    #[test]
    fn a_refusal_names_three_volumes_and_counts_the_rest() {
        let names: Vec<_> = ["a", "b", "c", "d", "e"].map(String::from).into();
        assert_eq!(some_of(&names), "5 volumes: `a`, `b`, `c` and 2 more");
        assert_eq!(some_of(&names[..1]), "1 volume: `a`");
    }
}
