//! A file system on a block device that an operator granted.

use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Device, Fault};

use super::{Assembled, unserved};
use crate::mounter::Mounter;

pub(super) fn assemble(
    _mounter: &Mounter,
    _wanted: &Mount,
    _device: &Device,
) -> Result<Assembled, Fault> {
    unserved("source `device`")
}

pub(super) fn is_it(device: &Device, line: &Entry<'_>) -> bool {
    line.source == device.path && line.filesystem == device.filesystem
}
