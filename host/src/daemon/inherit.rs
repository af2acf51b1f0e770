//! File descriptors that mountd left open for this process, known by their numbers.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// A descriptor of our own for what is open under a number. The number itself stays open until the process ends.
///
/// Taking the number as it is would be `unsafe`, since nothing proves that no one else has it; a copy made by the kernel is not.
pub(super) fn take(number: RawFd) -> io::Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::take;

    #[test]
    fn a_copy_speaks_for_the_number_that_it_was_made_of() {
        let (left, mut right) = UnixStream::pair().unwrap();
        let mut copy = UnixStream::from(take(left.as_raw_fd()).unwrap());
        copy.write_all(b"a").unwrap();
        let mut byte = [0];
        right.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert!(take(100_000).is_err());
    }
}
