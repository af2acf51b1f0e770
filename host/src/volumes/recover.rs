//! Recovery: after a start, catalog, mount table and kernel are made to agree; and `tick`, which takes up what had to wait.
//!
//! Everything is found by construction, by the id. A mount under the anchor without a holder was never acknowledged and goes, a
//! half made volume is undone, a half removed one removed. What is not recognised is reported and never touched. Recovery may be
//! killed at any step and come again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{Facts, Fault, Id, Release, Storage, VolumeName};

use super::mount::describe;
use super::view::Trouble;
use super::world::{Catalog, Mounter, Table, World};
use super::{Volumes, holders::Holders};
use crate::catalog::record::Phase;
use crate::catalog::{Change, TableChange};

/// How long recovery waits before it asks mountd again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often usage is refreshed and the rests of engines that have ended are looked for: both cost a question to the kernel for
/// each mounted volume.
const SLOW_ROUND: Duration = Duration::from_secs(30);

/// What mountd found in its directories.
struct Survey {
    mounts: Vec<(Id, Option<Facts>)>,
    storage: BTreeSet<Id>,
    strangers: Vec<Trouble>,
}

impl<W: World> Volumes<W> {
    /// Makes records, mount table and kernel agree. Changing verbs wait for its first end; Get, List and Path do not.
    pub(crate) async fn recover(&self) {
        self.step("recover.begin").await;
        let survey = loop {
            match self.survey().await {
                Ok(survey) => break survey,
                Err(fault) => {
                    tracing::warn!("recovery waits: {fault}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        self.step("recover.surveyed").await;
        self.recover_mounts(survey.mounts).await;
        self.step("recover.mounts").await;
        self.recover_records(&survey.storage).await;
        self.state.borrow_mut().strangers = survey.strangers;
        self.step("recover.records").await;
        self.recovered.send_replace(true);
    }

    /// Takes up what waits: once every 2 s. Never waits for a verb.
    pub(crate) async fn tick(&self) {
        if !*self.recovered.borrow() {
            return;
        }
        let now = Instant::now();
        for name in self.names(|entry| entry.waiting.as_ref().is_some_and(|w| w.next <= now)) {
            if let Some(_lock) = self.locks.try_hold(&name) {
                self.resume(&name).await;
            }
        }
        let strays: Vec<Id> = self.state.borrow().stray_mounts.keys().copied().collect();
        for id in strays {
            self.release_stray(id).await;
        }
    }

    /// What is asked of the kernel for each mounted volume: once every [`SLOW_ROUND`].
    pub(crate) async fn slow_tick(&self) {
        if !*self.recovered.borrow() {
            return;
        }
        for name in self.names(|entry| entry.facts.is_some()) {
            if let Some(_lock) = self.locks.try_hold(&name) {
                self.expire(&name).await;
                self.refresh_usage(&name).await;
            }
        }
        self.discover().await;
    }

    /// The periods of [`Volumes::tick`] and [`Volumes::slow_tick`], for ever.
    pub(crate) async fn keep_up(&self) {
        let mut slow = Instant::now() + SLOW_ROUND;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.tick().await;
            if Instant::now() >= slow {
                self.slow_tick().await;
                slow = Instant::now() + SLOW_ROUND;
            }
        }
    }

    async fn survey(&self) -> Result<Survey, Fault> {
        let mounter = self.world.mounter();
        let (mounts, strange_mounts) = mounter.survey(Inventory::Mounts).await?;
        let (storage, strange_storage) = mounter.survey(Inventory::Volumes).await?;
        let (_, strange_trash) = mounter.survey(Inventory::Trash).await?;
        let storage: BTreeSet<Id> = storage.into_iter().map(|(id, _)| id).collect();
        let known: BTreeSet<Id> = {
            let state = self.state.borrow();
            let shown = state.volumes.values().map(|entry| entry.record.id);
            shown.chain(state.retained.keys().copied()).collect()
        };
        let mut strangers: Vec<Trouble> =
            storage.difference(&known).map(|id| Trouble::stray_storage(&id.to_string())).collect();
        strangers.extend(strange_storage.iter().map(|name| Trouble::stray_storage(name)));
        strangers.extend(strange_mounts.iter().map(|name| Trouble::stranger("the anchor", name)));
        strangers.extend(strange_trash.iter().map(|name| Trouble::stranger("`trash/`", name)));
        Ok(Survey { mounts, storage, strangers })
    }

    /// Kernel and mount table: what is mounted is kept if it has holders and goes if it has none; what should be mounted and is
    /// not is mounted again.
    async fn recover_mounts(&self, mounts: Vec<(Id, Option<Facts>)>) {
        let names: BTreeMap<Id, VolumeName> = {
            let state = self.state.borrow();
            state.volumes.iter().map(|(name, entry)| (entry.record.id, name.clone())).collect()
        };
        for (id, facts) in mounts {
            match (names.get(&id), facts) {
                // A directory at the anchor with no mount on it: the next mount uses it, and mountd tidies it up.
                (_, None) => {}
                (Some(name), Some(facts)) => self.write(name, |entry| {
                    entry.facts = Some(facts);
                    entry.last = None;
                }),
                (None, Some(_)) => self.release_stray(id).await,
            }
        }
        for name in self.names(super::Entry::is_draining) {
            self.drain(&name).await;
        }
        for name in self.names(|entry| entry.facts.is_none() && !entry.holders.is_empty()) {
            self.remount(&name).await;
        }
    }

    /// Catalog and storage.
    async fn recover_records(&self, storage: &BTreeSet<Id>) {
        for name in self.names(|entry| entry.record.phase != Phase::Ready) {
            // A failure is kept in the entry, and tried again by `tick`.
            if let Err(error) = self.finish(&name).await {
                tracing::warn!("volume `{name}`: {error}");
            }
        }
        for name in self.names(|entry| entry.record.storage != Storage::None) {
            self.write(&name, |entry| {
                if !storage.contains(&entry.record.id) {
                    entry.missing = Some("its storage is gone from `volumes/`");
                }
            });
        }
        let gone: Vec<Id> = {
            let state = self.state.borrow();
            state.retained.keys().filter(|id| !storage.contains(id)).copied().collect()
        };
        for id in gone {
            // Somebody deleted the kept data by hand: nothing is left to remember.
            match self.world.catalog().commit(Change::Delete(id)).await {
                Ok(()) => drop(self.state.borrow_mut().retained.remove(&id)),
                Err(error) => tracing::warn!("record {id}: {error}"),
            }
        }
    }

    /// Names of the volumes of which `wanted` is true.
    pub(super) fn names(&self, wanted: impl Fn(&super::Entry) -> bool) -> Vec<VolumeName> {
        let state = self.state.borrow();
        let names = state.volumes.iter().filter(|(_, entry)| wanted(entry));
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Tries again what was put off.
    async fn resume(&self, name: &VolumeName) {
        let found = self.read(name, |entry| {
            (
                entry.record.phase,
                entry.is_draining(),
                entry.facts.is_none(),
                !entry.holders.is_empty(),
            )
        });
        match found {
            Some((Phase::Creating | Phase::Removing, ..)) => {
                // The reason stands in the entry.
                let _ = self.finish(name).await;
            }
            Some((_, true, ..)) => self.drain(name).await,
            Some((_, _, true, true)) => self.remount(name).await,
            _ => self.write(name, |entry| entry.waiting = None),
        }
    }

    /// A volume has holders and no mount: it lost it while we were away. Mounted again, with the superblock that a container still
    /// holds where there is one.
    async fn remount(&self, name: &VolumeName) {
        match self.attach(name, None).await {
            Ok(facts) => {
                let holders = self.read(name, |entry| entry.holders.clone()).unwrap_or_default();
                match self.hold(name, holders, Some(facts)).await {
                    Ok(()) => self.write(name, |entry| entry.waiting = None),
                    Err(error) => self.write(name, |entry| entry.put_off(error.to_string())),
                }
            }
            Err(error) => {
                self.write(name, |entry| entry.put_off(format!("is not mounted: {error}")));
            }
        }
    }

    /// Drops holders whose engines have ended, once the kernel shows that nobody has the volume.
    async fn expire(&self, name: &VolumeName) {
        let now = self.now();
        let expired = |entry: &super::Entry| entry.holders.have_expired(now, self.is_running());
        if self.read(name, expired) != Some(true) {
            return;
        }
        let Some(id) = self.read(name, |entry| entry.record.id) else { return };
        let is_free = self.world.mounter().scan(id).await.is_ok_and(|evidence| evidence.is_free());
        if is_free && self.hold(name, Holders::default(), None).await.is_ok() {
            self.drain(name).await;
        }
    }

    async fn refresh_usage(&self, name: &VolumeName) {
        let Some(id) = self.read(name, |entry| entry.facts.as_ref().map(|_| entry.record.id))
        else {
            return;
        };
        let Some(id) = id else { return };
        if let Ok(usage) = self.world.mounter().usage(id).await {
            let now = self.now();
            self.write(name, |entry| entry.usage = Some((usage, now)));
        }
    }

    /// A mount under the anchor that belongs to no volume was never acknowledged: it goes, unless somebody has it.
    async fn release_stray(&self, id: Id) {
        let why = match self.world.mounter().unmount(id).await {
            Ok(Release::Gone) => None,
            Ok(Release::Held(evidence)) => Some(describe(&evidence)),
            Err(fault) => Some(fault.to_string()),
        };
        if why.is_none() {
            // A row may be left of it.
            if let Err(error) = self.world.table().commit(TableChange::Delete(id)).await {
                tracing::warn!("mount {id}: {error}");
            }
        }
        let mut state = self.state.borrow_mut();
        match why {
            Some(why) => drop(state.stray_mounts.insert(id, why)),
            None => drop(state.stray_mounts.remove(&id)),
        }
    }
}
