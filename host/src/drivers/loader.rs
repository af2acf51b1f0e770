//! How drivers come and go while the daemon runs: taken up at start, loaded, replaced, unloaded.
//!
//! Called by the daemon at start and by the admin API. One change of a driver at a time; those of two never wait for each other. A
//! driver that live volumes depend on is replaced only by one that reads what the old one wrote of them and whose plan for each passes
//! its grants; otherwise the old one stays. Its component is kept until the next load, for a rollback.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use wasmvol_driver::{Driver, LoadError};
use wasmvol_plan::{DriverName, Fault, Grants, NameError};

use crate::admin::types::Changed;
use crate::catalog::durable::Catalog;
use crate::catalog::{Change, DriverRow, Origin, StoreError};
use crate::drivers::components::{Components, Held, digests};
use crate::drivers::{Candidate, Drivers, Loaded, shelf};
use crate::volumes::swap::{States, Swap, SwapError, some_of};
use crate::volumes::world::{Catalog as _, Drivers as _, Machine as _, World};
use crate::volumes::{Volumes, options};

/// Loads and unloads.
pub(crate) struct Loader<W: World> {
    volumes: Rc<Volumes<W>>,
    catalog: Rc<Catalog>,
    drivers: Rc<Drivers>,
    machine: Rc<crate::machine::Machine>,
    /// What came with wasmvol, each with the digest of its component.
    shipped: RefCell<BTreeMap<DriverName, String>>,
    /// Each held for one change of a driver.
    turns: RefCell<HashMap<DriverName, Arc<Mutex<()>>>>,
    components: Components,
    /// The component that was looked into last.
    opened: RefCell<Option<String>>,
}

/// Why a driver was not loaded or unloaded. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the driver calls itself {0}: give it another name with `--name`")]
    OwnName(NameError),
    #[error("its description has a default that no volume could have: {0}")]
    Default(String),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("volume `{volume}` could not be mounted any more: {why}")]
    Needed { volume: String, why: String },
    #[error(transparent)]
    Grants(#[from] Fault),
    #[error("component cannot be kept: {0}")]
    Shelf(#[from] std::io::Error),
    #[error("its component cannot be read: {0}")]
    Lost(std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no driver `{0}` is loaded: see `wasmvol driver ls`")]
    NotLoaded(DriverName),
    #[error("driver `{0}` is not loaded: {1}")]
    Failed(DriverName, String),
    #[error("driver `{0}` has no setting `{1}`: see `wasmvol driver inspect {0}`")]
    NoSetting(DriverName, String),
    #[error(
        "driver `{0}`: there is nothing to go back to: what a load replaced is kept until another component is loaded, or a rollback"
    )]
    NothingBefore(DriverName),
    #[error("driver `{0}` has {1}: remove them first")]
    InUse(DriverName, String),
}

/// What is to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The name to load it under; its own if none is given.
    pub(crate) name: Option<DriverName>,
    pub(crate) changed: Changed,
    pub(crate) origin: Option<Origin>,
    pub(crate) component: Arc<[u8]>,
}

impl<W: World> Loader<W> {
    /// A loader over the parts of this daemon, which keeps components in a directory.
    pub(crate) fn new(
        volumes: Rc<Volumes<W>>,
        catalog: Rc<Catalog>,
        drivers: Rc<Drivers>,
        machine: Rc<crate::machine::Machine>,
        components: &Path,
    ) -> Rc<Self> {
        let components = Components::new(Rc::clone(&drivers), components);
        Rc::new(Self {
            volumes,
            catalog,
            drivers,
            machine,
            shipped: RefCell::default(),
            turns: RefCell::default(),
            components,
            opened: RefCell::default(),
        })
    }

