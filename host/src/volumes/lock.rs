//! One lock a name: the verbs of one volume run one after the other, those of two never wait for each other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use wasmvol_plan::VolumeName;

use super::{VolumeError, WAIT};

/// The locks that are held or waited for.
#[derive(Default)]
pub(super) struct Locks(RefCell<HashMap<VolumeName, Arc<Mutex<()>>>>);

/// A name's lock, held until it is dropped.
pub(super) struct Locked<'a> {
    locks: &'a Locks,
    name: VolumeName,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for a name's lock.
    pub(super) async fn hold(&self, name: &VolumeName) -> Result<Locked<'_>, VolumeError> {
        let mutex = Arc::clone(self.0.borrow_mut().entry(name.clone()).or_default());
        let guard = tokio::time::timeout(WAIT, mutex.lock_owned()).await;
        let guard = guard.map_err(|_| {
            VolumeError::TimedOut("another request for this volume has not ended: try again")
        });
        // Made before the `?`: its drop tidies up after a wait in vain, too.
        let locked = |guard| Locked { locks: self, name: name.clone(), guard };
        match guard {
            Ok(guard) => Ok(locked(Some(guard))),
            Err(error) => {
                drop(locked(None));
                Err(error)
            }
        }
    }

    /// A name's lock, unless somebody has it.
    pub(super) fn try_hold(&self, name: &VolumeName) -> Option<Locked<'_>> {
        let mutex = Arc::clone(self.0.borrow_mut().entry(name.clone()).or_default());
        let guard = mutex.try_lock_owned().ok()?;
        Some(Locked { locks: self, name: name.clone(), guard: Some(guard) })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.locks.0.borrow_mut();
        if locks.get(&self.name).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            locks.remove(&self.name);
        }
    }
}
