//! The simulated drivers, `local`, which fills its volumes, and `tmpfs`, which attaches them, and what their backends know.
//!
//! After a start one may be loaded late or never; later it may be replaced, unloaded and loaded again. A call may fail before or
//! after its effect. The backend of `tmpfs` knows volumes that we did not make.
//!
//! A version is MAJOR.MINOR. What a driver writes into a volume's state begins with its major version, and no other can read it; some can
//! take over what an earlier one wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use wasmvol_driver::types::Options;
use wasmvol_driver::{
    Abilities, Answer, CallError, Created, Description, ErrorCode, Found, OptionSpec, Progress,
    Reclaim, Report, Resized, Scope, Value, ValueType, Volume,
};
use wasmvol_plan::{
    Directory, DriverName, Fault, Grants, Id, Owner, Plan, Source, Storage, Tmpfs, VolumeName,
};

use super::kernel::{Fill, Root};
use super::world::Sim;
use crate::catalog::DriverRow;
use crate::volumes::Volumes;
use crate::volumes::swap::{States, Swap, SwapError};
use crate::volumes::world::{Drivers, NoMount, Version};

pub(super) const DRIVERS: [&str; 2] = ["local", "tmpfs"];
/// Only a Create waits less for a list.
const SLOW: Duration = Duration::from_secs(10);
/// As long as a verb waits for a driver.
const TAKE_UP: Duration = Duration::from_secs(40);

/// What drivers and their backends know.
#[derive(Default)]
pub(super) struct Backend {
    /// Ids that the backends were asked to create and not yet to remove.
    pub(super) made: BTreeSet<Id>,
    /// Ids that the backend of `tmpfs` was asked to attach and not yet to detach.
    pub(super) attached: BTreeSet<Id>,
    /// Names of volumes that the backend of `tmpfs` knows without us.
    pub(super) exports: BTreeSet<String>,
    /// Which of them its last `list` told; and the same once the host has taken that in.
    told: Option<BTreeSet<String>>,
    pub(super) taken_in: Option<BTreeSet<String>>,
    /// A Create has asked since the last round: what it found may have come after the round's own `list`.
    was_asked_by_create: bool,
    /// When each driver is loaded, and its version. Those that are not here never are.
    loaded: BTreeMap<DriverName, (Instant, String)>,
}

/// The rows of the drivers at the very first start.
pub(super) fn first_drivers() -> BTreeMap<DriverName, DriverRow> {
    let rows = DRIVERS.map(|name| {
        let name = DriverName::parse(name).expect("a name");
        let row = DriverRow {
            name: name.clone(),
            digest: String::new(),
            version: "1.0".into(),
            own_name: None,
            settings: BTreeMap::new(),
            loaded_at: 0,
            first_party: true,
            unloaded: false,
            origin: None,
            previous: None,
        };
        (name, row)
    });
    rows.into()
}

/// What a version begins a state with.
pub(super) fn major(version: &str) -> &str {
    version.split('.').next().expect("the first part")
}

/// Whether a version can read a state.
pub(super) fn reads(version: &str, state: &[u8]) -> bool {
    state.split(|byte| *byte == b'/').next() == Some(major(version).as_bytes())
}

/// What a version says of itself.
pub(super) fn described(driver: &DriverName, version: &str) -> Description {
    let size = OptionSpec {
        key: "size".into(),
        value_type: ValueType::Size,
        required: false,
        default: None,
        help: String::new(),
    };
    Description {
        name: driver.to_string(),
        version: version.to_owned(),
        help: String::new(),
        options: vec![size],
        grants: Vec::new(),
    }
}

/// A version that is, or is to be, loaded.
pub(super) struct SimVersion<'a> {
    sim: &'a Sim,
    description: Description,
    migrates: bool,
}

impl Version for SimVersion<'_> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn migrates(&self) -> bool {
        self.migrates
    }

    async fn migrate(&self, volume: &Volume, from: &str, _: Scope) -> Result<Vec<u8>, CallError> {
        self.sim.point().await;
        if self.sim.chance(self.sim.odds.driver) {
            return Err(CallError::TimedOut(Duration::from_secs(2)));
        }
        assert!(
            reads(from, &volume.state),
            "{} has a state that {from} did not write",
            volume.name
        );
        // The rest stays as it is.
        let rest = volume.state.iter().copied().skip_while(|byte| *byte != b'/');
        Ok(major(&self.description.version).bytes().chain(rest).collect())
    }

    async fn mounts(&self, volume: &Volume, _: &Storage) -> Result<(), NoMount> {
        self.sim.point().await;
        let unreadable = || NoMount { why: "unreadable".into(), waits_for_grant: false };
        reads(&self.description.version, &volume.state).then_some(()).ok_or_else(unreadable)
    }
}

