//! The parent's life: one loop over signals, the daemon's frames, and the children to start, to wait for and to end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use crate::daemon::{CANNOT_RUN, Daemon, Program, die_with};
use crate::doors::Door;
use crate::fault::text;
use crate::kinds::named_directory::reap;
use crate::mounter::Mounter;
use crate::{reaper, say, sys};

/// How long a daemon may drain: Docker waits 60 s for everything but Create and Mount.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a daemon may take to end after it has closed its socket, or after SIGKILL.
const LEAVE: Duration = Duration::from_secs(2);
/// A reaper is killed after this and started again: it goes on where it was, unless its file system hangs.
const REAP_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// When stuck entries of the trash are tried again.
const REAP_AGAIN: Duration = Duration::from_secs(5 * 60);
/// How long a failed fork is left alone.
const FORK_AGAIN: Duration = Duration::from_secs(1);
/// The status with which a daemon says that it cannot run as it is configured: starting it again would not help.
const CONFIGURATION: i32 = 78;

/// mountd as the parent of the daemon and of the reapers.
struct Parent {
    mounter: Mounter,
    program: Program,
    doors: [Door; 2],
    daemon: Option<Daemon>,
    start_at: Instant,
    /// Of our own trash, and of that beneath granted roots: those may lie on a server that does not answer.
    reapers: [Reaper; 2],
    /// Set once the daemon was told to end: until then it may drain.
    drain_until: Option<Instant>,
}

/// A reaper's times.
struct Reaper {
    /// The one that runs, and when it is killed.
    running: Option<(Pid, Instant)>,
    /// When the next one is started.
    at: Option<Instant>,
}

/// Runs until it is told to end, or the daemon cannot run; answers the exit status. `doors` are the plugin's socket and the admin's.
pub(crate) fn run(mounter: Mounter, program: Program, doors: [Door; 2], signals: &OwnedFd) -> u8 {
    let now = Instant::now();
    let reapers = [(); 2].map(|()| Reaper { running: None, at: Some(now) });
    let (daemon, start_at, drain_until) = (None, now, None);
    let mut parent = Parent { mounter, program, doors, daemon, start_at, reapers, drain_until };
    let status = loop {
        parent.start_what_is_due();
        parent.end_what_is_late();
        parent.wait(signals);
        while let Some(signal) = sys::next_signal(signals) {
            if signal != Signal::CHILD {
                parent.drain_until.get_or_insert(Instant::now() + DRAIN);
                parent.daemon.iter().for_each(|daemon| kill(daemon.pid, Signal::TERM));
            }
        }
        parent.talk();
        if let Some(status) = parent.bury() {
            break status;
        }
    };
    parent.doors.into_iter().for_each(Door::close);
    status
}

