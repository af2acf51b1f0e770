//! What the verbs need from the world: five small interfaces, each with a real form and, in the model test, a simulated one.
//!
//! Everything runs on one thread, so nothing here is `Send`. Time passes through tokio's clock, which the model test owns.

use std::rc::Rc;
use std::time::Duration;

use wasmvol_driver::types::Options;
use wasmvol_driver::{
    Abilities, Answer, CallError, Created, Description, Found, Progress, Reclaim, Report, Resized,
    Scope, Volume,
};
use wasmvol_plan::frame::{Attached, Inventory};
use wasmvol_plan::kinds::named_directory::Mark;
use wasmvol_plan::{
    DriverName, Evidence, Facts, Fault, Grants, Id, Measure, Plan, Release, SecretName, Storage,
    Usage, VolumeName,
};

use crate::catalog::{Change, StoreError, TableChange};
use crate::volumes::holders::Process;

/// The world of one daemon.
pub(crate) trait World: 'static {
    /// Where records are kept.
    type Catalog: Catalog;
    /// Where holders are kept.
    type Table: Table;
    /// Who mounts.
    type Mounter: Mounter<Root = Self::Root>;
    /// Who decides.
    type Drivers: Drivers<Root = Self::Root>;
    /// The opened root of storage that is filled: given by the one, used by the other, and closed by whoever has it last.
    type Root;
    /// The machine itself.
    type Machine: Machine;

    /// Where records are kept.
    fn catalog(&self) -> &Self::Catalog;
    /// Where holders are kept.
    fn table(&self) -> &Self::Table;
    /// Who mounts.
    fn mounter(&self) -> &Self::Mounter;
    /// Who decides.
    fn drivers(&self) -> &Self::Drivers;
    /// The machine itself.
    fn machine(&self) -> &Self::Machine;
}

/// Durable records. A commit that has returned outlives a power cut.
pub(crate) trait Catalog {
    /// Commits one change; concurrent commits may share a transaction.
    async fn commit(&self, change: Change) -> Result<(), StoreError>;
}

/// Holders of this boot. A commit that has returned outlives the daemon, not the machine.
pub(crate) trait Table {
    /// Commits one volume's holders.
    async fn commit(&self, change: TableChange) -> Result<(), StoreError>;
}

/// mountd, as a client sees it.
pub(crate) trait Mounter {
    /// See [`World::Root`].
    type Root;

