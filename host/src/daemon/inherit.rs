//! The sockets that mountd left open for this process, known by their numbers.
//!
//! They are taken as a service takes systemd's: `wasmvol serve` puts [`COUNT`] into the environment, which mountd hands on. A
//! copy by pidfd_getfd would do without, but filters of system calls refuse it: systemd-nspawn's, for one.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use nix::libc::{AF_UNIX, SOCK_SEQPACKET};

/// What the environment says of them: a variable of systemd's protocol and how many there are.
pub(crate) const COUNT: (&str, &str) = ("LISTEN_FDS", "3");
/// The number of the first, in that protocol and for mountd.
const FIRST: RawFd = 3;

pub(super) struct Inherited(ListenFd);

impl Inherited {
    /// To be called once: takes them out of the environment, so that no child believes them its own.
    pub(super) fn from_env() -> Self {
        Self(ListenFd::from_env())
    }

    /// The listening socket with this number.
    pub(super) fn listener(&mut self, number: RawFd) -> io::Result<UnixListener> {
        self.0.take_unix_listener(index(number))?.ok_or_else(|| missing(number))
    }

    /// The end of a pair with this number, whose frames arrive whole.
    pub(super) fn pair(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let taken = self.0.take_custom(index(number), AF_UNIX, SOCK_SEQPACKET, "seqpacket socket");
        taken?.ok_or_else(|| missing(number))
    }
}

/// Beyond all of them for a number before the first.
fn index(number: RawFd) -> usize {
    usize::try_from(number.saturating_sub(FIRST)).unwrap_or(usize::MAX)
}

fn missing(number: RawFd) -> io::Error {
    io::Error::other(format!("{number} is not passed on: only `wasmvol serve` starts a daemon"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_not_passed_on_is_refused() {
        let mut inherited = Inherited(ListenFd::empty());
        for number in [FIRST, FIRST - 1, RawFd::MIN] {
            assert!(inherited.listener(number).is_err(), "{number}");
            assert!(inherited.pair(number).is_err(), "{number}");
        }
    }
}
