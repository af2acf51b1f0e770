//! Recovery: after a start, catalog, mount table and kernel are made to agree; and `tick`, which takes up what had to wait.
//!
//! Everything is found by construction, by the id. A mount under the anchor without a holder was never acknowledged and goes, a
//! half made volume is undone, a half removed one removed. What is not recognised is reported and never touched. Recovery may be
//! killed at any step and come again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{Facts, Fault, Id, Release, Storage, VolumeName};

use super::gate::Entered;
use super::mount::describe;
use super::remove::Insist;
use super::troubles::Trouble;
use super::world::{Drivers, Mounter, Table, World};
use super::{Entry, Settings, Volumes, Waiting, holders::Holders};
use crate::catalog::TableChange;
use crate::catalog::record::{Phase, Record};

/// How long recovery waits before it asks mountd again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether something that was put off is due.
const QUICK_ROUND: Duration = Duration::from_secs(2);
/// Rounds of a kind at once: as many quick ones as begin while a backend that hangs holds one up for the whole of its deadline.
const ROUNDS_MAX: usize = 32;
/// Volumes that are taken up at once: as many as the daemon makes driver calls at once.
const AT_ONCE: usize = 64;
/// How often usage is refreshed and the rests of engines that have ended are looked for: both cost a question to the kernel for
/// each mounted volume.
const SLOW_ROUND: Duration = Duration::from_secs(30);
/// How often it is looked whether the programs that serve volumes still do: within a second it is known.
const PROGRAM_ROUND: Duration = Duration::from_millis(500);

/// What a volume is missing whose directory is not there.
const NO_STORAGE: &str = "its storage is gone from `volumes/`";

