//! The marker of a named directory: what the host that made it tells every host that shares its root.
//!
//! Written by Create and Resize through mountd, which puts a first line of its own before it; read by discovery. A marker of a later
//! wasmvol may say more.

use serde::{Deserialize, Serialize};
use wasmvol_driver::CallError;
use wasmvol_driver::types::Options;
use wasmvol_plan::kinds::named_directory::{Mark, NOTE_MAX};
use wasmvol_plan::{Id, VolumeName};

use super::world::{Drivers, World};
use super::{VolumeError, Volumes};
use crate::catalog::record::Record;

/// What a marker says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) id: Id,
    pub(super) name: VolumeName,
    /// What the driver calls itself: under which name a host has loaded it is its operator's.
    pub(super) driver: String,
    pub(super) options: Options,
}

impl<W: World> Volumes<W> {
    /// What the marker of a volume is to say.
    pub(super) fn marker(&self, record: &Record) -> Result<Vec<u8>, VolumeError> {
        let Some(description) = self.world.drivers().description(&record.driver) else {
            let error = CallError::NotLoaded(record.driver.to_string());
            return Err(VolumeError::Driver { driver: record.driver.clone(), error });
        };
        Marker::write(record, &description.name)
    }
}

impl Marker {
    /// The bytes of a volume's marker.
    fn write(record: &Record, driver: &str) -> Result<Vec<u8>, VolumeError> {
        let Record { id, name, options, .. } = record;
        let driver = driver.to_owned();
        let marker = Self { id: *id, name: name.clone(), driver, options: options.clone() };
        let bytes = serde_json::to_vec(&marker);
        let bytes = bytes.map_err(|error| VolumeError::Option(error.to_string()))?;
        if bytes.len() > NOTE_MAX {
            let why = format!("its options have over {NOTE_MAX} bytes together: shorten them");
            return Err(VolumeError::Option(why));
        }
        Ok(bytes)
    }

    /// What a marker says, if it is one, and of that volume.
    pub(super) fn read(mark: &Mark) -> Option<Self> {
        let marker: Self = serde_json::from_slice(&mark.note).ok()?;
        (marker.id == mark.id && marker.name == mark.name).then_some(marker)
    }
}
