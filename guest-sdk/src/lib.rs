#![doc = include_str!("../README.md")]
// The head of this crate is its README; this file is the trait, the macro, and the list of what a driver's author sees.

mod bindings;
mod description;
mod error;
pub mod log;
pub mod mount_options;
mod plan;
pub mod roots;
pub mod settings;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod volume;

pub use bindings::exports::wasmvol::driver::volumes::{Created, Found};
pub use bindings::wasmvol::driver::roots::Entry;
pub use bindings::wasmvol::driver::types::{
    Description, ErrorCode, OptionSpec, OptionValue, Owner, Plan, Reclaim, Share, Storage, Tmpfs,
    Value, ValueType, Volume,
};
pub use error::{Error, Result};

/// The contract's other shapes, for a storage or a source that has no builder here. A host answers those that it does not
/// serve with an error.
pub mod contract {
    pub use crate::bindings::wasmvol::driver::types::{
        Compression, Device, Directory, Filesystem, HostDirectory, IdMap, IdRange, Image,
        MountOption, MountValue, NamedDirectory, Overlay, Program, Source, Subvolume,
    };
}

/// A kind of storage: it says what a volume needs and how it is mounted, and the host does it.
///
/// No function takes `self`: the host answers each call with a fresh instance, so nothing is remembered between two calls but
/// the options and what [`create`](Self::create) returned as state. Every verb may come twice.
pub trait Driver {
    /// The options this driver takes, and what it needs. Asked when the driver is loaded.
    fn describe() -> Description;

    /// The storage that a new volume needs, and bytes that later calls get back as the volume's state (64 KiB at most). The
    /// volume's id is the idempotency key: after a crash the same id comes again and means the same volume.
    ///
    /// Without an implementation a volume has no storage, and one that [`path`](Self::path) refuses is refused now.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidOption`] where the options do not go together, else why the backend cannot.
    fn create(volume: &Volume) -> Result<Created> {
        Self::path(volume).map(|_| Storage::None.into())
    }

    /// Lets the backend forget a volume and proposes what becomes of its data; the operator may keep more, never less. The
    /// state is empty where a crash came before `create` had returned.
    ///
    /// # Errors
    /// Why the backend keeps the volume. A volume that is not there is no error.
    fn remove(_volume: &Volume) -> Result<Reclaim> {
        Ok(Reclaim::Delete)
    }

    /// How the volume is mounted. The same volume and the same settings give the same plan.
    ///
    /// # Errors
    /// Why this volume cannot be mounted.
    fn path(volume: &Volume) -> Result<Plan>;

    /// The volumes that the backend itself knows: none, where they live in the host's records alone.
    ///
    /// # Errors
    /// Why the backend cannot be asked.
    fn list() -> Result<Vec<Found>> {
        Ok(Vec::new())
    }
}

/// Makes a crate's component answer with this [`Driver`]: `export_driver!(Nfs);`, once, at the end of `lib.rs`.
#[macro_export]
macro_rules! export_driver {
    ($driver:ty) => {
        // The names of the contract's exports are no symbols that a native linker takes.
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::__private::Exported<$driver>;
    $crate::__private::export!(Exported with_types_in $crate::__private);
        };
        // Natively the driver is checked and counts as used.
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $crate::Description = <$driver as $crate::Driver>::describe;
    };
}

/// What [`export_driver!`] expands to.
#[doc(hidden)]
pub mod __private {
    pub use crate::bindings::*;
}
