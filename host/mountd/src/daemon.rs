//! The daemon as mountd's child: started without privileges at the other end of a socket pair, and started again when it dies.
//!
//! The program, the listening sockets and every directory are handed over as open files, so that neither needs to be reachable by
//! path for the daemon's uid.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use wasmvol_plan::frame::{FRAME_MAX, Frame};
use wasmvol_plan::{Fault, FaultKind, Reply, Request};

use crate::args::Args;
use crate::doors::Door;
use crate::fault::{Context, text};
use crate::mounter::Mounter;
use crate::{say, sys};

/// Most frames of one round: more would make the first ones wait for the last.
const ROUND_MAX: usize = 64;
/// A daemon that lived shorter than this died of its start.
const YOUNG: Duration = Duration::from_secs(1);
/// The first and the longest wait before a daemon is started again that dies of its start.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// All that a start needs, the same each time.
pub(crate) struct Program {
    file: OwnedFd,
    argv: Vec<CString>,
    env: Vec<CString>,
    uid: Uid,
    gid: Gid,
    wait: Duration,
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) pid: Pid,
    pub(crate) socket: OwnedFd,
    /// Answers that it has not taken yet; while there are any, nothing new is read.
    outbox: VecDeque<Vec<u8>>,
    pub(crate) started: Instant,
    /// Set once it has closed its socket: when it is killed if it has not ended.
    pub(crate) leaves_by: Option<Instant>,
}

impl Program {
    /// Opens the program and writes its command line; `mountpoints` is the anchor's path.
    pub(crate) fn open(args: &Args, runtime: &str, mountpoints: &str) -> Result<Self, Fault> {
        let what = || format!("open the daemon's program `{}`", args.daemon);
        let file =
            rustix::fs::openat(CWD, &args.daemon, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let fd = |place: i32| format!("/proc/self/fd/{}", sys::FIRST_FD + place);
        let plugin = format!("{}={}", args.plugin, sys::FIRST_FD + 1);
        let admin = (sys::FIRST_FD + 2).to_string();
        let mut argv: Vec<String> = ["wasmvol", "daemon"].map(str::to_owned).into();
        let mut add = |name: &str, value: &str| argv.extend([name.to_owned(), value.to_owned()]);
        add("--mountd-fd", &sys::FIRST_FD.to_string());
        add("--plugin-fd", &plugin);
        add("--admin-fd", &admin);
        add("--catalog-dir", &fd(3));
        add("--components-dir", &fd(4));
        add("--cache-dir", &fd(5));
        add("--table-dir", &fd(6));
        add("--grants-dir", &fd(7));
        if args.drivers.is_some() {
            add("--drivers-dir", &fd(8));
        }
        add("--mountpoints", mountpoints);
        add("--runtime-dir", runtime);
        argv.extend(args.extra.iter().cloned());
        let string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::INVAL);
        let env = std::env::vars_os()
            .map(|(name, value)| string([name.into_vec(), value.into_vec()].join(&b'=')));
        Ok(Self {
            file: file.trying(what)?,
            argv: argv
                .into_iter()
                .map(|arg| string(arg.into_bytes()))
                .collect::<Result<_, _>>()
                .trying(what)?,
            env: env.collect::<Result<_, _>>().trying(what)?,
            uid: Uid::from_raw(args.uid),
            gid: Gid::from_raw(args.gid),
            wait: Duration::ZERO,
        })
    }

