//! One gate for each driver: the verbs that ask it, or write down what it has said, are inside, and another version takes its place while
//! nobody is.
//!
//! Entered by the verbs, before the lock of their volume, and closed by a swap. So no verb hears two versions, and no state that one of
//! them wrote is left out when the other takes them over. A verb that waits for mountd alone has left: a server that is gone holds up no
//! swap.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use wasmvol_plan::{DriverName, VolumeName};

use super::lock::Locked;
use super::world::{Drivers, World};
use super::{Entry, VolumeError, Volumes, WAIT};

/// How long a swap waits for those inside while others wait behind it, time after time. First no longer than podman can wait, whose
/// requests have 5 s; at last long enough for a driver whose every call hangs until its deadline, or nothing could ever replace it.
const HOLD_UP: [Duration; 6] = {
    let short = Duration::from_secs(2);
    [short, short, short, short, short, Duration::from_secs(30)]
};
/// How long all go on in between.
const PAUSE: Duration = Duration::from_secs(3);

/// The gates that somebody is in, or waits at.
#[derive(Default)]
pub(super) struct Gates(RefCell<HashMap<DriverName, Arc<RwLock<()>>>>);

/// Somebody in a gate, until this is dropped.
struct Inside<'a> {
    gates: &'a Gates,
    driver: DriverName,
    guard: Option<OwnedRwLockReadGuard<()>>,
}

/// A gate that nobody is in, until this is dropped.
pub(super) struct Closed<'a> {
    gates: &'a Gates,
    driver: DriverName,
    guard: Option<OwnedRwLockWriteGuard<()>>,
}

/// A verb that has its volume, and the gates that it needs.
pub(super) struct Entered<'a> {
    // Dropped in this order.
    _lock: Locked<'a>,
    inside: Vec<Inside<'a>>,
}

impl Entered<'_> {
    /// From now on the verb asks no driver, and writes no record.
    pub(super) fn leave(&mut self) {
        self.inside.clear();
    }
}

impl Gates {
    fn of(&self, driver: &DriverName) -> Arc<RwLock<()>> {
        Arc::clone(self.0.borrow_mut().entry(driver.clone()).or_default())
    }

    /// Waits until no swap is under way.
    async fn enter(&self, driver: &DriverName) -> Result<Inside<'_>, VolumeError> {
        let mut inside = Inside { gates: self, driver: driver.clone(), guard: None };
        let entered = tokio::time::timeout(WAIT, self.of(driver).read_owned()).await;
        let late = || VolumeError::TimedOut("another version of the driver is being loaded");
        inside.guard = Some(entered.map_err(|_| late())?);
        Ok(inside)
    }

    fn try_enter(&self, driver: &DriverName) -> Option<Inside<'_>> {
        let mut inside = Inside { gates: self, driver: driver.clone(), guard: None };
        inside.guard = Some(self.of(driver).try_read_owned().ok()?);
        Some(inside)
    }

    /// Waits until nobody is inside; none if that does not come about.
    pub(super) async fn close(&self, driver: &DriverName) -> Option<Closed<'_>> {
        let mut closed = Closed { gates: self, driver: driver.clone(), guard: None };
        for (number, wait) in HOLD_UP.into_iter().enumerate() {
            if number > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let gate = self.of(driver).write_owned();
            closed.guard = tokio::time::timeout(wait, gate).await.ok();
            if closed.guard.is_some() {
                return Some(closed);
            }
        }
        None
    }

    fn tidy(&self, driver: &DriverName) {
        let mut gates = self.0.borrow_mut();
        if gates.get(driver).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(driver);
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.gates.tidy(&self.driver);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.gates.tidy(&self.driver);
    }
}

impl<W: World> Volumes<W> {
    /// Waits until a verb may have a volume: no other verb has it and, where the verb asks its driver as it is, that is loaded and no other
    /// version is about to take its place. The same holds for the driver of a volume that is to be made.
    pub(super) async fn enter(
        &self,
        name: &VolumeName,
        new: Option<&DriverName>,
        asks: impl Fn(&Entry) -> bool,
    ) -> Result<Entered<'_>, VolumeError> {
        loop {
            let asked = self.asked(name, new, &asks);
            // Outside of every gate: what is being loaded may be about to close one.
            for driver in &asked {
                self.world.drivers().until_loaded(driver).await;
            }
            let mut inside = Vec::new();
            for driver in &asked {
                inside.push(self.gates.enter(driver).await?);
            }
            let lock = self.locks.hold(name).await?;
            // Another verb may have had it meanwhile.
            if self.asked(name, new, &asks) == asked {
                return Ok(Entered { _lock: lock, inside });
            }
        }
    }

    /// The same at once, or not at all.
    pub(super) fn try_enter(
        &self,
        name: &VolumeName,
        asks: impl Fn(&Entry) -> bool,
    ) -> Option<Entered<'_>> {
        let asked = self.asked(name, None, &asks);
        let inside: Option<_> = asked.iter().map(|driver| self.gates.try_enter(driver)).collect();
        Some(Entered { inside: inside?, _lock: self.locks.try_hold(name)? })
    }

    /// Keeps a driver as it is while it is asked about what is no volume yet.
    pub(super) async fn keep(&self, driver: &DriverName) -> Result<impl Sized, VolumeError> {
        self.gates.enter(driver).await
    }

    /// Each one once: who waited for a gate that he is in would wait for himself.
    fn asked(
        &self,
        name: &VolumeName,
        new: Option<&DriverName>,
        asks: impl Fn(&Entry) -> bool,
    ) -> BTreeSet<DriverName> {
        let there = self.read(name, |entry| asks(entry).then(|| entry.record.driver.clone()));
        there.flatten().into_iter().chain(new.cloned()).collect()
    }
}
