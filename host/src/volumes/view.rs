//! What is shown: Get, List, Path, `volume ls`, `doctor`. All of it from memory, whatever state drivers, mountd or a backend are in:
//! dockerd takes any error of Get for "no such volume" and then forgets the volume.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wasmvol_driver::Value as OptionValue;
use wasmvol_plan::{DriverName, Storage};

use super::world::{Drivers, World};
use super::{Entry, VolumeError, Volumes, options};
use crate::catalog::record::Phase;

/// What is shown of one volume: Docker's Get, `volume inspect`.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) mountpoint: String,
    /// RFC 3339, UTC.
    pub(crate) created_at: String,
    /// Driver, version, storage, size, use, holders, health: Docker shows it under `Status`.
    pub(crate) status: Map<String, Value>,
}

/// Something that needs a person.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Trouble {
    /// The volume's name, or the stray thing's.
    pub(crate) what: String,
    /// What is wrong, one line.
    pub(crate) why: String,
    /// What mends it, if anything can be typed.
    pub(crate) cure: Option<String>,
}

impl Trouble {
    /// A directory of storage that no record names.
    pub(super) fn stray_storage(name: &str) -> Self {
        let why = "lies in `volumes/` and belongs to no volume: it is never deleted".to_owned();
        Self { what: name.to_owned(), why, cure: None }
    }

    /// Something in one of our directories that is not ours.
    pub(super) fn stranger(place: &str, name: &str) -> Self {
        let why = format!("lies in {place} and is not ours: it is never touched");
        Self { what: name.to_owned(), why, cure: None }
    }
}

impl<W: World> Volumes<W> {
    /// What is shown of a volume.
    pub(crate) fn get(&self, name: &str) -> Result<View, VolumeError> {
        let state = self.state.borrow();
        let entry = state.volumes.get(name).filter(|entry| entry.is_shown());
        entry.map(|entry| self.view(entry)).ok_or(VolumeError::NotFound)
    }

    /// The mountpoint of a volume: the same for all its life, mounted or not.
    pub(crate) fn path(&self, name: &str) -> Result<String, VolumeError> {
        let state = self.state.borrow();
        let entry = state.volumes.get(name).filter(|entry| entry.is_shown());
        entry.map(|entry| entry.mountpoint.clone()).ok_or(VolumeError::NotFound)
    }

    /// Calls `each(name, mountpoint)` for every volume, by name.
    pub(crate) fn list(&self, mut each: impl FnMut(&str, &str)) {
        for (name, entry) in &self.state.borrow().volumes {
            if entry.is_shown() {
                each(name.as_str(), &entry.mountpoint);
            }
        }
    }

    /// Every volume as `get` shows it, by name.
    pub(crate) fn views(&self) -> Vec<View> {
        let state = self.state.borrow();
        state.volumes.values().filter(|entry| entry.is_shown()).map(|e| self.view(e)).collect()
    }

    /// What is wrong and needs a person.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let state = self.state.borrow();
        let mut troubles = Vec::new();
        for (name, entry) in &state.volumes {
            if let Some((word, why)) = entry.trouble() {
                let cure = match word {
                    "draining" => {
                        Some("stop the process that is named: it is unmounted then".into())
                    }
                    "missing" => Some(format!("wasmvol volume rm {name}")),
                    _ => None,
                };
                troubles.push(Trouble {
                    what: name.to_string(),
                    why: format!("{word}: {why}"),
                    cure,
                });
            }
        }
        for (id, why) in &state.stray_mounts {
            let why = format!("is mounted, and belongs to no volume: {why}");
            troubles.push(Trouble { what: id.to_string(), why, cure: None });
        }
        for record in state.retained.values() {
            let why = format!("was removed, its data kept as asked in `volumes/{}`", record.id);
            troubles.push(Trouble { what: record.name.to_string(), why, cure: None });
        }
        troubles.extend(state.strangers.iter().cloned());
        troubles
    }

    /// Names of the volumes of a driver: it cannot be unloaded while there are any.
    pub(crate) fn of_driver(&self, driver: &DriverName) -> Vec<String> {
        self.names(|entry| &entry.record.driver == driver).iter().map(ToString::to_string).collect()
    }

    /// Names of the volumes that are mounted now.
    pub(crate) fn mounted(&self) -> Vec<String> {
        self.names(|entry| entry.facts.is_some()).iter().map(ToString::to_string).collect()
    }

    fn view(&self, entry: &Entry) -> View {
        let record = &entry.record;
        let version = self.world.drivers().description(&record.driver);
        let version = version.map_or_else(|| "not loaded".to_owned(), |d| d.version.clone());
        let mut status = Map::new();
        let mut show = |key: &str, value: Value| drop(status.insert(key.to_owned(), value));
        show("driver", record.driver.as_str().into());
        show("driver-version", version.into());
        show("id", record.id.to_string().into());
        show("storage", storage(&record.storage).into());
        if !record.options.is_empty() {
            let options = record.options.iter().map(|(key, value)| (key.clone(), option(value)));
            show("options", Value::Object(options.collect()));
        }
        if let Some((usage, at)) = &entry.usage {
            show("size", usage.size.into());
            show("used", usage.used.into());
            show("used-at", rfc3339(*at).into());
        } else if let Some(OptionValue::Size(bytes)) = record.options.get("size") {
            show("size", (*bytes).into());
        }
        show("mounted", entry.facts.is_some().into());
        let holders = entry.holders.iter().map(|holder| {
            json!({"id": holder.id, "count": holder.count, "since": rfc3339(holder.since)})
        });
        show("holders", Value::Array(holders.collect()));
        let health =
            entry.trouble().map_or_else(|| "ok".to_owned(), |(word, why)| format!("{word}: {why}"));
        show("health", health.into());
        View {
            name: record.name.to_string(),
            mountpoint: entry.mountpoint.clone(),
            created_at: rfc3339(record.created_at),
            status,
        }
    }
}

impl Entry {
    /// A volume that is not made yet, or could not be, is not there.
    fn is_shown(&self) -> bool {
        matches!(self.record.phase, Phase::Ready | Phase::Removing)
    }

    /// One word and one sentence about what is wrong, if anything is.
    fn trouble(&self) -> Option<(&'static str, &str)> {
        let why = self.waiting.as_ref().map_or("it is tried again soon", |w| w.why.as_str());
        match self.record.phase {
            Phase::Creating => Some(("half made", why)),
            Phase::Removing => Some(("being removed", why)),
            Phase::Ready | Phase::Retained if self.is_draining() => Some(("draining", why)),
            Phase::Ready | Phase::Retained => {
                let lost = !self.holders.is_empty() && self.facts.is_none();
                self.missing
                    .map(|why| ("missing", why))
                    .or_else(|| lost.then_some(("degraded", why)))
            }
        }
    }
}

/// An option's value; of a secret, its name.
fn option(value: &OptionValue) -> Value {
    match value {
        OptionValue::Text(text) => text.as_str().into(),
        other => options::show(other).into(),
    }
}

fn storage(storage: &Storage) -> &'static str {
    match storage {
        Storage::None => "none",
        Storage::Directory(_) => "directory",
    }
}

/// Seconds since 1970 as Docker wants them. A time beyond the year 9999 is shown as 1970: an empty string would make dockerd
/// refuse the whole answer.
fn rfc3339(seconds: u64) -> String {
    let time =
        i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let text = time.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339);
    text.unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}
