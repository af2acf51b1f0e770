//! Create: a name becomes a volume, durably, or nothing happened.
//!
//! Options are checked, an id is minted, the intent is durable; then the driver says what storage it needs and mountd makes it.
//! What fails is undone, and what cannot be undone now is undone later: the record says `creating` until then.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use wasmvol_driver::types::Options;
use wasmvol_driver::{CallError, Created, Reclaim, Scope, Value, Volume};
use wasmvol_plan::{DriverName, NamedDirectory, SecretName, Storage, VolumeName};

use super::options::{self, Asked};
use super::remove::Insist;
use super::secrets;
use super::world::{Drivers, Machine, Mounter, World};
use super::{Entry, State, VOLUMES_MAX, VolumeError, Volumes};
use crate::catalog::record::{Phase, RECORD_VERSION, Record};

/// Whether the volume that is there is the one that was asked for.
fn is_the_same(there: &Record, record: &Record, asked: &Asked) -> Result<(), VolumeError> {
    // Other settings of the driver may mean other defaults, and another version does: what is given must be so, what was left out before
    // stays as it was made.
    let is_same_driver = there.options_version() == record.driver_version;
    let counts = |key: &str| {
        let was_left_out = there.left_out.contains(key) || there.added.contains(key);
        asked.given.contains_key(key) || is_same_driver && !was_left_out
    };
    if let Some(difference) = options::difference(&there.options, &record.options, counts) {
        return Err(VolumeError::Exists(difference));
    }
    // What was found is kept in any case: only who asks for something else is refused.
    let is_asked = there.found().is_none() || asked.reclaim.is_some();
    if is_asked && there.reclaim != asked.reclaim {
        return Err(VolumeError::Exists("`reclaim` differs".into()));
    }
    Ok(())
}

/// See [`Volumes::intent`].
pub(super) struct Intent<'a> {
    state: &'a RefCell<State>,
    name: &'a VolumeName,
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        self.state.borrow_mut().intended.remove(self.name);
    }
}

impl<W: World> Volumes<W> {
    /// Makes a volume, durably. The same name with the same options is done already.
    pub(crate) async fn create(
        &self,
        name: &str,
        given: BTreeMap<String, String>,
    ) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        let asked = Asked::split(given)?;
        self.until_recovered().await?;
        let driver = asked.driver.as_ref().unwrap_or(&self.settings.default_driver);
        let is_half_done = |entry: &Entry| entry.record.phase != Phase::Ready;
        let _entered = self.enter(&name, Some(driver), is_half_done).await?;
        self.finish(&name, Insist::No).await?;

