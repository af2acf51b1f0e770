//! How drivers come and go while the daemon runs: taken up at start, loaded, replaced, unloaded.
//!
//! Called by the daemon at start and by the admin API. One change of a driver at a time; those of two never wait for each other. A driver that live volumes depend on is replaced only
//! by one that reads what the old one wrote of them and whose plan for each passes its grants; otherwise the old one stays. Its component
//! is kept until the next load, for a rollback.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use wasmvol_driver::{Driver, LoadError};
use wasmvol_plan::{DriverName, Fault, NameError};

use crate::catalog::durable::Catalog;
use crate::catalog::{Change, DriverRow, Origin, StoreError};
use crate::drivers::{Candidate, Drivers, Loaded, blocking, shelf};
use crate::volumes::Volumes;
use crate::volumes::swap::{States, Swap, SwapError, some_of};
use crate::volumes::world::{Catalog as _, Drivers as _, Machine as _, World};

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
    /// Components that are kept for drivers which are not loaded yet.
    coming: RefCell<Vec<String>>,
    /// Held while a component is written to the shelf, or taken from it.
    shelf: Mutex<()>,
}

/// Why a driver was not loaded or unloaded. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the driver calls itself {0}: give it another name with `--name`")]
    OwnName(NameError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("volume `{volume}` could not be mounted any more: {why}")]
    Needed { volume: String, why: String },
    #[error(transparent)]
    Grants(#[from] Fault),
    #[error("component cannot be kept: {0}")]
    Shelf(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no driver `{0}` is loaded: see `wasmvol driver ls`")]
    NotLoaded(DriverName),
    #[error(
        "driver `{0}`: there is nothing to go back to: what a load replaced is kept until the next load, or a rollback"
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
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) origin: Option<Origin>,
    pub(crate) component: Arc<[u8]>,
}

