//! The client of the admin API: what every subcommand but `serve` asks the daemon with.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use hyperlocal::UnixConnector;
use serde::de::DeserializeOwned;

use super::types::Refused;

/// The admin socket's name in the runtime directory.
pub(crate) const SOCKET: &str = "admin.sock";
/// Compiling a large component takes up to 6 minutes, and what it makes of the volumes that are there as long again; no other request
/// takes as long.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Why the daemon did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(
        "no daemon answers at `{}`: start it with `wasmvol serve`, or name its directory with `--runtime-dir`", .0.display()
    )]
    NoDaemon(PathBuf),
    #[error("`{}` may be used by root only: try again with sudo", .0.display())]
    NotAllowed(PathBuf),
    #[error("the daemon broke off: {0}")]
    Broken(String),
    #[error("the daemon did not answer within {} s", DEADLINE.as_secs())]
    TimedOut,
    /// Its own words.
    #[error("{0}")]
    Refused(String),
    #[error("the daemon's answer is not understood, it may be of another version: {0}")]
    Answer(serde_json::Error),
}

/// A daemon's admin socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon of this runtime directory. Nothing is asked yet.
    pub(crate) fn new(runtime_dir: &Path) -> Self {
        Self { socket: runtime_dir.join(SOCKET) }
    }

    /// Asks for something to be shown.
    pub(crate) fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// Asks for something to be changed.
    pub(crate) fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        self.ask(Method::POST, path, body.into())
    }

    /// Asks for something to be removed.
    pub(crate) fn delete(&self, path: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::DELETE, path, Bytes::new())
    }

    fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        self.reach()?;
        let broken = |e: &dyn std::error::Error| ClientError::Broken(chain(e));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let asked = async {
            let client = legacy::Client::builder(TokioExecutor::new()).build(UnixConnector);
            let request = Request::builder()
                .method(method)
                .uri(hyperlocal::Uri::new(&self.socket, path))
                .body(Full::new(body))
                .map_err(|e| broken(&e))?;
            let answer = client.request(request).await.map_err(|e| broken(&e))?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
            if status == StatusCode::OK {
                return Ok(bytes);
            }
            Err(ClientError::Refused(parse::<Refused>(&bytes)?.error))
        };
        runtime
            .map_err(|e| broken(&e))?
            .block_on(async { tokio::time::timeout(DEADLINE, asked).await })
            .unwrap_or(Err(ClientError::TimedOut))
    }

    /// Connects once, so that the two usual mistakes get a text of their own.
    fn reach(&self) -> Result<(), ClientError> {
        match std::os::unix::net::UnixStream::connect(&self.socket) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::NotAllowed(self.socket.clone()))
            }
            Err(_) => Err(ClientError::NoDaemon(self.socket.clone())),
        }
    }
}

/// Reads an answer.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(ClientError::Answer)
}

/// An error and its causes in one line: hyper's own text names none.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}
