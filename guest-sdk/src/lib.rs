#![doc = include_str!("../README.md")]
// The head of this crate is its README; this file is the trait, the macro, and the list of what a driver's author sees.

#[cfg(any(
    feature = "attachment",
    feature = "resizing",
    feature = "population",
    feature = "health",
    feature = "migration"
))]
mod abilities;
mod bindings;
mod description;
mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod log;
pub mod mount_options;
mod plan;
pub mod roots;
pub mod secrets;
pub mod settings;
mod size;
pub mod store;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod volume;

#[cfg(feature = "attachment")]
pub use abilities::Attachment;
#[cfg(feature = "health")]
pub use abilities::Health;
#[cfg(feature = "migration")]
pub use abilities::Migration;
#[cfg(feature = "resizing")]
pub use abilities::Resizing;
#[cfg(feature = "population")]
pub use abilities::{Population, make_link};
#[cfg(feature = "attachment")]
pub use bindings::attachment::Progress;
pub use bindings::exports::wasmvol::driver::volumes::{Created, Found};
#[cfg(feature = "health")]
pub use bindings::health::{Condition, Report};
#[cfg(feature = "population")]
pub use bindings::population::Populated;
#[cfg(feature = "resizing")]
pub use bindings::resizing::Resized;
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
        MountOption, MountValue, NamedDirectory, Other, Overlay, Program, Source, Subvolume,
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

/// Makes a crate's component answer with this [`Driver`], once, at the end of `lib.rs`: `export_driver!(Nfs);`, or with the abilities that
/// it has, `export_driver!(Disk: attachment, health);`.
#[macro_export]
macro_rules! export_driver {
    ($driver:ty $(: $($ability:ident),+ $(,)?)?) => {
        // The names of the contract's exports are no symbols that a native linker takes.
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::__private::Exported<$driver>;
            $crate::__private::export!(Exported with_types_in $crate::__private);
            $($($crate::__export_ability!($ability Exported);)+)?
        };
        // Natively the driver is checked and counts as used.
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $crate::Description = <$driver as $crate::Driver>::describe;
        $($(
            #[cfg(not(target_family = "wasm"))]
            $crate::__check_ability!($ability $driver);
        )+)?
    };
}

/// Exports one ability.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_ability {
    (attachment $exported:ident) => {
        $crate::__private::attachment::export_attachment!($exported with_types_in $crate::__private::attachment);
    };
    (resizing $exported:ident) => {
        $crate::__private::resizing::export_resizing!($exported with_types_in $crate::__private::resizing);
    };
    (population $exported:ident) => {
        $crate::__private::population::export_population!($exported with_types_in $crate::__private::population);
    };
    (health $exported:ident) => {
        $crate::__private::health::export_health!($exported with_types_in $crate::__private::health);
    };
    (migration $exported:ident) => {
        $crate::__private::migration::export_migration!($exported with_types_in $crate::__private::migration);
    };
}

/// Says natively what would not be exported.
#[doc(hidden)]
#[macro_export]
macro_rules! __check_ability {
    (attachment $driver:ty) => {
        const _: fn(&$crate::Volume) -> $crate::Result<$crate::Progress> =
            <$driver as $crate::Attachment>::attach;
    };
    (resizing $driver:ty) => {
        const _: fn(&$crate::Volume, u64) -> $crate::Result<$crate::Resized> =
            <$driver as $crate::Resizing>::resize;
    };
    (population $driver:ty) => {
        const _: fn(&$crate::Volume, &::std::path::Path) -> $crate::Result<$crate::Populated> =
            <$driver as $crate::Population>::populate;
    };
    (health $driver:ty) => {
        const _: fn(&$crate::Volume) -> $crate::Result<$crate::Report> =
            <$driver as $crate::Health>::check;
    };
    (migration $driver:ty) => {
        const _: fn(&$crate::Volume, &str) -> $crate::Result<::std::vec::Vec<u8>> =
            <$driver as $crate::Migration>::migrate;
    };
}

/// What [`export_driver!`] expands to.
#[doc(hidden)]
pub mod __private {
    pub use crate::bindings::*;
}
