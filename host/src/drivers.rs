//! The loaded drivers: the real form of [`world::Drivers`] over the engine.
//!
//! Asked by the verbs, filled by the [`loader`]. A call runs on a thread that may block, so that a driver which loops delays its own
//! volume only; replacing a driver leaves calls in flight to end on the old version.

mod components;
pub(crate) mod loader;
mod reveal;
mod shelf;
mod troubles;

pub(crate) use shelf::digest;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use wasmvol_driver::types::Options;
use wasmvol_driver::{
    Abilities, Answer, CallError, Created, Description, Driver, Engine, Found, LoadError, Progress,
    Reclaim, Report, Resized, Root, Roots, Scope, Volume,
};
use wasmvol_plan::{DriverName, Fault, FaultKind, Grants, Id, Plan, Storage, VolumeName};

use crate::asked;
use crate::catalog::DriverRow;
use crate::mounter::Mounter;
use crate::volumes::world::NoMount;
use crate::volumes::{Trouble, world};
use reveal::Revealer;

/// How long a verb waits for a driver that is being compiled after a start: dockerd gives up on the shorter verbs after 60 s.
const TAKE_UP: Duration = Duration::from_secs(40);
/// How long a Create waits until its driver may fill one volume more: the rest of dockerd's 120 s is for that.
const FILL_WAIT: Duration = Duration::from_secs(30);
/// Plans that are kept for each driver: 5 MiB if each has the longest subpath. At one more all are asked for anew.
const PLANS_MAX: usize = 1024;

/// The drivers of this daemon.
pub(crate) struct Drivers {
    engine: Engine,
    /// `grants.d`: written by the operator only.
    grants: PathBuf,
    loaded: RefCell<BTreeMap<DriverName, Loaded>>,
    /// Those that were loaded before the start, and could not be again.
    failed: RefCell<BTreeMap<DriverName, Failed>>,
    /// Why what came with this wasmvol is not loaded under its name, where it was to be.
    kept_out: RefCell<BTreeMap<DriverName, String>>,
    /// Who fetches the bytes of secrets.
    revealer: Revealer,
    /// Seeded at random: no driver can find two volumes with one fingerprint.
    fingerprints: RandomState,
    /// True once all are loaded that will be by themselves; told at each load before that, too.
    taken_up: watch::Sender<bool>,
}

/// One that is loaded.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) driver: Driver,
    pub(crate) description: Rc<Description>,
    pub(crate) row: DriverRow,
    /// What it was granted when it was loaded.
    granted: Grants,
    /// One permit for each call that it may have at once. The others wait here, not on a thread: those are everybody's.
    turns: Arc<Semaphore>,
    /// How many of those may fill volumes, which takes up to 90 s: some are left for whoever mounts one.
    fills: Rc<Semaphore>,
    /// What it answered to `path`, which by the contract depends on the volume and this driver's settings only.
    plans: Rc<RefCell<HashMap<Id, Planned>>>,
}

/// One that was loaded before the start, and could not be again. Its volumes wait for it.
#[derive(Clone)]
struct Failed {
    row: DriverRow,
    why: String,
}

/// One that is loaded, or was before the start.
pub(crate) struct Known {
    pub(crate) row: DriverRow,
    /// Or why it could not be loaded again.
    pub(crate) driver: Result<Driver, String>,
}

impl Drivers {
    /// No driver yet. Grants lie in `grants`; secrets come from mountd. Must run where local tasks can be spawned.
    pub(crate) fn new(engine: Engine, grants: &Path, mounter: &Mounter) -> Self {
        Self {
            engine,
            grants: grants.to_owned(),
            loaded: RefCell::default(),
            failed: RefCell::default(),
            kept_out: RefCell::default(),
            revealer: Revealer::start(mounter.clone()),
            fingerprints: RandomState::new(),
            taken_up: watch::Sender::new(false),
        }
    }

    /// One that is loaded.
    pub(crate) fn get(&self, name: &DriverName) -> Option<Loaded> {
        self.loaded.borrow().get(name).cloned()
    }

    /// All that are loaded, by name.
    pub(crate) fn all(&self) -> Vec<Loaded> {
        self.loaded.borrow().values().cloned().collect()
    }

    /// One that is loaded, or could not be again.
    pub(crate) fn known(&self, name: &DriverName) -> Option<Known> {
        self.all_known().into_iter().find(|known| known.row.name == *name)
    }

