//! HTTP for drivers: `wasi:http`, as far as the operator granted it.
//!
//! Used by `call`. Every request is checked: its origin against the grants, the addresses of its name once they are known, and then the
//! connection is made to one of those and no other, so that no second answer of a name server can lead it elsewhere. No redirect is
//! followed here: where a driver follows one, that is a request that is checked as any. Requests, bytes and time of a call are bounded.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};
use wasmvol_plan::Fault;
use wasmvol_plan::kinds::http::{HttpGrant, Origin, check_address, check_origin};

use crate::journal::Log;

/// Most bytes of a request's or an answer's headers, in memory.
const HEADERS_MAX: usize = 64 << 10;
/// How much of a body waits to be sent: two pieces of it.
const PIECE: usize = 64 << 10;

/// What one call may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Requests.
    pub(crate) requests: u64,
    /// Bytes of bodies, sent and received together.
    pub(crate) bytes: u64,
}

/// The HTTP of one call.
pub(crate) struct Http {
    pub(crate) context: WasiHttpCtx,
    pub(crate) client: Client,
}

/// Sends what is granted.
pub(crate) struct Client {
    log: Arc<Log>,
    grants: Arc<[HttpGrant]>,
    until: Instant,
    left: Arc<Left>,
    refusal: Arc<Mutex<Option<String>>>,
}

/// What is left of a call's budget.
#[derive(Debug)]
struct Left {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Http {
    pub(crate) fn new(
        log: &Arc<Log>,
        grants: Arc<[HttpGrant]>,
        budget: Budget,
        until: Instant,
    ) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(HEADERS_MAX);
        let left =
            Left { requests: AtomicU64::new(budget.requests), bytes: AtomicU64::new(budget.bytes) };
        let (log, left, refusal) = (Arc::clone(log), Arc::new(left), Arc::default());
        Self { context, client: Client { log, grants, until, left, refusal } }
    }

    /// Why a request of this call was refused by the host, if one was: a driver hears of an error code alone.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.client.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Client {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let errand = Errand {
            log: Arc::clone(&self.log),
            grants: Arc::clone(&self.grants),
            left: Arc::clone(&self.left),
            until: self.until,
        };
        let refusal = Arc::clone(&self.refusal);
        Box::new(async move {
            let until = errand.until.into();
            let sent = match tokio::time::timeout_at(until, errand.send(request, options)).await {
                Ok(sent) => sent,
                Err(_) => Err(Failure::Http(Error::ConnectionTimeout)),
            };
            sent.map_err(|failure| match failure {
                Failure::Http(error) => error,
                Failure::Refused(fault, error) => {
                    *refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.message);
                    error
                }
            })
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        1
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE
    }
}

/// Why a request was not sent, or not answered.
enum Failure {
    /// The driver hears all of it.
    Http(Error),
    /// The operator's matter: the sentence is for the user.
    Refused(Fault, Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Http(error)
    }
}

/// One request on its way.
struct Errand {
    /// It knows whose the request is.
    log: Arc<Log>,
    grants: Arc<[HttpGrant]>,
    left: Arc<Left>,
    until: Instant,
}

impl Errand {
    async fn send(
        self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Failure>
    {
        let origin = origin_of(request.uri())?;
        check_origin(&origin, &self.grants, self.log.driver())
            .map_err(|fault| Failure::Refused(fault, Error::HttpRequestDenied))?;
        self.left.take_request()?;
        // The scheme and the host are for a proxy, which there is none of.
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.unwrap_or(PathAndQuery::from_static("/")).into();
        let stream = self.connect(&origin).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Error::from)?;
        let until = self.until.into();
        // It ends with the call: nothing of a driver goes on after its deadline.
        let io = async move {
            match tokio::time::timeout_at(until, connection).await {
                Ok(ended) => ended.map_err(Error::from),
                Err(_) => Ok(()),
            }
        };
        let left = Arc::clone(&self.left);
        let request = request.map(|body| Counted { body, left, until: None }.boxed_unsync());
        let io = tokio::spawn(io);
        let answered = sender.send_request(request);
        let first = options.and_then(|options| options.first_byte_timeout);
        let answered = match first {
            Some(first) => tokio::time::timeout(first, answered)
                .await
                .map_err(|_| Error::HttpResponseTimeout)?,
            None => answered.await,
        };
        let response = answered.map_err(Error::from)?.map(|body| {
            let body = body.map_err(Error::from).boxed_unsync();
            let left = Arc::clone(&self.left);
            Counted { body, left, until: Some(Box::pin(tokio::time::sleep_until(until))) }
                .boxed_unsync()
        });
        let ended = async move {
            // Aborted with the call: nobody is left to hear of it.
            io.await.unwrap_or(Ok(()))
        };
        Ok((response, Box::new(ended)))
    }

    /// A connection to one of the addresses that the name has now; each of them must be allowed.
    async fn connect(&self, origin: &Origin) -> Result<Box<dyn Stream>, Failure> {
        let addresses = addresses(origin).await?;
        for address in &addresses {
            check_address(origin, *address, &self.grants, self.log.driver())
                .map_err(|fault| Failure::Refused(fault, Error::DestinationIpProhibited))?;
        }
        let mut last = Error::DestinationNotFound;
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(address, origin.port)).await {
                Ok(stream) if origin.tls => return Ok(secured(stream, &origin.host).await?),
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => last = Error::Connect(error),
            }
        }
        Err(last.into())
    }
}

impl Left {
    fn take_request(&self) -> Result<(), Error> {
        let taken =
            self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.map(drop).map_err(|_| Error::ConnectionLimitReached)
    }

    fn take_bytes(&self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes as u64;
        let taken = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.map(drop).map_err(|_| Error::HttpResponseBodySize(None))
    }
}

fn origin_of(uri: &Uri) -> Result<Origin, Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    // A name and a password before the host are for nobody.
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let scheme = uri.scheme().map_or("https", Scheme::as_str);
    Origin::new(scheme, authority.host(), authority.port_u16())
        .map_err(|_| Error::HttpRequestUriInvalid)
}

async fn addresses(origin: &Origin) -> Result<Vec<IpAddr>, Error> {
    if let Some(address) = origin.address() {
        return Ok(vec![address]);
    }
    let found = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await;
    let found = found.map_err(|_| Error::DnsError { rcode: None, info_code: None })?;
    let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
    addresses.dedup();
    Ok(addresses)
}

/// A connection's two directions.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Speaks TLS on a connection, with the authorities that this host trusts.
async fn secured(stream: TcpStream, host: &str) -> Result<Box<dyn Stream>, Error> {
    /// Read once: hosts have about 150 of them.
    static TLS: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        // What rustls cannot use as an authority is not one.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("this host trusts no authority: install ca-certificates".to_owned());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    });
    let config = TLS.as_ref().map_err(|why| Error::InternalError(Some(why.clone())))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(Error::Tls)?))
}

/// A body whose bytes are taken from the call's budget.
struct Counted {
    body: WasiBody,
    left: Arc<Left>,
    /// When who reads it need not wait any longer.
    until: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Counted {
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
        match self.left.take_bytes(bytes) {
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