    /// Starts a daemon.
    pub(crate) fn start(&self, mounter: &Mounter, doors: [&Door; 2]) -> Result<Daemon, Fault> {
        let what = || "start the daemon".to_owned();
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .trying(what)?;
        let places = &mounter.places;
        let mut fds: Vec<BorrowedFd<'_>> = vec![theirs.as_fd()];
        fds.extend(doors.map(|door| door.socket.as_fd()));
        fds.extend(places.daemons.iter().map(AsFd::as_fd));
        fds.push(places.grants.as_fd());
        fds.extend(places.drivers.as_ref().map(AsFd::as_fd));
        fds.push(self.file.as_fd());
        let program = sys::FIRST_FD + i32::try_from(fds.len()).unwrap_or(0) - 1;
        let parent = rustix::process::getpid();
        let pid = sys::fork(&fds, || match self.become_daemon(parent, program) {
            Err(e) => {
                say(format_args!(
                    "cannot run the daemon as uid {}: {}",
                    self.uid.as_raw(),
                    text(e)
                ));
                CANNOT_RUN.into()
            }
            Ok(never) => match never {},
        })
        .trying(what)?;
        Ok(Daemon {
            pid,
            socket: ours,
            outbox: VecDeque::new(),
            started: Instant::now(),
            leaves_by: None,
        })
    }

    /// The child's way: every privilege goes, then the program comes.
    fn become_daemon(&self, parent: Pid, program: i32) -> Result<std::convert::Infallible, Errno> {
        let file = sys::inherited(program)?;
        rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::chdir("/")?;
        sys::unblock_signals()?;
        rustix::thread::set_thread_groups(&[])?;
        sys::drop_bounding_set()?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )?;
        die_with(parent)?;
        rustix::thread::set_no_new_privs(true)?;
        Err(sys::exec(&file, &self.argv, &self.env))
    }

    /// When the next daemon may start, after one that started at `started` has died.
    pub(crate) fn next_start(&mut self, started: Instant) -> Instant {
        self.wait = if started.elapsed() >= YOUNG {
            Duration::ZERO
        } else {
            (self.wait * 2).clamp(BACKOFF, BACKOFF_MAX)
        };
        Instant::now() + self.wait
    }
}

/// The status of a child that could not become the daemon.
pub(crate) const CANNOT_RUN: u8 = 126;

/// Makes this child die with its parent; after setresuid, which would undo it.
pub(crate) fn die_with(parent: Pid) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may be gone already.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
}

impl Daemon {
    /// Whether answers wait to be sent.
    pub(crate) fn owes(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Takes one round of frames, has them served, and sends the answers. `false` if the daemon has gone.
    pub(crate) fn round(&mut self, mounter: &Mounter) -> bool {
        let mut requests = Vec::new();
        let mut gone = false;
        let mut bytes = vec![0u8; FRAME_MAX + 1];
        while requests.len() < ROUND_MAX && !self.owes() {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::net::recv(&self.socket, &mut bytes[..], flags) {
                Ok((0, _)) => {
                    gone = true;
                    break;
                }
                Ok((length, whole)) => match decode(bytes.get(..length).unwrap_or_default(), whole)
                {
                    Ok(frame) => requests.push(frame),
                    Err(fault) => self.queue(Frame { number: 0, body: Reply::Failed(fault) }),
                },
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        for reply in mounter.serve(requests) {
            self.queue(reply);
        }
        !gone && self.send()
    }

    fn queue(&mut self, reply: Frame<Reply>) {
        let number = reply.number;
        let bytes =
            reply.encode().or_else(|fault| Frame { number, body: Reply::Failed(fault) }.encode());
        match bytes {
            Ok(bytes) => self.outbox.push_back(bytes),
            Err(fault) => say(format_args!("request {number} stays without an answer: {fault}")),
        }
    }

    /// Sends what fits; `false` if the daemon has gone.
    pub(crate) fn send(&mut self) -> bool {
        while let Some(bytes) = self.outbox.front() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, bytes, flags) {
                Ok(_) => {
                    self.outbox.pop_front();
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return false,
            }
        }
        true
    }
}

fn decode(bytes: &[u8], whole: usize) -> Result<Frame<Request>, Fault> {
    if whole > FRAME_MAX {
        let why = format!("frame has {whole} bytes: at most {FRAME_MAX} are allowed");
        return Err(Fault::new(FaultKind::Invalid, why));
    }
    Frame::decode(bytes)
}