    /// All that are loaded, and those that could not be again, by name.
    pub(crate) fn all_known(&self) -> Vec<Known> {
        let (loaded, failed) = (self.loaded.borrow(), self.failed.borrow());
        let loaded = loaded.values().map(|Loaded { row, driver, .. }| (row, Ok(driver.clone())));
        let failed = failed.values().map(|Failed { row, why }| (row, Err(why.clone())));
        let all = loaded.chain(failed).map(|(row, driver)| Known { row: row.clone(), driver });
        let mut all: Vec<_> = all.collect();
        all.sort_by(|a, b| a.row.name.cmp(&b.row.name));
        all
    }

    /// What is not loaded and should be, and what the operator can do.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let (failed, kept_out) = (self.failed.borrow(), self.kept_out.borrow());
        // One trouble for a driver.
        let kept_out = kept_out.iter().filter(|(name, _)| !failed.contains_key(*name));
        let kept_out = kept_out.map(|(name, why)| {
            let stays = self.get(name).map(|loaded| loaded.row.version);
            troubles::kept_out(name, stays.as_deref(), why)
        });
        let failed = failed.values().map(|Failed { row, why }| troubles::failed(row, why));
        failed.chain(kept_out).collect()
    }

    /// Notes that what came with this wasmvol under a name is loaded, or is not wanted.
    fn settle(&self, name: &DriverName) {
        self.kept_out.borrow_mut().remove(name);
    }

    /// Notes why what came with this wasmvol is not loaded.
    fn keep_out(&self, name: &DriverName, why: String) {
        self.kept_out.borrow_mut().insert(name.clone(), why);
    }

    /// The row of one that is loaded, or should be.
    fn row(&self, name: &DriverName) -> Option<DriverRow> {
        self.known(name).map(|known| known.row)
    }

    /// The rows of all of them.
    fn rows(&self) -> Vec<DriverRow> {
        self.all_known().into_iter().map(|known| known.row).collect()
    }

    fn put(&self, loaded: Loaded) {
        self.failed.borrow_mut().remove(&loaded.row.name);
        self.loaded.borrow_mut().insert(loaded.row.name.clone(), loaded);
        // Wakes who waits for this one.
        self.taken_up.send_modify(|_| {});
    }

    /// One as it will be once it is put, with what is granted to its name now.
    fn made_of(&self, driver: Driver, row: DriverRow) -> Loaded {
        use world::Drivers as _;
        // What cannot be read grants nothing, and each use of it says so.
        let granted = self.grants(&row.name).unwrap_or_default();
        let description = Rc::new(driver.description().clone());
        let row = DriverRow { own_name: Some(description.name.clone()), ..row };
        let turns = Arc::new(Semaphore::new(driver.calls_max()));
        let fills = Rc::new(Semaphore::new(driver.fills_max()));
        let plans = Rc::default();
        Loaded { driver, description, row, granted, turns, fills, plans }
    }

    /// Notes that what is granted to a name has changed.
    fn note_grants(&self, name: &DriverName, granted: Grants) {
        if let Some(loaded) = self.loaded.borrow_mut().get_mut(name) {
            loaded.granted = granted;
        }
    }

    /// From now on nobody waits for a driver that is not loaded.
    fn end_take_up(&self) {
        self.taken_up.send_replace(true);
    }

    /// Until every driver of before the start is loaded again, or cannot be: a list would be half of the truth until then, and
    /// what an operator loads would be replaced by what is still on its way. It ends, since each compilation does.
    pub(crate) async fn until_taken_up(&self) {
        let mut taken_up = self.taken_up.subscribe();
        // The sender lives as long as this does.
        let _never_closed = taken_up.wait_for(|ended| *ended).await;
    }

    /// What a driver was granted, line by line as the operator wrote it.
    pub(crate) fn granted(&self, name: &DriverName) -> Vec<String> {
        asked::lines(&self.grants_file(name).unwrap_or_default())
    }

    fn grants_file(&self, driver: &DriverName) -> Result<String, Fault> {
        match std::fs::read_to_string(self.grants.join(driver.as_str())) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map_err(|e| {
                let why = format!("grants of driver `{driver}` cannot be read: {e}");
                Fault::new(FaultKind::Failed, why)
            }),
        }
    }

    fn fail(&self, row: DriverRow, why: String) {
        self.failed.borrow_mut().insert(row.name.clone(), Failed { row, why });
    }

    fn take(&self, name: &DriverName) -> (Option<Loaded>, Option<Failed>) {
        (self.loaded.borrow_mut().remove(name), self.failed.borrow_mut().remove(name))
    }

    fn put_back(&self, (loaded, failed): (Option<Loaded>, Option<Failed>)) {
        loaded.into_iter().for_each(|loaded| self.put(loaded));
        failed.into_iter().for_each(|Failed { row, why }| self.fail(row, why));
    }

    /// Makes a driver of a component, without loading it.
    async fn prepare(
        &self,
        name: &DriverName,
        component: &Arc<[u8]>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Driver, LoadError> {
        let (engine, name) = (self.engine.clone(), name.clone());
        let (component, settings) = (Arc::clone(component), settings.clone());
        blocking(move || engine.load(&name, &component, settings)).await
    }

    /// What a driver sees of its granted roots where nothing beneath them was read. Whether they can be read is found out by who
    /// checks its answer.
    fn roots_of(&self, driver: &DriverName) -> Roots {
        use world::Drivers as _;
        if !self.finds(driver) {
            return Roots::default();
        }
        let granted = self.grants(driver).unwrap_or_default().host_directories;
        Roots(granted.into_iter().map(|path| Root { path, marked: Vec::new() }).collect())
    }

    /// Calls a driver with what it may reach: what the verb says, and what its operator granted, as it is now.
    async fn call<T: Send + 'static>(
        &self,
        name: &DriverName,
        mut scope: Scope,
        call: impl FnOnce(Driver, Scope) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let loaded = self.get(name).ok_or_else(|| CallError::NotLoaded(name.to_string()))?;
        self.reach(&loaded, &mut scope);
        loaded.call(move |driver| call(driver, scope)).await
    }

    /// Gives a call of a version what its operator granted, as it is now.
    fn reach(&self, Loaded { driver, row, .. }: &Loaded, scope: &mut Scope) {
        use world::Drivers as _;
        if driver.speaks_http() {
            // What cannot be read grants nothing.
            scope.http = self.grants(&row.name).unwrap_or_default().http.into();
        }
        if driver.reveals() {
            scope.secrets = Some(self.revealer.of(&row.name));
        }
    }
}

