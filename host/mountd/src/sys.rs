//! The syscalls that rustix does not wrap, each as a safe function, and nothing else. The only file of mountd with `unsafe`.
//!
//! mountd has one thread: that is what makes `fork` here an ordinary call.

#![expect(unsafe_code, reason = "raw syscalls; each block says why it is sound")]

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
pub(crate) use rustix::mount::{MountAttrFlags as Flags, MountPropagationFlags as Propagation};
use rustix::process::{Pid, Signal};

/// The number of the first file that [`fork`] hands to a child.
pub(crate) const FIRST_FD: RawFd = 3;
/// Copies wait above this number until they are put in their places: no child gets as many.
const WAITING_FD: RawFd = 64;

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn done(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Changes one mount, attached or not: flags to set, flags to clear, propagation.
pub(crate) fn mount_setattr(
    mount: &OwnedFd,
    set: Flags,
    clear: Flags,
    propagation: Propagation,
) -> Result<(), Errno> {
    set_attributes(mount, [set.bits().into(), clear.bits().into(), propagation.bits().into(), 0])
}

/// Shows the owners of a mount, attached nowhere yet, as the maps of a user namespace say.
pub(crate) fn map_ids(mount: &OwnedFd, namespace: &OwnedFd) -> Result<(), Errno> {
    let namespace = u64::from(namespace.as_raw_fd().unsigned_abs());
    set_attributes(mount, [Flags::MOUNT_ATTR_IDMAP.bits().into(), 0, 0, namespace])
}

fn set_attributes(mount: &OwnedFd, attr: [u64; 4]) -> Result<(), Errno> {
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is a C string and `attr` the four words of a `struct mount_attr`; both outlive the call.
    let result = unsafe {
        let call = libc::SYS_mount_setattr;
        libc::syscall(call, mount.as_raw_fd(), path, flags, &raw const attr, size_of_val(&attr))
    };
    if result < 0 { Err(errno()) } else { Ok(()) }
}

/// `struct mnt_id_req` of listmount(2) and statmount(2): its size and a spare word; mount, parameter, namespace.
#[repr(C)]
struct MountRequest([u32; 2], [u64; 3]);

/// The calls that ask about mounts of any namespace, by their numbers; Linux 6.11 knows both.
#[derive(Clone, Copy)]
pub(crate) enum AskMounts {
    /// What one mount is: a `struct statmount` with the parts that `param` selects.
    Stat = 457,
    /// The numbers of the mounts beneath one that come after `param`, eight bytes each.
    List = 458,
}

/// Asks about a mount, with a parameter, in a namespace, and answers what the call returned.
pub(crate) fn ask_mounts(
    call: AskMounts,
    about: [u64; 3],
    answer: &mut [u8],
) -> Result<usize, Errno> {
    let request = MountRequest([32, 0], about);
    let room = match call {
        AskMounts::Stat => answer.len(),
        AskMounts::List => answer.len() / size_of::<u64>(),
    };
    // SAFETY: the request is whole and has the size that it says; the kernel writes at most `room` bytes, or 8-byte numbers.
    let result =
        unsafe { libc::syscall(call as i64, &raw const request, answer.as_mut_ptr(), room, 0) };
    usize::try_from(result).map_err(|_| errno())
}

/// `struct mnt_ns_info` of the ioctls on a mount namespace: its size and the number of mounts; the namespace's number.
#[repr(C)]
#[derive(Default)]
struct NamespaceInfo([u32; 2], u64);

/// The mount namespace that was made before this one, or after it, with its number; `NOENT` at the end. Linux 6.12 knows how.
pub(crate) fn neighbour(namespace: &OwnedFd, after: bool) -> Result<(OwnedFd, u64), Errno> {
    // NS_MNT_GET_NEXT and NS_MNT_GET_PREV of linux/nsfs.h.
    let request = if after { 0x8010_b70b } else { 0x8010_b70c };
    let mut info = NamespaceInfo::default();
    // SAFETY: the kernel writes one `mnt_ns_info`, of 16 bytes as the request's number says.
    let fd = done(unsafe { libc::ioctl(namespace.as_raw_fd(), request, &raw mut info) })?;
    // SAFETY: a new file that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, info.1))
}

/// How many bytes the kernel reads or writes at an ioctl's argument, as its number says; those of loop devices say nothing, and their
/// largest has a `struct loop_config`.
pub(crate) const fn ioctl_size(number: u32) -> usize {
    if number >> 8 == 0x4c { 304 } else { (number >> 16 & 0x3fff) as usize }
}

/// Makes an ioctl of a loop device or a file system, and answers what it returned.
pub(crate) fn ioctl(file: &OwnedFd, number: u32, argument: &mut [u8]) -> Result<c_int, Errno> {
    if argument.len() < ioctl_size(number) {
        return Err(Errno::INVAL);
    }
    // SAFETY: what the kernel reads or writes at the argument is there. None of these keeps the pointer, or finds one there.
    done(unsafe { libc::ioctl(file.as_raw_fd(), number.into(), argument.as_mut_ptr()) })
}

/// The largest structure that a command about quotas takes: a `struct fs_disk_quota`.
pub(crate) const QUOTA_SIZE: usize = 112;

/// Asks or changes a quota of the file system that a file lies on. Linux 5.14 knows how.
pub(crate) fn quotactl(
    file: &OwnedFd,
    command: u32,
    id: u32,
    argument: &mut [u8; QUOTA_SIZE],
) -> Result<(), Errno> {
    let (call, argument) = (libc::SYS_quotactl_fd, argument.as_mut_ptr());
    // SAFETY: what the kernel reads or writes at the argument is there: no command has a path, or a larger structure.
    let result = unsafe { libc::syscall(call, file.as_raw_fd(), command, id, argument) };
    if result < 0 { Err(errno()) } else { Ok(()) }
}

/// Takes over a file that was inherited under a number; closed again on exec.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < FIRST_FD {
        return Err(Errno::BADF);
    }
    // SAFETY: takes numbers, and fails if no file has this one.
    done(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, was given to this process to own, and nothing here has made a file of it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts a child that has only stdio and `fds`, as numbers from [`FIRST_FD`] on; it ends with what `run` returns.
pub(crate) fn fork(fds: &[BorrowedFd<'_>], run: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    fork_from(FIRST_FD, fds, run)
}

/// The same with `fds` as numbers from `first` on: from 0 they are its stdio, too.
pub(crate) fn fork_from(
    first: RawFd,
    fds: &[BorrowedFd<'_>],
    run: impl FnOnce() -> i32,
) -> Result<Pid, Errno> {
    let copies: Vec<OwnedFd> =
        fds.iter().map(|fd| fcntl_dupfd_cloexec(fd, WAITING_FD)).collect::<Result<_, _>>()?;
    split(|| {
        let mut next = first;
        for copy in &copies {
            // SAFETY: both are plain numbers. What `next` was before belongs to a value of the parent's that the child never
            // touches: it leaves by `_exit` or exec.
            if unsafe { libc::dup2(copy.as_raw_fd(), next) } < 0 {
                // SAFETY: ends the process.
                unsafe { libc::_exit(126) }
            }
            next += 1;
        }
        close_between(next, RawFd::MAX);
        run()
    })
}

/// Starts a child that has only stdio and `keep`, under the numbers that they have; it ends with what `run` returns. It must not
/// touch any other file of the parent's.
pub(crate) fn fork_keeping(
    keep: &[BorrowedFd<'_>],
    run: impl FnOnce() -> i32,
) -> Result<Pid, Errno> {
    let mut numbers: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    split(|| {
        let mut next = FIRST_FD;
        for number in numbers {
            close_between(next, number - 1);
            next = number + 1;
        }
        close_between(next, RawFd::MAX);
        run()
    })
}

fn split(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: this process has one thread, so the child may do all that the parent could.
    let pid = done(unsafe { libc::fork() })?;
    if let Some(pid) = Pid::from_raw(pid) {
        return Ok(pid);
    }
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: ends the child without running what the parent meant for its own end.
    unsafe { libc::_exit(code) }
}

/// Closes a child's files with these numbers.
fn close_between(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: what has these numbers belongs to values of the parent's that the child never touches.
        unsafe { libc::close_range(first.unsigned_abs(), last.unsigned_abs(), 0) };
    }
}

/// Gives this process, a child, a user namespace of its own.
pub(crate) fn unshare_users() -> Result<(), Errno> {
    unshare(libc::CLONE_NEWUSER)
}

/// Gives this process, a child, a mount namespace of its own: a copy of its parent's.
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    unshare(libc::CLONE_NEWNS)
}

fn unshare(what: c_int) -> Result<(), Errno> {
    // SAFETY: takes a number, and changes what this process alone sees.
    done(unsafe { libc::unshare(what) }).map(|_| ())
}

/// Makes these files stdin, and both stdout and stderr, of a child.
pub(crate) fn set_stdio(input: &OwnedFd, output: &OwnedFd) -> Result<(), Errno> {
    for (file, number) in [(input, 0), (output, 1), (output, 2)] {
        // SAFETY: both are plain numbers, and nobody owns the second.
        done(unsafe { libc::dup2(file.as_raw_fd(), number) })?;
    }
    Ok(())
}

/// Replaces this process by the program behind `program`, with this environment and no other; returns only on failure.
pub(crate) fn exec(program: &OwnedFd, argv: &[CString], env: &[CString]) -> Errno {
    let [argv, env] = [argv, env].map(|texts| -> Vec<*mut c_char> {
        texts.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
    });
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: both arrays end with a null pointer, and their strings outlive the call.
    unsafe { libc::execveat(program.as_raw_fd(), path, argv.as_ptr(), env.as_ptr(), flags) };
    errno()
}

/// Blocks or unblocks the signals that mountd takes as messages.
fn mask_signals(how: c_int) -> Result<libc::sigset_t, Errno> {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset makes the set whole before it is used; the signals are valid ones.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        done(libc::sigprocmask(how, set.as_ptr(), std::ptr::null_mut()))?;
        Ok(set.assume_init())
    }
}

/// Turns SIGTERM, SIGINT and SIGCHLD into messages on a file that never blocks.
pub(crate) fn signal_fd() -> Result<OwnedFd, Errno> {
    let set = mask_signals(libc::SIG_BLOCK)?;
    // SAFETY: the set is whole, and the new file is nobody else's.
    unsafe {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        done(libc::signalfd(-1, &raw const set, flags)).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// Lets a child have its signals again: the mask outlives exec.
pub(crate) fn unblock_signals() -> Result<(), Errno> {
    mask_signals(libc::SIG_UNBLOCK).map(|_| ())
}

/// The next signal of [`signal_fd`], if one waits.
pub(crate) fn next_signal(signals: &OwnedFd) -> Option<Signal> {
    let mut message = [0u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut message).ok()?;
    let number = message.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
    Signal::from_named_raw(number.cast_signed())
}
