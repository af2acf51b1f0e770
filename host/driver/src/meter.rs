//! What calls take: time, memory, and requests that the host refused.
//!
//! For who tests drivers: an engine that has a [`Meter`] notes each of its calls there. The daemon's has none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::answer::STATE_MAX;
use crate::config::MEMORY_MAX;
use crate::journal::CALL_MAX;

/// What one call took, whether there was an answer or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// From the making of its instance to its end.
    pub time: Duration,
    /// How long it might have taken.
    pub deadline: Duration,
    /// How many bytes it might have answered.
    pub answer_max: usize,
    /// Bytes of linear memory that it had in the end, of [`Cost::MEMORY_MAX`]: an instance's memory never shrinks.
    pub memory: usize,
    /// Bytes that it logged, of [`Cost::LOG_MAX`], with what each line costs.
    pub log: usize,
    /// Why a request of its for HTTP was refused: what must be granted first.
    pub refusal: Option<String>,
}

impl Cost {
    /// Most linear memory that a call may have, in bytes.
    pub const MEMORY_MAX: usize = MEMORY_MAX;
    /// Most bytes that a call may log; the rest is dropped.
    pub const LOG_MAX: usize = CALL_MAX;
    /// Most bytes of state in its answer.
    pub const STATE_MAX: usize = STATE_MAX;
}

/// Where an engine notes what its calls take. Nothing is forgotten until it is taken: not for an engine that runs for long.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Mutex<Vec<Cost>>>);

impl Meter {
    /// What was noted since the last time, in the order in which the calls ended.
    #[must_use]
    pub fn take(&self) -> Vec<Cost> {
        std::mem::take(&mut *self.costs())
    }

    pub(crate) fn note(&self, cost: Cost) {
        self.costs().push(cost);
    }

    fn costs(&self) -> MutexGuard<'_, Vec<Cost>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
