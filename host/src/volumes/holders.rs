//! Holders: who has a volume mounted, counted by (mount ID, epoch).
//!
//! dockerd repeats an ID during `docker cp`, and forgets an Unmount when it dies: neither a set nor a plain count is right. See
//! SEMANTICS.md, "Holders".

use serde::{Deserialize, Serialize};

/// One process and no later one that got its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after boot: field 22 of /proc/PID/stat.
    pub(crate) start: u64,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Caller {
    /// A dockerd, or anything that is none of the others: the epoch is its process.
    Engine(Process),
    /// podman: a short-lived process with one constant ID for all; counts by itself and never expires.
    Podman(Process),
    /// `wasmvol volume …`: never expires.
    Cli,
}

/// One (volume, mount ID) with its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// The mount ID.
    pub(crate) id: String,
    pub(crate) count: u32,
    /// Who mounted last with this ID.
    pub(crate) caller: Caller,
    /// Seconds since 1970 of that Mount.
    pub(crate) since: u64,
}