impl Sim {
    pub(super) fn driver(&self, name: &str) -> DriverName {
        DriverName::parse(name).expect("a name")
    }

    /// A start: most drivers are there at once, some later, some not at all.
    pub(super) fn take_up_drivers(&self) {
        let mut backend = self.backend.borrow_mut();
        (backend.told, backend.taken_in) = (None, None);
        backend.loaded.clear();
        for name in DRIVERS {
            let is_late = self.is_rude() && self.chance(150);
            if is_late && self.chance(300) {
                continue;
            }
            let late = if is_late { 1 + self.pick(60) as u64 } else { 0 };
            let at = Instant::now() + Duration::from_secs(late);
            let name = self.driver(name);
            let version = self.drivers.borrow()[&name].version.clone();
            backend.loaded.insert(name, (at, version));
        }
    }

    /// The operator unloads a driver, as the loader allows it.
    pub(super) fn unload_driver(&self, volumes: &Volumes<Self>) {
        let name = self.driver(DRIVERS[self.pick(2)]);
        if volumes.needing(&name).is_empty() {
            self.tell(|| format!("driver {name} is unloaded"));
            self.backend.borrow_mut().loaded.remove(&name);
            self.drivers.borrow_mut().get_mut(&name).expect("a row").previous = None;
        }
    }

    /// The operator loads another version of a driver, or goes back to the one before, as the loader does it.
    pub(super) async fn swap_driver(&self, volumes: &Volumes<Self>) -> Result<(), SwapError> {
        let name = self.driver(DRIVERS[self.pick(2)]);
        let _turn = self.turn.lock().await;
        self.until_loaded(&name).await;
        let before = self.drivers.borrow()[&name].clone();
        let is_loaded = self.is_loaded(&name);
        let goes_back = is_loaded && self.chance(400);
        let (states, row) = match before.previous.clone().filter(|_| goes_back) {
            Some(previous) => (States::Back, *previous),
            None => {
                let [major, minor] = self.next_version(&before.version);
                let previous = DriverRow { previous: None, ..before.clone() };
                let previous = is_loaded.then(|| Box::new(previous));
                let version = format!("{major}.{minor}");
                (States::Forward, DriverRow { version, previous, ..before.clone() })
            }
        };
        let version = |version: &str, migrates| SimVersion {
            sim: self,
            description: described(&name, version),
            migrates,
        };
        let old = is_loaded.then(|| version(&before.version, false));
        let new = version(&row.version, self.chance(700));
        let (is_same, migrates) = (major(&row.version) == major(&before.version), new.migrates);
        self.tell(|| format!("{name} {} -> {}, {states:?}", before.version, row.version));
        let loaded = (name.clone(), row.version.clone());
        let own_name = is_loaded.then(|| name.to_string());
        let swap = Swap { driver: &name, own_name, old, new, states };
        let swapped = volumes.swap(swap, row, || {
            let (name, version) = loaded;
            self.backend.borrow_mut().loaded.insert(name, (Instant::now(), version));
        });
        let swapped = swapped.await;
        if !self.is_rude() && states == States::Forward && (is_same || migrates) {
            assert!(swapped.is_ok(), "nothing fails, and yet {name} stays: {swapped:?}");
        }
        swapped
    }

