//! What the daemon and mountd say to each other, and the rules that both apply to it.
//!
//! The daemon checks a driver's answer with this code before it asks; mountd checks the frame again with the same code before it
//! acts, because it trusts no frame. Everything here is pure: no file, no socket, no clock, no syscall.

pub mod frame;
pub mod grants;
pub mod kinds;
pub mod mountinfo;
pub mod name;
pub mod path;
pub mod plan;
pub mod steps;

pub use frame::{
    Evidence, Facts, Fault, FaultKind, Measure, Release, Reply, Request, Sighting, Usage,
};
pub use grants::Grants;
pub use kinds::device::Device;
pub use kinds::directory::{Below, Directory};
pub use kinds::host_directory::HostDirectory;
pub use kinds::image::{Filesystem, Image};
pub use kinds::named_directory::NamedDirectory;
pub use kinds::options::{MountOption, MountValue};
pub use kinds::overlay::Overlay;
pub use kinds::peer::Peer;
pub use kinds::program::Program;
pub use kinds::secret::{self, Secret, Server};
pub use kinds::share::{Share, ShareGrant};
pub use kinds::subvolume::{Compression, Subvolume};
pub use kinds::tmpfs::Tmpfs;
pub use name::{DriverName, Id, NameError, SecretName, VolumeName};
pub use plan::{IdMap, IdRange, Owner, Plan, Source, Storage};
