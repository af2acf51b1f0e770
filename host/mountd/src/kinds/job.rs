//! Slow work: what may take longer than the other requests can wait runs in a child with a deadline, and hands back a tree.
//!
//! `mounter` queues such requests, the parent's loop starts them, hears them and ends them. At most one child works for a volume:
//! one that cannot be killed, because its server is gone, delays its own volume only. A child has root and mountd's directories, but
//! none of its sockets and locks; it dies with mountd. What it hands over is attached nowhere, so a killed child leaves nothing.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process_group};
use wasmvol_plan::frame::Frame;
use wasmvol_plan::{Fault, FaultKind, Id, Release, Reply, Request, Source};

use super::wait::{DEADLINE, changes, checks_an_image, deadline_of, id_of, only_looks};
use super::wire::{Said, receive, send};
use super::{Assembled, Shows};
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::sys;

/// Most children at once: as many mounts of servers begin at a boot, and each is a process.
const JOBS_MAX: usize = 16;
/// Most of them that only look: a server that is gone, and a hundred volumes of it, leave room for what changes others.
const LOOKS_MAX: usize = JOBS_MAX / 2;
/// Most checks of images that go on after their requests were answered: each is a program at work on a disk.
const CHECKS_MAX: usize = 16;
/// What is said to who waits for one, or for anything else.
const CHECKED: &str =
    "its image is still being checked, which goes on: try again, or see whether its disk answers";
const BUSY: &str = "an earlier request for it, or 16 for others, did not end: try again";

/// What the parent has done before there is a child.
pub(super) enum Begun {
    /// All of it.
    Answered(Reply),
    /// What a child needs; it gets the tree, if there is one, and it alone.
    ForAChild(Option<OwnedFd>),
}

/// The slow requests.
#[derive(Default)]
pub(crate) struct Jobs {
    waiting: VecDeque<Waiting>,
    running: Vec<Job>,
}

struct Waiting {
    number: u64,
    request: Request,
    until: Instant,
}

struct Job {
    pid: Pid,
    id: Id,
    until: Instant,
    /// Others may work for the volume at the same time.
    only_looks: bool,
    /// Nobody is there any more to speak.
    has_ended: bool,
    /// It works although nobody waits for it any more.
    goes_on: bool,
    /// None once that is answered, or once nobody waits for it.
    asked: Option<Asked>,
}

/// What a child works for, and where it answers: once that is closed, a tree that comes too late is the child's to close.
struct Asked {
    number: u64,
    request: Request,
    socket: OwnedFd,
}

impl Jobs {
    /// Whether a request changes a volume that a child works for, or will: then it waits for its turn.
    pub(crate) fn is_busy(&self, request: &Request) -> bool {
        let id = id_of(request);
        let is_its = |job: &Job| job.id == id && !job.only_looks;
        let waits = |waiting: &Waiting| id_of(&waiting.request) == id;
        changes(request) && (self.running.iter().any(is_its) || self.waiting.iter().any(waits))
    }

    /// Takes a request that is slow, or whose volume is busy.
    pub(crate) fn queue(&mut self, number: u64, request: Request) {
        let patience = if only_looks(&request) { deadline_of(&request) } else { DEADLINE };
        let until = Instant::now() + patience.min(DEADLINE);
        self.waiting.push_back(Waiting { number, request, until });
    }

