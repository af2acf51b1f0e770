//! Purge: the data that a Remove has kept goes after all.
//!
//! Called by the admin API for an operator, never for an engine. The only verb that takes an id: the name may be another volume's
//! by now, and nothing but a kept volume has an id here, so that no spelling of anything deletes a volume that is there.

use futures_util::{StreamExt, stream};
use wasmvol_plan::{Id, Storage, VolumeName};

use super::remove::Insist;
use super::world::{Catalog, Drivers, World};
use super::{Time, VolumeError, Volumes, Waiting};
use crate::catalog::Change;
use crate::catalog::record::{Phase, Record};

/// Those that are ended at once, where a backend is asked for each.
const AT_ONCE: usize = 16;

impl<W: World> Volumes<W> {
    /// Hands everything that is kept to `show`: its record, when it was created, and where its data lies.
    pub(crate) fn get_kept<T>(
        &self,
        mut show: impl FnMut(&Record, Time, Option<String>) -> T,
    ) -> Vec<T> {
        let state = self.state.borrow();
        let kept = state.retained.values();
        kept.map(|record| show(record, Time(record.created_at), self.data_of(record))).collect()
    }

    /// Where the data of a volume lies, as the operator knows it; of what was found only its driver knows.
    pub(super) fn data_of(&self, record: &Record) -> Option<String> {
        match &record.storage {
            Storage::None => None,
            Storage::NamedDirectory(directory) => Some(directory.path()),
            Storage::Image(_) => {
                Some(format!("{}/volumes/{}/image", self.settings.state_dir, record.id))
            }
            _ => Some(format!("{}/volumes/{}/data", self.settings.state_dir, record.id)),
        }
    }

    /// Deletes what is kept under an id; answers the name that it had. Nothing there: it was moved away by hand, or is done.
    pub(crate) async fn purge(&self, id: Id, insist: Insist) -> Result<VolumeName, VolumeError> {
        self.until_recovered().await?;
        let find = || self.state.borrow().retained.get(&id).cloned().ok_or(VolumeError::NotKept);
        let kept = find()?;
        if kept.found().is_some() {
            return Err(VolumeError::Elsewhere);
        }
        let _lock = self.locks.hold(&kept.name).await?;
        self.world.drivers().until_loaded(&kept.driver).await;
        let _kept = self.keep(&kept.driver).await?;
        // Another purge may have ended meanwhile.
        let purging = Record { phase: Phase::Purging, ..find()? };
        let name = purging.name.clone();
        self.world.catalog().commit(Change::Put(Box::new(purging.clone()))).await?;
        self.state.borrow_mut().retained.insert(id, purging);
        self.step("purge.intent").await;
        match self.finish_purge(id, insist).await {
            Ok(()) => Ok(name),
            Err(error) => {
                self.put_off_purge(id, &name, &error);
                Err(error)
            }
        }
    }

    /// Finishes what was being purged when the daemon ended, or could not be.
    pub(super) async fn finish_purges(&self) {
        let begun: Vec<Record> = {
            let state = self.state.borrow();
            let is_due = |id: &Id| state.purges.get(id).is_none_or(Waiting::is_due);
            let begun = state.retained.values().filter(|record| record.phase == Phase::Purging);
            begun.filter(|record| is_due(&record.id)).cloned().collect()
        };
        let finish = |Record { id, name, driver, .. }: Record| async move {
            self.world.drivers().until_loaded(&driver).await;
            if let Some(_lock) = self.locks.try_hold(&name)
                && let Some(_inside) = self.gates.try_enter(&driver, &name)
                && let Err(error) = self.finish_purge(id, Insist::No).await
            {
                self.put_off_purge(id, &name, &error);
            }
        };
        stream::iter(begun).for_each_concurrent(AT_ONCE, finish).await;
    }

    fn put_off_purge(&self, id: Id, name: &VolumeName, error: &VolumeError) {
        let why = error.to_string();
        let mut state = self.state.borrow_mut();
        let before = state.purges.get(&id);
        if before.is_none_or(|before| before.why != why) {
            tracing::warn!("what was kept of `{name}` under {id} is not deleted yet: {why}");
        }
        let waiting = Waiting::again(before, why);
        state.purges.insert(id, waiting);
    }

    /// From the intent to the end. May be repeated.
    async fn finish_purge(&self, id: Id, insist: Insist) -> Result<(), VolumeError> {
        let kept = self.state.borrow().retained.get(&id).cloned();
        let Some(record) = kept else { return Ok(()) };
        if record.storage == Storage::None {
            self.tell_driver(&record.driver, &record.volume(), insist).await?;
        }
        self.discard(&record).await?;
        self.step("purge.trashed").await;
        self.world.catalog().commit(Change::Delete(id)).await?;
        {
            let mut state = self.state.borrow_mut();
            state.retained.remove(&id);
            state.purges.remove(&id);
        }
        self.step("purge.forgotten").await;
        Ok(())
    }
}
