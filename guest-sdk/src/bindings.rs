//! What `wit-bindgen` makes of the contract in `wit/since_v0.1.0`, and the one implementation of its exports.
//!
//! [`export_driver!`](crate::export_driver) calls this; drivers never name it. The only file of the SDK with `unsafe` code, all
//! of it generated. A new line of the contract changes this file and the re-exports of `lib.rs`, not the drivers.

// Not `expect`: which of these a target's generated code needs differs, and a driver's author would see the difference.
#![allow(unsafe_code, missing_docs, reason = "generated; the words stand in the contract")]
#![allow(clippy::undocumented_unsafe_blocks, clippy::use_self, reason = "generated")]

use std::marker::PhantomData;

use crate::Driver;
use exports::wasmvol::driver::volumes::{Created, Found, Guest};
use wasmvol::driver::types::{Description, Error, OptionValue, Plan, Reclaim, Volume};

wit_bindgen::generate!({
    path: "../wit/since_v0.1.0",
    world: "driver",
    additional_derives: [PartialEq, Eq],
    pub_export_macro: true,
    default_bindings_module: "wasmvol_sdk::__private",
});

/// The contract's `volumes`, answered by a [`Driver`].
pub struct Exported<D>(PhantomData<D>);

impl<D: Driver> Guest for Exported<D> {
    fn describe() -> Description {
        D::describe()
    }

    fn create(id: String, name: String, options: Vec<OptionValue>) -> Result<Created, Error> {
        Ok(D::create(&Volume { id, name, options, state: Vec::new() })?)
    }

    fn remove(volume: Volume) -> Result<Reclaim, Error> {
        Ok(D::remove(&volume)?)
    }

    fn path(volume: Volume) -> Result<Plan, Error> {
        Ok(D::path(&volume)?)
    }

    fn list() -> Result<Vec<Found>, Error> {
        Ok(D::list()?)
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self { code: error.code, message: error.message }
    }
}
