//! The named steps of the changing verbs: where a crash test kills the daemon or mountd.
//!
//! Both programs call their own `step(NAME)` with these names; without `WASMVOL_KILL_AT` in the environment that does nothing.
//! `WASMVOL_KILL_AT=NAME@FLAG` kills the process with SIGKILL at that step if it can remove the file FLAG: once.

/// The variable that arms a step.
pub const KILL_AT: &str = "WASMVOL_KILL_AT";

/// Steps of the daemon, in the order of each verb.
#[rustfmt::skip]
pub const DAEMON: &[&str] = &[
    "create.begin", "create.intent", "create.driver", "create.made", "create.ready",
    "mount.begin", "mount.planned", "mount.attached", "mount.held", "unmount.begin", "unmount.released", "unmount.gone",
    "remove.begin", "remove.intent", "remove.driver", "remove.trashed", "remove.forgotten",
    "purge.intent", "purge.trashed", "purge.forgotten",
    "recover.begin", "recover.surveyed", "recover.mounts", "recover.records",
];

/// Steps of both that only a directory which is named by its volume gets to: beneath a root that other hosts share.
#[rustfmt::skip]
pub const NAMED: &[&str] = &[
    "create.placed", "create.found", "named.made", "named.marked", "named.moved", "named.trashed", "named.unmarked",
];

/// Steps of the one verb that no engine knows.
pub const RESIZE: &[&str] = &["resize.begin", "resize.grown", "resize.recorded"];

/// Steps of the daemon that only volumes get to whose drivers fill or attach them, or write into their stores.
#[rustfmt::skip]
pub const ABILITIES: &[&str] = &[
    "store.written", "fill.opened", "fill.filled", "fill.settled", "reach.intent", "reach.done", "let-go.begin", "let-go.done",
];

/// Steps of mountd that only volumes get to whose drivers fill them.
pub const FILL: &[&str] = &["fill.handed", "fill.taken"];

/// Steps of a load that puts one version of a driver in the place of another.
pub const SWAP: &[&str] = &["swap.checked", "swap.migrated", "swap.committed"];

/// Steps of a Mount that begins a layer anew.
pub const LAYER: &[&str] = &["layer.emptied", "layer.made", "layer.synced"];

/// Steps of mountd.
#[rustfmt::skip]
pub const MOUNTD: &[&str] = &[
    "make.begin", "make.made", "make.synced",
    "attach.begin", "attach.assembled", "attach.moved", "attach.private",
    "detach.begin", "detach.unmounted", "detach.removed",
    "trash.begin", "trash.renamed", "trash.synced",
];
