//! The daemon of these tests: it takes one connection after the other on the plugin socket and carries frames to mountd and back.
//!
//! On the stream a frame follows its length in four bytes, with which goes an open file that mountd has sent. It ends when mountd closes the
//! socket pair, or on SIGTERM.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

const FRAME: usize = 1 << 17;

fn inherited(number: i32) -> OwnedFd {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(this, number, PidfdGetfdFlags::empty()).unwrap()
}

/// Never returns but by the end of mountd.
pub(crate) fn run() {
    if let Some(status) = std::env::args().skip_while(|arg| arg != "--end-with").nth(1) {
        std::process::exit(status.parse().unwrap());
    }
    let (mountd, listener) = (inherited(3), UnixListener::from(inherited(4)));
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        while carry(&mountd, &mut stream) {}
    }
}

/// One frame in one direction; `false` when the test has hung up.
fn carry(mountd: &OwnedFd, stream: &mut UnixStream) -> bool {
    let mut files = [PollFd::new(mountd, PollFlags::IN), PollFd::new(&*stream, PollFlags::IN)];
    poll(&mut files, None).unwrap();
    let from_mountd = !files[0].revents().is_empty();
    if from_mountd {
        let mut frame = vec![0; FRAME];
        let (length, file) = receive(mountd, &mut frame).unwrap();
        if length == 0 {
            std::process::exit(0);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let bytes = u32::try_from(length).unwrap().to_ne_bytes();
        sendmsg(&*stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        return stream.write_all(&frame[..length]).is_ok();
    }
    let mut length = [0; 4];
    if stream.read_exact(&mut length).is_err() {
        return false;
    }
    let mut frame = vec![0; u32::from_ne_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    rustix::net::send(mountd, &frame, SendFlags::empty()).unwrap();
    true
}

/// Bytes, and the open file that came with them.
pub(crate) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let heard = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok((heard.bytes, file))
}
