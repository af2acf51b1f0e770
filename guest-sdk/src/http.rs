//! HTTP requests to hosts that the operator granted: `--grant http=https://api.example`.
//!
//! `http::get("https://api.example/v1/disks").header("accept", "application/json").send()?.text()?`. No redirect is followed. A request that
//! was not granted fails, and the host adds to the driver's error what is to be granted. In a native test
//! [`testing::with_http`](crate::testing::with_http) answers.

use std::fmt;
use std::io::Read;

use crate::{Error, ErrorCode, Result};

/// Most bytes of an answer that [`Response::bytes`] takes: what is longer is read piece by piece.
const BODY_MAX: u64 = 8 << 20;

/// A request that was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// Scheme, host, path and query.
    pub url: String,
    /// Names and values, in order.
    pub headers: Vec<(String, String)>,
    /// What is sent with it.
    pub body: Vec<u8>,
}

/// An answer. Its body is read as it comes: `std::io::Read`.
pub struct Response {
    /// 200, 404, …
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    body: Box<dyn Read>,
}

/// A request without a body.
#[must_use]
pub fn get(url: impl Into<String>) -> Request {
    request("GET", url)
}

/// A request with a body: see [`Request::body`].
#[must_use]
pub fn post(url: impl Into<String>) -> Request {
    request("POST", url)
}

/// A request with another method.
#[must_use]
pub fn request(method: &str, url: impl Into<String>) -> Request {
    Request { method: method.to_owned(), url: url.into(), headers: Vec::new(), body: Vec::new() }
}

impl Request {
    /// Takes one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Says who asks: `USER:PASSWORD`, as a secret holds it, whose last line end is no part of it.
    #[must_use]
    pub fn basic_auth(self, mut credentials: Vec<u8>) -> Self {
        while credentials.pop_if(|byte| matches!(byte, b'\n' | b'\r')).is_some() {}
        let value = format!("Basic {}", base64(&credentials));
        self.header("authorization", value)
    }

    /// Sends these bytes with it.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it, and waits for the head of the answer, whatever its status.
    ///
    /// # Errors
    /// `invalid-option` for a URL that is none, `unavailable` where there is no answer, `denied` where the host lets none through.
    pub fn send(self) -> Result<Response> {
        #[cfg(target_family = "wasm")]
        return wasi::send(self);
        #[cfg(not(target_family = "wasm"))]
        crate::testing::answer(self)
    }
}

