//! A file with a file system inside, on a loop device: made, checked, mounted.

use std::os::fd::OwnedFd;

use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, Id, Image};

use super::{Assembled, unserved};
use crate::mounter::Mounter;
use crate::places::Places;

pub(super) fn make(_places: &Places, _id: Id, _wanted: &Image) -> Result<Vec<OwnedFd>, Fault> {
    unserved("storage `image`")
}

pub(super) fn assemble(
    _mounter: &Mounter,
    _wanted: &Mount,
    _image: &Image,
) -> Result<Assembled, Fault> {
    unserved("storage `image`")
}

/// Whether a line shows the file system of a volume's image.
pub(super) fn is_it(id: Id, image: &Image, line: &Entry<'_>) -> bool {
    line.filesystem == image.filesystem.name() && backs(id, line)
}

/// Whether the device of a line is backed by a volume's image.
pub(super) fn backs(_id: Id, _line: &Entry<'_>) -> bool {
    false
}
