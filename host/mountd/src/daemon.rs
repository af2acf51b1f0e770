//! The daemon as mountd's child: started without privileges at the other end of a socket pair, and started again when it dies.
//!
//! The program, the listening sockets and every directory are handed over as open files, so that neither needs to be reachable by
//! path for the daemon's uid.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set};
use wasmvol_plan::frame::{FRAME_MAX, Frame};
use wasmvol_plan::steps::KILL_AT;
use wasmvol_plan::{Fault, Reply};

use crate::args::Args;
use crate::doors::Door;
use crate::fault::{Context, text};
use crate::kinds::wire::put;
use crate::mounter::Mounter;
use crate::{say, sys};

/// Most frames of one round: more would make the first ones wait for the last.
const ROUND_MAX: usize = 64;
/// A daemon that lived shorter than this died of its start.
const YOUNG: Duration = Duration::from_secs(1);
/// The first and the longest wait before a daemon is started again that dies of its start.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The directories of the daemon, in the order in which they are handed over after its three sockets; the last may be missing.
const DIRECTORIES: [&str; 6] = ["catalog", "components", "cache", "table", "grants", "drivers"];
/// What the daemon gets of root's environment, where it is set; the rest of that is none of its business.
const ENV: [&str; 5] = ["LISTEN_FDS", "NOTIFY_SOCKET", "WASMVOL_LOG", "RUST_BACKTRACE", KILL_AT];

/// The daemon keeps little of what a driver's call has given back: there is no heap for each thread, and what is large goes at once.
const HEAP: [&str; 2] = ["MALLOC_ARENA_MAX=2", "MALLOC_MMAP_THRESHOLD_=131072"];

/// All that a start needs, the same each time.
pub(crate) struct Program {
    file: OwnedFd,
    argv: Vec<CString>,
    env: Vec<CString>,
    uid: Uid,
    gid: Gid,
    /// Daemons in a row that died of their start.
    young_deaths: u32,
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) pid: Pid,
    pub(crate) socket: OwnedFd,
    /// Answers that it has not taken yet, with their open files; while there are any, nothing new is read.
    pub(crate) outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    pub(crate) started: Instant,
    /// Set once it has closed its socket: when it is killed if it has not ended.
    pub(crate) leaves_by: Option<Instant>,
}

impl Program {
    /// Opens the program and writes its command line.
    pub(crate) fn open(args: &Args, mounter: &Mounter) -> Result<Self, Fault> {
        let what = format_args!("use the daemon's program `{}`", args.daemon);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(&args.daemon, flags, Mode::empty()).trying(what)?;
        let mut argv: Vec<String> = ["wasmvol", "daemon"].map(str::to_owned).into();
        let mut add = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        let fd = sys::FIRST_FD;
        add("--mountd-fd", fd.to_string());
        add("--plugin-fd", format!("{}={}", args.plugin, fd + 1));
        add("--admin-fd", (fd + 2).to_string());
        let optional = usize::from(args.drivers.is_none());
        for (number, name) in (fd + 3..).zip(DIRECTORIES).take(DIRECTORIES.len() - optional) {
            add(&format!("--{name}-dir"), format!("/proc/self/fd/{number}"));
        }
        add("--mountpoints", mounter.anchor.path.clone());
        add("--runtime-dir", mounter.places.runtime.clone());
        argv.extend(args.extra.iter().cloned());
        let variable = |name: &str| std::env::var(name).ok().map(|value| format!("{name}={value}"));
        let env = ENV.into_iter().filter_map(variable).chain(HEAP.map(str::to_owned)).collect();
        let [argv, env] = [argv, env].map(|texts: Vec<String>| {
            let texts = texts.into_iter().map(|text| CString::new(text).map_err(|_| Errno::INVAL));
            texts.collect::<Result<Vec<_>, _>>().trying(what)
        });
        let (uid, gid) = (Uid::from_raw(args.uid), Gid::from_raw(args.gid));
        Ok(Self { file, argv: argv?, env: env?, uid, gid, young_deaths: 0 })
    }