/// How long a call waits for one of its driver's turns: as long as the longest of those that are asked while somebody waits. Else calls of a
/// backend that hangs would queue up, and nothing could replace their driver.
const TURN: Duration = Duration::from_secs(30);

/// A plan, and the fingerprint of the volume that it is for: the same id may get other state.
struct Planned {
    volume: u64,
    plan: Plan,
}

impl Loaded {
    async fn call<T: Send + 'static>(
        self,
        call: impl FnOnce(Driver) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        // The semaphore is never closed. The turn ends with the call, also when nobody waits for the answer any more.
        let turn = tokio::time::timeout(TURN, self.turns.acquire_owned()).await;
        let turn = turn.map_err(|_| CallError::TimedOut(TURN))?;
        let driver = self.driver;
        blocking(move || {
            let _turn = turn;
            call(driver)
        })
        .await
    }
}

/// Runs what may block on a thread of its own. A panic there is one here: the runtime has no other answer.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// A version of a driver that is weighed against another.
struct Candidate<'a> {
    drivers: &'a Drivers,
    loaded: Loaded,
}

impl world::Version for Candidate<'_> {
    fn description(&self) -> &Description {
        &self.loaded.description
    }

    fn migrates(&self) -> bool {
        self.loaded.driver.abilities().migration
    }

    async fn migrate(
        &self,
        volume: &Volume,
        from: &str,
        mut scope: Scope,
    ) -> Result<Vec<u8>, CallError> {
        self.drivers.reach(&self.loaded, &mut scope);
        let (volume, from) = (volume.clone(), from.to_owned());
        self.loaded.clone().call(move |driver| driver.migrate(&volume, &from, scope)).await
    }

    async fn mounts(&self, volume: &Volume, storage: &Storage) -> Result<(), NoMount> {
        let asked = volume.clone();
        let plan = self.loaded.clone().call(move |driver| driver.path(&asked)).await;
        let no_plan = |error: CallError| NoMount { why: error.to_string(), waits_for_grant: false };
        plan.map_err(no_plan)?.check(storage, &self.loaded.granted).map_err(|fault| NoMount {
            why: fault.to_string(),
            waits_for_grant: fault.kind == FaultKind::Denied,
        })
    }
}

impl world::Drivers for Drivers {
    type Root = OwnedFd;

    fn names(&self) -> Vec<DriverName> {
        self.loaded.borrow().keys().cloned().collect()
    }

    fn description(&self, driver: &DriverName) -> Option<Rc<Description>> {
        self.loaded.borrow().get(driver).map(|loaded| Rc::clone(&loaded.description))
    }

