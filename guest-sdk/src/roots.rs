//! Directories of the host that the operator granted, and the volumes that are marked beneath them: the grant `host-directory=ROOT`.
//!
//! Both answer in [`Driver::create`](crate::Driver::create) and [`Driver::list`](crate::Driver::list), and nothing in the other verbs.
//! In a native test they come from [`testing::with_roots`](crate::testing::with_roots).

use crate::{Entry, Error, ErrorCode, Found, Result};

/// The granted roots, in the operator's order.
#[must_use]
pub fn granted() -> Vec<String> {
    #[cfg(target_family = "wasm")]
    return crate::bindings::wasmvol::driver::roots::granted();
    #[cfg(not(target_family = "wasm"))]
    crate::testing::granted()
}

/// The volumes that hosts have marked beneath one granted root: this driver's, in no order.
///
/// # Errors
/// `denied` where the root is not granted.
pub fn entries(root: &str) -> Result<Vec<Entry>> {
    #[cfg(target_family = "wasm")]
    return Ok(crate::bindings::wasmvol::driver::roots::entries(root)?);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::entries(root)
}

/// The granted root that a user wants, or the first one.
///
/// # Errors
/// `denied` says what the operator has to type. The host puts the name there that the driver is loaded under.
pub fn choose(wanted: Option<&str>) -> Result<String> {
    let granted = granted();
    let Some(wanted) = wanted else {
        let none =
            "no root is granted: `wasmvol driver grant NAME 'host-directory=PATH'` grants one";
        return granted.into_iter().next().ok_or_else(|| Error::new(ErrorCode::Denied, none));
    };
    granted.iter().find(|root| *root == wanted).cloned().ok_or_else(|| {
        let quoted = wanted.replace('\'', r"'\''");
        let cure = format!("`wasmvol driver grant NAME 'host-directory={quoted}'` grants it");
        let granted = if granted.is_empty() { "none is".into() } else { granted.join(", ") };
        Error::new(ErrorCode::Denied, format!("root `{wanted}` is not granted ({granted}): {cure}"))
    })
}

/// What [`Driver::list`](crate::Driver::list) tells of an entry.
impl Entry {
    /// A volume of this entry's name, id and options; what `create` would have returned as its state is the driver's to say.
    #[must_use]
    pub fn found(self, state: impl Into<Vec<u8>>) -> Found {
        let Self { name, id, options, .. } = self;
        Found { name, id: Some(id), options, state: state.into(), owned: true }
    }
}

#[cfg(target_family = "wasm")]
impl From<crate::bindings::wasmvol::driver::types::Error> for Error {
    fn from(error: crate::bindings::wasmvol::driver::types::Error) -> Self {
        Self { code: error.code, message: error.message }
    }
}
