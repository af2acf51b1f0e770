//! Resize: a volume gets more room, mounted or not.
//!
//! Called by the admin API for an operator, never for an engine: Docker has no such verb. What grows is what the host made at create,
//! and with it the option `size` that the driver made it of, so that a later call of the driver sees what is so. mountd comes first and
//! the record second: a crash in between leaves a volume with more room than its record says, and the same command ends it.

use wasmvol_driver::Value;
use wasmvol_plan::{Storage, VolumeName};

use super::options::{self, show};
use super::world::{Drivers, Mounter, World};
use super::{VolumeError, Volumes};
use crate::catalog::record::Phase;

/// The option that says how large a volume is, in every driver that has one.
const SIZE: &str = "size";

impl<W: World> Volumes<W> {
    /// Gives a volume the size that a person wrote. As large already is done.
    pub(crate) async fn resize(&self, name: &str, size: &str) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        let wanted = options::size(size).ok_or_else(|| {
            VolumeError::Option("a size is a number of bytes, or one with k, m, g or t".into())
        })?;
        self.until_recovered().await?;
        let _lock = self.locks.hold(&name).await?;
        let found = self.read(&name, |entry| entry.record.clone());
        let Some(mut record) = found.filter(|record| record.phase == Phase::Ready) else {
            return Err(VolumeError::NotFound);
        };
        let there = match &mut record.storage {
            Storage::Image(image) => Some(std::mem::replace(&mut image.size, wanted)),
            Storage::Subvolume(subvolume) => {
                subvolume.limit.as_mut().map(|limit| std::mem::replace(limit, wanted))
            }
            Storage::Directory(directory) => {
                directory.limit.as_mut().map(|limit| std::mem::replace(limit, wanted))
            }
            Storage::None | Storage::NamedDirectory(_) => None,
        };
        // A driver that calculates a size of its own would go on with the old one.
        let option = record.options.get(SIZE);
        let Some(there) = there.filter(|there| option == Some(&Value::Size(*there))) else {
            let why = "has no size that the host could change: images have one, and subvolumes and directories of `local` that were made with `size`";
            return Err(VolumeError::Option(why.into()));
        };
        if wanted < there {
            let there = show(&Value::Size(there));
            return Err(VolumeError::Option(format!(
                "it has {there} bytes, and never gets smaller"
            )));
        }
        record.options.insert(SIZE.into(), Value::Size(wanted));
        let driver = record.driver.clone();
        let checked = record.storage.check(&self.world.drivers().grants(&driver)?);
        checked.map_err(|fault| VolumeError::Refused { driver: driver.clone(), fault })?;
        self.step("resize.begin").await;
        self.world.mounter().grow(record.id, &driver, &record.storage).await?;
        self.step("resize.grown").await;
        self.put(record).await?;
        self.step("resize.recorded").await;
        Ok(())
    }
}
