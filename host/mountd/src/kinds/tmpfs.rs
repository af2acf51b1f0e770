//! A file system in memory: it lives as long as anybody has it, so one that a container still holds is taken back.

use wasmvol_plan::frame::Mount;
use wasmvol_plan::{Fault, Tmpfs};

use super::{Assembled, Shows, id_map};
use crate::anchor::superblock;
use crate::attach::tag;
use crate::mounter::Mounter;

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    tmpfs: &Tmpfs,
) -> Result<Assembled, Fault> {
    let (tag, shows) = (tag(wanted.id), Shows::Own("tmpfs"));
    // A second tmpfs would hide the first.
    if let Some(last) = wanted.last.as_ref().filter(|last| last.filesystem == "tmpfs")
        && let Some(tree) = mounter.processes.take_back(last, &tag)?
    {
        return Ok(Assembled { tree, shows });
    }
    let owner = tmpfs.owner;
    let mut options = vec![
        ("source", tag),
        ("mode", format!("{:04o}", owner.mode)),
        ("uid", owner.uid.to_string()),
        ("gid", owner.gid.to_string()),
    ];
    options.extend(tmpfs.size.map(|size| ("size", size.to_string())));
    options.extend(tmpfs.inodes.map(|inodes| ("nr_inodes", inodes.to_string())));
    let tree = superblock("tmpfs", &options, wanted.plan.read_only)?;
    wanted.plan.id_map.as_ref().map_or(Ok(()), |map| id_map::apply(&tree, map))?;
    Ok(Assembled { tree, shows })
}
