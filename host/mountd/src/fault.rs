//! How a failed syscall becomes a line that a person can read: what was tried, on what, and why it failed.

use std::fmt::Display;

use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind};

/// Says what was tried when a syscall failed.
pub(crate) trait Context<T> {
    /// The error as a fault: cannot `what`, and why.
    fn trying(self, what: impl Display) -> Result<T, Fault>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn trying(self, what: impl Display) -> Result<T, Fault> {
        self.map_err(|e| Fault::new(kind(e), format!("cannot {what}: {}", text(e))))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn trying(self, what: impl Display) -> Result<T, Fault> {
        self.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)).trying(what)
    }
}

/// A fault for which no syscall is to blame.
pub(crate) fn fault<T>(kind: FaultKind, message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(kind, message))
}

fn kind(errno: Errno) -> FaultKind {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE => FaultKind::Exhausted,
        Errno::BUSY => FaultKind::Busy,
        Errno::NOENT => FaultKind::Missing,
        _ => FaultKind::Failed,
    }
}

/// The system's words for an error number, as they may stand inside a sentence.
pub(crate) fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    let (first, rest) = words.split_at_checked(1).unwrap_or_default();
    first.to_lowercase() + rest
}
