//! What a request carries: its bytes, within a limit, and the JSON that they are.
//!
//! Called by both [`Api`](super::Api)s. No error repeats a value of the body: it may be a password, and of any length.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use serde::Deserialize;
use serde_json::error::Category;

use super::{Peer, Stage};

/// Why a request's body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("request is larger than {0} bytes")]
    TooLarge(usize),
    #[error("request was cut off")]
    Cut,
}

/// Reads a body of at most `limit` bytes. One that arrived in one piece, as clients send them, is not copied.
pub(crate) async fn read_body(
    peer: &Peer,
    mut body: Incoming,
    limit: usize,
) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(BodyError::TooLarge(limit));
    }
    let mut whole = Bytes::new();
    let mut more = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Cut)?.into_data() else { continue };
        if whole.len() + more.len() + data.len() > limit {
            return Err(BodyError::TooLarge(limit));
        }
        if whole.is_empty() && more.is_empty() {
            whole = data;
        } else {
            more.extend_from_slice(&std::mem::take(&mut whole));
            more.extend_from_slice(&data);
        }
    }
    peer.stage.set(Stage::Answering);
    Ok(if more.is_empty() { whole } else { more.into() })
}

/// Why a body is not what its path takes. serde's own words would repeat the value that it did not expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("request is not the JSON that this path takes: it is an array, not an object")]
    Array,
    #[error("request is not the JSON that this path takes: {what}, line {line} column {column}")]
    Json { what: &'static str, line: usize, column: usize },
}

/// Reads a body as one JSON object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, NotTaken> {
    // serde takes an array for a struct, field by field; Docker's own decoder takes none.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(NotTaken::Array);
    }
    serde_json::from_slice(body).map_err(|e| NotTaken::Json {
        what: match e.classify() {
            Category::Eof => "it ends too early",
            Category::Data => "something in it is of another kind, or missing",
            Category::Syntax | Category::Io => "it is no JSON",
        },
        line: e.line(),
        column: e.column(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wasmvol_plan::DriverName;

    use super::parse;

    #[test]
    fn what_is_wrong_with_a_body_is_said_without_a_word_of_it() {
        const SECRET: &str = "hunter2";
        let long = SECRET.repeat(20_000);
        let refused = |error: super::NotTaken| {
            let said = error.to_string();
            assert!(!said.contains(SECRET) && said.len() < 200, "{said}");
            said
        };
        let text = format!(r#""{long}""#);
        let kind = refused(parse::<BTreeMap<String, String>>(text.as_bytes()).unwrap_err());
        assert!(kind.contains("of another kind"), "{kind}");
        refused(
            parse::<BTreeMap<String, u32>>(format!(r#"{{"size":{text}}}"#).as_bytes()).unwrap_err(),
        );
        // A name that is none.
        refused(parse::<DriverName>(text.as_bytes()).unwrap_err());
        refused(parse::<Vec<String>>(format!("[{text}]").as_bytes()).unwrap_err());
        let cut = refused(
            parse::<BTreeMap<String, String>>(format!("{{\n{text}").as_bytes()).unwrap_err(),
        );
        assert!(cut.contains("ends too early, line 2"), "{cut}");
        let foreign = refused(parse::<BTreeMap<String, String>>(long.as_bytes()).unwrap_err());
        assert!(foreign.contains("no JSON, line 1 column 1"), "{foreign}");
    }
}
