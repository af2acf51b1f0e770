//! Drivers' stores: what a call of a driver sees of its own key-value space, and how what it writes becomes durable.
//!
//! Called by the verbs that change something. What a call wrote is committed with the record of the volume that it was for, before the verb
//! goes on. Calls do not wait for each other: where another one has changed what this one has seen, the driver is asked again, as it may
//! be by the contract.

use std::rc::Rc;
use std::sync::Arc;

use wasmvol_driver::{Answer, CallError, ErrorCode, Scope, Store};
use wasmvol_plan::{DriverName, Id, VolumeName};

use super::world::{Catalog, World};
use super::{VolumeError, Volumes};
use crate::catalog::record::Record;
use crate::catalog::{Change, Stores};

/// How often a driver is asked because others write to its store meanwhile. Those who have lost once go one after the other, so only who
/// comes anew makes one of them lose again.
const TRIES: usize = 16;

/// One driver's store.
pub(super) struct OwnStore {
    now: std::cell::RefCell<Arc<Store>>,
    /// Held from the look at what is there until what was written is durable.
    turn: tokio::sync::Mutex<()>,
    /// Held by one of those whose call has to be made again, until it is through.
    again: tokio::sync::Mutex<()>,
}

impl OwnStore {
    pub(super) fn all(stores: Stores) -> std::collections::BTreeMap<DriverName, Rc<Self>> {
        stores.into_iter().map(|(driver, store)| (driver, Rc::new(Self::new(store)))).collect()
    }

    fn new(store: Store) -> Self {
        let (turn, again) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        Self { now: Arc::new(store).into(), turn, again }
    }
}

impl<W: World> Volumes<W> {
    /// What a call of this driver may reach of what is kept here.
    pub(super) fn scope(&self, driver: &DriverName) -> Scope {
        let store = self.store(driver).now.borrow().clone();
        Scope { store, ..Scope::default() }
    }

    /// Asks a driver about one of its volumes. What it wrote into its store is durable on return, and with it the volume's record as
    /// `write` makes it of the answer; where it wrote nothing neither is committed here.
    pub(super) async fn ask<T>(
        &self,
        (name, id): (&VolumeName, Id),
        driver: &DriverName,
        call: impl AsyncFn(Scope) -> Result<Answer<T>, CallError>,
        write: impl Fn(&T, &mut Record),
    ) -> Result<T, VolumeError> {
        let failed = |error| VolumeError::Driver { driver: driver.clone(), error };
        self.try_ask((name, id), driver, async |scope| call(scope).await.map_err(failed), write)
            .await
    }

    /// The same, where more than the driver may fail in a try.
    pub(super) async fn try_ask<T>(
        &self,
        (name, id): (&VolumeName, Id),
        driver: &DriverName,
        call: impl AsyncFn(Scope) -> Result<Answer<T>, VolumeError>,
        write: impl Fn(&T, &mut Record),
    ) -> Result<T, VolumeError> {
        let store = self.store(driver);
        let mut again = None;
        for _ in 0..TRIES {
            let before = store.now.borrow().clone();
            let scope = Scope { store: before, ..Scope::default() };
            let Answer { value, uses } = call(scope).await?;
            let turn = store.turn.lock().await;
            let now = store.now.borrow().clone();
            let Some(after) = uses.applied(&now) else {
                drop(turn);
                if again.is_none() {
                    again = Some(store.again.lock().await);
                }
                continue;
            };
            if !uses.writes().is_empty() {
                let written = Change::Write(driver.clone(), uses.writes().clone());
                // What was removed and kept may have left its name to another.
                let record = self.read(name, |entry| entry.record.clone());
                let record = record.filter(|record| record.id == id).map(|mut record| {
                    write(&value, &mut record);
                    record
                });
                let put = record.clone().map(|record| Change::Put(Box::new(record)));
                let change = Change::Together(put.into_iter().chain([written]).collect());
                self.world.catalog().commit(change).await?;
                store.now.replace(Arc::new(after));
                if let Some(record) = record {
                    self.write(name, |entry| entry.record = record);
                }
                self.step("store.written").await;
            }
            return Ok(value);
        }
        let message = "too many of its calls write to its store at once: try again".to_owned();
        let error = CallError::Failed { code: ErrorCode::Unavailable, message };
        Err(VolumeError::Driver { driver: driver.clone(), error })
    }

    /// Forgets the store of a driver that is unloaded. What it held on the disk goes with the driver's row.
    pub(crate) fn forget_store(&self, driver: &DriverName) {
        self.state.borrow_mut().stores.remove(driver);
    }

    fn store(&self, driver: &DriverName) -> Rc<OwnStore> {
        let mut state = self.state.borrow_mut();
        let new = || Rc::new(OwnStore::new(Store::new()));
        Rc::clone(state.stores.entry(driver.clone()).or_insert_with(new))
    }
}
