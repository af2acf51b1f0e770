//! A layer of the volume's own over directories that stay as they are.

use wasmvol_plan::frame::Mount;

use wasmvol_plan::{Fault, Grants, Overlay};

use super::{Assembled, unserved};
use crate::mounter::Mounter;

pub(super) fn assemble(
    _mounter: &Mounter,
    _wanted: &Mount,
    _overlay: &Overlay,
    _grants: &Grants,
) -> Result<Assembled, Fault> {
    unserved("source `overlay`")
}