    fn next_version(&self, version: &str) -> [u32; 2] {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().expect("a number"));
        let [major, minor] = [(); 2].map(|()| parts.next().expect("two parts"));
        if self.chance(400) { [major, minor + 1] } else { [major + 1, 0] }
    }

    /// A volume appears in the backend of `tmpfs`, or vanishes from it.
    pub(super) fn change_exports(&self, name: &str) {
        let mut backend = self.backend.borrow_mut();
        if !backend.exports.remove(name) {
            backend.exports.insert(name.to_owned());
        }
        self.tell(|| format!("the backend knows {:?}", backend.exports));
    }

    /// The host's round is over: what `list` told last is what is shown.
    pub(super) fn end_round(&self) {
        let mut backend = self.backend.borrow_mut();
        let is_all = !std::mem::take(&mut backend.was_asked_by_create);
        backend.taken_in = backend.told.clone().filter(|_| is_all);
    }

    /// Whether the driver proposes to keep the data of a volume.
    pub(super) fn retains(id: Id) -> bool {
        id.to_string().starts_with('7')
    }

    pub(super) fn is_loaded(&self, driver: &DriverName) -> bool {
        self.version(driver).is_some()
    }

    /// The version of a driver that is loaded.
    fn version(&self, driver: &DriverName) -> Option<String> {
        let backend = self.backend.borrow();
        let (_, version) = backend.loaded.get(driver).filter(|(at, _)| *at <= Instant::now())?;
        Some(version.clone())
    }

    /// Asks a driver about a volume that is ready: whatever is loaded meanwhile, it is one that can read what it gets.
    fn reads(&self, driver: &DriverName, volume: &Volume) {
        let version = self.version(driver).expect("it is loaded");
        let state = String::from_utf8_lossy(&volume.state);
        assert!(reads(&version, &volume.state), "{driver} {version} cannot read `{state}`");
    }

    /// Begins a call: a driver that is not loaded is not asked, one in a thousand times [`super::world::Odds::driver`] it fails.
    async fn call(&self, driver: &DriverName) -> Result<Option<CallError>, CallError> {
        self.point().await;
        if !self.is_loaded(driver) {
            return Err(CallError::NotLoaded(driver.to_string()));
        }
        let answers = self.chance(500);
        Ok(self.chance(self.odds.driver).then(|| {
            if answers {
                let message = "the backend is away".into();
                CallError::Failed { code: ErrorCode::Unavailable, message }
            } else {
                CallError::TimedOut(Duration::from_secs(2))
            }
        }))
    }
}

impl Drivers for Sim {
    type Root = Root;

    fn names(&self) -> Vec<DriverName> {
        DRIVERS.map(|name| self.driver(name)).into_iter().filter(|d| self.is_loaded(d)).collect()
    }

    fn description(&self, driver: &DriverName) -> Option<Rc<Description>> {
        self.version(driver).map(|version| Rc::new(described(driver, &version)))
    }

    async fn until_loaded(&self, driver: &DriverName) {
        let at = self.backend.borrow().loaded.get(driver).map(|(at, _)| *at);
        if let Some(at) = at {
            tokio::time::sleep_until(at.min(Instant::now() + TAKE_UP)).await;
        }
    }

    fn grants(&self, _: &DriverName) -> Result<Grants, Fault> {
        Ok(Grants::default())
    }

    async fn create(
        &self,
        driver: &DriverName,
        id: Id,
        _: &VolumeName,
        _: &Options,
        _: Scope,
    ) -> Result<Answer<Created>, CallError> {
        let error = self.call(driver).await?;
        let version = self.version(driver).expect("it is loaded");
        if error.is_none() || self.chance(500) {
            self.backend.borrow_mut().made.insert(id);
        }
        self.point().await;
        if let Some(error) = error {
            return Err(error);
        }
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let storage = match driver.as_str() {
            "tmpfs" => Storage::None,
            _ => Storage::Directory(Directory { owner, limit: None, over: None }),
        };
        Ok(Created { storage, state: major(&version).into() }.into())
    }

    async fn populate(
        &self,
        driver: &DriverName,
        volume: &Volume,
        root: Root,
        _: Scope,
    ) -> Result<Answer<Vec<u8>>, CallError> {
        let error = self.call(driver).await?;
        let before = self.kernel.borrow_mut().fills.insert(root.1, Fill::Begun);
        assert_eq!(before, Some(Fill::Empty), "{} is filled, and was not empty", root.1);
        self.point().await;
        if let Some(error) = error {
            return Err(error);
        }
        self.kernel.borrow_mut().fills.insert(root.1, Fill::Filled);
        self.point().await;
        Ok([&volume.state, &b"/filled"[..]].concat().into())
    }

