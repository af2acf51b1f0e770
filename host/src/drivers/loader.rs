//! How drivers come and go while the daemon runs: taken up at start, loaded, replaced, unloaded.
//!
//! Called by the daemon at start and by the admin API. One change at a time. A driver that live volumes depend on is replaced only
//! by one whose plan for each of them passes its grants; otherwise the old one stays.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use wasmvol_driver::{Description, Driver, LoadError, Volume};
use wasmvol_plan::{DriverName, Fault, Grants, NameError};

use crate::catalog::durable::Catalog;
use crate::catalog::record::{Phase, Record};
use crate::catalog::{Change, DriverRow, Origin, StoreError};
use crate::drivers::{Drivers, blocking, shelf};
use crate::volumes::Volumes;
use crate::volumes::world::{Catalog as _, Drivers as _, Machine as _, World};

/// Volumes named in a refusal; the rest is counted.
const NAMED_MAX: usize = 3;

/// Loads and unloads.
pub(crate) struct Loader<W: World> {
    volumes: Rc<Volumes<W>>,
    catalog: Rc<Catalog>,
    drivers: Rc<Drivers>,
    machine: Rc<crate::machine::Machine>,
    /// What came with wasmvol, each with the digest of its component.
    shipped: RefCell<BTreeMap<DriverName, String>>,
    /// Held for one change.
    turn: tokio::sync::Mutex<()>,
}

