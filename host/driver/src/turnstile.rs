//! How many calls run at once: one turnstile for all of the engine, another for those of its calls that may take long, and some for the
//! calls of one driver.
//!
//! Where drivers share one, each has its part of what the others leave. So one that keeps all of its calls busy until their deadlines does
//! not keep the others out, and neither do a dozen of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A number of passes, as one driver sees them.
#[derive(Debug)]
pub(crate) struct Turnstile {
    all: Arc<Passes>,
    /// It may have one in this many of the passes that the others leave, and one in any case.
    share: usize,
    /// What it has of them: it changes only while the gate is locked.
    own: AtomicUsize,
}

#[derive(Debug)]
struct Passes {
    count: usize,
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

/// There was no pass in time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// The driver has as many as it may ever have.
    Own,
    /// Others have what it might have had.
    Others,
}

impl Turnstile {
    /// A turnstile with this many passes.
    pub(crate) fn new(passes: usize) -> Self {
        let gate = Mutex::new(Gate { free: passes, waiting: 0 });
        let all = Arc::new(Passes { count: passes, gate, freed: Condvar::new() });
        Self { all, share: 1, own: AtomicUsize::new(0) }
    }

    /// The same for one of those who share it.
    pub(crate) fn of_one(&self, share: usize) -> Self {
        Self { all: Arc::clone(&self.all), share, own: AtomicUsize::new(0) }
    }

    /// How many passes it gives at once, while nobody else has one.
    pub(crate) fn most(&self) -> usize {
        (self.all.count / self.share).max(1)
    }

    /// Waits for a pass until `until`.
    pub(crate) fn enter(&self, until: Instant) -> Result<Pass<'_>, Late> {
        let mut gate = self.gate();
        if !self.is_open(&gate) {
            gate.waiting += 1;
            let patience = until.saturating_duration_since(Instant::now());
            let is_shut = |gate: &mut Gate| !self.is_open(gate);
            let waited = self.all.freed.wait_timeout_while(gate, patience, is_shut);
            (gate, _) = waited.unwrap_or_else(PoisonError::into_inner);
            gate.waiting -= 1;
        }
        if !self.is_open(&gate) {
            let has_all = self.own() >= self.most();
            return Err(if has_all { Late::Own } else { Late::Others });
        }
        gate.free -= 1;
        self.own.fetch_add(1, Ordering::Relaxed);
        Ok(Pass(self))
    }

    fn is_open(&self, gate: &Gate) -> bool {
        let own = self.own();
        gate.free > 0 && own < ((gate.free + own) / self.share).max(1)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.all.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Self(turnstile) = self;
        let mut gate = turnstile.gate();
        gate.free += 1;
        turnstile.own.fetch_sub(1, Ordering::Relaxed);
        if gate.waiting > 0 {
            // Which of them may have it is for each to say.
            turnstile.all.freed.notify_all();
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
        assert_eq!(turnstile.enter(now).err(), Some(Late::Own));
        let later = now + Duration::from_secs(60);
        let entered = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turnstile.enter(later).is_ok());
            drop(pass);
            waiting.join()
        });
        assert!(entered.expect("waiting thread"));
    }

    /// Takes all that it gets.
    fn take_all(turnstile: &Turnstile) -> Vec<Pass<'_>> {
        let now = Instant::now();
        std::iter::from_fn(|| turnstile.enter(now).ok()).collect()
    }

    #[test]
    fn one_after_the_other_takes_a_part_of_what_is_left_and_a_dozen_leave_some() {
        let all = Turnstile::new(48);
        let drivers: Vec<_> = (0..15).map(|_| all.of_one(4)).collect();
        let taken: Vec<_> = drivers.iter().map(take_all).collect();
        let counts: Vec<_> = taken.iter().map(Vec::len).collect();
        assert_eq!(counts, [12, 9, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1, 0]);
        // Who has all that there ever is for one is told so, and who has not that it is the others.
        let now = Instant::now();
        assert_eq!(drivers[0].enter(now).err(), Some(Late::Own));
        assert_eq!(drivers[1].enter(now).err(), Some(Late::Others));
        assert_eq!(drivers[14].enter(now).err(), Some(Late::Others));
    }

    #[test]
    fn what_one_gives_back_another_who_waits_may_have() {
        let all = Turnstile::new(8);
        let [one, other] = [all.of_one(4), all.of_one(4)];
        let later = Instant::now() + Duration::from_secs(60);
        let taken = take_all(&one);
        assert_eq!((taken.len(), take_all(&other).len()), (2, 1));
        std::thread::scope(|scope| {
            let _first = other.enter(later).expect("six are free");
            // A fourth of eight is two, of what one has left only one.
            let waiting = scope.spawn(|| other.enter(later).is_ok());
            drop(taken);
            assert!(waiting.join().expect("waiting thread"));
        });
    }
}
