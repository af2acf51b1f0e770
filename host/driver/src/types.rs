//! The contract in the host's own words: what a driver is asked and what it answers, after checks and cuts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wasmvol_plan::kinds::http::HttpGrant;
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{Fault, Id, Storage, VolumeName};

use crate::journal::Shared;
pub use crate::store::{Store, Uses};

/// An option's value after parsing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Value {
    /// As the user wrote it.
    Text(String),
    /// Bytes.
    Size(u64),
    /// A whole number.
    Number(i64),
    /// True or false.
    Boolean(bool),
    /// Milliseconds.
    Duration(u64),
    /// The name of a secret.
    Secret(String),
}

/// How a value is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueType {
    /// Any line of text.
    Text,
    /// `512`, `64k`, `10m`, `1g`, `2t`: binary units.
    Size,
    /// A whole number; with a leading 0 it is octal.
    Number,
    /// `true`, `false`, or the key alone.
    Boolean,
    /// `500ms`, `30s`, `5m`, `1h`.
    Duration,
    /// The name of a secret.
    Secret,
}

/// One option that a driver takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionSpec {
    /// Its key.
    pub key: String,
    /// How its value is parsed.
    pub value_type: ValueType,
    /// Whether a volume cannot be made without it.
    pub required: bool,
    /// Its value when the user gives none, as a user would write it.
    pub default: Option<String>,
    /// One line for people.
    pub help: String,
}

/// What a driver says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The name it gives itself; the operator may load it under another.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line for people.
    pub help: String,
    /// The options it takes.
    pub options: Vec<OptionSpec>,
    /// The grants it will need.
    pub grants: Vec<String>,
}

/// Options by key, parsed, with defaults filled in.
pub type Options = BTreeMap<String, Value>;

/// A volume as a driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: VolumeName,
    /// Its options.
    pub options: Options,
    /// What the driver returned last.
    pub state: Vec<u8>,
}

/// The answer to `create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// What the host is to make.
    pub storage: Storage,
    /// The driver's own bytes.
    pub state: Vec<u8>,
}

/// What is marked beneath a driver's granted roots, in the operator's order: what a call may see of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots(pub Vec<Root>);

/// One granted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its path.
    pub path: String,
    /// The volumes that are marked beneath it.
    pub marked: Vec<Marked>,
}

/// One volume that is marked beneath a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its name.
    pub name: VolumeName,
    /// Its id.
    pub id: Id,
    /// Its directory, relative to the root.
    pub directory: String,
    /// What it was made with.
    pub options: Options,
}

/// What a call may reach beside its arguments: as much of it as its verb may have.
#[derive(Clone, Default)]
pub struct Scope {
    /// Its driver's granted roots.
    pub roots: Roots,
    /// Its driver's key-value space, as it is.
    pub store: Arc<Store>,
    /// The hosts that its driver was granted.
    pub http: Arc<[HttpGrant]>,
    /// Who hands out bytes of secrets.
    pub secrets: Option<Reveal>,
    /// The directory that it fills has a file system of its own, which takes its blocks from the disk of everybody as it is written.
    pub is_thin: bool,
}

/// Hands out the bytes of a secret, by its name, or says why not; asked on the call's thread, and answers by that time.
pub type Reveal = Arc<dyn Fn(&str, Instant) -> Result<Bytes, Fault> + Send + Sync>;

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { roots, store, http, secrets, is_thin } = self;
        f.debug_struct("Scope")
            .field("roots", roots)
            .field("store", &store.len())
            .field("http", http)
            .field("secrets", &secrets.is_some())
            .field("is_thin", is_thin)
            .finish()
    }
}

/// An answer that changes something, and what its call did with the driver's store: both are committed, or neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// What the driver said.
    pub value: T,
    /// What it read and wrote.
    pub uses: Uses,
}

impl<T> From<T> for Answer<T> {
    fn from(value: T) -> Self {
        Self { value, uses: Uses::default() }
    }
}

/// What a driver can do beside the verbs of every driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// `attach` and `detach`.
    pub attachment: bool,
    /// `resize`.
    pub resizing: bool,
    /// `populate`.
    pub population: bool,
    /// `check`.
    pub health: bool,
    /// `migrate`.
    pub migration: bool,
}

/// How far `attach` or `detach` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It is done, and this is the volume's state.
    Done(Vec<u8>),
    /// It is to be asked again.
    Again {
        /// With this state.
        state: Vec<u8>,
        /// After this time.
        after: Duration,
    },
}

/// The answer to `populate`.
#[derive(Debug)]
pub struct Populated {
    /// The driver's own bytes.
    pub state: Vec<u8>,
    /// Which files are programs, by their paths.
    pub executables: Vec<String>,
    /// It knows what of those may be told.
    pub(crate) journal: Shared,
}

/// The answer to `resize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resized {
    /// What the host is to make of the storage.
    pub storage: Storage,
    /// The driver's own bytes.
    pub state: Vec<u8>,
}

/// How a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All is well.
    Healthy,
    /// It works, and something is wrong.
    Degraded,
    /// It does not answer.
    Unreachable,
}

/// The answer to `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In a word.
    pub condition: Condition,
    /// In a sentence for people: one line, cut and escaped.
    pub message: String,
}

/// A volume that a backend knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name, as the backend spells it: not yet checked.
    pub name: String,
    /// The id that it was made with, on whatever host, where the backend keeps that.
    pub id: Option<Id>,
    /// Its options.
    pub options: Options,
    /// The driver's own bytes.
    pub state: Vec<u8>,
    /// Whether this driver made it.
    pub owned: bool,
}

/// What becomes of the data when a volume is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reclaim {
    /// It is deleted.
    Delete,
    /// It stays.
    Retain,
}

/// The contract's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The backend has no such volume.
    NotFound,
    /// The backend has another volume of that name.
    AlreadyExists,
    /// An option's value is wrong.
    InvalidOption,
    /// Somebody uses it.
    InUse,
    /// The backend cannot be reached now.
    Unavailable,
    /// No space, no quota.
    Exhausted,
    /// The backend refuses.
    Denied,
    /// Not possible with this driver.
    Unsupported,
    /// A fault of the driver's.
    Internal,
}

/// Why a call gave no answer that can be used. One line each, made for the user: the driver's own words are cut and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The driver answered with an error.
    #[error("{message}")]
    Failed {
        /// Its code.
        code: ErrorCode,
        /// Its sentence, cut to 1 KiB, control characters escaped.
        message: String,
    },
    /// No answer in time.
    #[error("driver did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// A trap; with the last line it wrote to stderr.
    #[error("driver crashed: {0}")]
    Crashed(String),
    /// Memory, tables or instances beyond the limit.
    #[error("driver asked for more than its limit of {0}")]
    OutOfBounds(String),
    /// It ended its own instance.
    #[error("driver exited with status {0}")]
    Exited(i32),
    /// An answer that the contract does not allow.
    #[error("driver broke the contract: {0}")]
    Contract(String),
    /// An answer that this host does not serve.
    #[error("{0} is not served by this version of wasmvol")]
    Unsupported(String),
    /// Its component does not export what is asked.
    #[error("this driver cannot {0}")]
    Unable(String),
    /// The host has no room for a call; no fault of the driver's.
    #[error("driver cannot be run now: {0}")]
    Host(String),
    /// No driver of that name is loaded.
    #[error("driver `{0}` is not loaded: load it with `wasmvol driver load`")]
    NotLoaded(String),
}
