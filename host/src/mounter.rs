//! The client of mountd: numbered frames over the SOCK_SEQPACKET pair that mountd made before it started this daemon.
//!
//! Used by the verbs through [`world::Mounter`]. A request waits for its own answer only, so a slow mount holds up no other volume.
//! When mountd goes, so does the daemon: it could change nothing any more, and mountd's successor starts a new one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use wasmvol_plan::frame::{FRAME_MAX, Frame, Inventory};
use wasmvol_plan::{
    DriverName, Evidence, Facts, Fault, FaultKind, Id, Release, Reply, Request, Storage, Usage,
};

use crate::volumes::world::{self, MountRequest};

/// Reading directories and mountinfo: 100 000 entries take less than a second.
const SURVEY_DEADLINE: Duration = Duration::from_secs(10);
/// One mkdir and one sync of the disk; a busy disk may take seconds.
const MAKE_DEADLINE: Duration = Duration::from_secs(40);
/// dockerd waits 120 s for a Mount, and the rest of the verb needs time too.
const MOUNT_DEADLINE: Duration = Duration::from_secs(90);
/// dockerd waits 60 s for an Unmount and a Remove.
const RELEASE_DEADLINE: Duration = Duration::from_secs(40);
/// statfs of a local file system.
const USAGE_DEADLINE: Duration = Duration::from_secs(5);

/// mountd, at the other end of the pair.
#[derive(Debug, Clone)]
pub(crate) struct Mounter {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The kernel's SEQPACKET keeps the bounds of messages as its datagrams do, and tells the end besides.
    socket: UnixDatagram,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Reply>>>,
}

impl Mounter {
    /// Takes over this end of the pair. Must run where local tasks can be spawned: one reads the answers.
    pub(crate) fn start(pair: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(pair);
        socket.set_nonblocking(true)?;
        let shared = Rc::new(Shared {
            socket: UnixDatagram::from_std(socket)?,
            next: Cell::new(1),
            waiting: RefCell::default(),
        });
        let reader = Rc::clone(&shared);
        tokio::task::spawn_local(async move { reader.read_answers().await });
        Ok(Self { shared })
    }

    async fn ask(&self, body: Request, deadline: Duration) -> Result<Reply, Fault> {
        let number = self.shared.next.get();
        self.shared.next.set(number.wrapping_add(1));
        let frame = Frame { number, body }.encode()?;
        let (sender, answer) = oneshot::channel();
        self.shared.waiting.borrow_mut().insert(number, sender);
        let answered = async {
            self.shared.send(&frame).await?;
            answer.await.map_err(|_| gone())
        };
        let reply = tokio::time::timeout(deadline, answered).await;
        self.shared.waiting.borrow_mut().remove(&number);
        match reply {
            Ok(Ok(Reply::Failed(fault))) => Err(fault),
            Ok(result) => result,
            Err(_) => Err(Fault::new(
                FaultKind::Failed,
                format!("mountd did not answer within {} s", deadline.as_secs()),
            )),
        }
    }
}

impl Shared {
    async fn send(&self, frame: &[u8]) -> Result<(), Fault> {
        match self.socket.send(frame).await {
            Ok(n) if n == frame.len() => Ok(()),
            Ok(_) => Err(Fault::new(FaultKind::Failed, "frame to mountd was cut")),
            Err(_) => Err(gone()),
        }
    }

    async fn read_answers(&self) {
        let mut buffer = vec![0; FRAME_MAX];
        loop {
            match self.socket.recv(&mut buffer).await {
                Ok(0) => end("mountd has ended"),
                Ok(n) => self.deliver(buffer.get(..n).unwrap_or_default()),
                Err(e) => end(&format!("mountd cannot be heard: {e}")),
            }
        }
    }

    fn deliver(&self, bytes: &[u8]) {
        match Frame::<Reply>::decode(bytes) {
            Ok(frame) => match self.waiting.borrow_mut().remove(&frame.number) {
                // Nobody waits: the request's task has gone, and recovery or the next verb finds what was done.
                Some(waiting) => drop(waiting.send(frame.body)),
                None => tracing::warn!("mountd answered request {} too late", frame.number),
            },
            Err(fault) => end(&format!("mountd cannot be understood: {fault}")),
        }
    }
}

impl world::Mounter for Mounter {
    async fn survey(
        &self,
        kind: Inventory,
    ) -> Result<(Vec<(Id, Option<Facts>)>, Vec<String>), Fault> {
        let mut all = Vec::new();
        let mut strange = Vec::new();
        let mut after = None;
        loop {
            match self.ask(Request::Survey { kind, after }, SURVEY_DEADLINE).await? {
                Reply::Surveyed { entries, strangers, more } => {
                    let last = entries.last().map(|(id, _)| *id);
                    all.extend(entries);
                    strange.extend(strangers);
                    // A page without an entry cannot have a next one.
                    if !more || last.is_none() {
                        return Ok((all, strange));
                    }
                    after = last;
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn make(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<(), Fault> {
        let request = Request::Make { id, driver: driver.clone(), storage: storage.clone() };
        match self.ask(request, MAKE_DEADLINE).await? {
            Reply::Made => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn mount(&self, request: MountRequest<'_>) -> Result<Facts, Fault> {
        let request = Request::Mount {
            id: request.id,
            driver: request.driver.clone(),
            storage: request.storage.clone(),
            plan: request.plan.clone(),
            peer: request.peer,
            last: request.last.cloned(),
        };
        match self.ask(request, MOUNT_DEADLINE).await? {
            Reply::Mounted(facts) => Ok(facts),
            other => Err(unexpected(&other)),
        }
    }

    async fn unmount(&self, id: Id) -> Result<Release, Fault> {
        match self.ask(Request::Unmount { id }, RELEASE_DEADLINE).await? {
            Reply::Unmounted(release) => Ok(release),
            other => Err(unexpected(&other)),
        }
    }

    async fn scan(&self, id: Id) -> Result<Evidence, Fault> {
        match self.ask(Request::Scan { id }, RELEASE_DEADLINE).await? {
            Reply::Scanned(evidence) => Ok(evidence),
            other => Err(unexpected(&other)),
        }
    }

    async fn trash(&self, id: Id) -> Result<bool, Fault> {
        match self.ask(Request::Trash { id }, RELEASE_DEADLINE).await? {
            Reply::Trashed(was_there) => Ok(was_there),
            other => Err(unexpected(&other)),
        }
    }

    async fn usage(&self, id: Id) -> Result<Usage, Fault> {
        match self.ask(Request::Usage { id }, USAGE_DEADLINE).await? {
            Reply::Used(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }
}

fn gone() -> Fault {
    Fault::new(FaultKind::Gone, "mountd has ended: the daemon starts again with it")
}

fn unexpected(reply: &Reply) -> Fault {
    Fault::new(FaultKind::Invalid, format!("mountd answered another question: {reply:?}"))
}

#[expect(clippy::exit, reason = "a daemon without mountd can change nothing")]
fn end(why: &str) -> ! {
    tracing::error!("{why}: the daemon ends too");
    std::process::exit(1)
}
