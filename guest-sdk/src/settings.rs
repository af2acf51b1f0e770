//! What the operator wrote for this driver: `wasmvol driver load … --setting KEY=VALUE`.
//!
//! In a native test they come from [`testing::with_settings`](crate::testing::with_settings).

use std::str::FromStr;

use crate::{Error, ErrorCode, Result};

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
/// `internal` names the setting, because a user cannot mend it, and not its value, which is the operator's alone.
pub fn parse<T: FromStr>(key: &str) -> Result<Option<T>> {
    let Some(text) = get(key) else { return Ok(None) };
    let refused = || {
        let why = format!(
            "setting `{key}` cannot be read: the operator can mend it with `wasmvol driver load`"
        );
        Error::new(ErrorCode::Internal, why)
    };
    text.parse().map(Some).map_err(|_| refused())
}