    /// Waits until nobody else changes a driver.
    async fn turn(&self, name: &DriverName) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.borrow_mut();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(name.clone()).or_default())
        };
        turn.lock_owned().await
    }

    /// Takes up what was loaded before, then what came with wasmvol in `first_party`. What fails is logged: its volumes wait.
    pub(crate) async fn take_up(&self, rows: Vec<DriverRow>, first_party: Option<&Path>) {
        // What the operator loaded is never replaced by what came with wasmvol, also where it fails today, and what they unloaded
        // does not come back.
        let mut operators = BTreeSet::new();
        for row in rows {
            let name = row.name.clone();
            if !row.first_party || row.unloaded {
                operators.insert(name.clone());
            }
            if !row.unloaded
                && let Err(e) = self.restore(row.clone()).await
            {
                tracing::error!("driver {name} is not loaded, its volumes cannot change: {e}");
                self.drivers.fail(row, e.to_string());
            }
        }
        let shipped = first_party.map(components_in).unwrap_or_default();
        *self.shipped.borrow_mut() =
            shipped.iter().map(|(name, bytes)| (name.clone(), shelf::digest(bytes))).collect();
        for (name, component) in shipped {
            if !operators.contains(&name)
                && let Err(e) = self.adopt(&name, component).await
            {
                tracing::error!("what came with wasmvol as driver {name} is not loaded: {e}");
                self.drivers.keep_out(&name, e.to_string());
            }
        }
        self.components.sweep().await;
        self.drivers.end_take_up();
    }

    /// Loads a driver, or replaces the one of that name.
    pub(crate) async fn load(&self, request: Request) -> Result<DriverRow, LoaderError> {
        let digest = shelf::digest(&request.component);
        let loaded = self.load_it(request, &digest).await;
        if loaded.is_err() {
            self.components.forget(&digest).await;
        }
        loaded
    }

    async fn load_it(&self, request: Request, digest: &str) -> Result<DriverRow, LoaderError> {
        let Request { name, origin, component, .. } = &request;
        let (origin, component) = (origin.clone(), Arc::clone(component));
        let name = match name {
            Some(name) => name.clone(),
            None => self.own_name(&component).await?,
        };
        let _turn = self.turn(&name).await;
        let held = self.components.hold(digest);
        let old = self.drivers.row(&name);
        let (driver, settings) = self.with_settings(&name, &request, old.as_ref()).await?;
        check_defaults(&name, &driver)?;
        // Who loads it again, for its settings perhaps, wants to go back to what was there before it.
        let (states, previous) = match old {
            Some(old) if old.digest == digest => {
                let is_same = old.settings == settings;
                (if is_same { States::Same } else { States::Stay }, old.previous)
            }
            Some(old) if self.is_lost(&old).await => (States::PastLost, old.previous),
            Some(old) => (States::Forward, Some(Box::new(DriverRow { previous: None, ..old }))),
            None => (States::Forward, None),
        };
        let row = DriverRow {
            first_party: self.is_shipped(&name, digest),
            name,
            digest: digest.to_owned(),
            version: driver.description().version.clone(),
            own_name: None,
            settings,
            loaded_at: self.machine.now(),
            unloaded: false,
            origin,
            previous,
        };
        self.components.keep(digest, component).await?;
        let loaded = self.replace(driver, row, states, held).await?;
        self.drivers.settle(&loaded.name);
        Ok(loaded)
    }

    /// Whether a driver that could not be loaded cannot be rolled back to either.
    async fn is_lost(&self, row: &DriverRow) -> bool {
        self.drivers.get(&row.name).is_none() && self.components.read(&row.digest).await.is_err()
    }

    /// Whether a component is the one of that name that came with wasmvol. Who unloaded it, and loads it again, has it as it was.
    fn is_shipped(&self, name: &DriverName, digest: &str) -> bool {
        self.shipped.borrow().get(name).is_some_and(|shipped| shipped == digest)
    }

    /// Makes a driver of a component, with the settings that it has by then: those of before stay, as its grants do, unless they were of
    /// something that calls itself otherwise.
    async fn with_settings(
        &self,
        name: &DriverName,
        request: &Request,
        old: Option<&DriverRow>,
    ) -> Result<(Driver, BTreeMap<String, String>), LoaderError> {
        let Request { changed, component, .. } = request;
        let before = old.map(|old| old.settings.clone()).unwrap_or_default();
        let settings = changed_to(name, before, changed)?;
        // What calls itself otherwise never sees those of this one.
        let driver = self.drivers.prepare(name, component, &changed.settings).await?;
        let own_name = old.and_then(|old| old.own_name.as_ref());
        let is_its = own_name.is_none_or(|name| *name == driver.description().name);
        if !is_its || settings == changed.settings {
            return Ok((driver, changed.settings.clone()));
        }
        Ok((self.drivers.prepare(name, component, &settings).await?, settings))
    }

    /// Gives a driver other settings. It stays the version that it is, and a rollback goes where it went before.
    pub(crate) async fn set(
        &self,
        name: &DriverName,
        changed: &Changed,
    ) -> Result<DriverRow, LoaderError> {
        let _turn = self.turn(name).await;
        let row = self.drivers.row(name).ok_or_else(|| LoaderError::NotLoaded(name.clone()))?;
        let settings = changed_to(name, row.settings.clone(), changed)?;
        let states = if settings == row.settings { States::Same } else { States::Stay };
        let row = DriverRow { settings, ..row };
        let driver = self.prepare_again(&row).await?;
        // What it describes may depend on them.
        check_defaults(name, &driver)?;
        let held = self.components.hold(&row.digest);
        self.replace(driver, row, states, held).await
    }

    /// Makes a driver of a component that is kept.
    async fn prepare_again(&self, row: &DriverRow) -> Result<Driver, LoaderError> {
        let component = self.components.read(&row.digest).await.map_err(LoaderError::Lost)?;
        Ok(self.drivers.prepare(&row.name, &component.into(), &row.settings).await?)
    }

    /// Brings back what was loaded before, with its settings and the states that it left.
    pub(crate) async fn rollback(&self, name: &DriverName) -> Result<DriverRow, LoaderError> {
        let _turn = self.turn(name).await;
        let row = self.drivers.row(name).ok_or_else(|| LoaderError::NotLoaded(name.clone()))?;
        let row = *row.previous.ok_or_else(|| LoaderError::NothingBefore(name.clone()))?;
        let driver = self.prepare_again(&row).await?;
        let first_party = self.is_shipped(name, &row.digest);
        let row = DriverRow { loaded_at: self.machine.now(), first_party, ..row };
        let held = self.components.hold(&row.digest);
        self.replace(driver, row, States::Back, held).await
    }

    /// Puts one version in the place of another, or of none. What is not needed any more, or was refused, is deleted.
    async fn replace(
        &self,
        driver: Driver,
        row: DriverRow,
        states: States,
        held: Held<'_>,
    ) -> Result<DriverRow, LoaderError> {
        let (name, digest) = (row.name.clone(), row.digest.clone());
        self.drivers.grants(&name)?;
        let (old, before) = (self.drivers.get(&name), self.drivers.row(&name));
        let loaded = self.drivers.made_of(driver, row);
        let row = loaded.row.clone();
        let candidate = |loaded| Candidate { drivers: &self.drivers, loaded };
        let swap = Swap {
            driver: &name,
            own_name: before.as_ref().and_then(|before| before.own_name.clone()),
            old: old.map(candidate),
            new: candidate(loaded.clone()),
            states,
        };
        let swapped =
            self.volumes.swap(swap, row.clone(), || self.drivers.put(loaded.clone())).await;
        drop(held);
        let before = before.map(|row| digests(&row).map(str::to_owned).collect::<Vec<_>>());
        for digest in before.into_iter().flatten().chain([digest]) {
            self.components.forget(&digest).await;
        }
        swapped?;
        tracing::info!("driver {name} {} is loaded", row.version);
        Ok(row)
    }

    /// Whether every volume that can be mounted with what a driver was granted could be with this, too.
    pub(crate) async fn check_grants(
        &self,
        name: &DriverName,
        granted: &str,
    ) -> Result<(), LoaderError> {
        let _turn = self.turn(name).await;
        self.weigh(name, Grants::parse(name, granted)?).await
    }

    /// Takes note of grants that the operator has changed, unless a volume could be mounted before and could not be any more: one may
    /// have come since [`Self::check_grants`].
    pub(crate) async fn regrant(&self, name: &DriverName) -> Result<(), LoaderError> {
        let _turn = self.turn(name).await;
        let granted = self.drivers.grants(name)?;
        self.weigh(name, granted.clone()).await?;
        self.drivers.note_grants(name, granted);
        Ok(())
    }

    async fn weigh(&self, name: &DriverName, granted: Grants) -> Result<(), LoaderError> {
        let Some(loaded) = self.drivers.get(name) else {
            return Err(match self.drivers.known(name).map(|known| known.driver) {
                Some(Err(why)) => LoaderError::Failed(name.clone(), why),
                _ => LoaderError::NotLoaded(name.clone()),
            });
        };
        let candidate = |loaded| Candidate { drivers: &self.drivers, loaded };
        let new = candidate(Loaded { granted, ..loaded.clone() });
        let (own_name, old, states) = (None, Some(candidate(loaded)), States::Stay);
        let swap = Swap { driver: name, own_name, old, new, states };
        self.volumes.check(swap).await.map_err(|e| match e {
            SwapError::Volume { volume, why, .. } => LoaderError::Needed { volume, why },
            other => other.into(),
        })
    }

    /// Unloads a driver that has no volumes. What came with wasmvol under that name stays away after a restart, too.
    pub(crate) async fn unload(&self, name: &DriverName) -> Result<(), LoaderError> {
        let _turn = self.turn(name).await;
        let row = self.drivers.row(name).ok_or_else(|| LoaderError::NotLoaded(name.clone()))?;
        let volumes = self.volumes.needing(name);
        if !volumes.is_empty() {
            return Err(LoaderError::InUse(name.clone(), some_of(&volumes)));
        }
        // Before the commit: from here on no volume can be made with it.
        let taken = self.drivers.take(name);
        let change = if row.first_party || self.shipped.borrow().contains_key(name) {
            // Its row stays, and what it stored goes.
            let row = DriverRow { unloaded: true, previous: None, ..row.clone() };
            Change::Together(vec![
                Change::DeleteDriver(name.clone()),
                Change::PutDriver(Box::new(row)),
            ])
        } else {
            Change::DeleteDriver(name.clone())
        };
        if let Err(e) = self.catalog.commit(change).await {
            self.drivers.put_back(taken);
            return Err(e.into());
        }
        self.volumes.forget_store(name);
        self.drivers.settle(name);
        for digest in digests(&row) {
            self.components.forget(digest).await;
        }
        tracing::info!("driver {name} is unloaded");
        Ok(())
    }

    async fn restore(&self, row: DriverRow) -> Result<(), LoaderError> {
        let driver = self.prepare_again(&row).await?;
        let is_of_before = row.own_name.is_none();
        let loaded = self.drivers.made_of(driver, row);
        // Rows of before say nothing of that, and some day the component may be gone.
        if is_of_before {
            self.catalog.commit(Change::PutDriver(Box::new(loaded.row.clone()))).await?;
        }
        self.drivers.put(loaded);
        Ok(())
    }

    /// Loads a first-party component unless it is loaded already.
    async fn adopt(&self, name: &DriverName, component: Vec<u8>) -> Result<(), LoaderError> {
        let row = self.drivers.get(name).map(|loaded| loaded.row);
        if row.is_some_and(|row| row.digest == shelf::digest(&component)) {
            return Ok(());
        }
        let (name, component) = (Some(name.clone()), component.into());
        let request = Request { name, changed: Changed::default(), origin: None, component };
        self.load(request).await.map(drop)
    }

    async fn own_name(&self, component: &Arc<[u8]>) -> Result<DriverName, LoaderError> {
        let driver = self.open(Arc::clone(component)).await?;
        DriverName::parse(&driver.description().name).map_err(LoaderError::OwnName)
    }

    /// What a component is, without loading it. What was compiled for that is kept until another one is opened: as a rule it is loaded next.
    pub(crate) async fn open(&self, component: Arc<[u8]>) -> Result<Driver, LoaderError> {
        let digest = shelf::digest(&component);
        let held = self.components.hold(&digest);
        let before = self.opened.replace(Some(digest.clone())).filter(|before| *before != digest);
        if let Some(before) = before {
            self.components.forget(&before).await;
        }
        // Only the log shows this name.
        let unnamed = DriverName::parse("unnamed").map_err(LoaderError::OwnName)?;
        let opened = self.drivers.prepare(&unnamed, &component, &BTreeMap::new()).await;
        drop(held);
        // Another one may have been looked into meanwhile.
        if opened.is_err() || self.opened.borrow().as_ref() != Some(&digest) {
            self.components.forget(&digest).await;
        }
        Ok(opened?)
    }
}

