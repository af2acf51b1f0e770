//! A btrfs subvolume beneath the state directory: made here, shown and opened as a directory is.

use std::os::fd::OwnedFd;

use wasmvol_plan::{Fault, Id, Subvolume};

use super::unserved;
use crate::places::Places;

pub(super) fn make(_places: &Places, _id: Id, _wanted: &Subvolume) -> Result<Vec<OwnedFd>, Fault> {
    unserved("storage `subvolume`")
}