/// What mountd found in its directories.
pub(super) struct Survey {
    mounts: Vec<(Id, Option<Facts>)>,
    pub(super) storage: BTreeSet<Id>,
    pub(super) strangers: Vec<Trouble>,
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
        let strays = self.adopt(survey.mounts);
        self.note_storage(&survey.storage, |_| true);
        self.note_unfinished();
        self.state.borrow_mut().strangers = survey.strangers;
        // What is known now is enough for any verb: it finishes its own volume first. So one volume whose driver fails, or hangs,
        // delays no other.
        self.recovered.send_replace(true);
        stream::iter(strays).for_each_concurrent(AT_ONCE, |id| self.release_stray(id)).await;
        self.take_up(self.names(|e| e.is_draining() || e.is_lost())).await;
        self.step("recover.mounts").await;
        self.take_up(self.names(|entry| entry.record.phase != Phase::Ready)).await;
        self.finish_purges().await;
        self.step("recover.records").await;
    }

    /// Takes up what waits: once every [`QUICK_ROUND`]. Never waits for a verb.
    pub(crate) async fn tick(&self) {
        if !*self.recovered.borrow() {
            return;
        }
        let waiting = self.names(|e| e.waiting.as_ref().is_some_and(Waiting::is_due));
        let strays: Vec<Id> = {
            let state = self.state.borrow();
            let due = state.stray_mounts.iter().filter(|(_, waiting)| waiting.is_due());
            due.map(|(id, _)| *id).collect()
        };
        let strays = stream::iter(strays).for_each_concurrent(AT_ONCE, |id| self.release_stray(id));
        tokio::join!(self.take_up(waiting), strays, self.finish_purges());
    }

    /// Resumes each of these volumes that no verb is busy with.
    async fn take_up(&self, names: Vec<VolumeName>) {
        let resume = |name: VolumeName| async move {
            let asks = |entry: &Entry| match entry.record.phase {
                Phase::Ready if entry.is_lost() => entry.mounted().is_none() || entry.is_attached(),
                Phase::Ready => entry.is_attached(),
                _ => true,
            };
            let driver = self.read(&name, |e| asks(e).then(|| e.record.driver.clone()));
            if let Some(driver) = driver.flatten() {
                self.world.drivers().until_loaded(&driver).await;
            }
            if let Some(mut entered) = self.try_enter(&name, asks) {
                self.resume(&name, &mut entered).await;
            }
        };
        stream::iter(names).for_each_concurrent(AT_ONCE, resume).await;
    }

    /// What is asked of the kernel for each mounted volume: once every [`SLOW_ROUND`].
    pub(crate) async fn slow_tick(&self) {
        if !*self.recovered.borrow() {
            return;
        }
        // A volume whose server is gone holds up no other's.
        let look = |name: VolumeName| async move {
            if let Some(_entered) = self.try_enter(&name, Entry::is_attached) {
                self.expire(&name).await;
                self.refresh_usage(&name).await;
            }
        };
        let names = self.names(|entry| entry.facts.is_some());
        let looks = stream::iter(names).for_each_concurrent(AT_ONCE, look);
        // Nor does a list that is late.
        tokio::join!(self.discover(None), looks);
    }

    /// The rounds of [`Volumes::tick`], [`Volumes::slow_tick`] and the rest, for ever; none waits for another.
    pub(crate) async fn keep_up(&self) {
        let quick = in_rounds(QUICK_ROUND, || self.tick());
        let slow = async {
            let mut recovered = self.recovered.subscribe();
            // It is never closed.
            let _ended = recovered.wait_for(|recovered| *recovered).await.map(drop);
            in_rounds(SLOW_ROUND, || self.slow_tick()).await;
        };
        let programs = async {
            loop {
                tokio::time::sleep(PROGRAM_ROUND).await;
                self.look_after_programs().await;
            }
        };
        let health = async {
            loop {
                tokio::time::sleep(super::health::ROUND).await;
                self.look_after_health().await;
            }
        };
        let ((), (), (), ()) = tokio::join!(quick, slow, programs, health);
    }

    /// Notes whose program has ended; asks nothing where no program serves a volume.
    pub(crate) async fn look_after_programs(&self) {
        let program = |entry: &Entry| {
            let facts = entry.facts.as_ref()?;
            facts
                .filesystem
                .strip_prefix("fuse.")
                .map(|program| (facts.mount_id, program.to_owned()))
        };
        let asked: BTreeMap<Id, (u64, String)> = {
            let state = self.state.borrow();
            let entries = state.volumes.values();
            entries.filter_map(|entry| Some((entry.record.id, program(entry)?))).collect()
        };
        if asked.is_empty() {
            return;
        }
        let Ok(ended) = self.world.mounter().ended().await else { return };
        for entry in self.state.borrow_mut().volumes.values_mut() {
            // It may have been mounted anew while that was asked.
            if ended.contains(&entry.record.id)
                && entry.ended.is_none()
                && let Some((mount_id, program)) = program(entry)
                && asked.get(&entry.record.id).is_some_and(|(asked, _)| *asked == mount_id)
            {
                tracing::warn!("volume `{}`: its program `{program}` has ended", entry.record.name);
                entry.ended = Some(format!(
                    "program `{program}` has ended: it is started again at the next Mount"
                ));
            }
        }
    }

    /// Looks into the directories of mountd.
    pub(super) async fn survey(&self) -> Result<Survey, Fault> {
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
        let Settings { state_dir, mountpoints, .. } = &self.settings;
        let unknown = storage.difference(&known).map(ToString::to_string).chain(strange_storage);
        let mut strangers: Vec<Trouble> =
            unknown.map(|name| Trouble::stray_storage(state_dir, &name)).collect();
        strangers.extend(strange_mounts.iter().map(|n| Trouble::stray_mountpoint(mountpoints, n)));
        strangers.extend(strange_trash.iter().map(|n| Trouble::stray_trash(state_dir, n)));
        Ok(Survey { mounts, storage, strangers })
    }

    /// Takes over what the kernel shows under the anchor; answers the mounts that belong to no volume.
    fn adopt(&self, mounts: Vec<(Id, Option<Facts>)>) -> Vec<Id> {
        let mut found: BTreeMap<Id, Facts> =
            // A directory at the anchor with no mount on it is used by the next mount.
            mounts.into_iter().filter_map(|(id, facts)| Some((id, facts?))).collect();
        for entry in self.state.borrow_mut().volumes.values_mut() {
            match found.remove(&entry.record.id) {
                Some(facts) => entry.facts = Some(facts),
                None => entry.last = entry.facts.take(),
            }
        }
        found.into_keys().collect()
    }

    /// Notes which of these volumes have lost their storage, or have it again. What lies beneath a granted root is not among it: of
    /// that its driver's list tells.
    pub(super) fn note_storage(&self, storage: &BTreeSet<Id>, which: impl Fn(Id) -> bool) {
        for entry in self.state.borrow_mut().volumes.values_mut() {
            let Record { id, storage: own, .. } = &entry.record;
            if *own != Storage::None && !own.is_shared() && which(*id) {
                entry.missing = (!storage.contains(id)).then_some(NO_STORAGE);
            }
        }
    }

    /// Whatever is unfinished comes up again by itself, also if a verb is busy with its volume when recovery gets there.
    fn note_unfinished(&self) {
        for entry in self.state.borrow_mut().volumes.values_mut() {
            if entry.record.phase != Phase::Ready || entry.is_draining() || entry.is_lost() {
                entry.put_off("recovery has not got to it yet".into());
            }
        }
    }

    /// Names of the volumes of which `wanted` is true.
    pub(super) fn names(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<VolumeName> {
        let state = self.state.borrow();
        let names = state.volumes.iter().filter(|(_, entry)| wanted(entry));
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Does what is due for one volume; why it could not be done is kept in its entry.
    async fn resume(&self, name: &VolumeName, entered: &mut Entered<'_>) {
        let found = self.read(name, |entry| {
            (entry.record.phase, entry.holders.is_empty(), entry.facts.is_some())
        });
        match found {
            Some((Phase::Creating | Phase::Removing, ..)) => {
                if let Err(error) = self.finish(name, Insist::No).await {
                    tracing::warn!("volume `{name}`: {error}");
                }
            }
            // Also where nothing was heard of a request: it may be mounted all the same.
            Some((_, true, _)) => self.drain(name).await,
            Some((.., false)) => self.remount(name, entered).await,
            _ => self.write(name, |entry| entry.waiting = None),
        }
    }

    /// A volume has holders and no mount: it lost it while we were away. Mounted again, with the superblock that a container still
    /// holds where there is one.
    async fn remount(&self, name: &VolumeName, entered: &mut Entered<'_>) {
        match self.attach(name, None, entered).await {
            Ok(_) => {
                let holders = self.read(name, |entry| entry.holders.clone()).unwrap_or_default();
                match self.hold(name, holders).await {
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
        let now = self.now_and_uptime();
        let expired = |entry: &Entry| entry.holders.have_expired(now, self.is_running());
        if self.read(name, expired) != Some(true) {
            return;
        }
        let found = self.read(name, |entry| (entry.record.id, entry.attached()));
        let Some((id, attached)) = found else { return };
        let evidence = self.world.mounter().scan(id, attached).await;
        let is_free = evidence.is_ok_and(|evidence| evidence.is_free());
        if is_free && self.hold(name, Holders::default()).await.is_ok() {
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
        let why = match self.world.mounter().unmount(id, None).await {
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
            Some(why) => {
                let waiting = Waiting::again(state.stray_mounts.get(&id), why);
                state.stray_mounts.insert(id, waiting);
            }
            None => drop(state.stray_mounts.remove(&id)),
        }
    }
}

/// Begins a round each time, for ever. What hangs, a volume's backend or a driver's list, holds up its own round only: the next one goes
/// past it.
async fn in_rounds<F: Future<Output = ()>>(period: Duration, round: impl Fn() -> F) {
    let mut rounds = FuturesUnordered::new();
    let mut next = tokio::time::interval(period);
    loop {
        tokio::select! {
            _ = next.tick() => if rounds.len() < ROUNDS_MAX { rounds.push(round()) },
            Some(()) = rounds.next() => {}
        }
    }
}
