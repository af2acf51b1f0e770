//! What a program of a room finds where it looks for `fusermount`, the program that mounts for users: it gets the mount that was made
//! for it before.
//!
//! Called by `main`, in a copy of mountd that lies in the room under that name and runs as the program does, without privileges. So
//! programs that insist on mounting by themselves have none either. It believes no argument, and does nothing else.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::command::FUSE_FD;
use crate::sys;

/// Under this number in the environment libfuse 2 and bazil.org/fuse wait for the file of their mount.
const WAITING: &str = "_FUSE_COMMFD";

/// Whether this process was started under that name.
pub(crate) fn is_meant(name: &OsStr) -> bool {
    let file = Path::new(name).file_name().unwrap_or_default();
    file.as_bytes().starts_with(b"fusermount")
}

/// Hands over the mount; the exit status.
pub(crate) fn run() -> u8 {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    // To unmount is not the program's affair.
    let Some(waiting) = number(WAITING) else { return 1 };
    let done = sys::inherited(FUSE_FD).and_then(|fuse| give(&sys::inherited(waiting)?, &fuse));
    u8::from(done.is_err())
}

fn give(waiting: &OwnedFd, fuse: &OwnedFd) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fuse.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(waiting, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}
