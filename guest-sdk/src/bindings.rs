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

/// An ability's bindings, and the one implementation of its exports: a module of its own, of the same types.
macro_rules! ability {
    ($feature:literal $module:ident $world:literal $export:literal { $($guest:tt)* }) => {
        #[cfg(feature = $feature)]
        pub mod $module {
            use super::wasmvol::driver::types::{Error, Volume};

            wit_bindgen::generate!({
                path: "../wit/since_v0.1.0",
                world: $world,
                with: { "wasmvol:driver/types@0.1.0": crate::bindings::wasmvol::driver::types },
                additional_derives: [PartialEq, Eq],
                pub_export_macro: true,
                export_macro_name: $export,
                default_bindings_module: "wasmvol_sdk::__private",
            });

            $($guest)*
        }
    };
}

ability! { "attachment" attachment "with-attachment" "export_attachment" {
    pub use exports::wasmvol::driver::attachment::{Again, Guest, Progress};

    impl<D: crate::Attachment> Guest for super::Exported<D> {
        fn attach(volume: Volume) -> Result<Progress, Error> {
            Ok(D::attach(&volume)?)
        }

        fn detach(volume: Volume) -> Result<Progress, Error> {
            Ok(D::detach(&volume)?)
        }
    }
} }

ability! { "resizing" resizing "with-resizing" "export_resizing" {
    pub use exports::wasmvol::driver::resizing::{Guest, Resized};

    impl<D: crate::Resizing> Guest for super::Exported<D> {
        fn resize(volume: Volume, size: u64) -> Result<Resized, Error> {
            Ok(D::resize(&volume, size)?)
        }
    }
} }

ability! { "population" population "with-population" "export_population" {
    pub use exports::wasmvol::driver::population::{Guest, Populated};

    impl<D: crate::Population> Guest for super::Exported<D> {
        fn populate(volume: Volume) -> Result<Populated, Error> {
            Ok(D::populate(&volume, std::path::Path::new("/volume"))?)
        }
    }
} }

ability! { "health" health "with-health" "export_health" {
    pub use exports::wasmvol::driver::health::{Condition, Guest, Report};

    impl<D: crate::Health> Guest for super::Exported<D> {
        fn check(volume: Volume) -> Result<Report, Error> {
            Ok(D::check(&volume)?)
        }
    }
} }

ability! { "migration" migration "with-migration" "export_migration" {
    pub use exports::wasmvol::driver::migration::Guest;

    impl<D: crate::Migration> Guest for super::Exported<D> {
        fn migrate(volume: Volume, from: String) -> Result<Vec<u8>, Error> {
            Ok(D::migrate(&volume, &from)?)
        }
    }
} }

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self { code: error.code, message: error.message }
    }
}
