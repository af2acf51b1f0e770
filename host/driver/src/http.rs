//! HTTP for drivers: `wasi:http`, as far as the operator granted it.
//!
//! Used by `call`. Every request is checked: its origin against the grants, the addresses of its name once they are known, and then the
//! connection is made to one of those and no other, so that no second answer of a name server can lead it elsewhere. No redirect is
//! followed here: where a driver follows one, that is a request that is checked as any. Requests, bytes and time of a call are bounded.

mod tls;

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};
use wasmvol_plan::Fault;
use wasmvol_plan::kinds::http::{HttpGrant, Origin, check_address, check_origin};

use crate::journal::{Journal, Log};
use crate::own::Own;

/// Most bytes of a request's headers, in memory: servers take 8 to 16 KiB of them, and a driver may keep many that it never sends.
pub(crate) const HEADERS_MAX: usize = 16 << 10;
/// Most bytes of an answer's head, and of what is read of its body at once.
pub(crate) const ANSWER_MAX: usize = 64 << 10;
/// How much of a body waits to be sent: two pieces of it.
const PIECE: usize = 16 << 10;
/// Connections of one call at once: as many as a browser has to one host, and some.
pub(crate) const CONNECTIONS_MAX: usize = 8;
/// Names that are looked up at once for one driver. A name server that does not answer keeps a thread for longer than the call that asked.
const NAMES_MAX: usize = 4;
/// How long a name is looked up: a resolver asks again after 5 s.
const LOOK_UP: Duration = Duration::from_secs(8);
/// How long one address may take to connect, TLS included. The kernel asks again after 1 s and 3 s.
const CONNECT: Duration = Duration::from_secs(5);

/// What one call may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Requests.
    pub(crate) requests: u64,
    /// Bytes of bodies, sent and received together.
    pub(crate) bytes: u64,
}

/// Who looks up names for the calls of one driver.
#[derive(Debug, Clone)]
pub(crate) struct Names(Arc<Semaphore>);

/// The HTTP of one call.
pub(crate) struct Http {
    pub(crate) context: WasiHttpCtx,
    pub(crate) client: Client,
}

/// Sends what is granted.
pub(crate) struct Client {
    shared: Arc<Shared>,
}

/// What the requests of a call have in common.
struct Shared {
    /// It knows whose the requests are.
    log: Arc<Log>,
    grants: Arc<[HttpGrant]>,
    names: Names,
    until: Instant,
    budget: Budget,
    /// What is left of it.
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: Arc<Semaphore>,
    refusal: Mutex<Option<Refusal>>,
}

/// Why a request got no answer, for who reads the driver's error: a driver itself hears of a code.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// Scheme, host and port.
    place: String,
    words: String,
    by: By,
}

/// Who is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Nobody granted it.
    Operator,
    /// It is over a limit.
    Host,
    /// Its backend, or the way there: what counts is what the last request came to.
    Backend,
}

impl Refusal {
    /// What must be granted first, if that is it.
    pub(crate) fn grant(self) -> Option<String> {
        (self.by == By::Operator).then_some(self.words)
    }

    /// A sentence of the driver's, and this one behind it unless the driver has said it already, or it tells what nobody is told.
    pub(crate) fn behind(&self, sentence: &str, journal: &Journal) -> String {
        let Self { place, words, by } = self;
        match by {
            _ if journal.told(place) != place => sentence.to_owned(),
            _ if sentence.contains(words) => sentence.to_owned(),
            By::Operator | By::Host => format!("{sentence}: {words}"),
            By::Backend => format!("{sentence}: `{place}` cannot be asked: {words}"),
        }
    }
}

impl Names {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(NAMES_MAX)))
    }

    /// The addresses that a host has now.
    async fn look_up(&self, origin: &Origin) -> Result<Vec<IpAddr>, Failure> {
        if let Some(address) = origin.address() {
            return Ok(vec![address]);
        }
        let host = (origin.host.clone(), origin.port);
        let found = async {
            // It is never closed.
            let seat = Arc::clone(&self.0).acquire_owned().await;
            let look_up = move || {
                // Until the resolver has ended, whoever still waits for it.
                let _seat = seat;
                host.to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())
            };
            tokio::task::spawn_blocking(look_up).await
        };
        let unknown = |words| Failure::new(DNS_ERROR, words);
        match tokio::time::timeout(LOOK_UP, found).await {
            Ok(Ok(Ok(found))) => {
                let mut addresses: Vec<_> = found;
                addresses.dedup();
                Ok(addresses)
            }
            Ok(_) => Err(unknown("its name is not known")),
            Err(_) => Err(Failure::new(Error::DnsTimeout, "nobody says what address its name has")),
        }
    }
}

