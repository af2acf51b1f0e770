//! The kinds of storage and of sources, one file each: what a driver may ask for, and the check of what it asked.
//!
//! [`Storage`](crate::Storage) and [`Source`](crate::Source) put them together. What root makes of a kind stands in mountd's file of
//! the same name.

pub mod device;
pub mod directory;
pub mod host_directory;
pub mod http;
pub mod image;
pub mod named_directory;
pub mod options;
pub mod overlay;
pub mod peer;
pub mod program;
pub mod secret;
pub mod share;
pub mod subvolume;
pub mod tmpfs;

use crate::{Fault, FaultKind};

fn invalid<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Invalid, why))
}

fn denied<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Denied, why))
}