    /// Every entry of a kind, and the names that are no id.
    async fn survey(
        &self,
        kind: Inventory,
    ) -> Result<(Vec<(Id, Option<Facts>)>, Vec<String>), Fault>;
    /// Makes storage, durably; twice is once. `note` is for the marker of a named directory.
    async fn make(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
        note: Vec<u8>,
    ) -> Result<(), Fault>;
    /// Opens the root of new storage for its driver to fill it, empty whatever was filled in before.
    async fn fill(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<Self::Root, Fault>;
    /// Checks what was filled in and takes it over for the volume's owner, durably.
    async fn settle(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<(), Fault>;
    /// Makes storage as large as it says, durably; as large already is done. `note` is as in [`Mounter::make`].
    async fn grow(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
        note: Vec<u8>,
    ) -> Result<(), Fault>;
    /// Mounts; already mounted answers its facts.
    async fn mount(&self, request: MountRequest<'_>) -> Result<Facts, Fault>;
    /// Unmounts unless held; one that is attached once nobody shows its file system any more, and all of it is written.
    async fn unmount(&self, id: Id, attached: Option<Attached>) -> Result<Release, Fault>;
    /// Who holds it.
    async fn scan(&self, id: Id, attached: Option<Attached>) -> Result<Evidence, Fault>;
    /// Moves storage into the trash, durably; nothing there is done already.
    async fn trash(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<(), Fault>;
    /// The markers of named directories beneath a driver's granted roots.
    async fn marks(&self, driver: &DriverName) -> Result<Vec<Mark>, Fault>;
    /// Size and use of a mounted volume.
    async fn usage(&self, id: Id) -> Result<Usage, Fault>;
    /// Says whether a secret is kept for a driver.
    async fn find_secret(&self, name: &SecretName, driver: &DriverName) -> Result<(), Fault>;
    /// What a volume's files take, counted one by one.
    async fn measure(&self, id: Id) -> Result<Measure, Fault>;
    /// Which volumes are mounted whose program has ended.
    async fn ended(&self) -> Result<Vec<Id>, Fault>;
}

/// What [`Mounter::mount`] is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MountRequest<'a> {
    pub(crate) id: Id,
    pub(crate) driver: &'a DriverName,
    pub(crate) storage: &'a Storage,
    pub(crate) plan: &'a Plan,
    /// The engine's process, whose namespace must see the mount.
    pub(crate) peer: Option<u32>,
    /// The facts that the mount table remembers of this boot.
    pub(crate) last: Option<&'a Facts>,
}

/// The loaded drivers.
pub(crate) trait Drivers {
    /// See [`World::Root`].
    type Root;

    /// The names of all that are loaded.
    fn names(&self) -> Vec<DriverName>;
    /// What the driver of that name says of itself; none if it is not loaded.
    fn description(&self, driver: &DriverName) -> Option<Rc<Description>>;
    /// Waits until that driver is loaded, or all are that will be: after a start they are still being taken up.
    async fn until_loaded(&self, driver: &DriverName);
    /// What it was granted, read anew.
    fn grants(&self, driver: &DriverName) -> Result<Grants, Fault>;
    /// What it can do beside the verbs of every driver; none if it is not loaded.
    fn abilities(&self, driver: &DriverName) -> Option<Abilities>;
    /// Asks for a new volume's storage.
    async fn create(
        &self,
        driver: &DriverName,
        id: Id,
        name: &VolumeName,
        options: &Options,
        scope: Scope,
    ) -> Result<Answer<Created>, CallError>;
    /// Has a new volume filled, and answers its state.
    async fn populate(
        &self,
        driver: &DriverName,
        volume: &Volume,
        root: Self::Root,
        scope: Scope,
    ) -> Result<Answer<Vec<u8>>, CallError>;
    /// Tells that a volume goes.
    async fn remove(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Reclaim>, CallError>;
    /// Asks how a volume is mounted.
    async fn path(&self, driver: &DriverName, volume: &Volume) -> Result<Plan, CallError>;
    /// Whether its backend may know volumes that the catalog does not: only then is a new name worth a question.
    fn finds(&self, driver: &DriverName) -> bool;
    /// Asks which volumes the backend knows, and waits `within` for the answer.
    async fn list(
        &self,
        driver: &DriverName,
        scope: Scope,
        within: Duration,
    ) -> Result<Vec<Found>, CallError>;
    /// Asks for a step towards a volume that is reachable here.
    async fn attach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Progress>, CallError>;
    /// Asks for a step towards one that is not any more.
    async fn detach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Progress>, CallError>;
    /// Asks the backend for another size.
    async fn resize(
        &self,
        driver: &DriverName,
        volume: &Volume,
        size: u64,
        scope: Scope,
    ) -> Result<Answer<Resized>, CallError>;
    /// Asks how a volume is where its backend keeps it.
    async fn check(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Report, CallError>;
}

/// A version of a driver and its grants, whether it is the one that is loaded or not.
pub(crate) trait Version {
    /// What it says of itself.
    fn description(&self) -> &Description;
    /// Whether it can take over what another version wrote.
    fn migrates(&self) -> bool;
    /// Asks for a volume's state as this version writes it.
    async fn migrate(
        &self,
        volume: &Volume,
        from: &str,
        scope: Scope,
    ) -> Result<Vec<u8>, CallError>;
    /// Whether a volume can be mounted with it, or why not.
    async fn mounts(&self, volume: &Volume, storage: &Storage) -> Result<(), NoMount>;
}

/// Why a volume cannot be mounted with a version of its driver.
pub(crate) struct NoMount {
    pub(crate) why: String,
    /// It waits for its operator to grant something.
    pub(crate) waits_for_grant: bool,
}

/// Clock, entropy and processes.
pub(crate) trait Machine {
    /// Seconds since 1970.
    fn now(&self) -> u64;
    /// Seconds since the machine's boot, suspended ones too.
    fn uptime(&self) -> u64;
    /// A new id.
    fn mint(&self) -> Id;
    /// Whether that very process still runs.
    fn is_running(&self, process: Process) -> bool;
    /// A named step was reached: a crash test may end the process here. In the model it may never return.
    async fn step(&self, name: &'static str);
}
