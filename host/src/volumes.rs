//! THE module: the verbs, read top to bottom; holders; recovery.
//!
//! Called by `plugin/` and the admin API; calls drivers, mountd and the stores through [`world`]. It knows no HTTP, no wasm and no
//! syscall.

pub(crate) mod holders;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::catalog::record::Record;
use crate::catalog::{MountRow, StoreError};
use holders::Caller;
use wasmvol_driver::CallError;
use wasmvol_plan::{DriverName, Fault, NameError};
use world::World;

/// What the operator decided for all volumes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The directory that holds the mountpoints, as engines see it: `/run/wasmvol/mnt`.
    pub(crate) mountpoints: String,
    /// The driver of a volume that names none.
    pub(crate) default_driver: DriverName,
    /// The plugin's name.
    pub(crate) plugin: String,
}

/// All volumes of this daemon. One thread; shared as `Rc`.
pub(crate) struct Volumes<W: World> {
    #[expect(dead_code, reason = "stub")]
    world: W,
}

/// What is shown of one volume: Docker's Get, `volume inspect`.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) mountpoint: String,
    /// RFC 3339, UTC.
    pub(crate) created_at: String,
    /// Driver, version, storage, size, use, holders, health: Docker shows it under `Status`.
    pub(crate) status: serde_json::Map<String, serde_json::Value>,
}

/// Why a verb was refused. `Display` is the one line that the user sees: it repeats neither the verb nor the volume.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("no such volume")]
    NotFound,
    #[error("{0}")]
    Option(String),
    #[error("already exists with other options: {0}")]
    Exists(String),
    #[error("is in use: {0}")]
    InUse(String),
    #[error("driver {driver}: {error}")]
    Driver { driver: DriverName, error: CallError },
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{first}; and undoing it failed: {undo}")]
    Undo { first: Box<VolumeError>, undo: Box<VolumeError> },
    #[error("did not finish within {0} s: {1}")]
    TimedOut(u64, &'static str),
}

impl<W: World> Volumes<W> {
    /// Takes over what the stores hold. Call [`Volumes::recover`] before the first changing verb.
    pub(crate) fn new(
        world: W,
        settings: Settings,
        records: Vec<Record>,
        rows: Vec<MountRow>,
    ) -> Rc<Self> {
        let _ = (settings, records, rows);
        Rc::new(Self { world })
    }

    /// Makes records, mount table and kernel agree. Changing verbs wait for its first end; Get, List and Path do not.
    pub(crate) async fn recover(self: &Rc<Self>) {}

    /// Once every 2 s: takes up what waits (draining mounts, parked recovery, usage).
    pub(crate) async fn tick(self: &Rc<Self>) {}

    /// Makes a volume, durably. The same name with the same options is done already.
    pub(crate) async fn create(
        self: &Rc<Self>,
        name: &str,
        options: BTreeMap<String, String>,
    ) -> Result<(), VolumeError> {
        let _ = (name, options);
        Err(VolumeError::NotFound)
    }

    /// Mounts a volume for a holder and answers its mountpoint.
    pub(crate) async fn mount(
        self: &Rc<Self>,
        name: &str,
        holder: &str,
        caller: Caller,
    ) -> Result<String, VolumeError> {
        let _ = (name, holder, caller);
        Err(VolumeError::NotFound)
    }

    /// Takes one count off a holder; the last one unmounts. An unknown holder is done already. Also the undo of a Mount whose
    /// client has gone.
    pub(crate) async fn unmount(
        self: &Rc<Self>,
        name: &str,
        holder: &str,
        caller: Caller,
    ) -> Result<(), VolumeError> {
        let _ = (name, holder, caller);
        Err(VolumeError::NotFound)
    }

    /// Removes a volume and its data.
    pub(crate) async fn remove(
        self: &Rc<Self>,
        name: &str,
        caller: Caller,
    ) -> Result<(), VolumeError> {
        let _ = (name, caller);
        Err(VolumeError::NotFound)
    }

    /// What is shown of a volume; from memory.
    pub(crate) fn get(&self, name: &str) -> Result<View, VolumeError> {
        let _ = name;
        Err(VolumeError::NotFound)
    }

    /// The stable mountpoint of a volume; from memory.
    pub(crate) fn path(&self, name: &str) -> Result<String, VolumeError> {
        let _ = name;
        Err(VolumeError::NotFound)
    }

    /// Calls `each(name, mountpoint)` for every volume, by name; from memory.
    pub(crate) fn list(&self, each: impl FnMut(&str, &str)) {
        let _ = each;
    }

    /// Every volume as `get` shows it, by name; from memory.
    pub(crate) fn views(&self) -> Vec<View> {
        Vec::new()
    }

    /// What is wrong and needs a person: for `status` and `doctor`; from memory.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    /// Names of the volumes of a driver: it cannot be unloaded while there are any.
    pub(crate) fn of_driver(&self, driver: &DriverName) -> Vec<String> {
        let _ = driver;
        Vec::new()
    }

    /// Names of the volumes that are mounted now.
    pub(crate) fn mounted(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Something that needs a person.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Trouble {
    /// The volume's name or id, or the stray thing's name.
    pub(crate) what: String,
    /// What is wrong, one line.
    pub(crate) why: String,
    /// A command that mends it, if there is one.
    pub(crate) cure: Option<String>,
}
