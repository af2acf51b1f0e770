//! HTTP with one registry: one agent with deadlines, the dance of its 401, and answers that are read up to a limit.
//!
//! `fetch` and `push` say what is asked for; nothing else of this package opens a connection.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Method, Request, Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body, ResponseExt, SendBody};
use wasmvol_plan::name::Quoted;

use crate::auth::{Challenge, Plea, Token, basic};
use crate::credentials::{self, Login};
use crate::{Reference, RegistryError};

/// A registry that is there answers a connection at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// Between a request and the head of its answer: a registry may copy a whole layer before it says that it has it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Between two parts of a body, either way.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// For one small body, all of it.
const SMALL_DEADLINE: Duration = Duration::from_secs(60);
/// A registry sends to its storage, and that perhaps to a mirror.
const REDIRECTS_MAX: u32 = 5;
/// How often one thing is asked for: without a login, with one, and with one where a redirect within the registry led to.
const ASKED_MAX: u32 = 3;
/// Longest answer of a token server: their tokens have up to some KiB.
const TOKEN_MAX: u64 = 64 << 10;
/// As much of a refusal as can hold its reason.
const REFUSAL_MAX: u64 = 4 << 10;

/// A registry, as the holder of one reference's repository.
pub struct Registry {
    pub(crate) reference: Reference,
    agent: Agent,
    /// Scheme and authority.
    base: String,
    /// What was last let in; sent to `base` alone.
    authorization: RefCell<Option<String>>,
    login: OnceCell<Option<Login>>,
    /// When all that is being asked for ends.
    until: Cell<Option<Instant>>,
}

/// One request.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: &'a [(header::HeaderName, &'a str)],
    pub(crate) body: Option<Sending<'a>>,
    /// Where the body of the answer is long, its own reader counts the time.
    pub(crate) is_long: bool,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(method: Method, url: String) -> Self {
        Self { method, url, headers: &[], body: None, is_long: false }
    }

    pub(crate) fn with(self, headers: &'a [(header::HeaderName, &'a str)]) -> Self {
        Self { headers, ..self }
    }

    pub(crate) fn sending(self, body: &'a [u8]) -> Self {
        Self { body: Some(Sending::new(body)), ..self }
    }

    /// Tells how many bytes of the body were sent, and how many there are.
    pub(crate) fn telling(mut self, told: &'a dyn Fn(u64, u64)) -> Self {
        if let Some(body) = &mut self.body {
            body.told = told;
        }
        self
    }
}

/// A body on its way.
#[derive(Clone, Copy)]
pub(crate) struct Sending<'a> {
    bytes: &'a [u8],
    done: usize,
    told: &'a dyn Fn(u64, u64),
}

impl<'a> Sending<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, done: 0, told: &|_, _| {} }
    }
}

impl Read for Sending<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut left = self.bytes.get(self.done..).unwrap_or_default();
        let count = left.read(buffer)?;
        self.done += count;
        (self.told)(self.done as u64, self.bytes.len() as u64);
        Ok(count)
    }
}

impl Registry {
    /// The registry of a reference. Nothing is asked of it yet. HTTP without TLS is spoken to this machine's own addresses, unless
    /// `plain_http` says otherwise.
    #[must_use]
    pub fn open(reference: &Reference, plain_http: Option<bool>) -> Self {
        let is_plain = plain_http.unwrap_or_else(|| reference.is_loopback());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&authorities()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .https_only(!is_plain)
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .user_agent(concat!("wasmvol/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_DEADLINE))
            .timeout_connect(Some(CONNECT_DEADLINE))
            .timeout_recv_response(Some(ANSWER_DEADLINE))
            .timeout_per_read(Some(SILENCE_DEADLINE))
            .timeout_per_write(Some(SILENCE_DEADLINE));
        if reference.is_loopback() {
            // No proxy has this machine's own addresses.
            config = config.proxy(None);
        }
        let scheme = if is_plain { "http" } else { "https" };
        Self {
            base: format!("{scheme}://{}", reference.authority()),
            reference: reference.clone(),
            agent: config.build().into(),
            authorization: RefCell::default(),
            login: OnceCell::new(),
            until: Cell::default(),
        }
    }

    /// The address of something in the repository.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.base, self.reference.repository())
    }

    /// The address that a registry's `Location` means.
    pub(crate) fn located(&self, location: &str) -> String {
        match location.starts_with('/') {
            true => format!("{}{location}", self.base),
            false => location.to_owned(),
        }
    }

    /// Lets no answer take longer than until `time` from now, all of them together.
    pub(crate) fn within<T>(&self, time: Duration, asks: impl FnOnce() -> T) -> T {
        self.until.set(Some(Instant::now() + time));
        let outcome = asks();
        self.until.set(None);
        outcome
    }

    /// Asks, and again with what a 401 wants. The status of the answer is for the caller to judge.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let reads = matches!(ask.method, Method::GET | Method::HEAD);
        let mut url = ask.url.clone();
        for asked in 0..ASKED_MAX {
            let answer = self.send(ask, &url)?;
            // Wherever a redirect led to: a storage gets no login, and does not say who gets the password.
            let place = answer.get_uri().to_string();
            if answer.status() != StatusCode::UNAUTHORIZED || !self.is_own(&place) {
                return Ok(answer);
            }
            let wanted = self.wanted(&answer, reads)?;
            let is_known = self.authorization.replace(Some(wanted.clone())) == Some(wanted);
            if place == url && (is_known || asked > 0) {
                break;
            }
            // No redirect takes a login along: where one stays within the registry, its end is asked.
            if reads {
                url = place;
            }
        }
        Err(self.denied())
    }