    async fn remove(
        &self,
        driver: &DriverName,
        volume: &Volume,
        _: Scope,
    ) -> Result<Answer<Reclaim>, CallError> {
        if let Some(error) = self.call(driver).await? {
            if matches!(error, CallError::TimedOut(_)) && self.chance(500) {
                self.backend.borrow_mut().made.remove(&volume.id);
            }
            return Err(error);
        }
        self.backend.borrow_mut().made.remove(&volume.id);
        self.point().await;
        assert!(
            !self.backend.borrow().attached.contains(&volume.id),
            "{} goes attached",
            volume.id
        );
        Ok(if Self::retains(volume.id) { Reclaim::Retain } else { Reclaim::Delete }.into())
    }

    async fn path(&self, driver: &DriverName, volume: &Volume) -> Result<Plan, CallError> {
        if let Some(error) = self.call(driver).await? {
            return Err(error);
        }
        self.reads(driver, volume);
        let owner = Owner { uid: 0, gid: 0, mode: 0o1777 };
        let source = match driver.as_str() {
            "tmpfs" => Source::Tmpfs(Tmpfs { size: None, inodes: None, owner }),
            _ => Source::Storage,
        };
        Ok(Plan { source, read_only: false, no_exec: false, subpath: None, id_map: None })
    }

    fn finds(&self, driver: &DriverName) -> bool {
        driver.as_str() == "tmpfs"
    }

    async fn list(
        &self,
        driver: &DriverName,
        _: Scope,
        within: Duration,
    ) -> Result<Vec<Found>, CallError> {
        if let Some(error) = self.call(driver).await? {
            return Err(error);
        }
        if driver.as_str() != "tmpfs" {
            return Ok(Vec::new());
        }
        let version = self.version(driver).expect("it is loaded");
        let mut backend = self.backend.borrow_mut();
        if within < SLOW {
            (backend.was_asked_by_create, backend.taken_in) = (true, None);
        } else {
            (backend.told, backend.taken_in) = (Some(backend.exports.clone()), None);
        }
        let found = backend.exports.iter().map(|name| Found {
            name: name.clone(),
            // Some backends know ids, some names alone.
            id: (name == "ee").then(|| Id::from_bits(0xee)),
            options: [("size".to_owned(), Value::Size(1 << 20))].into(),
            state: major(&version).into(),
            owned: false,
        });
        Ok(found.collect())
    }

    fn abilities(&self, driver: &DriverName) -> Option<Abilities> {
        let attachment = driver.as_str() == "tmpfs";
        let population = !attachment;
        let abilities = Abilities { attachment, population, ..Abilities::default() };
        self.is_loaded(driver).then_some(abilities)
    }

    async fn attach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        _: Scope,
    ) -> Result<Answer<Progress>, CallError> {
        let error = self.call(driver).await?;
        self.reads(driver, volume);
        if error.is_none() || self.chance(500) {
            self.backend.borrow_mut().attached.insert(volume.id);
        }
        let version = self.version(driver).expect("it is loaded");
        self.point().await;
        error.map_or_else(|| Ok(self.step_of(&version).into()), Err)
    }

    async fn detach(
        &self,
        driver: &DriverName,
        volume: &Volume,
        _: Scope,
    ) -> Result<Answer<Progress>, CallError> {
        if let Some(error) = self.call(driver).await? {
            return Err(error);
        }
        let version = self.version(driver).expect("it is loaded");
        let progress = self.step_of(&version);
        if matches!(progress, Progress::Done(_)) {
            self.backend.borrow_mut().attached.remove(&volume.id);
        }
        self.point().await;
        Ok(progress.into())
    }

    async fn resize(
        &self,
        _: &DriverName,
        _: &Volume,
        _: u64,
        _: Scope,
    ) -> Result<Answer<Resized>, CallError> {
        Err(CallError::Unable("resize".into()))
    }

    async fn check(&self, _: &DriverName, _: &Volume, _: Scope) -> Result<Report, CallError> {
        Err(CallError::Unable("check".into()))
    }
}

impl Sim {
    /// Some steps are the last; after the others the driver wants to be asked again.
    fn step_of(&self, version: &str) -> Progress {
        let state = format!("{}/{}", major(version), self.pick(3)).into_bytes();
        if self.chance(700) {
            return Progress::Done(state);
        }
        Progress::Again { state, after: Duration::from_secs(1 + self.pick(5) as u64) }
    }
}
