//! What Get is compared with: hyper and nothing else, on the runtime that the daemon has, answering the same bytes to everything.

use std::convert::Infallible;
use std::fs;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::LocalSet;

use crate::Result;

const CONTENT: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Serves the bytes of a file on a socket until it is killed.
pub(crate) fn serve(socket: &Path, answer: &Path) -> Result<()> {
    let answer = Bytes::from(fs::read(answer)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let answer = answer.clone();
            let service = service_fn(move |request| reply(request, answer.clone()));
            tokio::task::spawn_local(
                http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    })
}

async fn reply(request: Request<Incoming>, answer: Bytes) -> Result<Response<Full<Bytes>>> {
    let _read_whole: Bytes = request.into_body().collect().await?.to_bytes();
    let mut response = Response::new(Full::new(answer));
    response.headers_mut().insert(CONTENT_TYPE, CONTENT);
    Ok::<_, Infallible>(response).map_err(Into::into)
}
