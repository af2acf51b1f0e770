//! Requests: to whom it may, to whom it may not, and more of them than it may.

use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, Method, OutgoingBody,
    OutgoingRequest, Scheme,
};
use wasip2::io::streams::StreamError;

use crate::Said;

/// How much is written at once: WASI takes no more.
const PIECE: usize = 4096;

/// Asks, and answers the status and the body.
pub(crate) fn ask(how: &str, url: &str) -> Said<String> {
    match how {
        "get" => read(&answer(send(url, &[])?)?),
        "post" => {
            // `with` is LENGTH@URL.
            let (length, url) = url.split_once('@').ok_or("no length")?;
            read(&answer(send(url, &vec![b'x'; length.parse().map_err(|_| "no length")?])?)?)
        }
        "follow" => follow(url),
        "many" => {
            for number in 0..200 {
                let answered = send(url, &[]).and_then(answer).and_then(|answer| read(&answer));
                answered.map_err(|why| format!("number {number}: {why}"))?;
            }
            Ok("200 times".to_owned())
        }
        "at-once" => {
            let sent = (0..100).map(|_| send(url, &[])).collect::<Said<Vec<_>>>()?;
            let answers = sent.into_iter().map(answer).collect::<Said<Vec<_>>>()?;
            Ok(format!("{} at once", answers.len()))
        }
        "unread" => {
            // Answers that are kept, and never read.
            let mut kept = Vec::new();
            loop {
                kept.push(answer(send(url, &[])?)?);
            }
        }
        "nothing" => {
            // Requests that have no path.
            let mut refused = String::new();
            for _ in 0..100 {
                let request = request(url)?;
                request.set_path_with_query(None).map_err(|()| "no path is none")?;
                let sent = handle(request, None).map_err(|code| format!("{code:?}"));
                refused = sent.and_then(answer).err().unwrap_or_default();
            }
            Err(refused)
        }
        "names" => {
            // Names that nobody has looked up before; who answers for them may take its time.
            let sent = (0..40).map(|n| send(&url.replace('*', &n.to_string()), &[]));
            let sent = sent.collect::<Said<Vec<_>>>()?;
            let refused = sent.into_iter().fold(None, |last, sent| answer(sent).err().or(last));
            Ok(refused.unwrap_or_default())
        }
        _ => Err(format!("`{how}` is no way to ask")),
    }
}

/// Follows redirects by itself, as the host does not.
fn follow(url: &str) -> Said<String> {
    let mut url = url.to_owned();
    for _ in 0..10 {
        let response = answer(send(&url, &[])?)?;
        let location = response.headers().get("location").into_iter().next();
        match location {
            Some(next) if response.status() / 100 == 3 => {
                url = String::from_utf8(next).map_err(|_| "no URL")?;
            }
            _ => return read(&response),
        }
    }
    Err("too many redirects".to_owned())
}

fn send(url: &str, body: &[u8]) -> Said<FutureIncomingResponse> {
    let request = request(url)?;
    let method = if body.is_empty() { Method::Get } else { Method::Post };
    request.set_method(&method).map_err(|()| "no method")?;
    let outgoing = request.body().map_err(|()| "no body")?;
    let sent = handle(request, None).map_err(|code| format!("{code:?}"))?;
    {
        let stream = outgoing.write().map_err(|()| "no stream")?;
        for piece in body.chunks(PIECE) {
            if let Err(error) = stream.blocking_write_and_flush(piece) {
                // Why is told by the answer, if there is one.
                answer(sent)?;
                return Err(format!("not sent: {error}"));
            }
        }
    }
    OutgoingBody::finish(outgoing, None).map_err(|code| format!("{code:?}"))?;
    Ok(sent)
}

/// A request that nothing was done with yet.
pub(crate) fn request(url: &str) -> Said<OutgoingRequest> {
    let (scheme, rest) = url.split_once("://").ok_or("no URL")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })))
        .map_err(|()| format!("`{url}` is no URL"))?;
    Ok(request)
}

fn answer(sent: FutureIncomingResponse) -> Said<IncomingResponse> {
    sent.subscribe().block();
    let answered = sent.get().ok_or("no answer")?.map_err(|()| "answered twice")?;
    answered.map_err(|code| format!("{code:?}"))
}

fn read(response: &IncomingResponse) -> Said<String> {
    let body: IncomingBody = response.consume().map_err(|()| "no body")?;
    let stream = body.stream().map_err(|()| "no stream")?;
    let mut length = 0;
    let mut beginning = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => {
                length += bytes.len();
                beginning.extend(bytes.into_iter().take(64_usize.saturating_sub(beginning.len())));
            }
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(format!("broke off after {length} bytes: {}", error.to_debug_string()));
            }
        }
    }
    let status = response.status();
    Ok(format!("{status}, {length} bytes: {}", String::from_utf8_lossy(&beginning)))
}