impl<W: World> Loader<W> {
    /// A loader over the parts of this daemon.
    pub(crate) fn new(
        volumes: Rc<Volumes<W>>,
        catalog: Rc<Catalog>,
        drivers: Rc<Drivers>,
        machine: Rc<crate::machine::Machine>,
    ) -> Rc<Self> {
        Rc::new(Self {
            volumes,
            catalog,
            drivers,
            machine,
            shipped: RefCell::default(),
            turns: RefCell::default(),
            coming: RefCell::default(),
            shelf: Mutex::default(),
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
                && let Err(e) = self.restore(row).await
            {
                tracing::error!("driver {name} is not loaded, its volumes cannot change: {e}");
            }
        }
        let shipped = first_party.map(components_in).unwrap_or_default();
        *self.shipped.borrow_mut() =
            shipped.iter().map(|(name, bytes)| (name.clone(), shelf::digest(bytes))).collect();
        for (name, component) in shipped {
            if !operators.contains(&name)
                && let Err(e) = self.adopt(&name, component).await
            {
                tracing::error!("driver {name} that came with wasmvol is not loaded: {e}");
            }
        }
        self.sweep().await;
        self.drivers.end_take_up();
    }

    /// Deletes the components that a crash has left behind.
    async fn sweep(&self) {
        let needed: BTreeSet<String> = match self.catalog.contents().await {
            Ok(contents) => contents.drivers.iter().flat_map(digests).map(str::to_owned).collect(),
            Err(_) => return,
        };
        let (shelf, engine) = (self.drivers.shelf.clone(), self.drivers.engine.clone());
        let sweep = move || shelf.keep_only(&needed).and_then(|()| engine.keep_only(&needed));
        if let Err(e) = blocking(sweep).await {
            tracing::warn!("components that are not used any more cannot be deleted: {e}");
        }
    }

    /// Loads a driver, or replaces the one of that name.
    pub(crate) async fn load(&self, request: Request) -> Result<DriverRow, LoaderError> {
        let Request { name, settings, origin, component } = request;
        let name = match name {
            Some(name) => name,
            None => self.own_name(&component).await?,
        };
        let _turn = self.turn(&name).await;
        let prepared = self.drivers.prepare(&name, Arc::clone(&component), settings.clone());
        let driver = prepared.await?;
        let old = self.drivers.get(&name).map(|loaded| loaded.row);
        // Who loads it again, for its grants perhaps, wants to go back to what was there before it.
        let is_same = |old: &DriverRow| old.digest == driver.digest() && old.settings == settings;
        let (states, previous) = match old {
            Some(old) if is_same(&old) => (States::Stay, old.previous),
            Some(old) => (States::Forward, Some(Box::new(DriverRow { previous: None, ..old }))),
            None => (States::Forward, None),
        };
        let row = DriverRow {
            name,
            digest: driver.digest().to_owned(),
            version: driver.description().version.clone(),
            settings,
            loaded_at: self.machine.now(),
            first_party: false,
            unloaded: false,
            origin,
            previous,
        };
        let coming = Coming::new(&self.coming, &row.digest);
        self.keep_component(&row.digest, component).await?;
        self.replace(driver, row, states, coming).await
    }

    /// Brings back what was loaded before, with its settings and the states that it left.
    pub(crate) async fn rollback(&self, name: &DriverName) -> Result<DriverRow, LoaderError> {
        let _turn = self.turn(name).await;
        let loaded = self.drivers.get(name).ok_or_else(|| LoaderError::NotLoaded(name.clone()))?;
        let previous = loaded.row.previous;
        let row = *previous.ok_or_else(|| LoaderError::NothingBefore(name.clone()))?;
        let (shelf, digest) = (self.drivers.shelf.clone(), row.digest.clone());
        let component = blocking(move || shelf.read(&digest)).await?.into();
        let driver = self.drivers.prepare(name, component, row.settings.clone()).await?;
        let row = DriverRow { loaded_at: self.machine.now(), ..row };
        let coming = Coming::new(&self.coming, &row.digest);
        self.replace(driver, row, States::Back, coming).await
    }

    /// Puts one version in the place of another, or of none. What is not needed any more, or was refused, is deleted.
    async fn replace(
        &self,
        driver: Driver,
        row: DriverRow,
        states: States,
        coming: Coming<'_>,
    ) -> Result<DriverRow, LoaderError> {
        let (name, digest) = (row.name.clone(), row.digest.clone());
        // Who unloaded it, and loads it again, has it as it was.
        let first_party = self.shipped.borrow().get(&name).is_some_and(|d| *d == digest);
        let row = DriverRow { first_party, ..row };
        self.drivers.grants(&name)?;
        let old = self.drivers.get(&name);
        let loaded = self.drivers.made_of(driver, row.clone());
        let candidate = |loaded| Candidate { drivers: &self.drivers, loaded };
        let swap = Swap {
            driver: &name,
            old: old.clone().map(candidate),
            new: candidate(loaded.clone()),
            states,
        };
        let swapped =
            self.volumes.swap(swap, row.clone(), || self.drivers.put(loaded.clone())).await;
        drop(coming);
        let before = old.map(|old| digests(&old.row).map(str::to_owned).collect::<Vec<_>>());
        for digest in before.into_iter().flatten().chain([digest]) {
            self.forget_component(&digest).await;
        }
        swapped?;
        tracing::info!("driver {name} {} is loaded", row.version);
        Ok(row)
    }

    /// Takes note of grants that the operator has changed, unless a volume could be mounted before and could not be any more.
    pub(crate) async fn regrant(&self, name: &DriverName) -> Result<(), LoaderError> {
        let _turn = self.turn(name).await;
        let loaded = self.drivers.get(name).ok_or_else(|| LoaderError::NotLoaded(name.clone()))?;
        let granted = self.drivers.grants(name)?;
        let candidate = |loaded| Candidate { drivers: &self.drivers, loaded };
        let new = candidate(Loaded { granted: granted.clone(), ..loaded.clone() });
        let (old, states) = (Some(candidate(loaded)), States::Stay);
        self.volumes.check(Swap { driver: name, old, new, states }).await.map_err(|e| match e {
            SwapError::Volume { volume, why, .. } => LoaderError::Needed { volume, why },
            other => other.into(),
        })?;
        self.drivers.note_grants(name, granted);
        Ok(())
    }

    /// Unloads a driver that has no volumes. What came with wasmvol under that name stays away after a restart, too.
    pub(crate) async fn unload(&self, name: &DriverName) -> Result<(), LoaderError> {
        let _turn = self.turn(name).await;
        if self.drivers.get(name).is_none() {
            return Err(LoaderError::NotLoaded(name.clone()));
        }
        let volumes = self.volumes.needing(name);
        if !volumes.is_empty() {
            return Err(LoaderError::InUse(name.clone(), some_of(&volumes)));
        }
        // Before the commit: from here on no volume can be made with it.
        let Some(old) = self.drivers.take(name) else { return Ok(()) };
        let change = if old.row.first_party || self.shipped.borrow().contains_key(name) {
            // Its row stays, and what it stored goes.
            let row = DriverRow { unloaded: true, previous: None, ..old.row.clone() };
            Change::Together(vec![
                Change::DeleteDriver(name.clone()),
                Change::PutDriver(Box::new(row)),
            ])
        } else {
            Change::DeleteDriver(name.clone())
        };
        if let Err(e) = self.catalog.commit(change).await {
            self.drivers.put(old);
            return Err(e.into());
        }
        self.volumes.forget_store(name);
        for digest in digests(&old.row) {
            self.forget_component(digest).await;
        }
        tracing::info!("driver {name} is unloaded");
        Ok(())
    }

    async fn restore(&self, row: DriverRow) -> Result<(), LoaderError> {
        let (shelf, digest) = (self.drivers.shelf.clone(), row.digest.clone());
        let component: Arc<[u8]> = blocking(move || shelf.read(&digest)).await?.into();
        let driver = self.drivers.prepare(&row.name, component, row.settings.clone()).await?;
        self.drivers.put(self.drivers.made_of(driver, row));
        Ok(())
    }

    /// Loads a first-party component unless it is loaded already.
    async fn adopt(&self, name: &DriverName, component: Vec<u8>) -> Result<(), LoaderError> {
        let row = self.drivers.get(name).map(|loaded| loaded.row);
        if row.as_ref().is_some_and(|r| r.digest == shelf::digest(&component)) {
            return Ok(());
        }
        let settings = row.map(|row| row.settings).unwrap_or_default();
        let component = component.into();
        let name = Some(name.clone());
        self.load(Request { name, settings, origin: None, component }).await.map(drop)
    }

    async fn own_name(&self, component: &Arc<[u8]>) -> Result<DriverName, LoaderError> {
        let driver = self.open(Arc::clone(component)).await?;
        DriverName::parse(&driver.description().name).map_err(LoaderError::OwnName)
    }

    /// What a component is, without loading it.
    pub(crate) async fn open(&self, component: Arc<[u8]>) -> Result<Driver, LoaderError> {
        // Only the log shows this name.
        let unnamed = DriverName::parse("unnamed").map_err(LoaderError::OwnName)?;
        Ok(self.drivers.prepare(&unnamed, component, BTreeMap::new()).await?)
    }

    async fn keep_component(&self, digest: &str, component: Arc<[u8]>) -> std::io::Result<()> {
        let _shelf = self.shelf.lock().await;
        let (shelf, digest) = (self.drivers.shelf.clone(), digest.to_owned());
        blocking(move || shelf.keep(&digest, &component)).await
    }

    /// Deletes a component that no driver needs any more, loaded or about to be.
    async fn forget_component(&self, digest: &str) {
        let _shelf = self.shelf.lock().await;
        let needed = |loaded: &Loaded| digests(&loaded.row).any(|needed| needed == digest);
        let is_coming = self.coming.borrow().iter().any(|coming| coming == digest);
        if is_coming || self.drivers.all().iter().any(needed) {
            return;
        }
        let (shelf, engine) = (self.drivers.shelf.clone(), self.drivers.engine.clone());
        let digest = digest.to_owned();
        let forget = move || shelf.forget(&digest).and_then(|()| engine.forget(&digest));
        if let Err(e) = blocking(forget).await {
            tracing::warn!("a component that is not used any more cannot be deleted: {e}");
        }
    }
}

/// A component that is kept although no driver that is loaded needs it, until this is dropped.
struct Coming<'a> {
    all: &'a RefCell<Vec<String>>,
    digest: String,
}

impl<'a> Coming<'a> {
    fn new(all: &'a RefCell<Vec<String>>, digest: &str) -> Self {
        all.borrow_mut().push(digest.to_owned());
        Self { all, digest: digest.to_owned() }
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        if let Some(at) = all.iter().position(|digest| *digest == self.digest) {
            all.swap_remove(at);
        }
    }
}

/// The components that a row needs: what is loaded, and what a rollback brings back.
fn digests(row: &DriverRow) -> impl Iterator<Item = &str> {
    let previous = row.previous.iter().map(|previous| previous.digest.as_str());
    [row.digest.as_str()].into_iter().chain(previous)
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