impl Response {
    /// An answer that is there already: what a test makes.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = Box::new(std::io::Cursor::new(body.into()));
        Self { status, headers: Vec::new(), body }
    }

    /// A header's value; `name` is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The rest of its body, 8 MiB at most.
    ///
    /// # Errors
    /// `unavailable` where it breaks off, `exhausted` where it is longer.
    pub fn bytes(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.body).take(BODY_MAX + 1).read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > BODY_MAX {
            let why = format!("the answer has more than {} MiB", BODY_MAX >> 20);
            return Err(Error::new(ErrorCode::Exhausted, why));
        }
        Ok(bytes)
    }

    /// The same as text.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and `unavailable` where it is no text.
    pub fn text(self) -> Result<String> {
        let text = String::from_utf8(self.bytes()?);
        text.map_err(|_| Error::new(ErrorCode::Unavailable, "the answer is no text"))
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.body.read(buffer)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let bits = piece.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - piece.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            let letter = LETTERS.get(index as usize).copied().unwrap_or(b'=');
            text.push(if place > piece.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

fn broken(error: impl fmt::Display) -> Error {
    Error::new(ErrorCode::Unavailable, format!("the answer broke off: {error}"))
}

/// The host's side: `wasi:http`.
#[cfg(target_family = "wasm")]
mod wasi {
    use std::io::{self, Read};

    use wasip2::http::outgoing_handler::handle;
    use wasip2::http::types::{
        ErrorCode as Code, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody,
        OutgoingRequest, Scheme,
    };
    use wasip2::io::streams::{InputStream, StreamError};

    use super::{Request, Response};
    use crate::{Error, ErrorCode, Result};

    /// How much is written at once: the host takes no more.
    const PIECE: usize = 4096;

    pub(super) fn send(request: Request) -> Result<Response> {
        let refused = |why: &str| {
            let why = format!("`{}` cannot be asked: {why}", place(&request.url));
            Error::new(ErrorCode::InvalidOption, why)
        };
        let failed = |code: &Code| {
            let denied = matches!(code, Code::HttpRequestDenied | Code::DestinationIpProhibited);
            let kind = if denied { ErrorCode::Denied } else { ErrorCode::Unavailable };
            let sentence = format!("`{}` cannot be asked", place(&request.url));
            Error::new(
                kind,
                match code {
                    // Behind it the host says which grant that takes.
                    Code::HttpRequestDenied => sentence,
                    _ => format!("{sentence}: {}", words(code)),
                },
            )
        };
        let (scheme, rest) =
            request.url.split_once("://").ok_or_else(|| refused("it is no URL"))?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(refused("use `https` or `http`")),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let fields = Fields::new();
        for (name, value) in &request.headers {
            let appended = fields.append(name, value.as_bytes());
            appended.map_err(|_| refused(&format!("header `{name}` is none")))?;
        }
        if !request.body.is_empty() {
            // Else it would be sent in chunks, which not every server takes.
            let length = request.body.len().to_string();
            fields
                .append("content-length", length.as_bytes())
                .map_err(|_| refused("it has a length already"))?;
        }
        let outgoing = OutgoingRequest::new(fields);
        let set = outgoing
            .set_method(&method(&request.method))
            .and_then(|()| outgoing.set_scheme(Some(&scheme)))
            .and_then(|()| outgoing.set_authority(Some(authority)))
            .and_then(|()| outgoing.set_path_with_query(Some(&path)));
        set.map_err(|()| refused("it is no URL"))?;
        let body = outgoing.body().map_err(|()| refused("it takes no body"))?;
        let answer = handle(outgoing, None).map_err(|code| failed(&code))?;
        // Where a body is not taken, the answer tells why: perhaps it was refused before it was there.
        let written = write(body, &request.body);
        answer.subscribe().block();
        let response = match (answer.get(), written) {
            (Some(Ok(Ok(response))), _) => response,
            (Some(Ok(Err(code))), _) => return Err(failed(&code)),
            (_, Err(why)) => return Err(Error::new(ErrorCode::Unavailable, why)),
            (_, Ok(())) => return Err(refused("there is no answer")),
        };
        read(&response)
    }

    /// The host's name and what stands before it, for errors: a path may hold what is nobody's business.
    fn place(url: &str) -> &str {
        let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
        url.get(..end).unwrap_or_default()
    }

    fn method(method: &str) -> Method {
        match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "PATCH" => Method::Patch,
            "OPTIONS" => Method::Options,
            other => Method::Other(other.to_owned()),
        }
    }

    fn write(body: OutgoingBody, bytes: &[u8]) -> std::result::Result<(), String> {
        let unsent = |_| "the request could not be sent".to_owned();
        {
            let stream = body.write().map_err(unsent)?;
            for piece in bytes.chunks(PIECE) {
                let written = stream.blocking_write_and_flush(piece);
                written.map_err(|error| format!("the request could not be sent: {error}"))?;
            }
        }
        OutgoingBody::finish(body, None)
            .map_err(|code| format!("the request could not be sent: {}", words(&code)))
    }

    fn read(response: &IncomingResponse) -> Result<Response> {
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        let entries = response.headers().entries();
        let headers = entries.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), text(v))).collect();
        let gone = |()| Error::new(ErrorCode::Unavailable, "the answer has no body");
        let body = response.consume().map_err(gone)?;
        let stream = body.stream().map_err(gone)?;
        let body = Box::new(Incoming { stream, _body: body });
        Ok(Response { status: response.status(), headers, body })
    }

    /// A body as it comes. The stream is dropped before what it belongs to.
    struct Incoming {
        stream: InputStream,
        _body: IncomingBody,
    }

    impl Read for Incoming {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = u64::try_from(buffer.len().min(64 << 10)).unwrap_or(0);
            if most == 0 {
                return Ok(0);
            }
            match self.stream.blocking_read(most) {
                Ok(bytes) => {
                    let length = bytes.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&bytes[..length]);
                    Ok(length)
                }
                Err(StreamError::Closed) => Ok(0),
                Err(StreamError::LastOperationFailed(error)) => {
                    Err(io::Error::other(error.to_debug_string()))
                }
            }
        }
    }

    /// What an error code means to a person.
    fn words(code: &Code) -> String {
        let words = match code {
            Code::DnsTimeout | Code::DnsError(_) => "its name is not known",
            Code::DestinationNotFound => "its name has no address",
            Code::DestinationIpProhibited => "its address is not allowed",
            Code::HttpRequestDenied => "it is not granted",
            Code::ConnectionRefused | Code::DestinationUnavailable => "it refuses the connection",
            Code::ConnectionTerminated | Code::HttpResponseIncomplete => "it hung up",
            Code::ConnectionTimeout
            | Code::ConnectionReadTimeout
            | Code::ConnectionWriteTimeout
            | Code::HttpResponseTimeout => "it did not answer in time",
            Code::ConnectionLimitReached => "this call has made as many requests as it may",
            Code::TlsProtocolError => "no TLS could be agreed on",
            Code::TlsCertificateError => "its certificate is not trusted",
            Code::HttpResponseBodySize(_) | Code::HttpRequestBodySize(_) => {
                "this call has sent and received as many bytes as it may"
            }
            Code::InternalError(Some(why)) => return why.clone(),
            other => return format!("{other:?}"),
        };
        words.to_owned()
    }
}
