//! The daemon of these tests: it takes one connection after the other on the plugin socket and carries frames to mountd and back.
//!
//! On the stream a frame follows its length in four bytes. It ends when mountd closes the socket pair, or on SIGTERM.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};
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
        let (length, _) = rustix::net::recv(mountd, &mut frame[..], RecvFlags::empty()).unwrap();
        if length == 0 {
            std::process::exit(0);
        }
        stream.write_all(&u32::try_from(length).unwrap().to_ne_bytes()).unwrap();
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
