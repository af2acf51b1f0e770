//! What is shown: Get, List, Path, `volume ls`. All of it from memory, whatever state drivers, mountd or a backend are in:
//! dockerd takes any error of Get for "no such volume" and then forgets the volume.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wasmvol_driver::{Description, Value as OptionValue};
use wasmvol_plan::{DriverName, Facts, Id, Measure, Storage, VolumeName};

use super::world::{Drivers, Mounter, World};
use super::{Entry, VolumeError, Volumes, options};
use crate::catalog::record::Phase;

/// Views that are made in one go. Each takes some microseconds, and a Get waits for all of them.
const VIEWS_AT_ONCE: usize = 256;

/// What is shown of one volume: Docker's Get, `volume inspect`. Borrowed from memory, since dockerd asks for it before every verb.
#[derive(Debug, Serialize)]
pub(crate) struct View<'a> {
    pub(crate) name: &'a VolumeName,
    pub(crate) mountpoint: &'a str,
    pub(crate) created_at: Time,
    pub(crate) status: Status<'a>,
}

/// What Docker shows under `Status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Status<'a> {
    pub(crate) driver: &'a DriverName,
    driver_version: Cow<'a, str>,
    /// `ok`, or a word and a sentence.
    pub(crate) health: Cow<'a, str>,
    holders: Vec<HolderView<'a>>,
    pub(crate) id: Id,
    /// Of the file system that a directory lies on, which others fill too: a directory has no size of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_system_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_system_used: Option<u64>,
    /// As the kernel or else as the options say, where there is a number of them at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
    pub(crate) mounted: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<&'a str, Cow<'a, str>>,
    /// In bytes, as the kernel or else as the options say.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Where the bytes are.
    storage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_at: Option<Time>,
}

#[derive(Debug, Serialize)]
struct HolderView<'a> {
    count: u32,
    id: &'a str,
    since: Time,
}

/// Seconds since 1970, written as Docker wants them: RFC 3339, UTC. A time beyond the year 9999 is written as 1970: an empty string
/// would make dockerd refuse the whole answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time(pub(crate) u64);