    /// Starts a daemon; `doors` are the plugin's socket and the admin's.
    pub(crate) fn start(&self, mounter: &Mounter, doors: &[Door; 2]) -> Result<Daemon, Errno> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        let places = &mounter.places;
        let mut fds = vec![theirs.as_fd()];
        fds.extend(doors.iter().map(|door| door.socket.as_fd()));
        fds.extend(places.daemons.iter().chain([&places.grants]).map(AsFd::as_fd));
        fds.extend(places.drivers.as_ref().map(AsFd::as_fd));
        fds.extend([places.lock.as_fd(), self.file.as_fd()]);
        let program = (sys::FIRST_FD - 1).saturating_add_unsigned(fds.len() as u32);
        let parent = rustix::process::getpid();
        let pid = sys::fork(&fds, || {
            let Err(e) = self.become_daemon(parent, program);
            say(format_args!("cannot run the daemon as uid {}: {}", self.uid.as_raw(), text(e)));
            CANNOT_RUN
        })?;
        let (outbox, started) = (VecDeque::new(), Instant::now());
        Ok(Daemon { pid, socket: ours, outbox, started, leaves_by: None })
    }

    /// The child's way: every privilege goes, then the program comes.
    fn become_daemon(&self, parent: Pid, program: i32) -> Result<Infallible, Errno> {
        let file = sys::inherited(program)?;
        rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::chdir("/")?;
        sys::unblock_signals()?;
        rustix::thread::set_thread_groups(&[])?;
        // What a later exec could bring back. The kernel knows fewer than 64, and refuses the first that it does not know.
        let capability = |bit: u32| CapabilitySet::from_bits_retain(1 << bit);
        let dropped = |bit| remove_capability_from_bounding_set(capability(bit)).is_ok();
        if (0..u64::BITS).take_while(|bit| dropped(*bit)).count() == 0 {
            return Err(Errno::PERM);
        }
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none)?;
        die_with(parent)?;
        rustix::thread::set_no_new_privs(true)?;
        Err(sys::exec(&file, &self.argv, &self.env))
    }

    /// When the next daemon may start, after one that started at `started` has died.
    pub(crate) fn next_start(&mut self, started: Instant) -> Instant {
        self.young_deaths = if started.elapsed() < YOUNG { self.young_deaths + 1 } else { 0 };
        let doublings = self.young_deaths.saturating_sub(2).min(10);
        let wait = if self.young_deaths < 2 { Duration::ZERO } else { BACKOFF * (1 << doublings) };
        Instant::now() + wait.min(BACKOFF_MAX)
    }
}

/// The status of a child that could not become the daemon.
pub(crate) const CANNOT_RUN: i32 = 126;

/// Makes this child die with its parent; after setresuid, which would undo it.
pub(crate) fn die_with(parent: Pid) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may be gone already.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
}

impl Daemon {
    /// Takes one round of frames, has them served, and sends the answers. `false` if the daemon has gone.
    pub(crate) fn round(&mut self, mounter: &Mounter) -> bool {
        let (mut requests, mut there) = (Vec::new(), true);
        // One byte more than a frame may have: a longer one was cut here, and is refused.
        let mut bytes = vec![0u8; FRAME_MAX + 1];
        while there && requests.len() < ROUND_MAX && self.outbox.is_empty() {
            match rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => break,
                Ok((0, _)) | Err(_) => there = false,
                Ok((length, _)) => match Frame::decode(bytes.get(..length).unwrap_or_default()) {
                    Ok(frame) => requests.push(frame),
                    Err(fault) => self.queue(Frame { number: 0, body: Reply::Failed(fault) }, None),
                },
            }
        }
        let quick = mounter.serve(requests).into_iter().map(|reply| (reply, None));
        for (reply, tree) in quick.chain(mounter.work()) {
            self.queue(reply, tree);
        }
        there && self.send()
    }

    fn queue(&mut self, reply: Frame<Reply>, tree: Option<OwnedFd>) {
        let failed = |fault| Frame { number: reply.number, body: Reply::Failed(fault) }.encode();
        self.outbox.extend(reply.encode().or_else(failed).map(|frame| (frame, tree)));
    }

    /// Sends what fits; `false` if the daemon has gone.
    fn send(&mut self) -> bool {
        while let Some((frame, tree)) = self.outbox.front() {
            match put(&self.socket, frame, tree.as_ref()) {
                Ok(()) => _ = self.outbox.pop_front(),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return false,
            }
        }
        true
    }
}
