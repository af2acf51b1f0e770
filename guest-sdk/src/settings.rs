//! What the operator wrote for this driver: `wasmvol driver load … --setting KEY=VALUE`, or `driver set`.
//!
//! In a native test they come from [`testing::with_settings`](crate::testing::with_settings).

use std::str::FromStr;

use crate::{Error, Result};

/// One setting as it was written; `None` where the operator wrote none.
#[must_use]
pub fn get(key: &str) -> Option<String> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::wasmvol::driver::settings::get(key);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::setting(key)
}

/// One setting, parsed; `None` where the operator wrote none.
///
/// # Errors
/// As [`Error::invalid_setting`].
pub fn parse<T: FromStr>(key: &str) -> Result<Option<T>> {
    let Some(text) = get(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Error::invalid_setting(key, "cannot be read"))
}

/// One setting that is a size, in bytes, written as a user writes an option's: `64m`. `None` where the operator wrote none.
///
/// # Errors
/// As [`Error::invalid_setting`].
pub fn size(key: &str) -> Result<Option<u64>> {
    let Some(text) = get(key) else { return Ok(None) };
    let why = "must be a size, such as `64m`";
    crate::size::parse(&text).map(Some).ok_or_else(|| Error::invalid_setting(key, why))
}
