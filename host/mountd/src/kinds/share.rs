//! What a server shares, mounted by the kernel.

use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{Fault, Grants, Share};

use super::{Assembled, unserved};
use crate::mounter::Mounter;

pub(super) fn assemble(
    _mounter: &Mounter,
    _wanted: &Mount,
    _share: &Share,
    _grants: &Grants,
) -> Result<Assembled, Fault> {
    unserved("source `share`")
}

pub(super) fn is_it(share: &Share, line: &Entry<'_>) -> bool {
    line.filesystem == share.kind
}
