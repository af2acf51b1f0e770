//! Resize: a volume gets more room, mounted or not.
//!
//! Called by the admin API for an operator, never for an engine: Docker has no such verb. What grows is what the host made at create,
//! and with it the option `size` that the driver made it of, so that a later call of the driver sees what is so. mountd comes first and
//! the record second: a crash in between leaves a volume with more room than its record says, and the same command ends it.

use wasmvol_driver::{CallError, Resized, Value};
use wasmvol_plan::{Storage, VolumeName};

use super::options::{self, show};
use super::world::{Drivers, Mounter, World};
use super::{VolumeError, Volumes};
use crate::catalog::record::{Phase, Record};

/// The option that says how large a volume is, in every driver that has one.
pub(crate) const SIZE: &str = "size";

impl<W: World> Volumes<W> {
    /// Gives a volume the size that a person wrote. As large already is done.
    pub(crate) async fn resize(&self, name: &str, size: &str) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        let wanted = options::size(size).ok_or_else(|| {
            VolumeError::Option("a size is a number of bytes, or one with k, m, g or t".into())
        })?;
        self.until_recovered().await?;
        let _entered = self.enter(&name, None, |_| true).await?;
        let found = self.read(&name, |entry| entry.record.clone());
        let Some(mut record) = found.filter(|record| record.phase == Phase::Ready) else {
            return Err(VolumeError::NotFound);
        };
        let driver = record.driver.clone();
        let by_driver = self.world.drivers().abilities(&driver).unwrap_or_default().resizing;
        let there = size_of(&mut record.storage).copied();
        let option = match record.options.get(SIZE) {
            Some(Value::Size(size)) => Some(*size),
            _ => None,
        };
        // A driver that calculates a size of its own would go on with the old one, unless it says itself what becomes of it.
        let Some(there) = option.filter(|size| by_driver || there == Some(*size)) else {
            let why = "has no size that the host could change: images have one, and subvolumes and directories that were made with `size`";
            return Err(VolumeError::Option(why.into()));
        };
        if wanted < there {
            let there = show(&Value::Size(there));
            return Err(VolumeError::Option(format!(
                "it has {there} bytes, and never gets smaller"
            )));
        }
        if by_driver {
            record = self.ask_for_size(&record, wanted).await?;
        } else if let Some(size) = size_of(&mut record.storage) {
            *size = wanted;
        }
        record.options.insert(SIZE.into(), Value::Size(wanted));
        // It is its user's from now on, and no version's default.
        if record.added.remove(SIZE) {
            record.left_out.insert(SIZE.into());
        }
        let checked = record.storage.check(&self.world.drivers().grants(&driver)?);
        checked.map_err(|fault| VolumeError::Refused { driver: driver.clone(), fault })?;
        let note = match &record.storage {
            Storage::NamedDirectory(_) => self.marker(&record)?,
            _ => Vec::new(),
        };
        self.step("resize.begin").await;
        if size_of(&mut record.storage).is_some() {
            self.world.mounter().grow(record.id, &driver, &record.storage, note).await?;
        }
        self.step("resize.grown").await;
        self.put(record).await?;
        self.step("resize.recorded").await;
        Ok(())
    }

    /// Has the backend make it larger; the record is as the driver says it is then.
    async fn ask_for_size(&self, record: &Record, wanted: u64) -> Result<Record, VolumeError> {
        let Record { name, driver, .. } = record;
        let volume = self.read(name, super::Entry::volume).ok_or(VolumeError::NotFound)?;
        let drivers = self.world.drivers();
        let call = async |scope| drivers.resize(driver, &volume, wanted, scope).await;
        let version = self.version_of(driver);
        let resized = self.ask((name, volume.id), driver, call, |resized, record| {
            record.set_state(&resized.state, &version);
        });
        let resized = resized.await?;
        if !differs_in_size_alone(&record.storage, &resized.storage) {
            let why = "its driver changes more of it than the size".to_owned();
            let error = CallError::Contract(why);
            return Err(VolumeError::Driver { driver: driver.clone(), error });
        }
        let Resized { mut storage, state } = resized;
        let before = size_of(&mut record.storage.clone()).copied();
        if size_of(&mut storage).copied() < before {
            let error = CallError::Contract("its driver makes it smaller".to_owned());
            return Err(VolumeError::Driver { driver: driver.clone(), error });
        }
        let mut record = Record { storage, ..record.clone() };
        record.set_state(&state, &version);
        Ok(record)
    }
}

/// The size of what the host made, where that has one.
fn size_of(storage: &mut Storage) -> Option<&mut u64> {
    match storage {
        Storage::Image(image) => Some(&mut image.size),
        Storage::Subvolume(subvolume) => subvolume.limit.as_mut(),
        Storage::Directory(directory) => directory.limit.as_mut(),
        Storage::NamedDirectory(directory) => directory.limit.as_mut(),
        Storage::None => None,
    }
}

/// Whether of two storages at most the size is another.
pub(crate) fn differs_in_size_alone(before: &Storage, after: &Storage) -> bool {
    let (mut before, mut after) = (before.clone(), after.clone());
    if let (Some(size), Some(new)) = (size_of(&mut before), size_of(&mut after)) {
        *size = *new;
    }
    before == after
}