const DNS_ERROR: Error = Error::DnsError { rcode: None, info_code: None };

impl Http {
    pub(crate) fn new(
        log: &Arc<Log>,
        grants: Arc<[HttpGrant]>,
        budget: Budget,
        until: Instant,
        names: &Names,
    ) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(HEADERS_MAX);
        let shared = Shared {
            log: Arc::clone(log),
            grants,
            names: names.clone(),
            until,
            budget,
            requests: AtomicU64::new(budget.requests),
            bytes: AtomicU64::new(budget.bytes),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            refusal: Mutex::default(),
        };
        Self { context, client: Client { shared: Arc::new(shared) } }
    }

    /// Notes that a part of a request is longer than it may be: the driver itself hears of no reason.
    pub(crate) fn note_too_long(&self, part: &str, most: usize) {
        let words = format!("a request's {part} has at most {most} bytes");
        let refusal = Refusal { place: String::new(), words, by: By::Host };
        *self.client.shared.refusal() = Some(refusal);
    }

    /// Why the last request of this call got no answer, if it got none.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.client.shared.refusal().clone()
    }
}

type Ended = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Ended), Error>;

impl WasiHttpHooks for Client {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Ended,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let shared = Arc::clone(&self.shared);
        Box::new(async move {
            let place = place_of(request.uri());
            let until = shared.until.into();
            let sending = send(&shared, request, options);
            let sent = match tokio::time::timeout_at(until, sending).await {
                Ok(sent) => sent,
                Err(_) => Err(late()),
            };
            sent.inspect(|_| shared.note_success())
                .map_err(|failure| shared.note_failure(place, failure))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        1
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE
    }
}

/// Why a request got no answer: what the driver hears, and what is told to a person.
struct Failure {
    error: Error,
    words: String,
    by: By,
}

impl Failure {
    fn new(error: Error, words: impl Into<String>) -> Self {
        Self { error, words: words.into(), by: By::Backend }
    }

    fn limit(error: Error, words: String) -> Self {
        Self { error, words, by: By::Host }
    }

