//! Id maps: a tree whose owners are shown as other ids than the disk has, by mount_setattr(2) and a user namespace.
//!
//! Called once a tree is made, before anybody sees it. The namespace is there only for its maps: a child makes it and ends, and the
//! mount keeps it. A program with a secret gets one, too, so that nobody of its user can look into it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use wasmvol_plan::{Fault, FaultKind, IdMap, IdRange};

use crate::fault::{Context, fault};
use crate::sys;

const WHAT: &str = "make a user namespace";

/// Maps the ids of a tree that is attached nowhere.
pub(super) fn apply(tree: &OwnedFd, map: &IdMap) -> Result<(), Fault> {
    let namespace = namespace(map)?;
    match sys::map_ids(tree, &namespace) {
        Err(Errno::INVAL) => fault(
            FaultKind::Invalid,
            "this kernel maps no ids of this file system: leave `uidmap` and `gidmap` out, or use a newer kernel",
        ),
        Err(Errno::PERM) => fault(
            FaultKind::Invalid,
            "the ids of this file system are mapped already where it is mounted: name it there without a map",
        ),
        other => other.trying("map the ids of the new mount"),
    }
}

/// A user namespace with these maps; root's, so that nobody else has a privilege in it.
pub(super) fn namespace(map: &IdMap) -> Result<OwnedFd, Fault> {
    let (mut ours, theirs) = UnixStream::pair().trying(WHAT)?;
    // It has one end, and leaves when the other is closed: also where this process is killed.
    let child = sys::fork_keeping(&[theirs.as_fd()], || i32::from(wait_in_one(&theirs).is_err()));
    let child = child.trying(WHAT)?;
    drop(theirs);
    let made = described(&mut ours, child, map);
    drop(ours);
    waitpid(Some(child), WaitOptions::empty()).trying(WHAT)?;
    made
}

/// The child's whole life: it tells that its namespace is there, and waits for the end.
fn wait_in_one(mut socket: &UnixStream) -> std::io::Result<()> {
    sys::unshare_users()?;
    socket.write_all(&[0])?;
    socket.read_exact(&mut [0])
}

fn described(ours: &mut UnixStream, child: Pid, map: &IdMap) -> Result<OwnedFd, Fault> {
    if ours.read_exact(&mut [0]).is_err() {
        let cure = "see whether `sysctl user.max_user_namespaces` is 0";
        return fault(FaultKind::Failed, format!("cannot {WHAT}: {cure}"));
    }
    let place = format!("/proc/{}", child.as_raw_nonzero());
    for (file, ranges) in [("uid_map", &map.users), ("gid_map", &map.groups)] {
        // The kernel takes a map in one write; it says EINVAL where ranges overlap.
        std::fs::write(format!("{place}/{file}"), lines(ranges)).or_else(|e| {
            Err(e).trying(format_args!(
                "write the id map {}: see that no ranges overlap",
                lines(ranges).trim().replace('\n', ", ")
            ))
        })?;
    }
    std::fs::File::open(format!("{place}/ns/user")).trying(WHAT).map(OwnedFd::from)
}

fn lines(ranges: &[IdRange]) -> String {
    let line = |IdRange { disk, shown, count }: &IdRange| format!("{disk} {shown} {count}\n");
    ranges.iter().map(line).collect()
}
