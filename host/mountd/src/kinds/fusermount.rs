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
/// Under this one glusterfs has opened the device itself, and wants it to be that of its mount.
const OPENED: &str = "_FUSE_DEVFD";
/// FUSE_DEV_IOC_CLONE of linux/fuse.h: makes an opened device one more of the mount whose device has this number.
const JOIN: u32 = 0x8004_e500;

/// Whether this process was started under that name.
pub(crate) fn is_meant(name: &OsStr) -> bool {
    let file = Path::new(name).file_name().unwrap_or_default();
    file.as_bytes().starts_with(b"fusermount")
}

/// Hands over the mount; the exit status.
pub(crate) fn run() -> u8 {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let done = sys::inherited(FUSE_FD).and_then(|fuse| match (number(WAITING), number(OPENED)) {
        (Some(waiting), _) => give(&sys::inherited(waiting)?, &fuse),
        (None, Some(opened)) => {
            sys::ioctl(&sys::inherited(opened)?, JOIN, &mut FUSE_FD.to_ne_bytes()).map(|_| ())
        }
        // To unmount is not the program's affair.
        (None, None) => Err(Errno::PERM),
    });
    u8::from(done.is_err())
}

fn give(waiting: &OwnedFd, fuse: &OwnedFd) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fuse.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(waiting, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}