        if let Some(there) = self.read(&name, |entry| entry.record.driver.clone())
            && there != *driver
        {
            return Err(VolumeError::Exists(format!("its driver is `{there}`, not `{driver}`")));
        }
        let record = self.intend(&name, driver, &asked)?;
        if let Some(there) = self.read(&name, |entry| entry.record.clone()) {
            return is_the_same(&there, &record, &asked);
        }
        if self.state.borrow().volumes.len() >= VOLUMES_MAX {
            return Err(VolumeError::TooMany);
        }
        let intent = self.intent(&name, driver);
        let found = self.find(&name, driver).await;
        if let Some(mut found) = found.or_else(|| self.kept_at_backend(&name, driver)) {
            if found.found().is_none() {
                // It was removed here, and comes back as its own: how it goes the next time is said anew.
                found.reclaim = asked.reclaim;
            }
            is_the_same(&found, &record, &asked)?;
            return self.take_up_found(found).await;
        }
        self.find_secrets(driver, &record.options).await?;
        self.step("create.begin").await;
        self.put(record.clone()).await?;
        drop(intent);
        self.step("create.intent").await;
        let Err(first) = self.make(record, &asked).await else { return Ok(()) };
        match self.undo_create(&name, Insist::No).await {
            Ok(()) => Err(first),
            Err(undo) => {
                let both = VolumeError::Undo { first: Box::new(first), undo: Box::new(undo) };
                self.write(&name, |entry| entry.put_off(both.to_string()));
                Err(both)
            }
        }
    }

    /// Makes a volume of what its driver has found, or of what was kept here.
    async fn take_up_found(&self, found: Record) -> Result<(), VolumeError> {
        let id = found.id;
        self.put(found).await?;
        {
            let mut state = self.state.borrow_mut();
            state.retained.remove(&id);
            state.gone.remove(&id);
        }
        self.step("create.found").await;
        Ok(())
    }

    /// Counts a volume among those of its driver until there is a record of it, or never will be.
    pub(super) fn intent<'a>(&'a self, name: &'a VolumeName, driver: &DriverName) -> Intent<'a> {
        self.state.borrow_mut().intended.insert(name.clone(), driver.clone());
        Intent { state: &self.state, name }
    }

    /// The record of a volume that is meant; its options are checked.
    fn intend(
        &self,
        name: &VolumeName,
        driver: &DriverName,
        asked: &Asked,
    ) -> Result<Record, VolumeError> {
        let Some(description) = self.world.drivers().description(driver) else {
            let error = CallError::NotLoaded(driver.to_string());
            return Err(VolumeError::Driver { driver: driver.clone(), error });
        };
        let is_left_out = |key: &String| !asked.given.contains_key(key);
        let keys = description.options.iter().map(|spec| spec.key.clone());
        Ok(Record {
            v: RECORD_VERSION,
            id: self.world.machine().mint(),
            name: name.clone(),
            driver: driver.clone(),
            driver_version: description.version.clone(),
            left_out: keys.filter(is_left_out).collect(),
            options: options::parse(driver, &description, &asked.given)?,
            options_version: None,
            added: BTreeSet::new(),
            reclaim: asked.reclaim,
            created_at: self.now(),
            phase: Phase::Creating,
            storage: Storage::None,
            state: Vec::new(),
            former: None,
            plugin: self.settings.plugin.clone(),
            attached: false,
            extra: serde_json::Map::new(),
        })
    }

    /// Refuses a secret that no volume of the driver could be mounted with, before anything of it is durable.
    async fn find_secrets(
        &self,
        driver: &DriverName,
        options: &Options,
    ) -> Result<(), VolumeError> {
        for (key, value) in options {
            let Value::Secret(name) = value else { continue };
            let name = SecretName::parse(name)?;
            let found = self.world.mounter().find_secret(&name, driver).await;
            found.map_err(|fault| secrets::no_secret(driver, key, fault))?;
        }
        Ok(())
    }

    /// From the intent to the finished volume.
    async fn make(&self, mut record: Record, asked: &Asked) -> Result<(), VolumeError> {
        let Record { id, driver, name, options, .. } = &record;
        let drivers = self.world.drivers();
        let call = async |scope| drivers.create(driver, *id, name, options, scope).await;
        // Not the storage: it is not checked yet, and what is made of it is found by its id, or its place is durable before.
        let note = |created: &Created, record: &mut Record| record.state.clone_from(&created.state);
        let Created { storage, state } = self.ask((name, *id), driver, call, note).await?;
        self.step("create.driver").await;
        let is_filled = drivers.abilities(driver).unwrap_or_default().population;
        let grants = drivers.grants(driver)?;
        let fits = || if is_filled { storage.check_fill() } else { Ok(()) };
        let checked = storage.check(&grants).and_then(|()| fits());
        checked.map_err(|fault| VolumeError::Refused { driver: driver.clone(), fault })?;
        (record.storage, record.state) = (storage, state);
        self.find_below(&mut record, asked).await?;
        let note = match &record.storage {
            Storage::NamedDirectory(directory) => self.intend_place(&record, directory).await?,
            _ => Vec::new(),
        };
        let Record { id, driver, storage, .. } = &record;
        let made = self.world.mounter().make(*id, driver, storage, note).await;
        made.map_err(|fault| VolumeError::of(driver, fault))?;
        self.step("create.made").await;
        if is_filled {
            record.state = self.populate(&record).await?;
        }
        record.phase = Phase::Ready;
        self.put(record).await?;
        self.step("create.ready").await;
        Ok(())
    }

    /// Has a new volume filled by its driver, whole and durably, before anybody sees it; answers its state from then on. Each try begins
    /// with an empty root, and what fails is the Create's to undo.
    async fn populate(&self, record: &Record) -> Result<Vec<u8>, VolumeError> {
        let Record { id, driver, name, options, storage, state, .. } = record;
        let (drivers, mounter) = (self.world.drivers(), self.world.mounter());
        let (options, state) = (options.clone(), state.clone());
        let volume = Volume { id: *id, name: name.clone(), options, state };
        let is_thin = matches!(storage, Storage::Image(image) if image.thin);
        let fill = async |scope| {
            let root = mounter.fill(*id, driver, storage).await?;
            self.step("fill.opened").await;
            let scope = Scope { is_thin, ..scope };
            let filled = drivers.populate(driver, &volume, root, scope).await;
            filled.map_err(|error| VolumeError::Driver { driver: driver.clone(), error })
        };
        let write = |state: &Vec<u8>, record: &mut Record| record.state.clone_from(state);
        let state = self.try_ask((name, *id), driver, fill, write).await?;
        self.step("fill.filled").await;
        let settled = mounter.settle(*id, driver, storage).await;
        // What was filled in is the driver's: so is the fault, if it is not taken over.
        settled.map_err(|fault| VolumeError::of(driver, fault))?;
        self.step("fill.settled").await;
        Ok(state)
    }

    /// Makes the place durable where a directory is to be made that its id does not lead to: whoever undoes it looks there. Answers
    /// what its marker says.
    async fn intend_place(
        &self,
        record: &Record,
        directory: &NamedDirectory,
    ) -> Result<Vec<u8>, VolumeError> {
        if directory.adopt && record.reclaim == Some(Reclaim::Delete) {
            let why = "option `reclaim`: a directory that was chosen is never deleted: use `retain`, or leave it out";
            return Err(VolumeError::Option(why.to_owned()));
        }
        let note = self.marker(record)?;
        self.put(record.clone()).await?;
        self.step("create.placed").await;
        Ok(note)
    }

    /// Takes back whatever of a create was done. May be repeated.
    pub(super) async fn undo_create(
        &self,
        name: &VolumeName,
        insist: Insist,
    ) -> Result<(), VolumeError> {
        let found = self.read(name, |entry| (entry.record.clone(), entry.volume()));
        let Some((record, volume)) = found else { return Ok(()) };
        self.tell_driver(&record.driver, &volume, insist).await?;
        self.discard(&record).await?;
        self.forget(name, volume.id).await
    }
}