    fn grants(&self, driver: &DriverName) -> Result<Grants, Fault> {
        Grants::parse(driver, &self.grants_file(driver)?)
    }

    async fn until_loaded(&self, driver: &DriverName) {
        let mut changed = self.taken_up.subscribe();
        let wait = async {
            while !*changed.borrow_and_update() && self.get(driver).is_none() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(TAKE_UP, wait).await.is_err() {
            tracing::warn!("driver `{driver}` is still being compiled");
        }
    }

    fn abilities(&self, driver: &DriverName) -> Option<Abilities> {
        self.get(driver).map(|loaded| loaded.driver.abilities())
    }

    async fn create(
        &self,
        driver: &DriverName,
        id: Id,
        name: &VolumeName,
        options: &Options,
        scope: Scope,
    ) -> Result<Answer<Created>, CallError> {
        let (name, options) = (name.clone(), options.clone());
        let scope = Scope { roots: self.roots_of(driver), ..scope };
        self.call(driver, scope, move |driver, scope| driver.create(id, &name, &options, scope))
            .await
    }

    async fn populate(
        &self,
        driver: &DriverName,
        volume: &Volume,
        root: OwnedFd,
        scope: Scope,
    ) -> Result<Answer<Vec<u8>>, CallError> {
        let fills = self.get(driver).map(|loaded| loaded.fills);
        let fills = fills.ok_or_else(|| CallError::NotLoaded(driver.to_string()))?;
        let full = |_| {
            let why = "as many of its volumes are being filled as it may fill at once: try again";
            CallError::Host(why.to_owned())
        };
        // It is never closed.
        let _fill = tokio::time::timeout(FILL_WAIT, fills.acquire()).await.map_err(full)?;
        let volume = volume.clone();
        // The root is closed there: what was written to an image goes to its disk then, and that may take a while.
        let filled =
            self.call(driver, scope, move |driver, scope| driver.populate(&volume, root, scope));
        let Answer { value, uses } = filled.await?;
        Ok(Answer { value: value.state, uses })
    }

    async fn remove(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Reclaim>, CallError> {
        if let Some(loaded) = self.get(driver) {
            loaded.plans.borrow_mut().remove(&volume.id);
        }
        let volume = volume.clone();
        self.call(driver, scope, move |driver, scope| driver.remove(&volume, scope)).await
    }

    async fn path(&self, driver: &DriverName, volume: &Volume) -> Result<Plan, CallError> {
        let Some(loaded) = self.get(driver) else {
            return Err(CallError::NotLoaded(driver.to_string()));
        };
        let fingerprint = self.fingerprints.hash_one(volume);
        if let Some(known) = loaded.plans.borrow().get(&volume.id)
            && known.volume == fingerprint
        {
            return Ok(known.plan.clone());
        }
        let asked = volume.clone();
        let plan = loaded.clone().call(move |driver| driver.path(&asked)).await?;
        let mut plans = loaded.plans.borrow_mut();
        if plans.len() == PLANS_MAX {
            plans.clear();
        }
        plans.insert(volume.id, Planned { volume: fingerprint, plan: plan.clone() });
        Ok(plan)
    }

    fn finds(&self, driver: &DriverName) -> bool {
        self.loaded.borrow().get(driver).is_some_and(|loaded| loaded.driver.sees_roots())
    }

    async fn list(
        &self,
        driver: &DriverName,
        scope: Scope,
        within: Duration,
    ) -> Result<Vec<Found>, CallError> {
        self.call(driver, scope, move |driver, scope| driver.list(scope, within)).await
    }

    async fn attach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Progress>, CallError> {
        let volume = volume.clone();
        self.call(driver, scope, move |driver, scope| driver.attach(&volume, scope)).await
    }

    async fn detach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Answer<Progress>, CallError> {
        let volume = volume.clone();
        self.call(driver, scope, move |driver, scope| driver.detach(&volume, scope)).await
    }

    async fn resize(
        &self,
        driver: &DriverName,
        volume: &Volume,
        size: u64,
        scope: Scope,
    ) -> Result<Answer<Resized>, CallError> {
        let volume = volume.clone();
        self.call(driver, scope, move |driver, scope| driver.resize(&volume, size, scope)).await
    }

    async fn check(
        &self,
        driver: &DriverName,
        volume: &Volume,
        scope: Scope,
    ) -> Result<Report, CallError> {
        let volume = volume.clone();
        self.call(driver, scope, move |driver, scope| driver.check(&volume, scope)).await
    }
}