impl Time {
    /// The time as text.
    pub(crate) fn text(self) -> String {
        let seconds = i64::try_from(self.0).ok();
        let time = seconds.and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        let text = time.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339);
        text.unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<W: World> Volumes<W> {
    /// Hands what is shown of a volume to `show`.
    pub(crate) fn get<T>(
        &self,
        name: &str,
        show: impl FnOnce(&View<'_>) -> T,
    ) -> Result<T, VolumeError> {
        let state = self.state.borrow();
        let entry = state.volumes.get(name).filter(|entry| entry.is_shown());
        let entry = entry.ok_or(VolumeError::NotFound)?;
        let driver = self.world.drivers().description(&entry.record.driver);
        let version = driver.as_ref().map(|description| description.version.as_str());
        Ok(show(&entry.view(version)))
    }

    /// What the files of a volume take, counted one by one, mounted or not.
    pub(crate) async fn measure(&self, name: &str) -> Result<Measure, VolumeError> {
        let id = self.get(name, |view| view.status.id)?;
        Ok(self.world.mounter().measure(id).await?)
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

    /// Hands every volume, as `get` shows it, to `show`, by name. Whoever else asks is answered in between, so that a volume that comes or
    /// goes meanwhile may be among them or not.
    pub(crate) async fn get_all<E>(
        &self,
        mut show: impl FnMut(&View<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = Bound::Unbounded;
        while let Some(last) = self.get_some(&from, &mut show)? {
            from = Bound::Excluded(last);
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Hands a few volumes to `show`, and answers the name of the last; none if there are no more.
    fn get_some<E>(
        &self,
        from: &Bound<VolumeName>,
        mut show: impl FnMut(&View<'_>) -> Result<(), E>,
    ) -> Result<Option<VolumeName>, E> {
        let state = self.state.borrow();
        let following = state.volumes.range::<VolumeName, _>((from.as_ref(), Bound::Unbounded));
        let mut last = None;
        for (name, entry) in following.take(VIEWS_AT_ONCE) {
            last = Some(name);
            if entry.is_shown() {
                let driver = self.world.drivers().description(&entry.record.driver);
                let version = driver.as_ref().map(|description| description.version.as_str());
                show(&entry.view(version))?;
            }
        }
        Ok(last.cloned())
    }

    /// Names of the volumes of a driver, those that are being made too.
    pub(crate) fn of_driver(&self, driver: &DriverName) -> Vec<String> {
        let mut names = self.names(|entry| &entry.record.driver == driver);
        let intended = &self.state.borrow().intended;
        names.extend(intended.iter().filter(|(_, of)| *of == driver).map(|(name, _)| name.clone()));
        names.iter().map(ToString::to_string).collect()
    }

    /// The options that volumes of a driver have and its description does not, each with its volumes.
    pub(crate) fn undescribed_options(
        &self,
        driver: &DriverName,
        description: &Description,
    ) -> BTreeMap<String, Vec<String>> {
        let state = self.state.borrow();
        let mut unknown: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in state.volumes.values().filter(|entry| entry.record.driver == *driver) {
            for key in options::undescribed(&entry.record.options, description) {
                unknown.entry(key.clone()).or_default().push(entry.record.name.to_string());
            }
        }
        unknown
    }

    /// The same, and what was kept that its driver is to hear of when it is purged: it cannot be unloaded while there is any.
    pub(crate) fn needing(&self, driver: &DriverName) -> Vec<String> {
        let mut names = self.of_driver(driver);
        let state = self.state.borrow();
        let kept = state.retained.values().filter(|record| {
            let is_its = record.driver == *driver && record.found().is_none();
            is_its && record.storage == Storage::None
        });
        names.extend(kept.map(|record| format!("{} (kept as {})", record.name, record.id)));
        names
    }

    /// Names of the volumes that are mounted now.
    pub(crate) fn mounted(&self) -> Vec<String> {
        self.names(|entry| entry.facts.is_some()).iter().map(ToString::to_string).collect()
    }
}

impl Entry {
    fn view<'a>(&'a self, driver_version: Option<&'a str>) -> View<'a> {
        let record = &self.record;
        let holders = self.holders.iter().map(|holder| HolderView {
            count: holder.count,
            id: &holder.id,
            since: Time(holder.since),
        });
        let asked = |key: &str| match record.options.get(key) {
            Some(OptionValue::Size(number)) => Some(*number),
            Some(OptionValue::Number(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let (usage, used_at) = self.usage.as_ref().map(|(u, at)| (*u, Time(*at))).unzip();
        let storage = storage(&record.storage);
        // A directory of a file system, a server's, what a program serves, and what lies over others.
        let is_part = |facts: &Facts| {
            facts.root != "/"
                || matches!(&*facts.filesystem, "nfs" | "nfs4" | "cifs" | "overlay")
                || facts.filesystem.starts_with("fuse")
        };
        let limit = record.storage.limit();
        let others_too = match &record.storage {
            // Its quota group was asked, or else the whole file system has answered.
            Storage::Subvolume(it) => it.limit != usage.map(|usage| usage.size),
            Storage::Directory(_) | Storage::NamedDirectory(_) => limit.is_none(),
            _ => self.facts.as_ref().is_some_and(is_part),
        };
        let own = usage.filter(|_| !others_too);
        let file_system = usage.filter(|_| others_too);
        // Some file systems make inodes as they need them, and count none; those of a limited directory are its file system's.
        let counted = own.filter(|usage| usage.inodes > 0 && limit.is_none());
        let health = self.trouble().map(|(word, why)| format!("{word}: {why}").into());
        let status = Status {
            driver: &record.driver,
            driver_version: driver_version.unwrap_or("not loaded").into(),
            file_system_size: file_system.map(|usage| usage.size),
            file_system_used: file_system.map(|usage| usage.used),
            health: health.unwrap_or("ok".into()),
            holders: holders.collect(),
            id: record.id,
            inodes: counted.map(|usage| usage.inodes).or(asked("inodes")),
            inodes_used: counted.map(|usage| usage.inodes_used),
            mounted: self.facts.is_some(),
            options: record.options.iter().map(|(key, v)| (key.as_str(), option(v))).collect(),
            size: own.map(|usage| usage.size).or(asked("size")),
            storage,
            used: own.map(|usage| usage.used),
            used_at,
        };
        View {
            name: &record.name,
            mountpoint: &self.mountpoint,
            created_at: Time(record.created_at),
            status,
        }
    }

    /// A volume that is not made yet, or could not be, is not there.
    fn is_shown(&self) -> bool {
        matches!(self.record.phase, Phase::Ready | Phase::Removing)
    }

    /// One word and one sentence about what is wrong, if anything is.
    pub(super) fn trouble(&self) -> Option<(&'static str, &str)> {
        let why = self.waiting.as_ref().map_or("it is tried again soon", |w| w.why.as_str());
        match self.record.phase {
            Phase::Creating if self.waiting.is_none() => Some(("half made", "it is being made")),
            Phase::Creating => Some(("half made", why)),
            Phase::Removing => Some(("being removed", why)),
            _ if self.is_draining() => Some(("draining", why)),
            _ => {
                let lost = self.is_lost().then_some(why);
                let lost = lost.or(self.ended.as_deref()).or(self.ailing.as_deref());
                self.missing.map(|why| ("missing", why)).or(lost.map(|why| ("degraded", why)))
            }
        }
    }
}

/// An option's value; of a secret, its name.
fn option(value: &OptionValue) -> Cow<'_, str> {
    match value {
        OptionValue::Text(text) => text.into(),
        other => options::show(other).into(),
    }
}

/// What the host made; what a plan mounts without it is the driver's.
fn storage(storage: &Storage) -> &'static str {
    match storage {
        Storage::None => "none",
        Storage::Directory(_) | Storage::NamedDirectory(_) => "directory",
        Storage::Image(_) => "image",
        Storage::Subvolume(_) => "subvolume",
    }
}
