//! Volumes that lie over others: the one below is looked up once, at create, and stays while there is one above.
//!
//! Called by Create and Remove. Which volume may be named is its user's choice, not the driver's: only what was given with `-o` is
//! looked up, and no default, which the driver could choose.

use std::collections::BTreeMap;

use wasmvol_driver::Value;
use wasmvol_driver::types::Options;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Directory, Fault, FaultKind, Id, Plan, Source, Storage, VolumeName};

use super::options::Asked;
use super::world::{Drivers, World};
use super::{VolumeError, Volumes};
use crate::catalog::record::{Phase, Record};

/// Refuses a volume below that no option of its user's names.
pub(crate) fn check_below(
    below: &str,
    given: &BTreeMap<String, String>,
    options: &Options,
) -> Result<(), Fault> {
    // What is given as the name of a secret names no volume.
    let is_text = |key: &str| matches!(options.get(key), Some(Value::Text(_)));
    if given.iter().any(|(key, text)| text == below && is_text(key)) {
        return Ok(());
    }
    let why = format!("it names volume {}, which no option of its user's does", Quoted::new(below));
    Err(Fault::new(FaultKind::Denied, why))
}

impl<W: World> Volumes<W> {
    /// Finds the volume that a new layer lies over, if it names one, and has it stay from then on.
    pub(super) async fn find_below(
        &self,
        record: &mut Record,
        asked: &Asked,
    ) -> Result<(), VolumeError> {
        let Storage::Directory(Directory { over: Some(below), .. }) = &mut record.storage else {
            return Ok(());
        };
        check_below(&below.name, &asked.given, &record.options)
            .map_err(|fault| VolumeError::Refused { driver: record.driver.clone(), fault })?;
        let name = VolumeName::parse(&below.name)?;
        let refused = |why| VolumeError::Option(format!("volume `{name}` cannot lie below: {why}"));
        let look = || {
            let found = self.read(&name, |entry| (entry.record.clone(), entry.volume()));
            found.filter(|(there, _)| there.phase == Phase::Ready)
        };
        let nobody = || refused("there is none of that name");
        let (there, _) = look().ok_or_else(nobody)?;
        let no_directory =
            || refused("only a directory that wasmvol keeps can, as `local` makes one");
        // Before its lock, which a verb that waits for a server may have for long.
        if !matches!(there.storage, Storage::Directory(_)) {
            return Err(no_directory());
        }
        let drivers = self.world.drivers();
        drivers.until_loaded(&there.driver).await;
        // Who has the lock of a volume that is ready waits for no volume that is being made.
        let _lock = self.locks.hold(&name).await?;
        let (there, volume) = look().ok_or_else(nobody)?;
        let plan = drivers.path(&there.driver, &volume).await;
        let plan =
            plan.map_err(|error| VolumeError::Driver { driver: there.driver.clone(), error })?;
        let is_whole =
            matches!(plan, Plan { source: Source::Storage, subpath: None, id_map: None, .. });
        if !is_whole || !matches!(there.storage, Storage::Directory(_)) {
            return Err(no_directory());
        }
        below.id = Some(there.id);
        let storage = record.storage.clone();
        // What is in memory is what Remove asks; it becomes durable before the volume is there.
        self.write(&record.name, |entry| entry.record.storage = storage);
        self.state.borrow_mut().layers.insert(record.name.clone());
        Ok(())
    }

    /// A volume that lies over this one.
    pub(super) fn above(&self, id: Id) -> Option<VolumeName> {
        let mut state = self.state.borrow_mut();
        let super::State { volumes, layers, .. } = &mut *state;
        let below = |name: &VolumeName| volumes.get(name)?.record.storage.below()?.id;
        layers.retain(|name| below(name).is_some());
        layers.iter().find(|name| below(name) == Some(id)).cloned()
    }
}
