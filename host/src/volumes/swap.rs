//! Swap: another version of a driver takes the place of the one that is loaded, while its volumes are in use.
//!
//! Called by the loader, for one driver at a time. The new version is asked about every live volume while all goes on; then, for a moment
//! in which no verb asks the driver, about those that have changed meanwhile; and then the driver's row and all states that the new version
//! has taken over become durable in one transaction. So after whatever crash either version is there, whole. Mounts are not touched.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use wasmvol_plan::{DriverName, Id};

use super::Volumes;
use super::world::{Catalog, Version, World};
use crate::catalog::record::{Phase, Record};
use crate::catalog::{Change, DriverRow, StoreError};

/// Volumes that are asked about at once: as many calls as the engine runs.
const AT_ONCE: usize = 64;
/// How long verbs may be held up by what the new version is asked at last. With what they have waited for already that is less than
/// they wait at all.
const ALONE: Duration = Duration::from_secs(10);

/// What becomes of the states that volumes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum States {
    /// The new version takes them over.
    Forward,
    /// They become what they were before the version that is loaded took them over.
    Back,
    /// They stay: it is the same version.
    Stay,
}

/// One version in the place of another.
pub(crate) struct Swap<'a, V> {
    pub(crate) driver: &'a DriverName,
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
    /// With the names of volumes.
    #[error("verbs of the driver have not ended in time, so what is loaded stays: {}", busy(.0))]
    Busy(Vec<String>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the new version makes of one volume.
struct Look {
    before: Record,
    after: Result<Record, SwapError>,
}

impl<W: World> Volumes<W> {
    /// Makes `row` the driver's durable row, with the states that belong to it, and calls `put`, from which on every call is one of the new
    /// version. If it is refused nothing has changed.
    pub(crate) async fn swap<V: Version>(
        &self,
        swap: Swap<'_, V>,
        row: DriverRow,
        put: impl FnOnce(),
    ) -> Result<(), SwapError> {
        let mut looks = BTreeMap::new();
        self.look(&swap, &mut looks).await;
        // Nobody is held up for what is refused anyway. What a verb has changed meanwhile is asked about again.
        let is_as_it_was = |look: &Look| {
            self.read(&look.before.name, |entry| entry.record == look.before) == Some(true)
        };
        looks.retain(|_, look| look.after.is_ok() || is_as_it_was(look));
        if looks.values().any(|look| look.after.is_err()) {
            return changes(looks).map(drop);
        }
        self.step("swap.checked").await;
        let late = || SwapError::Busy(self.busy_with(swap.driver));
        let _closed = self.gates.close(swap.driver).await.ok_or_else(late)?;
        let looked = tokio::time::timeout(ALONE, self.look(&swap, &mut looks)).await;
        looked.map_err(|_| late())?;
        let records = changes(looks)?;
        self.step("swap.migrated").await;
        let puts = records.iter().map(|record| Change::Put(Box::new(record.clone())));
        let row = [Change::PutDriver(Box::new(row))];
        self.world.catalog().commit(Change::Together(puts.chain(row).collect())).await?;
        self.step("swap.committed").await;
        for record in records {
            let name = record.name.clone();
            self.write(&name, |entry| entry.record = record);
        }
        put();
        Ok(())
    }

    /// Whether every volume of the driver that can be mounted as it is can be mounted with the new version, too.
    pub(crate) async fn check<V: Version>(&self, swap: Swap<'_, V>) -> Result<(), SwapError> {
        let mut looks = BTreeMap::new();
        self.look(&swap, &mut looks).await;
        changes(looks).map(drop)
    }

    /// Asks about the volumes that are not known yet as they are now.
    async fn look<V: Version>(&self, swap: &Swap<'_, V>, looks: &mut BTreeMap<Id, Look>) {
        let records: Vec<Record> = {
            let state = self.state.borrow();
            let all = state.volumes.values().map(|entry| &entry.record);
            all.filter(|record| record.driver == *swap.driver).cloned().collect()
        };
        let mut before = std::mem::take(looks);
        let mut unknown = Vec::new();
        for record in records {
            match before.remove(&record.id).filter(|look| look.before == record) {
                Some(look) => drop(looks.insert(record.id, look)),
                None => unknown.push(record),
            }
        }
        let ask = |before: Record| async move {
            let after = self.taken_over(swap, &before).await;
            (before.id, Look { before, after })
        };
        let asked: Vec<_> =
            stream::iter(unknown).map(ask).buffer_unordered(AT_ONCE).collect().await;
        looks.extend(asked);
    }

    /// What becomes of a volume's record.
    async fn taken_over<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        before: &Record,
    ) -> Result<Record, SwapError> {
        let Swap { driver, old, new, states } = swap;
        if let Some(old) = old.as_ref().filter(|old| old.kind() != new.kind()) {
            let (old, new) = (old.kind().to_owned(), new.kind().to_owned());
            return Err(SwapError::Another { name: (*driver).clone(), old, new });
        }
        let after = match states {
            States::Forward => self.migrated(swap, before).await?,
            States::Back => before.rolled_back(),
            States::Stay => before.clone(),
        };
        // What is half done is not mounted any more.
        if before.phase != Phase::Ready {
            return Ok(after);
        }
        let Err(why) = new.mounts(&after.volume(), &after.storage).await else { return Ok(after) };
        // Who waits for a grant, or for an attachment, waits with either.
        if let Some(old) = old
            && old.mounts(&before.volume(), &before.storage).await.is_err()
        {
            return Ok(after);
        }
        let is_foreign = *states == States::Back && after.driver_version != new.version();
        let writer = || format!("its state is of version {}: {why}", after.driver_version);
        let why = if is_foreign { writer() } else { why };
        Err(SwapError::Volume { volume: before.name.to_string(), version: shown(new), why })
    }

    /// The record with its state as the new version writes it, where that says how.
    async fn migrated<V: Version>(
        &self,
        swap: &Swap<'_, V>,
        before: &Record,
    ) -> Result<Record, SwapError> {
        let (new, from) = (&swap.new, &before.driver_version);
        // What an earlier version has left is of no use to a rollback from this one.
        let same = || Record { former: None, ..before.clone() };
        // One that is half made may have none.
        let has_state = before.phase == Phase::Ready || !before.state.is_empty();
        if !new.migrates() || from == new.version() || !has_state {
            return Ok(same());
        }
        match new.migrate(&before.volume(), from, self.scope(swap.driver)).await {
            Ok(state) => Ok(before.migrated(state, new.version())),
            // Its backend may have lost it already, and the next call of its driver decides.
            Err(_) if before.phase != Phase::Ready => Ok(same()),
            Err(error) => {
                let (volume, why) = (before.name.to_string(), error.to_string());
                Err(SwapError::Migrate { volume, version: shown(new), why })
            }
        }
    }

    /// The volumes of a driver that verbs are busy with.
    fn busy_with(&self, driver: &DriverName) -> Vec<String> {
        let names = self.names(|entry| entry.record.driver == *driver);
        let intended = self.state.borrow().intended.clone();
        let intended = intended.into_iter().filter(|(_, of)| of == driver).map(|(name, _)| name);
        let busy = names.into_iter().chain(intended).filter(|n| self.locks.try_hold(n).is_none());
        busy.map(|name| name.to_string()).collect()
    }
}

/// The records that change, or the first refusal.
fn changes(looks: BTreeMap<Id, Look>) -> Result<Vec<Record>, SwapError> {
    let mut changed = Vec::new();
    for Look { before, after } in looks.into_values() {
        let after = after?;
        if after != before {
            changed.push(after);
        }
    }
    Ok(changed)
}

fn shown(version: &impl Version) -> String {
    format!("version {}", version.version())
}

fn busy(volumes: &[String]) -> String {
    match volumes {
        [] => "its volumes are being listed: try again".to_owned(),
        _ => format!("it is busy with {}: try again", some_of(volumes)),
    }
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
