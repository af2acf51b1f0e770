//! What the daemon and mountd say to each other, and the rules that both apply to it.
//!
//! The daemon checks a driver's answer with this code before it asks; mountd checks the frame again with the same code before it
//! acts, because it trusts no frame. Everything here is pure: no file, no socket, no clock, no syscall.

pub mod frame;
pub mod grants;
pub mod mountinfo;
pub mod name;
pub mod path;
pub mod plan;
pub mod steps;

pub use frame::{Evidence, Facts, Fault, FaultKind, Release, Reply, Request, Sighting, Usage};
pub use grants::Grants;
pub use name::{DriverName, Id, NameError, SecretName, VolumeName};
pub use plan::{Directory, HostDirectory, Owner, Plan, Source, Storage, Tmpfs};
