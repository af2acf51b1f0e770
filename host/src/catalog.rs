//! Names and records, and how they are made durable; knows nothing above it.
//!
//! The *catalog* outlives the machine: redb with fsync under the state directory. The *mount table* outlives the daemon and dies
//! with the machine: redb on a tmpfs.

pub(crate) mod durable;
mod file;
pub(crate) mod record;
mod store;
pub(crate) mod table;
pub(crate) mod transfer;
mod writer;

pub(crate) use store::Counts;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wasmvol_plan::{Facts, Id, Plan};

use crate::catalog::record::Record;
use crate::volumes::holders::Holders;

/// A change of the catalog; each is one transaction or a part of a shared one.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Writes a volume's record, and its name → id row unless it is only kept (then that row goes).
    Put(Box<Record>),
    /// Deletes a volume's record, and its name row where that still names this id.
    Delete(Id),
    /// Writes a loaded driver's row.
    PutDriver(Box<DriverRow>),
    /// Deletes a driver's row, and its store.
    DeleteDriver(wasmvol_plan::DriverName),
    /// Writes into a driver's store, or deletes from it.
    Write(wasmvol_plan::DriverName, Writes),
    /// All of them, or none.
    Together(Vec<Self>),
}

/// Keys of a driver's store with what they have from now on; none if they go.
pub(crate) type Writes = BTreeMap<String, Option<Arc<[u8]>>>;

/// The stores of all drivers that have one.
pub(crate) type Stores = BTreeMap<wasmvol_plan::DriverName, wasmvol_driver::Store>;

/// A driver that was loaded, or unloaded for good: what survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriverRow {
    pub(crate) name: wasmvol_plan::DriverName,
    /// sha256 of the component, 64 hex digits; the component lies under that name in `drivers/`.
    pub(crate) digest: String,
    pub(crate) version: String,
    /// What the component calls itself: one that calls itself otherwise does not get its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own_name: Option<String>,
    pub(crate) settings: std::collections::BTreeMap<String, String>,
    /// Seconds since 1970.
    pub(crate) loaded_at: u64,
    /// It came with wasmvol, so a newer wasmvol may replace it; one that the operator loaded stays.
    #[serde(default)]
    pub(crate) first_party: bool,
    /// The operator unloaded it: what came with wasmvol under that name stays unloaded, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unloaded: bool,
    /// Where it was pulled from; of what was a file nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// The one that it took the place of, whose component is kept: what a rollback brings back. That one remembers none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<Box<Self>>,
}

/// Where a component was pulled from, as the operator's command line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The reference that was given.
    pub(crate) reference: String,
    /// The digest of the manifest that it named then.
    pub(crate) digest: String,
    /// Whose signature was verified.
    pub(crate) signed_by: Option<SignedBy>,
}

/// A public key of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedBy {
    /// What its file was called.
    pub(crate) key: String,
    /// sha256 of its DER.
    pub(crate) fingerprint: String,
}

/// The mount table's row of one volume: it has at least one holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRow {
    pub(crate) id: Id,
    /// The mount as the kernel showed it.
    pub(crate) facts: Facts,
    /// How it was mounted: a mount that is there is counted without asking its driver again.
    pub(crate) plan: Plan,
    pub(crate) holders: Holders,
}

/// A change of the mount table.
#[derive(Debug, Clone)]
pub(crate) enum TableChange {
    /// Writes a volume's row.
    Put(Box<MountRow>),
    /// Deletes a volume's row.
    Delete(Id),
}

/// Why a store could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// Reading or writing failed; nothing was committed.
    #[error("{store} cannot be written: {why}")]
    Write {
        /// `catalog` or `mount table`.
        store: &'static str,
        /// The store's own words.
        why: String,
    },
    /// What is there cannot be read.
    #[error("{store} cannot be read: {why}")]
    Read {
        /// `catalog` or `mount table`.
        store: &'static str,
        /// The store's own words.
        why: String,
    },
}
