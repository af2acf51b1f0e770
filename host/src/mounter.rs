//! The client of mountd: numbered frames over the SOCK_SEQPACKET pair that mountd made before it started this daemon.
//!
//! Used by the verbs through [`world::Mounter`]. A request waits for its own answer only, so a slow mount holds up no other volume.
//! When mountd goes, so does the daemon: it could change nothing any more, and mountd's successor starts a new one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use wasmvol_plan::frame::{Attached, FRAME_MAX, Frame, Inventory, Mount};
use wasmvol_plan::kinds::named_directory::{Look, Mark, Page};
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{
    DriverName, Evidence, Facts, Fault, FaultKind, Id, Measure, Release, Reply, Request,
    SecretName, Storage, Usage,
};

use crate::volumes::world::{self, MountRequest};

/// Most markers of one driver: as many volumes as a list may have.
const MARKS_MAX: usize = 10_000;
/// Most bytes of what they say: 400 for each, twice what options take today.
const MARKS_BYTES_MAX: usize = 4 << 20;
/// Reading directories and mountinfo: 100 000 entries take less than a second.
const SURVEY_DEADLINE: Duration = Duration::from_secs(10);
/// What is made in a child may take its 60 s; dockerd waits 120 s for a Create.
const MAKE_DEADLINE: Duration = Duration::from_secs(90);
/// dockerd waits 120 s for a Mount, and the rest of the verb needs time too.
const MOUNT_DEADLINE: Duration = Duration::from_secs(90);
/// dockerd waits 60 s for an Unmount and a Remove.
const RELEASE_DEADLINE: Duration = Duration::from_secs(40);
/// A read of one small file; a busy disk may take seconds.
const SECRET_DEADLINE: Duration = Duration::from_secs(10);
/// mountd ends its child after 300 s, and says so.
const MEASURE_DEADLINE: Duration = Duration::from_secs(310);
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
    waiting: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
}

/// What mountd says, and the open file that comes with one kind of answer.
type Answer = (Reply, Option<OwnedFd>);

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

    /// The bytes of a secret, for a driver that was granted to have them.
    pub(crate) async fn reveal(
        &self,
        name: &SecretName,
        driver: &DriverName,
    ) -> Result<Bytes, Fault> {
        let request = Request::Reveal { driver: driver.clone(), name: name.clone() };
        match self.ask(request, SECRET_DEADLINE).await? {
            Reply::Revealed(mut revealed) => Ok(Bytes::new(std::mem::take(&mut revealed.0))),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, body: Request, deadline: Duration) -> Result<Reply, Fault> {
        self.ask_for_file(body, deadline).await.map(|(reply, _)| reply)
    }

    async fn ask_for_file(&self, body: Request, deadline: Duration) -> Result<Answer, Fault> {
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
            Ok(Ok((Reply::Failed(fault), _))) => Err(fault),
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
            match self.receive(&mut buffer).await {
                Ok((0, _)) => end("mountd has ended"),
                Ok((n, file)) => self.deliver(buffer.get(..n).unwrap_or_default(), file),
                Err(e) => end(&format!("mountd cannot be heard: {e}")),
            }
        }
    }

    /// The length of the next message, and the open file that came with it.
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let buffer = &mut [IoSliceMut::new(buffer)];
            let received = recvmsg(&self.socket, buffer, &mut ancillary, flags)?;
            let file = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                _ => None,
            });
            Ok((received.bytes, file))
        };
        self.socket.async_io(Interest::READABLE, receive).await
    }

    fn deliver(&self, bytes: &[u8], file: Option<OwnedFd>) {
        match Frame::<Reply>::decode(bytes) {
            Ok(frame) => match self.waiting.borrow_mut().remove(&frame.number) {
                // Nobody waits: the request's task has gone, and recovery or the next verb finds what was done.
                Some(waiting) => drop(waiting.send((frame.body, file))),
                None => tracing::warn!("mountd answered request {} too late", frame.number),
            },
            Err(fault) => end(&format!("mountd cannot be understood: {fault}")),
        }
    }
}

impl world::Mounter for Mounter {
    type Root = OwnedFd;

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