    /// What a 401 wants to be asked with.
    fn wanted(&self, answer: &Response<Body>, reads: bool) -> Result<String, RegistryError> {
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = Challenge::choose(challenges.iter().filter_map(|h| h.to_str().ok()));
        match (challenge, self.login()?) {
            (None, _) | (Some(Challenge::Basic), None | Some(Login::Identity(_))) => {
                Err(self.denied())
            }
            (Some(Challenge::Basic), Some(Login::Password { user, password })) => {
                Ok(basic(user, password))
            }
            (Some(Challenge::Bearer { realm, service, scope }), login) => {
                let scope = scope.unwrap_or_else(|| {
                    let actions = if reads { "pull" } else { "pull,push" };
                    format!("repository:{}:{actions}", self.reference.repository())
                });
                self.token(&Plea::new(&realm, service.as_deref(), &scope, login))
            }
        }
    }

    /// The answer's body, if that is no longer than `max`.
    pub(crate) fn read(
        &self,
        answer: Response<Body>,
        what: &str,
        max: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let read = answer.into_body().into_reader().take(max + 1).read_to_end(&mut bytes);
        read.map_err(|e| self.unreachable(&ureq::Error::from(e)))?;
        if bytes.len() as u64 > max {
            return Err(self.answered(&format!("its {what} is longer than {max} bytes")));
        }
        Ok(bytes)
    }

