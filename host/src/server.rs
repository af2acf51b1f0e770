//! The accept loop and the connections of both sockets: Docker's protocol and the admin API.
//!
//! hyper parses and writes HTTP/1.1; what a request means is the [`Api`]'s. Every connection is a task, so a slow or silent client
//! delays nobody. An answer leaves in one write. A connection tells when an answer has reached the socket: see [`Peer::unwritten`].
//! One timer a connection watches over all its silences, since one for each request would cost as much as a small answer.

mod body;
mod seats;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::machine;
use crate::volumes::holders::Process;

pub(crate) use body::{BodyError, NotTaken, parse, read_body};
use seats::{Seat, Seats};

/// How long a connection may be silent between two requests. dockerd drops its idle connections after 30 s: were we first, its next
/// request could fail halfway.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a request may take to arrive: clients write it at once, but a component of 64 MiB.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Pause after a failed accept: no file descriptor is free, and none will be at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The answer to one request.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What is behind a socket.
pub(crate) trait Api: 'static {
    /// Answers one request. The future is dropped when the connection is silent for too long.
    fn answer(
        self: Rc<Self>,
        peer: Rc<Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Answer>;
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The process that connected.
    pub(crate) process: Process,
    /// Its name.
    pub(crate) command: String,
    unwritten: RefCell<Option<oneshot::Sender<()>>>,
    stage: Cell<Stage>,
    /// A part of the next request has arrived before the answer to this one left.
    ahead: Cell<bool>,
    /// Told when its seat is wanted and it is the one that has been silent longest.
    leave: Notify,
    /// Told when it is silent again.
    changed: Rc<Notify>,
}

/// Where a connection is between two requests.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Nothing of a request is there.
    Silent { since: Instant },
    /// A part of one is there.
    Arriving { since: Instant },
    /// It is being answered, for as long as that takes.
    Answering,
    /// Its answer has not reached the socket.
    Unwritten { since: Instant },
}

impl Peer {
    fn of(stream: &UnixStream, changed: Rc<Notify>) -> Self {
        let pid = stream.peer_cred().ok().and_then(|cred| u32::try_from(cred.pid()?).ok());
        let pid = pid.unwrap_or(0);
        Self {
            process: machine::process(pid),
            command: machine::command_of(pid),
            unwritten: RefCell::default(),
            stage: Cell::new(Stage::Silent { since: Instant::now() }),
            ahead: Cell::new(false),
            leave: Notify::new(),
            changed,
        }
    }

    /// Until when the client may stay as silent as it is.
    fn deadline(&self) -> Option<Instant> {
        match self.stage.get() {
            Stage::Silent { since } | Stage::Unwritten { since } => Some(since + SILENCE),
            Stage::Arriving { since } => Some(since + ARRIVAL),
            Stage::Answering => None,
        }
    }

    /// Since when nothing of a request is there, if nothing is.
    fn silent_since(&self) -> Option<Instant> {
        match self.stage.get() {
            Stage::Silent { since } => Some(since),
            _ => None,
        }
    }

    fn received(&self) {
        match self.stage.get() {
            Stage::Silent { .. } => self.stage.set(Stage::Arriving { since: Instant::now() }),
            Stage::Arriving { .. } => {}
            Stage::Answering | Stage::Unwritten { .. } => self.ahead.set(true),
        }
    }

    /// Sends on `told` once the answer that is returned next has reached the socket; drops it if it never does.
    pub(crate) fn unwritten(&self, told: oneshot::Sender<()>) {
        *self.unwritten.borrow_mut() = Some(told);
    }

    fn written(&self) {
        if let Some(told) = self.unwritten.borrow_mut().take() {
            // Only the verb's own task listens, and it stays until it hears.
            let _ = told.send(());
        }
        if let Stage::Unwritten { .. } = self.stage.get() {
            let since = Instant::now();
            let is_ahead = self.ahead.take();
            self.stage.set(if is_ahead {
                Stage::Arriving { since }
            } else {
                Stage::Silent { since }
            });
            self.changed.notify_one();
        }
    }
}

