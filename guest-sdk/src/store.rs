//! A small key-value space of the driver's own, shared by all of its volumes: 1024 keys of 1 to 128 bytes, values of up to 16 KiB, 1 MiB
//! in all.
//!
//! What a call writes is committed with what the host records of it, or not at all. `create`, `remove`, `attach`, `detach`, `resize` and
//! `populate` may write; `list`, `check` and `migrate` may read; to `describe` and `path` it is empty. In a native test it is
//! [`testing::with_store`](crate::testing::with_store)'s.

use crate::Result;

/// The value of a key.
#[must_use]
pub fn get(key: &str) -> Option<Vec<u8>> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::wasmvol::driver::store::get(key);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::stored(key)
}

/// The value of a key that is text.
#[must_use]
pub fn text(key: &str) -> Option<String> {
    get(key).and_then(|bytes| String::from_utf8(bytes).ok())
}

/// Gives a key a value.
///
/// # Errors
/// `exhausted` over a limit, `denied` in a verb that may not write, `invalid-option` for what is no key.
pub fn set(key: &str, value: impl AsRef<[u8]>) -> Result<()> {
    #[cfg(target_family = "wasm")]
    return Ok(crate::bindings::wasmvol::driver::store::set(key, value.as_ref())?);
    #[cfg(not(target_family = "wasm"))]
    {
        crate::testing::store(key, Some(value.as_ref()));
        Ok(())
    }
}

/// Deletes a key; one that is not there is deleted already.
///
/// # Errors
/// `denied` in a verb that may not write.
pub fn delete(key: &str) -> Result<()> {
    #[cfg(target_family = "wasm")]
    return Ok(crate::bindings::wasmvol::driver::store::delete(key)?);
    #[cfg(not(target_family = "wasm"))]
    {
        crate::testing::store(key, None);
        Ok(())
    }
}

/// The keys that begin so, in order.
#[must_use]
pub fn keys(prefix: &str) -> Vec<String> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::wasmvol::driver::store::keys(prefix);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::stored_keys(prefix)
}