    pub(crate) fn parse<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        what: &str,
    ) -> Result<T, RegistryError> {
        serde_json::from_slice(bytes)
            .map_err(|e| self.answered(&format!("its {what} is not understood: {e}")))
    }

    /// Why an answer with this status is none that was asked for.
    pub(crate) fn refusal(&self, answer: Response<Body>) -> RegistryError {
        let status = answer.status();
        match status {
            StatusCode::NOT_FOUND => return RegistryError::Absent(self.reference.to_string()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return self.denied(),
            StatusCode::TOO_MANY_REQUESTS => {
                return self.answered("it has had too many requests from here: try again later");
            }
            _ => {}
        }
        let mut body = Vec::new();
        // Without it the status is all that is known.
        let _ = answer.into_body().into_reader().take(REFUSAL_MAX).read_to_end(&mut body);
        let words = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let words = words.as_ref().and_then(|w| w.pointer("/errors/0/message")?.as_str());
        let words = words.map(|words| format!(": {}", Quoted::new(words))).unwrap_or_default();
        let is_plain = self.base.starts_with("http:");
        let hint = if is_plain && status == StatusCode::BAD_REQUEST {
            ": if it is meant to speak TLS, say `--plain-http=false`"
        } else {
            ""
        };
        self.answered(&format!("it answered with status {}{words}{hint}", status.as_u16()))
    }

    pub(crate) fn answered(&self, why: &str) -> RegistryError {
        RegistryError::Answer(self.reference.host().to_owned(), why.to_owned())
    }

    pub(crate) fn unreachable(&self, error: &ureq::Error) -> RegistryError {
        let is_tls =
            |e: &std::io::Error| e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        let may_pass = match error {
            ureq::Error::Io(e) => !is_tls(e),
            other => matches!(other, ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed),
        };
        let registry = self.reference.host().to_owned();
        RegistryError::Unreachable { registry, why: words(error), may_pass }
    }

    /// Sends a request, to its own address or where that led to.
    fn send(&self, ask: &Ask<'_>, url: &str) -> Result<Response<Body>, RegistryError> {
        let mut request = Request::builder().method(&ask.method).uri(url);
        for (name, value) in ask.headers {
            request = request.header(name, *value);
        }
        if let Some(authorization) = self.authorization.borrow().as_deref()
            && self.is_own(url)
        {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.run(request, ask.body, ask.is_long)
    }

    fn run(
        &self,
        request: ureq::http::request::Builder,
        body: Option<Sending<'_>>,
        is_long: bool,
    ) -> Result<Response<Body>, RegistryError> {
        let sent = match body {
            Some(mut body) => {
                let request = request.header(header::CONTENT_LENGTH, body.bytes.len());
                self.hand_over(request.body(SendBody::from_reader(&mut body)), is_long)
            }
            None => self.hand_over(request.body(()), is_long),
        };
        sent.map_err(|e| self.unreachable(&e))
    }

    fn hand_over(
        &self,
        request: ureq::http::Result<Request<impl AsSendBody>>,
        is_long: bool,
    ) -> Result<Response<Body>, ureq::Error> {
        let request = self.agent.configure_request(request?);
        let within = (!is_long).then_some(SMALL_DEADLINE);
        let left = self.until.get().map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ureq::Error::Timeout(ureq::Timeout::Global));
        }
        self.agent.run(request.timeout_recv_body(within).timeout_global(left).build())
    }

    /// What a token server gives for a plea.
    fn token(&self, plea: &Plea) -> Result<String, RegistryError> {
        let mut request = Request::builder().uri(&plea.url);
        if let Some(authorization) = &plea.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if plea.form.is_some() {
            let form = "application/x-www-form-urlencoded";
            request = request.method(Method::POST).header(header::CONTENT_TYPE, form);
        }
        let form = plea.form.as_deref().map(|form| Sending::new(form.as_bytes()));
        let answer = self.run(request, form, false)?;
        if !answer.status().is_success() {
            return Err(match answer.status() {
                // Of a token, 404 and 400 are said by some.
                status if status.is_client_error() => self.denied(),
                _ => self.refusal(answer),
            });
        }
        let bytes = self.read(answer, "token", TOKEN_MAX)?;
        // serde's own words may repeat a part of it.
        let token = serde_json::from_slice::<Token>(&bytes).ok().and_then(Token::bearer);
        token.ok_or_else(|| self.answered("its token is not understood"))
    }

    fn login(&self) -> Result<Option<&Login>, RegistryError> {
        if let Some(login) = self.login.get() {
            return Ok(login.as_ref());
        }
        let found = match credentials::file() {
            Some(file) => credentials::find(&file, self.reference.login())
                .map_err(|why| RegistryError::Login(self.reference.host().to_owned(), why))?,
            None => None,
        };
        Ok(self.login.get_or_init(|| found).as_ref())
    }

    fn denied(&self) -> RegistryError {
        let file = credentials::file().unwrap_or_else(|| PathBuf::from("config.json"));
        let file = file.display();
        let whom = match self.login.get().and_then(Option::as_ref) {
            Some(Login::Password { user, .. }) => {
                format!("{}, whose password `{file}` has", Quoted::new(user))
            }
            Some(Login::Identity(_)) => format!("who has the identity token of `{file}`"),
            None => format!("who has no password, and `{file}` has none for it"),
        };
        RegistryError::Denied { registry: self.reference.host().to_owned(), whom }
    }

    /// Whether an address is the registry's, and no storage's that it sends to.
    pub(crate) fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The authorities that the system trusts. One that cannot be read is none: who is signed by it is refused.
fn authorities() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs().certs;
    found.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
}

/// The reason in an error of the agent's. Its own words may repeat an address, and that may have a token in it.
pub(crate) fn words(error: &ureq::Error) -> String {
    use ureq::Error as E;
    match error {
        E::Io(e) => match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => tls(inner),
            None => e.to_string(),
        },
        E::Rustls(e) => tls(e),
        E::Timeout(_) => "it did not answer in time".to_owned(),
        E::HostNotFound => "no host has that name".to_owned(),
        E::RequireHttpsOnly(_) => "it sends elsewhere without TLS".to_owned(),
        E::TooManyRedirects => "it sends from place to place without an end".to_owned(),
        E::Http(_) | E::BadUri(_) => "it sends to what is no address".to_owned(),
        E::Protocol(e) => format!("what it answers is no HTTP: {e}"),
        E::ConnectProxyFailed(_) | E::InvalidProxyUrl => {
            "the proxy of HTTPS_PROXY or HTTP_PROXY does not connect".to_owned()
        }
        _ => "the connection failed".to_owned(),
    }
}

fn tls(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    match error {
        Error::InvalidMessage(_) => {
            "it speaks no TLS: if it is meant to be without, say `--plain-http`".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "nobody whom this machine trusts has signed its certificate: add its authority to the system's".to_owned()
        }
        other => format!("its TLS is not accepted: {other}"),
    }
}
