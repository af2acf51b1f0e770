//! How many calls run at once: one turnstile for the engine, one for each driver.
//!
//! A driver has fewer passes than the engine, so one that keeps all of its calls busy until their deadlines does not keep the
//! others out.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A number of passes.
#[derive(Debug)]
pub(crate) struct Turnstile {
    gate: Mutex<Gate>,
    freed: Condvar,
}

#[derive(Debug)]
struct Gate {
    free: usize,
    /// Calls that wait: without any, giving a pass back costs no system call.
    waiting: usize,
}

/// One pass; dropping it lets the next call in.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Turnstile);

impl Turnstile {
    /// A turnstile with this many passes.
    pub(crate) fn new(passes: usize) -> Self {
        Self { gate: Mutex::new(Gate { free: passes, waiting: 0 }), freed: Condvar::new() }
    }

    /// Waits for a pass; none if there was none until `until`.
    pub(crate) fn enter(&self, until: Instant) -> Option<Pass<'_>> {
        let mut gate = self.lock();
        if gate.free == 0 {
            gate.waiting += 1;
            let patience = until.saturating_duration_since(Instant::now());
            let waited = self.freed.wait_timeout_while(gate, patience, |gate| gate.free == 0);
            (gate, _) = waited.unwrap_or_else(PoisonError::into_inner);
            gate.waiting -= 1;
        }
        gate.free = gate.free.checked_sub(1)?;
        Some(Pass(self))
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.lock();
        gate.free += 1;
        if gate.waiting > 0 {
            self.0.freed.notify_one();
        }
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
        let later = now + Duration::from_secs(60);
        let entered = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turnstile.enter(later).is_some());
            drop(pass);
            waiting.join()
        });
        assert!(entered.expect("waiting thread"));
    }
}
