//! How many calls run at once: one turnstile for the engine, one for each driver.
//!
//! A driver has fewer passes than the engine, so one that keeps all of its calls busy until their deadlines does not keep the
//! others out.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// A number of passes.
#[derive(Debug)]
pub(crate) struct Turnstile {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One pass; dropping it lets the next call in.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Turnstile>);

impl Turnstile {
    /// A turnstile with this many passes.
    pub(crate) fn new(passes: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(passes), freed: Condvar::new() })
    }

    /// Waits for a pass; none if there was none until `until`.
    pub(crate) fn enter(self: &Arc<Self>, until: Instant) -> Option<Pass> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = until.saturating_duration_since(Instant::now());
        let (mut free, _) = self
            .freed
            .wait_timeout_while(free, patience, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Pass(Arc::clone(self)))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_turnstile_lets_nobody_in_until_a_pass_comes_back() {
        let turnstile = Turnstile::new(1);
        let now = Instant::now();
        let pass = turnstile.enter(now).expect("first");
        assert!(turnstile.enter(now).is_none());
        let waiting = std::thread::spawn({
            let turnstile = Arc::clone(&turnstile);
            move || turnstile.enter(now + Duration::from_secs(60)).is_some()
        });
        drop(pass);
        assert!(waiting.join().expect("waiting thread"));
    }
}
