//! The parent's life: one loop over signals, the daemon's frames, and the children to start, to wait for and to end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use crate::daemon::{CANNOT_RUN, Daemon, Program, die_with};
use crate::doors::Door;
use crate::fault::text;
use crate::mounter::Mounter;
use crate::{reaper, say, sys};

/// How long a daemon may drain: Docker waits 60 s for everything but Create and Mount.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a daemon may take to end after it has closed its socket.
const LEAVE: Duration = Duration::from_secs(2);
/// A reaper is killed after this and started again: it goes on where it was, unless its file system hangs.
const REAP_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// The first and the longest wait before stuck entries of the trash are tried again.
const REAP_AGAIN: Duration = Duration::from_secs(60);
const REAP_AGAIN_MAX: Duration = Duration::from_secs(60 * 60);
/// How long a failed fork is left alone.
const FORK_AGAIN: Duration = Duration::from_secs(1);
/// The status with which a daemon says that it cannot run as it is configured: starting it again would not help.
const CONFIGURATION: u8 = 78;

/// mountd as the parent of the daemon and of the reaper.
pub(crate) struct Parent {
    mounter: Mounter,
    program: Program,
    doors: [Door; 2],
    signals: OwnedFd,
    daemon: Option<Daemon>,
    start_at: Instant,
    reaper: Option<(Pid, Instant)>,
    reap_at: Option<Instant>,
    reap_wait: Duration,
    /// Set once the daemon was told to end: until then it may drain.
    drain_until: Option<Instant>,
}

impl Parent {
    /// Nothing is started before [`Parent::run`]; `doors` are the plugin's socket and the admin's.
    pub(crate) fn new(
        mounter: Mounter,
        program: Program,
        doors: [Door; 2],
        signals: OwnedFd,
    ) -> Self {
        let now = Instant::now();
        Self {
            mounter,
            program,
            doors,
            signals,
            daemon: None,
            start_at: now,
            reaper: None,
            reap_at: Some(now),
            reap_wait: REAP_AGAIN,
            drain_until: None,
        }
    }

    /// Runs until it is told to end, or the daemon cannot run; answers the exit status.
    pub(crate) fn run(mut self) -> u8 {
        let status = loop {
            self.start_what_is_due();
            self.end_what_is_late();
            self.wait();
            while let Some(signal) = sys::next_signal(&self.signals) {
                if signal != Signal::CHILD {
                    self.stop();
                }
            }
            self.talk();
            if let Some(status) = self.collect() {
                break status;
            }
        };
        for door in self.doors {
            door.close();
        }
        status
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.daemon.is_none() && self.drain_until.is_none() && now >= self.start_at {
            match self.program.start(&self.mounter, &self.doors) {
                Ok(daemon) => self.daemon = Some(daemon),
                Err(e) => {
                    say(format_args!("cannot start the daemon: {}", text(e)));
                    self.start_at = now + FORK_AGAIN;
                }
            }
        }
        if self.reaper.is_none() && self.reap_at.is_some_and(|at| now >= at) {
            self.reap_at = None;
            match self.start_reaper() {
                Ok(pid) => self.reaper = Some((pid, now + REAP_DEADLINE)),
                Err(e) => {
                    say(format_args!("cannot start the reaper: {}", text(e)));
                    self.reap_at = Some(now + REAP_AGAIN);
                }
            }
        }
    }

    fn start_reaper(&self) -> rustix::io::Result<Pid> {
        let parent = rustix::process::getpid();
        sys::fork(&[self.mounter.places.trash.as_fd()], || {
            let reap = || {
                die_with(parent)?;
                sys::unblock_signals()?;
                reaper::run(&sys::inherited(sys::FIRST_FD)?)
            };
            match reap() {
                Ok(stuck) => i32::from(stuck > 0),
                Err(e) => {
                    say(format_args!("cannot empty the trash: {}", text(e)));
                    1
                }
            }
        })
    }

    fn end_what_is_late(&mut self) {
        let late = |at: Instant| Instant::now() >= at;
        if let Some(daemon) = &self.daemon
            && (daemon.leaves_by.is_some_and(late) || self.drain_until.is_some_and(late))
        {
            kill(daemon.pid, Signal::KILL);
        }
        if let Some((pid, deadline)) = self.reaper
            && late(deadline)
        {
            kill(pid, Signal::KILL);
        }
    }

    /// Sleeps until something is to do.
    fn wait(&self) {
        let daemon = self.daemon.as_ref();
        let start = (daemon.is_none() && self.drain_until.is_none()).then_some(self.start_at);
        let times = [
            start,
            self.reap_at.filter(|_| self.reaper.is_none()),
            self.reaper.map(|(_, deadline)| deadline),
            daemon.and_then(|daemon| daemon.leaves_by),
            self.drain_until,
        ];
        let timeout = times.into_iter().flatten().min().map(|at| {
            // A little late rather than a turn too early.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut files = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(daemon) = daemon.filter(|daemon| daemon.leaves_by.is_none()) {
            let flags = if daemon.owes() { PollFlags::OUT } else { PollFlags::IN };
            files.push(PollFd::new(&daemon.socket, flags));
        }
        if let Err(e) = poll(&mut files, timeout.as_ref())
            && e != rustix::io::Errno::INTR
        {
            say(format_args!("cannot wait: {}", text(e)));
            std::thread::sleep(FORK_AGAIN);
        }
    }

    fn stop(&mut self) {
        if self.drain_until.is_none() {
            self.drain_until = Some(Instant::now() + DRAIN);
            if let Some(daemon) = &self.daemon {
                kill(daemon.pid, Signal::TERM);
            }
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
            self.reap_at = Some(Instant::now());
        }
    }

    /// Buries children; answers the exit status when there is no more to do.
    fn collect(&mut self) -> Option<u8> {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if self.reaper.is_some_and(|(reaper, _)| reaper == pid) {
                self.reaper = None;
                if status.exit_status() == Some(0) {
                    self.reap_wait = REAP_AGAIN;
                } else {
                    self.reap_at.get_or_insert(Instant::now() + self.reap_wait);
                    self.reap_wait = (self.reap_wait * 2).min(REAP_AGAIN_MAX);
                }
            }
            if let Some(daemon) = self.daemon.take_if(|daemon| daemon.pid == pid) {
                if let Some(code) = final_status(status) {
                    say("the daemon cannot run as it is configured: mend that, then start again");
                    return Some(code);
                }
                if self.drain_until.is_some() {
                    let told = status.terminating_signal() == Some(Signal::TERM.as_raw());
                    let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                    return Some(if told { 0 } else { code.unwrap_or(1) });
                }
                self.start_at = self.program.next_start(daemon.started);
                let wait = self.start_at.saturating_duration_since(Instant::now()).as_millis();
                let how = ending(status);
                say(format_args!("the daemon ended ({how}): starting it again in {wait} ms"));
            }
        }
        (self.daemon.is_none() && self.drain_until.is_some()).then_some(0)
    }
}

/// The status of a daemon that need not be started again.
fn final_status(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
    code.filter(|code| [CONFIGURATION, CANNOT_RUN].contains(code))
}

fn ending(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "no status".to_owned(),
    }
}

fn kill(pid: Pid, signal: Signal) {
    // It is a child that was not waited for: the number is its own, and to have ended already is no failure.
    let _ended = kill_process(pid, signal);
}
