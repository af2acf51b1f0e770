//! Remove: a volume and its data go, or it stays as it was.
//!
//! Refused while it is held. Once the intent is durable it is only ever finished, never taken back, but for one case: the driver
//! itself says no before anything else was done.

use wasmvol_driver::{CallError, Reclaim};
use wasmvol_plan::{Release, Storage, VolumeName};

use super::holders::Caller;
use super::mount::describe;
use super::world::{Catalog, Drivers, Mounter, World};
use super::{VolumeError, Volumes};
use crate::catalog::Change;
use crate::catalog::record::Phase;

impl<W: World> Volumes<W> {
    /// Removes a volume and its data. `NotFound` means that it is done already.
    pub(crate) async fn remove(&self, name: &str, caller: Caller) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        self.until_recovered().await?;
        let _lock = self.locks.hold(&name).await?;
        self.finish(&name).await?;
        let Some(record) = self.read(&name, |entry| entry.record.clone()) else {
            return Err(VolumeError::NotFound);
        };
        self.release_rests(&name, caller).await?;
        self.step("remove.begin").await;
        let mut removing = record.clone();
        removing.phase = Phase::Removing;
        self.put(removing).await?;
        self.step("remove.intent").await;
        let Err(error) = self.finish_remove(&name).await else { return Ok(()) };
        // The driver's own refusal comes before any side effect of ours: the volume is what it was.
        let is_refusal =
            matches!(error, VolumeError::Driver { error: CallError::Failed { .. }, .. });
        if !is_refusal || self.put(record).await.is_err() {
            self.write(&name, |entry| entry.put_off(error.to_string()));
        }
        Err(error)
    }

    /// Refuses while somebody holds the volume; drops holders that the caller's Remove proves to be rests, and unmounts.
    async fn release_rests(&self, name: &VolumeName, caller: Caller) -> Result<(), VolumeError> {
        let found =
            self.read(name, |entry| (entry.record.id, entry.holders.clone(), entry.facts.clone()));
        let Some((id, holders, facts)) = found else { return Ok(()) };
        let left = holders.without_rests_of(caller, self.now(), self.is_running());
        if !left.is_empty() {
            return Err(VolumeError::InUse(left.describe()));
        }
        if facts.is_some() || !holders.is_empty() {
            // The kernel is asked before a holder is dropped: a container that is alive keeps its row.
            let evidence = self.world.mounter().scan(id).await?;
            if !evidence.is_free() {
                return Err(VolumeError::InUse(describe(&evidence)));
            }
        }
        if !holders.is_empty() {
            self.hold(name, left, facts.clone()).await?;
        }
        if facts.is_some() {
            self.drain(name).await;
        }
        let still =
            self.read(name, |e| e.waiting.as_ref().map(|w| (e.is_draining(), w.why.clone())));
        match still.flatten() {
            Some((true, why)) => Err(VolumeError::InUse(why)),
            _ => Ok(()),
        }
    }

    /// From the intent to the end. May be repeated.
    pub(super) async fn finish_remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let found =
            self.read(name, |entry| (entry.record.clone(), entry.volume(), entry.facts.is_some()));
        let Some((mut record, volume, is_mounted)) = found else { return Ok(()) };
        if is_mounted {
            match self.world.mounter().unmount(record.id).await? {
                Release::Gone => self.write(name, super::Entry::unmounted),
                Release::Held(evidence) => return Err(VolumeError::InUse(describe(&evidence))),
            }
        }
        let reclaim = self
            .world
            .drivers()
            .remove(&record.driver, &volume)
            .await
            .map_err(|error| VolumeError::Driver { driver: record.driver.clone(), error })?;
        self.step("remove.driver").await;
        let is_kept = reclaim == Reclaim::Retain || record.reclaim == Some(Reclaim::Retain);
        if is_kept && record.storage != Storage::None {
            record.phase = Phase::Retained;
            self.world.catalog().commit(Change::Put(Box::new(record.clone()))).await?;
            let mut state = self.state.borrow_mut();
            state.volumes.remove(name);
            state.retained.insert(record.id, record);
        } else {
            self.world.mounter().trash(record.id).await?;
            self.step("remove.trashed").await;
            self.forget(name, record.id).await?;
        }
        self.step("remove.forgotten").await;
        Ok(())
    }

    /// Finishes what an earlier verb left half done, if anything: Create is undone, Remove is done.
    pub(super) async fn finish(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let (done, what) = match self.read(name, |entry| entry.record.phase) {
            Some(Phase::Creating) => (self.undo_create(name).await, "create could not be undone"),
            Some(Phase::Removing) => (self.finish_remove(name).await, "remove could not be ended"),
            _ => return Ok(()),
        };
        done.map_err(|error| {
            let line = format!("an earlier {what}: {error}");
            self.write(name, |entry| entry.put_off(line.clone()));
            VolumeError::Unfinished(line)
        })
    }
}
