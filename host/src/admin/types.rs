//! What the CLI and the daemon say to each other, as JSON. `--json` prints these as they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wasmvol_driver::{Abilities, Description};
use wasmvol_plan::{DriverName, Id, VolumeName};

use crate::catalog::Counts;
pub(crate) use crate::catalog::Origin;
pub(crate) use crate::volumes::Trouble;
pub(crate) use crate::volumes::discover::{Failed, Scanned, Sighting};

/// Asks for a volume.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    pub(crate) name: String,
    pub(crate) options: BTreeMap<String, String>,
}

/// Asks for a driver: one line, followed by the component's bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Its own name if none is given.
    pub(crate) name: Option<DriverName>,
    #[serde(flatten)]
    pub(crate) changed: Changed,
    pub(crate) origin: Option<Origin>,
}

/// What is to become of a driver's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// Beside those that it has.
    pub(crate) settings: BTreeMap<String, String>,
    /// Those that it shall have no more.
    pub(crate) unset: Vec<String>,
}

/// What a component is, and what it says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Checked {
    /// The line of the contract that it speaks.
    pub(crate) contract: String,
    /// The interfaces that it imports, with their versions.
    pub(crate) imports: Vec<String>,
    pub(crate) abilities: Abilities,
    /// Bytes.
    pub(crate) size: usize,
    /// sha256.
    pub(crate) digest: String,
    pub(crate) description: Description,
}

impl Checked {
    pub(crate) fn of(driver: &wasmvol_driver::Driver) -> Self {
        Self {
            contract: driver.contract().to_owned(),
            imports: driver.imports().to_vec(),
            abilities: driver.abilities(),
            size: driver.size(),
            digest: driver.digest().to_owned(),
            description: driver.description().clone(),
        }
    }
}

/// Why not.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) error: String,
}

/// One volume.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) mountpoint: String,
    pub(crate) created_at: String,
    pub(crate) status: Map<String, Value>,
}

impl Volume {
    /// What is shown of a volume, to be kept.
    pub(crate) fn of(view: &crate::volumes::View<'_>) -> serde_json::Result<Self> {
        serde_json::from_value(serde_json::to_value(view)?)
    }
}

/// What is kept of a volume that was removed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) id: Id,
    /// The name it had; by now another volume may have it.
    pub(crate) name: VolumeName,
    pub(crate) driver: DriverName,
    pub(crate) created_at: String,
    /// Where its data lies; of what was found only its driver knows.
    pub(crate) data: Option<PathBuf>,
}

/// How large a volume is to be, as a person writes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Resize {
    pub(crate) size: String,
}

/// What was purged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Purged {
    pub(crate) purged: Id,
    pub(crate) name: VolumeName,
}

/// One driver that is loaded, or was before the last start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Driver {
    pub(crate) name: DriverName,
    pub(crate) version: String,
    /// That it could not be loaded at the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<NotLoaded>,
    /// Nothing is known of one that could not be loaded.
    #[serde(flatten)]
    pub(crate) component: Option<Checked>,
    /// It came with wasmvol.
    pub(crate) first_party: bool,
    /// Where it was pulled from.
    pub(crate) origin: Option<Origin>,
    /// Seconds since 1970.
    pub(crate) loaded_at: u64,
    pub(crate) settings: BTreeMap<String, String>,
    /// Volumes that depend on it.
    pub(crate) volumes: usize,
    /// Options that volumes of it have and it does not know, each with those volumes: another version made them.
    pub(crate) ignored: BTreeMap<String, Vec<String>>,
    /// What it was granted, as the operator wrote it.
    pub(crate) granted: Vec<String>,
    /// What it says that it needs, and was not granted.
    pub(crate) missing: Vec<String>,
    /// What a rollback brings back.
    pub(crate) previous: Option<Previous>,
}

/// What could not be loaded.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NotLoaded {
    pub(crate) why: String,
    /// sha256 of the component.
    pub(crate) digest: String,
}

/// What was loaded before.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Previous {
    pub(crate) version: String,
    pub(crate) digest: String,
    /// Seconds since 1970.
    pub(crate) loaded_at: u64,
    pub(crate) settings: BTreeMap<String, String>,
}

/// Where this daemon keeps things, as its operator knows them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Places {
    /// The plugin's name: `docker volume create -d NAME`.
    pub(crate) plugin: String,
    pub(crate) plugin_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) config_dir: PathBuf,
}

/// How the daemon is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    /// The daemon's process.
    pub(crate) pid: u32,
    pub(crate) places: Places,
    /// How many there are.
    pub(crate) volumes: usize,
    /// Those that are mounted, with their holders.
    pub(crate) mounted: Vec<Volume>,
    /// Name and version of each.
    pub(crate) drivers: BTreeMap<DriverName, String>,
    /// Commits of each store since the daemon started.
    pub(crate) commits: BTreeMap<String, Counts>,
    /// What needs a person.
    pub(crate) troubles: Vec<Trouble>,
}
