//! The bytes of Docker's volume plugin protocol: what a request's body means, and how answers are written.
//!
//! Errors are HTTP 500 with `{"Err"}` throughout: podman takes an `Err` under status 200 for success, and shows no other body.
//! Pure: it reads no socket and asks no volume.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};
use wasmvol_plan::VolumeName;

use crate::server::{self, Answer, NotTaken};
use crate::volumes::{Status, Time, View, VolumeError};

/// What Docker's own plugin library answers; no client looks at it.
const CONTENT: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Why a request is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// dockerd's retry after a broken connection sends no body: nobody knows what it meant.
    #[error("empty request: the connection broke before it was sent whole, try again")]
    Empty,
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error("no such request: there are POST /Plugin.Activate and POST /VolumeDriver.*")]
    Unknown,
    #[error("the request ended without an answer: see the daemon's log")]
    Lost,
}

/// Why a changing verb was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Volume(VolumeError),
    #[error(transparent)]
    Wire(WireError),
}

/// Get, Path, Remove.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Named<'a> {
    #[serde(rename = "Name", borrow, default)]
    pub(super) name: Cow<'a, str>,
}

/// Mount, Unmount.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Held {
    #[serde(rename = "Name", default)]
    pub(super) name: String,
    #[serde(rename = "ID", default)]
    pub(super) id: String,
}

/// Create.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Create {
    #[serde(rename = "Name", default)]
    pub(super) name: String,
    #[serde(rename = "Opts", default, deserialize_with = "null_is_none")]
    pub(super) options: BTreeMap<String, String>,
}

fn null_is_none<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

pub(super) fn named(body: &[u8]) -> Result<Named<'_>, WireError> {
    parse(body)
}

pub(super) fn held(body: &[u8]) -> Result<Held, WireError> {
    parse(body)
}

pub(super) fn create(body: &[u8]) -> Result<Create, WireError> {
    parse(body)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, WireError> {
    if body.trim_ascii().is_empty() {
        return Err(WireError::Empty);
    }
    Ok(server::parse(body)?)
}

pub(super) fn activated() -> Answer {
    answer(StatusCode::OK, Bytes::from_static(br#"{"Implements":["VolumeDriver"]}"#))
}

pub(super) fn capable() -> Answer {
    answer(StatusCode::OK, Bytes::from_static(br#"{"Capabilities":{"Scope":"local"}}"#))
}

pub(super) fn done(result: Result<(), Refusal>) -> Answer {
    match result {
        Ok(()) => answer(StatusCode::OK, Bytes::from_static(br#"{"Err":""}"#)),
        Err(e) => refused(&e),
    }
}

pub(super) fn mountpoint(result: Result<String, VolumeError>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Mountpoint {
        mountpoint: String,
        err: &'static str,
    }
    match result {
        Ok(mountpoint) => json(StatusCode::OK, &Mountpoint { mountpoint, err: "" }),
        Err(e) => refused(&e),
    }
}

pub(super) fn got(view: &View<'_>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Volume<'a> {
        name: &'a VolumeName,
        mountpoint: &'a str,
        created_at: Time,
        status: &'a Status<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Got<'a> {
        volume: Volume<'a>,
        err: &'static str,
    }
    let View { name, mountpoint, created_at, status } = view;
    let volume = Volume { name, mountpoint, created_at: *created_at, status };
    json(StatusCode::OK, &Got { volume, err: "" })
}

/// Writes the list as it is walked: at 10,000 volumes a tree of values would cost more than the bytes.
pub(super) fn listed(walk: impl FnOnce(&mut dyn FnMut(&str, &str))) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Volume<'a> {
        name: &'a str,
        mountpoint: &'a str,
    }
    let mut bytes = br#"{"Volumes":["#.to_vec();
    let mut first = true;
    walk(&mut |name, mountpoint| {
        if !std::mem::take(&mut first) {
            bytes.push(b',');
        }
        write_json(&mut bytes, &Volume { name, mountpoint });
    });
    bytes.extend_from_slice(br#"],"Err":""}"#);
    answer(StatusCode::OK, bytes.into())
}

/// The only place that makes an `Err`.
pub(super) fn refused(error: &dyn Display) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Refused {
        err: String,
    }
    json(StatusCode::INTERNAL_SERVER_ERROR, &Refused { err: error.to_string() })
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut bytes = Vec::with_capacity(512);
    write_json(&mut bytes, value);
    answer(status, bytes.into())
}

/// Text under fixed keys: no value of these types fails to be written.
fn write_json(bytes: &mut Vec<u8>, value: &impl Serialize) {
    if let Err(e) = serde_json::to_writer(bytes, value) {
        tracing::error!("an answer could not be written: {e}");
    }
}

fn answer(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, CONTENT);
    answer
}