/// Why a driver was not loaded or unloaded. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the driver calls itself {0}: give it another name with `--name`")]
    OwnName(NameError),
    #[error(
        "it calls itself `{new}`, and the volumes of `{name}` were made by `{old}`: load it under another name"
    )]
    Another { name: DriverName, old: String, new: String },
    #[error("volume `{volume}` could not be mounted with it, so the old version stays: {why}")]
    Volume { volume: String, why: String },
    #[error(transparent)]
    Grants(#[from] Fault),
    #[error("component cannot be kept: {0}")]
    Shelf(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no driver `{0}` is loaded: see `wasmvol driver ls`")]
    NotLoaded(DriverName),
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
        let (shipped, turn) = (RefCell::default(), tokio::sync::Mutex::default());
        Rc::new(Self { volumes, catalog, drivers, machine, shipped, turn })
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
        self.drivers.end_take_up();
    }

    /// Loads a driver, or replaces the one of that name.
    pub(crate) async fn load(&self, request: Request) -> Result<DriverRow, LoaderError> {
        let _turn = self.turn.lock().await;
        let name = match request.name {
            Some(name) => name,
            None => self.own_name(&request.component).await?,
        };
        let component = Arc::clone(&request.component);
        let driver = self.drivers.prepare(&name, component, request.settings.clone()).await?;
        self.check_volumes(&name, &driver).await?;
        let row = DriverRow {
            name: name.clone(),
            digest: driver.digest().to_owned(),
            version: driver.description().version.clone(),
            settings: request.settings,
            loaded_at: self.machine.now(),
            // Who unloaded it, and loads it again, has it as it was.
            first_party: self.shipped.borrow().get(&name).is_some_and(|d| d == driver.digest()),
            unloaded: false,
            origin: request.origin,
        };
        let (shelf, digest) = (self.drivers.shelf.clone(), row.digest.clone());
        let component = request.component;
        blocking(move || shelf.keep(&digest, &component)).await?;
        self.catalog.commit(Change::PutDriver(Box::new(row.clone()))).await?;
        let old = self.drivers.get(&name);
        self.drivers.put(driver, row.clone());
        if let Some(old) = old {
            self.forget_component(&old.row.digest).await;
        }
        tracing::info!("driver {name} {} is loaded", row.version);
        Ok(row)
    }

    /// Unloads a driver that has no volumes. What came with wasmvol under that name stays away after a restart, too.
    pub(crate) async fn unload(&self, name: &DriverName) -> Result<(), LoaderError> {
        let _turn = self.turn.lock().await;
        if self.drivers.get(name).is_none() {
            return Err(LoaderError::NotLoaded(name.clone()));
        }
        let volumes = self.volumes.of_driver(name);
        if !volumes.is_empty() {
            return Err(LoaderError::InUse(name.clone(), some_of(&volumes)));
        }
        // Before the commit: from here on no volume can be made with it.
        let Some(old) = self.drivers.take(name) else { return Ok(()) };
        let change = if old.row.first_party || self.shipped.borrow().contains_key(name) {
            // Its row stays, and what it stored goes.
            let row = DriverRow { unloaded: true, ..old.row.clone() };
            Change::Together(vec![
                Change::DeleteDriver(name.clone()),
                Change::PutDriver(Box::new(row)),
            ])
        } else {
            Change::DeleteDriver(name.clone())
        };
        if let Err(e) = self.catalog.commit(change).await {
            self.drivers.put(old.driver, old.row);
            return Err(e.into());
        }
        self.volumes.forget_store(name);
        self.forget_component(&old.row.digest).await;
        tracing::info!("driver {name} is unloaded");
        Ok(())
    }

    async fn restore(&self, row: DriverRow) -> Result<(), LoaderError> {
        let (shelf, digest) = (self.drivers.shelf.clone(), row.digest.clone());
        let component: Arc<[u8]> = blocking(move || shelf.read(&digest)).await?.into();
        let driver = self.drivers.prepare(&row.name, component, row.settings.clone()).await?;
        self.drivers.put(driver, row);
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
        let description = self.describe(Arc::clone(component)).await?;
        DriverName::parse(&description.name).map_err(LoaderError::OwnName)
    }

    /// What a component says of itself, without loading it.
    pub(crate) async fn describe(&self, component: Arc<[u8]>) -> Result<Description, LoaderError> {
        // Only the log shows this name.
        let unnamed = DriverName::parse("unnamed").map_err(LoaderError::OwnName)?;
        let driver = self.drivers.prepare(&unnamed, component, BTreeMap::new()).await?;
        Ok(driver.description().clone())
    }

    /// Asks the new driver for its plan of every live volume of that name and checks each against the grants: who could be mounted
    /// before must still be. Who could not, for a grant that comes later, holds up nobody. A driver of another kind is not asked: its
    /// plans would pass, and show other data.
    async fn check_volumes(&self, name: &DriverName, driver: &Driver) -> Result<(), LoaderError> {
        let mut records = self.catalog.contents().await?.records;
        records.retain(|r| r.driver == *name && r.phase == Phase::Ready);
        let old = self.drivers.get(name);
        if let Some(old) = &old
            && !records.is_empty()
            && old.description.name != driver.description().name
        {
            let (old, new) = (old.description.name.clone(), driver.description().name.clone());
            return Err(LoaderError::Another { name: name.clone(), old, new });
        }
        let grants = self.drivers.grants(name)?;
        let (driver, old) = (driver.clone(), old.map(|old| (old.driver, old.granted)));
        blocking(move || {
            for record in &records {
                let Err(why) = mounts(&driver, record, &grants) else { continue };
                if old.as_ref().is_none_or(|(old, had)| mounts(old, record, had).is_ok()) {
                    return Err(LoaderError::Volume { volume: record.name.to_string(), why });
                }
            }
            Ok(())
        })
        .await
    }

    /// Deletes a component that no loaded driver has any more.
    async fn forget_component(&self, digest: &str) {
        if self.drivers.all().iter().any(|loaded| loaded.row.digest == digest) {
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

/// Whether a driver's plan for a volume passes these grants, or why not.
fn mounts(driver: &Driver, record: &Record, grants: &Grants) -> Result<(), String> {
    let plan = driver.path(&volume_of(record)).map_err(|e| e.to_string())?;
    plan.check(&record.storage, grants).map_err(|e| e.to_string())
}

fn volume_of(record: &Record) -> Volume {
    Volume {
        id: record.id,
        name: record.name.clone(),
        options: record.options.clone(),
        state: record.state.clone(),
    }
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

fn some_of(volumes: &[String]) -> String {
    let named: Vec<_> = volumes.iter().take(NAMED_MAX).map(|v| format!("`{v}`")).collect();
    let count = volumes.len();
    let rest = count.saturating_sub(NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let noun = if count == 1 { "volume" } else { "volumes" };
    format!("{count} {noun}: {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::some_of;

    #[test]
    fn a_refusal_names_three_volumes_and_counts_the_rest() {
        let names: Vec<_> = ["a", "b", "c", "d", "e"].map(String::from).into();
        assert_eq!(some_of(&names), "5 volumes: `a`, `b`, `c` and 2 more");
        assert_eq!(some_of(&names[..1]), "1 volume: `a`");
    }
}