    /// Forgets what the daemon that has gone wanted; what runs is ended.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
        // Who has been heard has nothing left to do but to end; what it started may be in use.
        for job in self.running.iter_mut().filter(|job| job.asked.is_some()) {
            job.asked = None;
            job.kill();
        }
    }

    /// A child has ended. What it has said is still to be heard.
    pub(crate) fn ended(&mut self, pid: Pid) {
        self.running.retain(|job| job.pid != pid || job.asked.is_some());
        for job in self.running.iter_mut().filter(|job| job.pid == pid) {
            job.has_ended = true;
            job.until = Instant::now();
        }
    }

    /// What to wait for.
    pub(crate) fn files(&self) -> impl Iterator<Item = &OwnedFd> {
        self.running.iter().filter_map(|job| job.asked.as_ref()).map(|asked| &asked.socket)
    }

    /// When something is to be done.
    pub(crate) fn next(&self) -> Option<Instant> {
        let asked = self.running.iter().filter(|job| job.asked.is_some());
        let running = asked.map(|job| job.until);
        // A child that has ended is no message: who waited for it must not go on waiting.
        let startable = self.first().map(|_| Instant::now());
        running.chain(self.waiting.iter().map(|waiting| waiting.until)).chain(startable).min()
    }

    fn startable(&mut self) -> Option<Waiting> {
        self.first().and_then(|at| self.waiting.remove(at))
    }

    /// The first waiting request whose volume has no child.
    fn first(&self) -> Option<usize> {
        let busy = |id: Id| self.running.iter().any(|job| job.id == id && !job.only_looks);
        // Who hangs in a server that has gone takes no room of others'.
        let working = || self.running.iter().filter(|job| job.asked.is_some());
        let looks = |job: &&Job| job.asked.as_ref().is_some_and(|asked| only_looks(&asked.request));
        let room = working().count() < JOBS_MAX;
        let room_to_look = room && working().filter(looks).count() < LOOKS_MAX;
        self.waiting.iter().position(|Waiting { request, .. }| {
            (if only_looks(request) { room_to_look } else { room }) && !busy(id_of(request))
        })
    }

    /// The requests that have waited for too long, and what for.
    fn late(&mut self) -> Vec<(u64, &'static str)> {
        let now = Instant::now();
        let (late, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| waiting.until <= now);
        self.waiting = waiting.into();
        let is_checked = |id| self.running.iter().any(|job| job.id == id && job.goes_on);
        let why = |id| if is_checked(id) { CHECKED } else { BUSY };
        late.iter().map(|Waiting { number, request, .. }| (*number, why(id_of(request)))).collect()
    }
}

impl Job {
    fn kill(&self) {
        // It and what it started are a group of their own; to have ended already is no failure.
        let _ended = kill_process_group(self.pid, Signal::KILL);
    }

    /// What the child says, once it says it, has ended, or is late.
    fn hear(&mut self, may_go_on: bool) -> Option<Result<Said, Fault>> {
        let Asked { request, socket, .. } = self.asked.as_ref()?;
        let id = self.id;
        let failed = |why| fault(FaultKind::Failed, format!("the work for volume `{id}` {why}"));
        match receive(socket) {
            Ok(Some(heard)) => Some(Ok(heard)),
            Ok(None) => Some(failed("broke off")),
            Err(_) if self.until > Instant::now() => None,
            Err(_) if matches!(request, Request::Unmount { attached: Some(_), .. }) => {
                Some(fault(FaultKind::Busy, "what was written to it is not on its disk yet"))
            }
            // It is unmounted, and the rest is its server's; or its disk is slow: the child keeps it busy, and it is tried again.
            Err(_) if matches!(request, Request::Unmount { .. }) => {
                Some(Ok((Reply::Unmounted(Release::Gone), None)))
            }
            Err(_) if may_go_on && !self.has_ended && checks_an_image(request) => {
                self.goes_on = true;
                Some(fault(FaultKind::Busy, CHECKED))
            }
            Err(_) => {
                self.kill();
                Some(failed("did not end in time: see whether its disk or server answers"))
            }
        }
    }
}

impl Mounter {
    /// Starts what can be started, and answers what has ended; with an answer may come a tree for the daemon.
    pub(crate) fn work(&self) -> Vec<(Frame<Reply>, Option<OwnedFd>)> {
        let mut answers = self.hear();
        loop {
            let startable = self.jobs.borrow_mut().startable();
            let Some(Waiting { number, request, .. }) = startable else { break };
            let failed = |fault| (Frame { number, body: Reply::Failed(fault) }, None);
            match self.begin(&request) {
                Ok(Begun::Answered(reply)) => answers.push((Frame { number, body: reply }, None)),
                Ok(Begun::ForAChild(tree)) => match self.start(number, request, tree) {
                    Ok(job) => self.jobs.borrow_mut().running.push(job),
                    Err(fault) => answers.push(failed(fault)),
                },
                Err(fault) => answers.push(failed(fault)),
            }
        }
        let busy = |why| Reply::Failed(Fault::new(FaultKind::Busy, why));
        let late = self.jobs.borrow_mut().late();
        answers.extend(
            late.into_iter().map(|(number, why)| (Frame { number, body: busy(why) }, None)),
        );
        answers
    }

