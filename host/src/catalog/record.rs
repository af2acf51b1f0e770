//! One volume's record: what is kept of it, as JSON under its id.
//!
//! Written by the verbs, read at start and by `catalog export`. Fields that this version does not know are kept as they are.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wasmvol_driver::types::Options;
use wasmvol_driver::{Reclaim, Volume};
use wasmvol_plan::{DriverName, Id, Storage, VolumeName};

/// The version of the record's form that this program writes.
pub(crate) const RECORD_VERSION: u32 = 1;

/// What the host knows of one volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Form of the record.
    pub(crate) v: u32,
    pub(crate) id: Id,
    pub(crate) name: VolumeName,
    pub(crate) driver: DriverName,
    /// The driver's version that wrote `state`.
    pub(crate) driver_version: String,
    /// Parsed, with defaults filled in: what a second create is compared with.
    pub(crate) options: Options,
    /// The driver's version whose defaults those are, where another one wrote `state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) options_version: Option<String>,
    /// Options that its driver described and that nobody gave: they have the default of then or none, and one of later is not theirs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) left_out: BTreeSet<String>,
    /// Options that a later version of its driver brought, with the defaults that they had then.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) added: BTreeSet<String>,
    /// What the user asked for on removal, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reclaim: Option<Reclaim>,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    pub(crate) phase: Phase,
    pub(crate) storage: Storage,
    /// The driver's own bytes.
    #[serde(default, with = "hex_bytes")]
    pub(crate) state: Vec<u8>,
    /// What a rollback of the driver brings back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) former: Option<Former>,
    /// The plugin name through which it was created.
    pub(crate) plugin: String,
    /// Its driver has made it reachable on this machine, or was about to: it is to be told when nobody uses it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) attached: bool,
    /// Fields of a later version.
    #[serde(flatten)]
    pub(crate) extra: serde_json::Map<String, serde_json::Value>,
}

/// A state before a new version of the driver migrated it. It is of no use any more once that version has written another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Former {
    pub(crate) driver_version: String,
    #[serde(with = "hex_bytes")]
    pub(crate) state: Vec<u8>,
}

/// The field that marks a volume that a backend knew first: the id that the backend knows it by, or `true` where it has none.
const FOUND: &str = "found";

impl Record {
    /// The further fields of a found volume.
    pub(crate) fn mark_found(id: Option<Id>) -> serde_json::Map<String, serde_json::Value> {
        let mark = id.map_or(true.into(), |id| id.to_string().into());
        [(FOUND.to_owned(), mark)].into_iter().collect()
    }

    /// The volume as its driver sees it.
    pub(crate) fn volume(&self) -> Volume {
        let Self { id, name, options, state, .. } = self;
        Volume { id: *id, name: name.clone(), options: options.clone(), state: state.clone() }
    }

    /// The driver's version whose defaults the options have.
    pub(crate) fn options_version(&self) -> &str {
        self.options_version.as_deref().unwrap_or(&self.driver_version)
    }

    /// Takes over a state that this version of the driver has answered.
    pub(crate) fn set_state(&mut self, state: &[u8], version: &str) {
        if self.state != state {
            self.state = state.to_vec();
            self.set_version(version);
            self.former = None;
        }
    }

    /// The same volume with the state that a new version has made of the one that it has, which is kept.
    pub(crate) fn migrated(&self, state: Vec<u8>, version: &str) -> Self {
        let Self { driver_version, state: former, .. } = self;
        let former = Former { driver_version: driver_version.clone(), state: former.clone() };
        let mut migrated = Self { state, former: Some(former), ..self.clone() };
        migrated.set_version(version);
        migrated
    }

    /// The same volume with the state of before its driver was replaced, if that is still right.
    pub(crate) fn rolled_back(&self) -> Self {
        let mut back = Self { former: None, ..self.clone() };
        if let Some(Former { driver_version, state }) = self.former.clone() {
            back.state = state;
            back.set_version(&driver_version);
        }
        back
    }

    fn set_version(&mut self, version: &str) {
        let before = std::mem::replace(&mut self.driver_version, version.to_owned());
        let options = self.options_version.take().unwrap_or(before);
        self.options_version = Some(options).filter(|options| options != version);
    }

    /// Whether it was found, and then the id that its backend knows it by.
    pub(crate) fn found(&self) -> Option<Option<Id>> {
        let mark = self.extra.get(FOUND)?;
        Some(mark.as_str().and_then(|id| Id::parse(id).ok()))
    }

    /// Whether a volume that a driver's list shows under this name and with that id is this one.
    pub(crate) fn is_it(&self, driver: &DriverName, id: Option<Id>) -> bool {
        let is_it = match (self.found(), id) {
            (Some(Some(own)), Some(id)) => own == id,
            (Some(_), _) => true,
            (None, id) => id == Some(self.id),
        };
        self.driver == *driver && is_it
    }

    /// Whether a driver's list must show it, unless it is missing.
    pub(crate) fn is_listed_by(&self, driver: &DriverName) -> bool {
        let is_listed = self.found().is_some() || self.storage.is_shared();
        self.driver == *driver && self.phase == Phase::Ready && is_listed
    }
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Meant, perhaps half made: undone at recovery.
    Creating,
    /// There.
    Ready,
    /// Going, perhaps half gone: done again at recovery.
    Removing,
    /// Removed for its engine, its data kept: shown by no verb of Docker's.
    Retained,
    /// Kept until now, and its data goes after all: done again at recovery.
    Purging,
}

impl Phase {
    /// Whether the volume is gone for its engine, and its name free.
    pub(crate) fn is_kept(self) -> bool {
        matches!(self, Self::Retained | Self::Purging)
    }
}

mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        let pair = |i| text.get(i..i + 2).and_then(|p| u8::from_str_radix(p, 16).ok());
        if text.len() % 2 != 0 {
            return Err(serde::de::Error::custom("odd number of hex digits"));
        }
        (0..text.len())
            .step_by(2)
            .map(|i| pair(i).ok_or_else(|| serde::de::Error::custom("not hex digits")))
            .collect()
    }
}