fn check_defaults(name: &DriverName, driver: &Driver) -> Result<(), LoaderError> {
    let checked = options::check_defaults(name, driver.description());
    checked.map_err(|why| LoaderError::Default(why.to_string()))
}

/// What the settings of a driver become.
fn changed_to(
    name: &DriverName,
    mut settings: BTreeMap<String, String>,
    changed: &Changed,
) -> Result<BTreeMap<String, String>, LoaderError> {
    for key in &changed.unset {
        let absent = || LoaderError::NoSetting(name.clone(), key.clone());
        settings.remove(key).ok_or_else(absent)?;
    }
    settings.extend(changed.settings.clone());
    Ok(settings)
}

/// The components in a directory, by name; what cannot be read or has no driver's name is logged.
fn components_in(dir: &Path) -> BTreeMap<DriverName, Vec<u8>> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            tracing::error!("the drivers that came with wasmvol cannot be read: {e}");
            return found;
        }
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = DriverName::parse(&stem.unwrap_or_default());
        match (name, std::fs::read(&path)) {
            (Ok(name), Ok(component)) => drop(found.insert(name, component)),
            (Err(e), _) => tracing::warn!("{}: {e}", path.display()),
            (_, Err(e)) => tracing::warn!("{}: {e}", path.display()),
        }
    }
    found
}