    fn hear(&self) -> Vec<(Frame<Reply>, Option<OwnedFd>)> {
        let mut heard = Vec::new();
        let mut jobs = self.jobs.borrow_mut();
        let mut going_on = jobs.running.iter().filter(|job| job.goes_on).count();
        for job in jobs.running.iter_mut().filter(|job| job.asked.is_some()) {
            if let Some(result) = job.hear(going_on < CHECKS_MAX) {
                heard.extend(job.asked.take().map(|asked| (asked, result)));
                going_on += usize::from(job.goes_on);
            }
        }
        jobs.running.retain(|job| !job.has_ended || job.asked.is_some());
        drop(jobs);
        let answer = |(asked, said): (Asked, Result<Said, Fault>)| {
            let said = said.and_then(|(reply, tree)| self.end(&asked.request, reply, tree));
            let (body, tree) = said.unwrap_or_else(|fault| (Reply::Failed(fault), None));
            (Frame { number: asked.number, body }, tree)
        };
        heard.into_iter().map(answer).collect()
    }

    /// What can be done without a child, and the tree that one gets.
    fn begin(&self, request: &Request) -> Result<Begun, Fault> {
        match request {
            Request::Mount(wanted) => {
                let facts = self.mounted(wanted)?.map(Reply::Mounted);
                Ok(facts.map_or(Begun::ForAChild(None), Begun::Answered))
            }
            Request::Unmount { id, attached } if self.may_wait(request) => {
                self.let_go(*id, attached.as_ref())
            }
            slow if self.may_wait(slow) => Ok(Begun::ForAChild(None)),
            // It only waited until no child works for its volume.
            quick => {
                let quick = Frame { number: 0, body: quick.clone() };
                let answer = self.answer([quick].into_iter()).pop();
                answer.map_or(Ok(Begun::ForAChild(None)), |done| Ok(Begun::Answered(done.body)))
            }
        }
    }

    /// What the parent does with the child's answer.
    fn end(&self, request: &Request, reply: Reply, tree: Option<OwnedFd>) -> Result<Said, Fault> {
        let done = match (request, tree) {
            (Request::Fill { .. }, tree) => {
                self.kill.at("fill.handed");
                return Ok((reply, tree));
            }
            (Request::Settle { .. }, _) => {
                self.kill.at("fill.taken");
                Ok(reply)
            }
            (Request::Mount(wanted), Some(tree)) => {
                let assembled = Assembled { tree, shows: Shows::Unknown };
                // The child has perhaps thrown a layer away.
                if matches!(wanted.plan.source, Source::Overlay(_)) {
                    self.discarded.set(true);
                }
                self.attach(wanted, assembled).map(Reply::Mounted)
            }
            (Request::Unmount { id, attached }, _) if self.anchor.mounted(*id)?.is_some() => {
                self.unmount(*id, attached.as_ref()).map(Reply::Unmounted)
            }
            (Request::Trash { .. }, _) => Ok(self.was_discarded(reply)),
            (Request::Unmount { id, .. }, _) => Ok(self.was_let_go(*id, reply)),
            _ => Ok(reply),
        };
        done.map(|reply| (reply, None))
    }

    fn start(&self, number: u64, request: Request, gift: Option<OwnedFd>) -> Result<Job, Fault> {
        let what = "start a child";
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(family, kind, flags, None).trying(what)?;
        // On its way it is nobody's: the child closes the last of it.
        send(&ours, Reply::Made, gift.as_ref()).trying(what)?;
        drop(gift);
        let parent = rustix::process::getpid();
        let mut keep = self.places.of_a_child();
        keep.extend([self.anchor.root(), self.anchor.writable.as_fd(), theirs.as_fd()]);
        keep.extend(self.processes.files());
        let pid = sys::fork_keeping(&keep, || self.live(parent, &theirs, &request)).trying(what)?;
        let only_looks = matches!(request, Request::Measure(_));
        let (id, until) = (id_of(&request), Instant::now() + deadline_of(&request));
        let asked = Some(Asked { number, request, socket: ours });
        Ok(Job { pid, id, until, only_looks, has_ended: false, goes_on: false, asked })
    }
}
