//! Bytes of secrets that the operator keeps, for what no mount can spend: a key that signs requests.
//!
//! `wasmvol secret set NAME --driver DRIVER`, and the grant `reveal=NAME`. In a native test they come from
//! [`testing::with_secrets`](crate::testing::with_secrets). Never log them, and put them into no error, state or plan.

use crate::Result;

/// The bytes under a name, 32 KiB at most. The host answers in every verb but `describe` and `path`.
///
/// # Errors
/// `denied` where the operator has not granted it, `not-found` where nothing is kept under that name.
pub fn reveal(name: &str) -> Result<Vec<u8>> {
    #[cfg(target_family = "wasm")]
    return Ok(crate::bindings::wasmvol::driver::secrets::reveal(name)?);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::reveal(name)
}