    async fn make(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
        note: Vec<u8>,
    ) -> Result<(), Fault> {
        let request = Request::Make { id, driver: driver.clone(), storage: storage.clone(), note };
        match self.ask(request, MAKE_DEADLINE).await? {
            Reply::Made => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn fill(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<OwnedFd, Fault> {
        let request = Request::Fill { id, driver: driver.clone(), storage: storage.clone() };
        match self.ask_for_file(request, MAKE_DEADLINE).await? {
            (Reply::Opened, Some(root)) => Ok(root),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn settle(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<(), Fault> {
        let request = Request::Settle { id, driver: driver.clone(), storage: storage.clone() };
        match self.ask(request, MAKE_DEADLINE).await? {
            Reply::Settled => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn grow(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
        note: Vec<u8>,
    ) -> Result<(), Fault> {
        let request = Request::Grow { id, driver: driver.clone(), storage: storage.clone(), note };
        match self.ask(request, MAKE_DEADLINE).await? {
            Reply::Grown => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn mount(&self, request: MountRequest<'_>) -> Result<Facts, Fault> {
        let request = Request::Mount(Box::new(Mount {
            id: request.id,
            driver: request.driver.clone(),
            storage: request.storage.clone(),
            plan: request.plan.clone(),
            peer: request.peer,
            last: request.last.cloned(),
        }));
        match self.ask(request, MOUNT_DEADLINE).await? {
            Reply::Mounted(facts) => Ok(facts),
            other => Err(unexpected(&other)),
        }
    }

    async fn unmount(&self, id: Id, attached: Option<Attached>) -> Result<Release, Fault> {
        match self.ask(Request::Unmount { id, attached }, RELEASE_DEADLINE).await? {
            Reply::Unmounted(release) => Ok(release),
            other => Err(unexpected(&other)),
        }
    }

    async fn scan(&self, id: Id, attached: Option<Attached>) -> Result<Evidence, Fault> {
        match self.ask(Request::Scan { id, attached }, RELEASE_DEADLINE).await? {
            Reply::Scanned(evidence) => Ok(evidence),
            other => Err(unexpected(&other)),
        }
    }

    async fn trash(&self, id: Id, driver: &DriverName, storage: &Storage) -> Result<(), Fault> {
        let request = Request::Trash { id, driver: driver.clone(), storage: storage.clone() };
        match self.ask(request, RELEASE_DEADLINE).await? {
            Reply::Trashed => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn measure(&self, id: Id) -> Result<Measure, Fault> {
        match self.ask(Request::Measure(id), MEASURE_DEADLINE).await? {
            Reply::Measured(measured) => Ok(measured),
            other => Err(unexpected(&other)),
        }
    }

    async fn marks(&self, driver: &DriverName) -> Result<Vec<Mark>, Fault> {
        let (mut all, mut bytes, mut after) = (Vec::new(), 0, None);
        loop {
            let request = Request::Marks(Look { driver: driver.clone(), after });
            match self.ask(request, SURVEY_DEADLINE).await? {
                Reply::Marked(Page { marks, next }) => {
                    bytes += marks.iter().map(|mark| mark.note.len()).sum::<usize>();
                    all.extend(marks);
                    if all.len() > MARKS_MAX || bytes > MARKS_BYTES_MAX {
                        let most =
                            format!("at most {MARKS_MAX} of {} MiB in all", MARKS_BYTES_MAX >> 20);
                        let why = format!(
                            "too many volumes are marked beneath its roots: {most} are read"
                        );
                        return Err(Fault::new(FaultKind::Exhausted, why));
                    }
                    if next.is_none() {
                        return Ok(all);
                    }
                    after = next;
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn ended(&self) -> Result<Vec<Id>, Fault> {
        match self.ask(Request::Ended, USAGE_DEADLINE).await? {
            Reply::Ended(ids) => Ok(ids),
            other => Err(unexpected(&other)),
        }
    }

    async fn usage(&self, id: Id) -> Result<Usage, Fault> {
        match self.ask(Request::Usage(id), USAGE_DEADLINE).await? {
            Reply::Used(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    async fn find_secret(&self, name: &SecretName, driver: &DriverName) -> Result<(), Fault> {
        let request = Request::Secret { driver: driver.clone(), name: name.clone() };
        match self.ask(request, SECRET_DEADLINE).await? {
            Reply::Kept => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::runtime::{Builder, LocalOptions};
    use wasmvol_plan::frame::PAGE;

    use super::world::Mounter as _;
    use super::*;

    /// The other end of the pair.
    struct Mountd(UnixDatagram);

    impl Mountd {
        async fn question(&self) -> Frame<Request> {
            let mut buffer = vec![0; FRAME_MAX];
            let read = self.0.recv(&mut buffer).await.unwrap();
            Frame::decode(&buffer[..read]).unwrap()
        }

        async fn answer(&self, number: u64, body: Reply) {
            self.0.send(&Frame { number, body }.encode().unwrap()).await.unwrap();
        }
    }

    fn run<F: Future<Output = ()>>(is_paused: bool, test: impl FnOnce(Mounter, Mountd) -> F) {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(is_paused);
        runtime.build_local(LocalOptions::default()).unwrap().block_on(async {
            let flags = SockFlag::SOCK_NONBLOCK;
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
            let theirs = theirs.as_fd().try_clone_to_owned().unwrap();
            let mountd = Mountd(UnixDatagram::from_std(theirs.into()).unwrap());
            test(Mounter::start(ours).unwrap(), mountd).await;
        });
    }

    #[test]
    fn answers_reach_their_questions_in_any_order() {
        run(false, |mounter, mountd| async move {
            let [one, two] = [1, 2].map(Id::from_bits);
            let mountd = async {
                let questions = [mountd.question().await, mountd.question().await];
                for Frame { number, body } in questions.into_iter().rev() {
                    let unknown = u32::from(body == Request::Scan { id: two, attached: None });
                    let evidence = Evidence { unknown, ..Evidence::default() };
                    mountd.answer(number, Reply::Scanned(evidence)).await;
                }
            };
            let (first, second, ()) =
                tokio::join!(mounter.scan(one, None), mounter.scan(two, None), mountd);
            assert_eq!((first.unwrap().unknown, second.unwrap().unknown), (0, 1));
        });
    }

    #[test]
    fn pages_of_a_survey_are_joined() {
        run(false, |mounter, mountd| async move {
            let all: Vec<_> = (0..PAGE as u128 + 3).map(|n| (Id::from_bits(n), None)).collect();
            let (first, second) = all.split_at(PAGE);
            let mountd = async {
                let pages = [(None, first, true), (Some(first[PAGE - 1].0), second, false)];
                for (wanted, entries, more) in pages {
                    let question = mountd.question().await;
                    let kind = Inventory::Trash;
                    assert_eq!(question.body, Request::Survey { kind, after: wanted });
                    let strangers = if more { vec!["x".to_owned()] } else { Vec::new() };
                    let entries = entries.to_vec();
                    let page = Reply::Surveyed { entries, strangers, more };
                    mountd.answer(question.number, page).await;
                }
            };
            let (surveyed, ()) = tokio::join!(mounter.survey(Inventory::Trash), mountd);
            assert_eq!(surveyed.unwrap(), (all, vec!["x".to_owned()]));
        });
    }

    #[test]
    fn a_question_without_an_answer_ends_and_a_late_answer_harms_nobody() {
        run(true, |mounter, mountd| async move {
            let id = Id::from_bits(1);
            let fault = mounter.usage(id).await.unwrap_err();
            assert_eq!(fault.message, "mountd did not answer within 5 s");
            tokio::time::resume();
            let late = mountd.question().await.number;
            mountd.answer(late, Reply::Trashed).await;
            let mountd = async {
                let number = mountd.question().await.number;
                mountd.answer(number, Reply::Unmounted(Release::Gone)).await;
            };
            let (released, ()) = tokio::join!(mounter.unmount(id, None), mountd);
            assert_eq!(released, Ok(Release::Gone));
        });
    }

    #[test]
    fn an_open_file_comes_with_its_answer() {
        run(false, |mounter, mountd| async move {
            let local = DriverName::parse("local").unwrap();
            let (root, mut other) = std::io::pipe().unwrap();
            let mountd = async {
                let number = mountd.question().await.number;
                let bytes = Frame { number, body: Reply::Opened }.encode().unwrap();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let files = [root.as_fd()];
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
                let (bytes, flags) = ([IoSlice::new(&bytes)], SendFlags::empty());
                sendmsg(&mountd.0, &bytes, &mut ancillary, flags).unwrap();
                // One without its file is no answer.
                let number = mountd.question().await.number;
                mountd.answer(number, Reply::Opened).await;
            };
            let id = Id::from_bits(1);
            let daemon = async {
                let opened = mounter.fill(id, &local, &Storage::None).await;
                (opened, mounter.fill(id, &local, &Storage::None).await)
            };
            let ((opened, without), ()) = tokio::join!(daemon, mountd);
            other.write_all(b"it is the same").unwrap();
            drop(other);
            let mut said = String::new();
            std::fs::File::from(opened.unwrap()).read_to_string(&mut said).unwrap();
            assert_eq!(said, "it is the same");
            assert_eq!(without.unwrap_err().kind, FaultKind::Invalid);
        });
    }

    #[test]
    fn an_answer_to_another_question_is_a_fault() {
        run(false, |mounter, mountd| async move {
            let mountd = async {
                let number = mountd.question().await.number;
                mountd.answer(number, Reply::Made).await;
            };
            let local = DriverName::parse("local").unwrap();
            let (trashed, ()) =
                tokio::join!(mounter.trash(Id::from_bits(1), &local, &Storage::None), mountd);
            assert_eq!(trashed.unwrap_err().kind, FaultKind::Invalid);
        });
    }
}