impl Parent {
    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.daemon.is_none() && self.drain_until.is_none() && now >= self.start_at {
            let started = self.program.start(&self.mounter, &self.doors);
            self.daemon =
                started.inspect_err(|e| say(format_args!("cannot fork: {}", text(*e)))).ok();
            self.start_at = now + FORK_AGAIN;
        }
        let Self { mounter, reapers: [own, roots], .. } = self;
        own.start_if_due(now, || {
            let trash = [mounter.places.trash.as_fd()];
            sys::fork(&trash, reaping(|| reaper::run(&sys::inherited(sys::FIRST_FD)?)))
        });
        roots.start_if_due(now, || {
            let roots = mounter.root_trashes();
            let stuck = |root: &String| {
                reap(root).unwrap_or_else(|e| {
                    say(format_args!("the trash of `{root}` cannot be emptied: {}", text(e)));
                    1
                })
            };
            sys::fork(&[], reaping(|| Ok(roots.iter().map(stuck).sum())))
        });
    }

    fn end_what_is_late(&mut self) {
        let now = Instant::now();
        let late = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if let Some(daemon) = &mut self.daemon
            && (late(daemon.leaves_by) || late(self.drain_until))
        {
            kill(daemon.pid, Signal::KILL);
            daemon.leaves_by = Some(now + LEAVE);
            self.drain_until = self.drain_until.map(|_| now + LEAVE);
        }
        let running = self.reapers.iter_mut().filter_map(|reaper| reaper.running.as_mut());
        for (pid, deadline) in running.filter(|(_, deadline)| late(Some(*deadline))) {
            kill(*pid, Signal::KILL);
            *deadline = now + REAP_DEADLINE;
        }
    }

    /// Sleeps until something is to do.
    fn wait(&self, signals: &OwnedFd) {
        let (daemon, jobs) = (self.daemon.as_ref(), self.mounter.jobs.borrow());
        let talks = daemon.filter(|daemon| daemon.leaves_by.is_none());
        let times = [
            Some(self.start_at).filter(|_| daemon.is_none() && self.drain_until.is_none()),
            talks.and(jobs.next()),
            daemon.and_then(|daemon| daemon.leaves_by),
            self.drain_until,
        ];
        let times = times.into_iter().chain(self.reapers.iter().map(Reaper::next));
        let timeout = times.flatten().min().map(|at| {
            // A little late rather than a turn too early.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut files = vec![PollFd::new(signals, PollFlags::IN)];
        if let Some(daemon) = talks {
            files.extend(jobs.files().map(|job| PollFd::new(job, PollFlags::IN)));
            let flags = if daemon.outbox.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            files.push(PollFd::new(&daemon.socket, flags));
        }
        if poll(&mut files, timeout.as_ref()).is_err_and(|e| e != Errno::INTR) {
            std::thread::sleep(FORK_AGAIN);
        }
    }

    fn talk(&mut self) {
        if let Some(daemon) = &mut self.daemon
            && daemon.leaves_by.is_none()
            && !daemon.round(&self.mounter)
        {
            daemon.leaves_by = Some(Instant::now() + LEAVE);
        }
        if self.mounter.discarded.take() {
            self.reapers.iter_mut().for_each(|reaper| reaper.at = Some(Instant::now()));
        }
    }

    /// Takes leave of children that have ended; answers the exit status when there is no more to do.
    fn bury(&mut self) -> Option<u8> {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            for reaper in &mut self.reapers {
                if reaper.running.take_if(|(running, _)| *running == pid).is_some()
                    && status.exit_status() != Some(0)
                {
                    reaper.at.get_or_insert(Instant::now() + REAP_AGAIN);
                }
            }
            self.mounter.jobs.borrow_mut().ended(pid);
            if let Some(daemon) = self.daemon.take_if(|daemon| daemon.pid == pid) {
                self.mounter.jobs.borrow_mut().forget();
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                if self.drain_until.is_some() {
                    let ended = if signal == Some(Signal::TERM.as_raw()) { Some(0) } else { code };
                    return Some(ended.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
                }
                let by_signal = || format!("signal {}", signal.unwrap_or_default());
                let how = code.map_or_else(by_signal, |code| format!("status {code}"));
                if code == Some(CONFIGURATION) || code == Some(CANNOT_RUN) {
                    say(format_args!("the daemon cannot run ({how}): mend that, then start again"));
                    return code.and_then(|code| u8::try_from(code).ok());
                }
                self.start_at = self.program.next_start(daemon.started);
                let wait = self.start_at.saturating_duration_since(Instant::now()).as_millis();
                say(format_args!("the daemon ended ({how}): starting it again in {wait} ms"));
            }
        }
        (self.daemon.is_none() && self.drain_until.is_some()).then_some(0)
    }
}

impl Reaper {
    fn start_if_due(&mut self, now: Instant, start: impl FnOnce() -> Result<Pid, Errno>) {
        if self.running.is_none() && self.at.is_some_and(|at| now >= at) {
            let started = start();
            self.at = started.is_err().then_some(now + REAP_AGAIN);
            self.running = started.ok().map(|pid| (pid, now + REAP_DEADLINE));
        }
    }

    /// When something is to be done.
    fn next(&self) -> Option<Instant> {
        self.running.map_or(self.at, |(_, deadline)| Some(deadline))
    }
}

/// The life of a reaper; its status says whether something is stuck.
fn reaping(reap: impl FnOnce() -> Result<u32, Errno>) -> impl FnOnce() -> i32 {
    let parent = rustix::process::getpid();
    move || {
        let prepared = die_with(parent).and_then(|()| sys::unblock_signals());
        i32::from(prepared.and_then(|()| reap()) != Ok(0))
    }
}

fn kill(pid: Pid, signal: Signal) {
    // It is a child that was not waited for: the number is its own, and to have ended already is no failure.
    let _ended = kill_process(pid, signal);
}