    fn denied(error: Error, fault: Fault) -> Self {
        Self { error, words: fault.message, by: By::Operator }
    }
}

fn late() -> Failure {
    Failure::new(Error::ConnectionTimeout, "it did not answer in time")
}

/// Sends one request, and waits for the head of its answer.
async fn send(
    shared: &Arc<Shared>,
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Result<(Response<WasiBody>, Ended), Failure> {
    let origin = origin_of(request.uri())?;
    check_origin(&origin, &shared.grants, shared.log.driver())
        .map_err(|fault| Failure::denied(Error::HttpRequestDenied, fault))?;
    let seat = shared.take_request()?;
    // The scheme and the host are for a proxy, which there is none of.
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.unwrap_or(PathAndQuery::from_static("/")).into();
    let within = options.as_ref().and_then(|options| options.connect_timeout);
    let stream = connect(shared, &origin, within.unwrap_or(CONNECT).min(CONNECT)).await?;
    let (mut sender, connection) = Builder::new()
        .max_buf_size(ANSWER_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let metered = |body, until| {
        let (shared, seat) = (Arc::clone(shared), Arc::clone(&seat));
        Metered { body, shared, until, _seat: seat }.boxed_unsync()
    };
    let request = request.map(|body| metered(body, None));
    // It goes with who waits for its end, which is the answer: nothing of a driver goes on after its call.
    let io = AbortOnDropJoinHandle::from(tokio::spawn(connection));
    let answered = sender.send_request(request);
    let first = options.and_then(|options| options.first_byte_timeout);
    let answered = match first {
        Some(first) => tokio::time::timeout(first, answered).await.map_err(|_| late())?,
        None => answered.await,
    };
    let until = Box::pin(tokio::time::sleep_until(shared.until.into()));
    let response = answered
        .map_err(broken)?
        .map(|body| metered(body.map_err(|error| broken(error).error).boxed_unsync(), Some(until)));
    let ended = async move {
        // What went wrong is told by the answer's body.
        let _ = io.await;
        Ok(())
    };
    Ok((response, Box::new(ended)))
}

/// A connection to one of the addresses that the name has now; each of them must be allowed.
async fn connect(
    shared: &Shared,
    origin: &Origin,
    within: Duration,
) -> Result<Box<dyn Stream>, Failure> {
    let addresses = shared.names.look_up(origin).await?;
    let own = Own::look();
    for address in &addresses {
        check_address(origin, *address, own.has(*address), &shared.grants, shared.log.driver())
            .map_err(|fault| Failure::denied(Error::DestinationIpProhibited, fault))?;
    }
    let mut last = Failure::new(Error::DestinationNotFound, "its name has no address");
    for address in addresses {
        let connecting = async {
            let stream = TcpStream::connect(SocketAddr::new(address, origin.port)).await;
            let stream = stream.map_err(unreachable)?;
            if origin.tls {
                tls::agree(stream, &origin.host).await
            } else {
                Ok(Box::new(stream) as _)
            }
        };
        match tokio::time::timeout(within, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) => last = failure,
            Err(_) => last = late(),
        }
    }
    Err(last)
}

impl Shared {
    /// Takes a request of the budget, and a connection until what is answered is dropped.
    fn take_request(&self) -> Result<Arc<OwnedSemaphorePermit>, Failure> {
        let seat = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| {
            let words = format!("this call has {CONNECTIONS_MAX} connections already");
            Failure::limit(Error::ConnectionLimitReached, words)
        })?;
        take(&self.requests, 1).ok_or_else(|| {
            let words = format!("this call has made {} requests already", self.budget.requests);
            Failure::limit(Error::ConnectionLimitReached, words)
        })?;
        Ok(Arc::new(seat))
    }

    fn take_bytes(&self, bytes: usize) -> Result<(), Error> {
        take(&self.bytes, bytes as u64).map(drop).ok_or_else(|| {
            let most = self.budget.bytes >> 20;
            let words = format!("this call may send and receive {most} MiB and no more");
            let error = Error::HttpResponseBodySize(Some(self.budget.bytes));
            self.note_failure(String::new(), Failure::limit(error, words))
        })
    }

    fn note_success(&self) {
        let mut refusal = self.refusal();
        if refusal.as_ref().is_some_and(|refusal| refusal.by == By::Backend) {
            *refusal = None;
        }
    }

    fn note_failure(&self, place: String, failure: Failure) -> Error {
        let Failure { error, words, by } = failure;
        let mut refusal = self.refusal();
        if by != By::Backend || refusal.as_ref().is_none_or(|refusal| refusal.by == By::Backend) {
            *refusal = Some(Refusal { place, words, by });
        }
        error
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes that much of what is left, if there is so much.
fn take(left: &AtomicU64, much: u64) -> Option<u64> {
    let relaxed = Ordering::Relaxed;
    left.fetch_update(relaxed, relaxed, |left| left.checked_sub(much)).ok()
}

fn origin_of(uri: &Uri) -> Result<Origin, Failure> {
    let none = || Failure::new(Error::HttpRequestUriInvalid, "it is no URL of HTTP");
    // A name and a password before the host are for nobody.
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
    let authority = authority.ok_or_else(none)?;
    let scheme = uri.scheme().map_or("https", Scheme::as_str);
    Origin::new(scheme, authority.host(), authority.port_u16()).map_err(|_| none())
}

/// Where a request goes, as far as it says so: a path may hold what is nobody's business.
fn place_of(uri: &Uri) -> String {
    let scheme = uri.scheme().map_or("https", Scheme::as_str);
    let host = uri.host().unwrap_or_default();
    match uri.port() {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    }
}

/// Why there is no connection.
fn unreachable(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            Failure::new(Error::ConnectionRefused, "it refuses the connection")
        }
        ErrorKind::TimedOut => late(),
        _ => Failure::new(Error::DestinationUnavailable, format!("it cannot be reached: {error}")),
    }
}

/// What is wrong with an answer.
fn broken(error: hyper::Error) -> Failure {
    if error.is_parse_too_large() {
        let most = ANSWER_MAX >> 10;
        let words = format!("the head of its answer has more than {most} KiB or 100 headers");
        Failure::new(Error::HttpResponseHeaderSectionSize(None), words)
    } else if error.is_parse() {
        Failure::new(Error::HttpProtocolError, "what it answers is no HTTP")
    } else if error.is_timeout() {
        late()
    } else if let Some(Error::HttpResponseBodySize(most)) = source(&error) {
        // What was sent was too much, as was noted then.
        Failure::new(Error::HttpRequestBodySize(*most), "")
    } else {
        Failure::new(Error::ConnectionTerminated, "it hung up")
    }
}

fn source(error: &hyper::Error) -> Option<&Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// A connection's two directions.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A body whose bytes are taken from the call's budget.
struct Metered {
    body: WasiBody,
    shared: Arc<Shared>,
    /// When who reads it need not wait any longer.
    until: Option<Pin<Box<tokio::time::Sleep>>>,
    _seat: Arc<OwnedSemaphorePermit>,
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let late = self.until.as_mut().map(|until| until.as_mut().poll(context));
                return match late {
                    Some(Poll::Ready(())) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                    _ => Poll::Pending,
                };
            }
        };
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        match self.shared.take_bytes(bytes) {
            Ok(()) => Poll::Ready(frame),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
