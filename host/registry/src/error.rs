//! Why a registry was of no use: one line each, for the person who typed the command.

use std::io;
use std::path::PathBuf;

use wasmvol_plan::name::Quoted;

/// What went wrong. `Display` is one line and says what to do; no password, and no address with a token in it, is ever a part of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No reference.
    #[error("{0} {1}")]
    Reference(Quoted, &'static str),
    /// No digest that is understood.
    #[error("{0} is no digest: it has `sha256:` and 64 hex digits")]
    Digest(Quoted),
    /// Nobody there, or nobody who speaks as expected.
    #[error("registry `{registry}` cannot be reached: {why}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// In words.
        why: String,
        /// Whether it broke off or was too slow, which may be another the next time.
        may_pass: bool,
    },
    /// Not without a password, or not with this one.
    #[error("registry `{registry}` refused {whom}: `docker login {registry}` mends that")]
    Denied {
        /// The registry.
        registry: String,
        /// Who asked, and where the password came from.
        whom: String,
    },
    /// Where Docker keeps passwords something is wrong.
    #[error("password for registry `{0}`: {1}")]
    Login(String, String),
    /// No such repository, tag or digest.
    #[error("`{0}`: the registry has no such tag or digest")]
    Absent(String),
    /// An image or something else.
    #[error("`{0}` is {1}, not a WebAssembly component")]
    NotAComponent(String, String),
    /// More bytes than are taken.
    #[error("`{reference}`: its {what} has {size} bytes: at most {max} are allowed")]
    TooLarge {
        /// What was asked for.
        reference: String,
        /// Which part.
        what: &'static str,
        /// As the manifest says.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// Bytes that are not what their digest says.
    #[error(
        "`{0}`: the registry's {1} is not what its digest says: it was changed there or on the way, so push it again"
    )]
    Mismatch(String, &'static str),
    /// An answer that makes no sense.
    #[error("registry `{0}`: {1}")]
    Answer(String, String),
    /// A download that did not come to its end.
    #[error(
        "`{reference}`: the download broke off after {done} of {size} bytes ({why}): the same command goes on from there"
    )]
    BrokeOff {
        /// What was asked for.
        reference: String,
        /// How far it came.
        done: u64,
        /// How far it should.
        size: u64,
        /// What ended the last try.
        why: String,
    },
    /// An upload that did not come to its end.
    #[error(
        "`{reference}`: the upload of {size} bytes broke off {tries} times ({why}): the same command begins it anew"
    )]
    NotUploaded {
        /// Where it was to go.
        reference: String,
        /// Bytes.
        size: usize,
        /// How often it was begun.
        tries: u32,
        /// What ended the last try.
        why: String,
    },
    /// Nowhere to keep what was downloaded so far.
    #[error("`{}` cannot be written: {why}: make room, or name another place by XDG_CACHE_HOME", .place.display())]
    Cache {
        /// The file.
        place: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// A key that cannot be used.
    #[error("`{0}` {1}")]
    Key(String, String),
    /// A push that names no tag.
    #[error("`{0}` names a digest, which the component alone decides: push to a tag")]
    PushToDigest(String),
}
