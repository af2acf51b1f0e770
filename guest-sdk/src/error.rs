//! A driver's refusal: a code that the host decides by, and a sentence that the user reads.
//!
//! Docker prints the volume and the verb before the sentence, so it repeats neither: `option `size` must be at least 1: `0``.

use std::fmt;
use std::io;

use crate::ErrorCode;

/// What every verb of a [`Driver`](crate::Driver) returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a driver refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What the host decides by.
    pub code: ErrorCode,
    /// One line in lower case without a full stop; the host cuts it at 1 KiB.
    pub message: String,
}

impl Error {
    /// A refusal.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A refusal because of one option's value: ``option `KEY`: WHY``.
    #[must_use]
    pub fn invalid_option(key: &str, why: impl fmt::Display) -> Self {
        Self::new(ErrorCode::InvalidOption, format!("option `{key}`: {why}"))
    }

    /// A refusal because of one setting: ``setting `KEY` WHY``, and who can mend it, and how; for `NAME` the host puts the driver's. A user
    /// cannot, so its code is `internal`, and its value, which is the operator's alone, is not in it.
    #[must_use]
    pub fn invalid_setting(key: &str, why: impl fmt::Display) -> Self {
        let mend = format!("the operator can mend it with `wasmvol driver set NAME {key}=VALUE`");
        Self::new(ErrorCode::Internal, format!("setting `{key}` {why}: {mend}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The kind in words: the numbers of WASI's errors mean nothing to a reader.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            io::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
            io::ErrorKind::PermissionDenied => ErrorCode::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::Exhausted,
            io::ErrorKind::ResourceBusy => ErrorCode::InUse,
            io::ErrorKind::Unsupported => ErrorCode::Unsupported,
            _ => ErrorCode::Unavailable,
        };
        Self::new(code, error.kind().to_string())
    }
}
