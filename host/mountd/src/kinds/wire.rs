//! What goes between mountd and a child that works for it: one answer, and with it one tree. Called by [`job`](super::job); the daemon's
//! own answers leave this way too, since one of them has a tree.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use wasmvol_plan::Reply;
use wasmvol_plan::frame::{FRAME_MAX, Frame};

/// An answer, and the tree that belongs to it.
pub(super) type Said = (Reply, Option<OwnedFd>);

pub(super) fn send(socket: &OwnedFd, reply: Reply, tree: Option<&OwnedFd>) -> Result<(), Errno> {
    let bytes = Frame { number: 0, body: reply }.encode().map_err(|_| Errno::MSGSIZE)?;
    put(socket, &bytes, tree)
}

/// Sends a frame, with an open file or without; never waits.
pub(crate) fn put(socket: &OwnedFd, frame: &[u8], tree: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = tree.iter().map(|tree| tree.as_fd()).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(frame)], &mut ancillary, flags).map(|_| ())
}

/// One answer with the file that came along; `None` at the end, an error where nothing has come yet.
pub(super) fn receive(socket: &OwnedFd) -> Result<Option<Said>, Errno> {
    let mut bytes = vec![0u8; FRAME_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let heard = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let tree = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let frame = Frame::<Reply>::decode(bytes.get(..heard.bytes).unwrap_or_default());
    Ok(frame.ok().map(|frame| (frame.body, tree)))
}
