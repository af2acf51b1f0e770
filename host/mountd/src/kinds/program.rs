//! A file system that a program of the host serves.

use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, Program};

use super::{Assembled, unserved};
use crate::mounter::Mounter;

pub(super) fn assemble(
    _mounter: &Mounter,
    _wanted: &Mount,
    _program: &Program,
) -> Result<Assembled, Fault> {
    unserved("source `program`")
}

pub(super) fn is_it(line: &Entry<'_>) -> bool {
    line.filesystem.starts_with("fuse")
}