/// What keeps the daemon from ending: a clone is held by every connection and every changing verb.
#[derive(Debug, Clone)]
pub(crate) struct Busy {
    _alive: mpsc::Sender<Infallible>,
}

/// Ends when every [`Busy`] has been dropped.
#[derive(Debug)]
pub(crate) struct Idle {
    alive: mpsc::Receiver<Infallible>,
}

impl Busy {
    /// The first one, and who waits for the last.
    pub(crate) fn new() -> (Self, Idle) {
        let (sender, alive) = mpsc::channel(1);
        (Self { _alive: sender }, Idle { alive })
    }
}

impl Idle {
    /// Waits for the last [`Busy`].
    pub(crate) async fn wait(&mut self) {
        self.alive.recv().await;
    }
}

/// Accepts and serves until `stop` is true: then no request is begun any more, and those in flight end on their own.
pub(crate) async fn serve<A: Api>(
    listener: UnixListener,
    api: Rc<A>,
    mut stop: watch::Receiver<bool>,
    busy: Busy,
) {
    let seats = Rc::new(Seats::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let peer = Peer::of(&stream, seats.changed());
                let seat = tokio::select! {
                    seat = seats.take(peer) => seat,
                    _ = stop.wait_for(|stop| *stop) => return,
                };
                let connection = connection(stream, seat, Rc::clone(&api), stop.clone());
                let busy = busy.clone();
                tokio::task::spawn_local(async move {
                    connection.await;
                    drop(busy);
                });
            }
            Err(e) => {
                tracing::warn!("no connection could be accepted: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<A: Api>(
    stream: UnixStream,
    seat: Seat,
    api: Rc<A>,
    mut stop: watch::Receiver<bool>,
) {
    let peer = Rc::clone(&seat.peer);
    let wire = Wire { stream: TokioIo::new(stream), peer: Rc::clone(&peer) };
    let asked = Rc::clone(&peer);
    let service = service_fn(move |request| {
        let (api, peer) = (Rc::clone(&api), Rc::clone(&asked));
        async move {
            let answer = api.answer(Rc::clone(&peer), request).await;
            peer.stage.set(Stage::Unwritten { since: Instant::now() });
            Ok::<_, Infallible>(answer)
        }
    });
    // Half-closed is not gone: without this, hyper drops a request whose last byte and end of stream it finds in one turn, before
    // it has begun. One who is really gone shows when the answer is written.
    let mut served =
        std::pin::pin!(http1::Builder::new().half_close(true).serve_connection(wire, service));
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        () = silence(&peer) => return,
        () = wanted(&peer) => return,
        _ = stop.wait_for(|stop| *stop) => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = silence(&peer) => return,
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!("connection ended: {e}");
    }
}

/// Ends when the client has been silent for too long.
async fn silence(peer: &Peer) {
    loop {
        match peer.deadline() {
            Some(deadline) if deadline <= Instant::now() => return,
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            // An answer may take minutes; the client's next silence is counted from its end.
            None => tokio::time::sleep(ARRIVAL).await,
        }
    }
}

/// Ends when the client is silent and its seat is wanted.
async fn wanted(peer: &Peer) {
    loop {
        peer.leave.notified().await;
        // What has arrived by now is read in the next turn, before this goes on.
        tokio::task::yield_now().await;
        if peer.silent_since().is_some() {
            return;
        }
        peer.changed.notify_one();
    }
}

/// A connection's socket, which tells the [`Peer`] when all that was given to it has been written.
struct Wire {
    stream: TokioIo<UnixStream>,
    peer: Rc<Peer>,
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.peer.received();
        }
        read
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes after its last byte was written, and never between an answer and its bytes.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.peer.written();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
