//! Remove: a volume and its data go, or it stays as it was.
//!
//! Refused while it is held. Once the intent is durable it is only ever finished, never taken back, but for one case: the driver
//! itself says no before anything else was done.

use wasmvol_driver::{CallError, Reclaim, Volume};
use wasmvol_plan::frame::{Attached, Inventory};
use wasmvol_plan::{DriverName, FaultKind, Release, Storage, VolumeName};

use super::holders::Caller;
use super::mount::describe;
use super::world::{Catalog, Drivers, Mounter, World};
use super::{Entry, VolumeError, Volumes};
use crate::catalog::Change;
use crate::catalog::record::{Phase, Record};

/// What a driver's refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insist {
    /// It is heard.
    No,
    /// The volume goes all the same; what the backend keeps of it is the operator's to clear up.
    Yes,
}

impl<W: World> Volumes<W> {
    /// Removes a volume and its data, a half made one too. `NotFound` means that it is done already.
    pub(crate) async fn remove(
        &self,
        name: &str,
        caller: Caller,
        insist: Insist,
    ) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        self.until_recovered().await?;
        let _entered = self.enter(&name, None, |_| true).await?;
        if self.read(&name, |_| ()).is_none() {
            return Err(VolumeError::NotFound);
        }
        self.finish(&name, insist).await?;
        let Some(record) = self.read(&name, |entry| entry.record.clone()) else { return Ok(()) };
        if let Some(above) = self.above(record.id) {
            let line = format!("volume `{above}` lies over it: remove that one first");
            return Err(VolumeError::InUse(line));
        }
        self.release_rests(&name, caller, insist).await?;
        self.step("remove.begin").await;
        let Some(record) = self.read(&name, |entry| entry.record.clone()) else { return Ok(()) };
        self.put(Record { phase: Phase::Removing, ..record }).await?;
        self.step("remove.intent").await;
        let Err(error) = self.finish_remove(&name, insist).await else { return Ok(()) };
        // The driver's own refusal comes before any side effect of ours: the volume is what it was.
        let is_refusal =
            matches!(error, VolumeError::Driver { error: CallError::Failed { .. }, .. });
        if !is_refusal || self.take_back(&name).await.is_err() {
            self.write(&name, |entry| entry.put_off(error.to_string()));
        }
        Err(error)
    }

    /// Makes a volume again what it was before it was to go, but for what its driver has said of it meanwhile.
    async fn take_back(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let Some(record) = self.read(name, |entry| entry.record.clone()) else { return Ok(()) };
        self.put(Record { phase: Phase::Ready, ..record }).await
    }

    /// Refuses while somebody holds the volume; drops holders that the caller's Remove proves to be rests, and unmounts.
    async fn release_rests(
        &self,
        name: &VolumeName,
        caller: Caller,
        insist: Insist,
    ) -> Result<(), VolumeError> {
        let found = self.read(name, |entry| {
            let (id, attached) = (entry.record.id, entry.attached());
            (id, attached, entry.holders.clone(), entry.may_be_mounted())
        });
        let Some((id, attached, holders, may_be_mounted)) = found else { return Ok(()) };
        let left = holders.without_rests_of(caller, self.now_and_uptime(), self.is_running());
        if !left.is_empty() {
            return Err(VolumeError::InUse(left.describe()));
        }
        if may_be_mounted || !holders.is_empty() {
            // The kernel is asked before a holder is dropped: a container that is alive keeps its row.
            let evidence = self.world.mounter().scan(id, attached).await?;
            if !evidence.is_free() {
                return Err(VolumeError::InUse(describe(&evidence)));
            }
        }
        if !holders.is_empty() {
            self.hold(name, left).await?;
        }
        if may_be_mounted {
            self.drain(name).await;
        }
        let waits = |entry: &Entry| {
            let why = entry.waiting.as_ref().map(|waiting| waiting.why.clone());
            why.map(|why| (why, entry.facts.is_none() && entry.is_attached()))
        };
        match (self.read(name, waits).flatten(), insist) {
            // Nobody has it any more but its backend.
            (None, _) | (Some((_, true)), Insist::Yes) => Ok(()),
            (Some((why, true)), Insist::No) => {
                Err(VolumeError::Unfinished(format!("is still attached: {why}")))
            }
            (Some((why, false)), _) => Err(VolumeError::InUse(why)),
        }
    }

    /// From the intent to the end. May be repeated.
    async fn finish_remove(&self, name: &VolumeName, insist: Insist) -> Result<(), VolumeError> {
        let found = self.read(name, |entry| {
            let may_be_mounted = entry.may_be_mounted().then(|| entry.attached());
            (entry.record.clone(), entry.volume(), may_be_mounted)
        });
        let Some((mut record, mut volume, may_be_mounted)) = found else { return Ok(()) };
        if let Some(attached) = may_be_mounted {
            match self.world.mounter().unmount(record.id, attached).await? {
                Release::Gone => self.write(name, Entry::unmounted),
                Release::Held(evidence) => return Err(VolumeError::InUse(describe(&evidence))),
            }
            match (self.let_go(name).await, insist) {
                (Ok(()), _) => {}
                (Err(error), Insist::No) => return Err(error),
                (Err(error), Insist::Yes) => {
                    tracing::warn!("volume `{name}` goes though it is attached: {error}");
                }
            }
            // What its driver is told is what it said last.
            let found = self.read(name, |entry| (entry.record.clone(), entry.volume()));
            let Some(found) = found else { return Ok(()) };
            (record, volume) = found;
        }
        let stays = match (self.stays_at_backend(&record), insist) {
            (Some(stays), _) => stays,
            // It may be a disk of a cloud.
            (None, Insist::Yes) => true,
            (None, Insist::No) => {
                let driver = record.driver.clone();
                let error = CallError::NotLoaded(driver.to_string());
                return Err(VolumeError::Driver { driver, error });
            }
        };
        let reclaim = match stays {
            true => Reclaim::Retain,
            false => self.tell_driver(&record.driver, &volume, insist).await?,
        };
        self.step("remove.driver").await;
        let own = if record.storage.is_shared() { Reclaim::Retain } else { Reclaim::Delete };
        let is_asked =
            reclaim == Reclaim::Retain || record.reclaim.unwrap_or(own) == Reclaim::Retain;
        if is_asked && (stays || self.has_something(name, &record).await?) {
            record.phase = Phase::Retained;
            self.world.catalog().commit(Change::Put(Box::new(record.clone()))).await?;
            let mut state = self.state.borrow_mut();
            state.volumes.remove(name);
            state.retained.insert(record.id, record);
        } else {
            // Once that was tried nothing may be left to keep, whatever the driver says next time.
            self.write(name, |entry| entry.missing = Some("its storage goes to the trash"));
            self.discard(&record).await?;
            self.step("remove.trashed").await;
            self.forget(name, record.id).await?;
        }
        self.step("remove.forgotten").await;
        Ok(())
    }

    /// Whether a volume's user wants data kept that lies at its driver's backend, as on a disk of a cloud. The driver hears of it when that is
    /// purged: it might delete it, and cannot know. None where the driver is not loaded, and that cannot be told.
    pub(super) fn stays_at_backend(&self, record: &Record) -> Option<bool> {
        let is_own = record.storage == Storage::None && record.found().is_none();
        if !is_own || record.reclaim != Some(Reclaim::Retain) {
            return Some(false);
        }
        self.world.drivers().abilities(&record.driver).map(|abilities| abilities.attachment)
    }

    /// Whether there is something to keep of a volume: its storage, or data that its backend would show again. Where storage beneath
    /// the state directory was missed that is looked at again: somebody may have put it back.
    async fn has_something(&self, name: &VolumeName, record: &Record) -> Result<bool, VolumeError> {
        let is_listed = matches!(record.found(), Some(Some(_)));
        if record.storage == Storage::None && !is_listed {
            return Ok(false);
        }
        // A granted root may be away just now, and come back with all that is on it.
        let is_there = self.read(name, |entry| entry.missing.is_none()) == Some(true);
        if is_there || record.storage.is_shared() {
            return Ok(true);
        }
        let (there, _) = self.world.mounter().survey(Inventory::Volumes).await?;
        Ok(there.iter().any(|(other, _)| *other == record.id))
    }

    /// Tells a driver that a volume goes.
    pub(super) async fn tell_driver(
        &self,
        driver: &DriverName,
        volume: &Volume,
        insist: Insist,
    ) -> Result<Reclaim, VolumeError> {
        let drivers = self.world.drivers();
        let call = async |scope| drivers.remove(driver, volume, scope).await;
        match (self.ask((&volume.name, volume.id), driver, call, |_, _| ()).await, insist) {
            (Ok(reclaim), _) => Ok(reclaim),
            (Err(error), Insist::No) => Err(error),
            (Err(error), Insist::Yes) => {
                tracing::warn!("volume `{}` goes without its driver: {error}", volume.name);
                Ok(Reclaim::Delete)
            }
        }
    }

    /// Moves storage into the trash. A mount that a request left behind after it was given up stands in the way: it goes first.
    pub(super) async fn discard(&self, record: &Record) -> Result<(), VolumeError> {
        let (mounter, Record { id, driver, storage, .. }) = (self.world.mounter(), record);
        let attached = record.attached.then_some(Attached { last: None });
        match mounter.trash(*id, driver, storage).await {
            Err(fault) if fault.kind == FaultKind::Busy => {
                if let Release::Held(evidence) = mounter.unmount(*id, attached).await? {
                    return Err(VolumeError::InUse(describe(&evidence)));
                }
                Ok(mounter.trash(*id, driver, storage).await?)
            }
            trashed => Ok(trashed?),
        }
    }

    /// Finishes what an earlier verb left half done, if anything: Create is undone, Remove is done.
    pub(super) async fn finish(
        &self,
        name: &VolumeName,
        insist: Insist,
    ) -> Result<(), VolumeError> {
        let (done, what) = match self.read(name, |entry| entry.record.phase) {
            Some(Phase::Creating) => {
                (self.undo_create(name, insist).await, "create could not be undone")
            }
            Some(Phase::Removing) => {
                (self.finish_remove(name, insist).await, "remove could not be ended")
            }
            _ => return Ok(()),
        };
        done.map_err(|error| {
            let line = format!("an earlier {what}: {error}");
            self.write(name, |entry| entry.put_off(line.clone()));
            VolumeError::Unfinished(line)
        })
    }
}
