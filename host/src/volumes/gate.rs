//! One gate for each driver: the verbs that ask it, or write down what it has said, are inside, and another version takes its place while
//! nobody is.
//!
//! Entered by the verbs, once they have their volume, and closed by a swap. So no verb hears two versions, and no state that one of
//! them wrote is left out when the other takes them over. Who is inside waits for its driver, and for another volume only where that is to
//! lie below a new one, and not for long. A verb that waits for mountd alone has left: a server that is gone holds up no swap.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use wasmvol_plan::{DriverName, VolumeName};

use super::lock::Locked;
use super::swap::some_of;
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
pub(super) struct Gates {
    all: RefCell<HashMap<DriverName, Arc<RwLock<()>>>>,
    /// The volumes whose verbs are inside: one verb has a volume at a time.
    inside: RefCell<BTreeSet<(DriverName, VolumeName)>>,
}

/// Somebody in a gate, until this is dropped.
pub(super) struct Inside<'a> {
    gates: &'a Gates,
    driver: DriverName,
    /// Whose verb it is, if it is one's.
    volume: Option<VolumeName>,
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
    inside: Vec<Inside<'a>>,
    _lock: Locked<'a>,
}

impl Entered<'_> {
    /// From now on the verb asks no driver, and writes no record.
    pub(super) fn leave(&mut self) {
        self.inside.clear();
    }
}

impl Gates {
    fn of(&self, driver: &DriverName) -> Arc<RwLock<()>> {
        Arc::clone(self.all.borrow_mut().entry(driver.clone()).or_default())
    }

    /// Waits until no swap is under way.
    async fn enter(
        &self,
        driver: &DriverName,
        volume: Option<&VolumeName>,
    ) -> Result<Inside<'_>, VolumeError> {
        let mut waiting = self.outside(driver);
        let entered = tokio::time::timeout(WAIT, self.of(driver).read_owned()).await;
        let late = || VolumeError::TimedOut("its driver is being changed");
        waiting.pass(entered.map_err(|_| late())?, volume);
        Ok(waiting)
    }

    pub(super) fn try_enter(&self, driver: &DriverName, volume: &VolumeName) -> Option<Inside<'_>> {
        let mut waiting = self.outside(driver);
        waiting.pass(self.of(driver).try_read_owned().ok()?, Some(volume));
        Some(waiting)
    }

    /// Made before there is something to wait for: its drop tidies up after a wait in vain, too.
    fn outside(&self, driver: &DriverName) -> Inside<'_> {
        Inside { gates: self, driver: driver.clone(), volume: None, guard: None }
    }

    /// Whose verbs are inside.
    pub(super) fn busy(&self, driver: &DriverName) -> String {
        let inside = self.inside.borrow();
        let of_it = inside.iter().filter(|(of, _)| of == driver);
        let volumes: Vec<_> = of_it.map(|(_, volume)| volume.to_string()).collect();
        if volumes.is_empty() {
            return "a question about all of its volumes".to_owned();
        }
        some_of(&volumes)
    }

    /// Waits until nobody is inside; none if that does not come about.
    pub(super) async fn close(&self, driver: &DriverName) -> Option<Closed<'_>> {
        let mut closed = Closed { gates: self, driver: driver.clone(), guard: None };
        for (number, wait) in HOLD_UP.into_iter().enumerate() {
            // None before the last: who comes in a pause may hang, too.
            if number > 0 && number + 1 < HOLD_UP.len() {
                tokio::time::sleep(PAUSE).await;
            }
            let gate = self.of(driver).write_owned();
            closed.guard = tokio::time::timeout(wait, gate).await.ok();
            if closed.guard.is_some() {
                return Some(closed);
            }
            tracing::info!("a change of driver {driver} waits for {}", self.busy(driver));
        }
        None
    }

    fn tidy(&self, driver: &DriverName) {
        let mut gates = self.all.borrow_mut();
        if gates.get(driver).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(driver);
        }
    }
}

impl Inside<'_> {
    fn pass(&mut self, guard: OwnedRwLockReadGuard<()>, volume: Option<&VolumeName>) {
        self.guard = Some(guard);
        self.volume = volume.cloned();
        if let Some(volume) = volume {
            self.gates.inside.borrow_mut().insert((self.driver.clone(), volume.clone()));
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(volume) = self.volume.take() {
            self.gates.inside.borrow_mut().remove(&(self.driver.clone(), volume));
        }
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
        let lock = self.locks.hold(name).await?;
        let asked = self.asked(name, new, &asks);
        // Outside of every gate: what is being loaded may be about to close one.
        for driver in &asked {
            self.world.drivers().until_loaded(driver).await;
        }
        let mut inside = Vec::new();
        for driver in &asked {
            inside.push(self.gates.enter(driver, Some(name)).await?);
        }
        Ok(Entered { inside, _lock: lock })
    }

    /// The same at once, or not at all.
    pub(super) fn try_enter(
        &self,
        name: &VolumeName,
        asks: impl Fn(&Entry) -> bool,
    ) -> Option<Entered<'_>> {
        let lock = self.locks.try_hold(name)?;
        let asked = self.asked(name, None, &asks);
        let enter = |driver| self.gates.try_enter(driver, name);
        let inside: Option<_> = asked.iter().map(enter).collect();
        Some(Entered { inside: inside?, _lock: lock })
    }

    /// Keeps a driver as it is while it is asked without the lock of a volume, or about what is none any more.
    pub(super) async fn keep(&self, driver: &DriverName) -> Result<Inside<'_>, VolumeError> {
        self.gates.enter(driver, None).await
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn driver(name: &str) -> DriverName {
        DriverName::parse(name).unwrap()
    }

    fn volume(name: &str) -> VolumeName {
        VolumeName::parse(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_verb_that_hangs_ends_a_swap_and_holds_up_others_for_moments_and_other_drivers_not() {
        let (gates, ebs, nfs) = (Gates::default(), driver("ebs"), driver("nfs"));
        let hung = gates.enter(&ebs, Some(&volume("hung"))).await.unwrap();
        let begin = Instant::now();
        let swap = async {
            assert!(gates.close(&ebs).await.is_none(), "somebody is inside");
            (begin.elapsed(), gates.busy(&ebs))
        };
        let verbs = async {
            let mut waited = [Duration::ZERO; 2];
            // Until it waits for the last time.
            while begin.elapsed() < Duration::from_secs(21) {
                for (driver, longest) in [&ebs, &nfs].into_iter().zip(&mut waited) {
                    let asked = Instant::now();
                    drop(gates.enter(driver, Some(&volume("brief"))).await.unwrap());
                    *longest = asked.elapsed().max(*longest);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            waited
        };
        let ((took, busy), [own, other]) = tokio::join!(swap, verbs);
        assert_eq!((took, busy), (Duration::from_secs(52), "1 volume: `hung`".to_owned()));
        assert!(own > Duration::from_secs(1) && own <= HOLD_UP[0], "{own:?}");
        assert_eq!(other, Duration::ZERO);
        drop(hung);
        assert!(gates.close(&ebs).await.is_some());
        assert!(gates.all.borrow().is_empty() && gates.inside.borrow().is_empty());
    }
}
