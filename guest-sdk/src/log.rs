//! Lines in the daemon's log, under the driver's name: `log::info!("{} volumes", found.len())`.
//!
//! In a native test they go to stderr, which the test runner shows with a failure. Never log what a secret holds.

#[doc(inline)]
pub use crate::{__debug as debug, __error as error, __info as info, __warn as warn};

/// What a line is worth.
pub use crate::bindings::wasmvol::driver::log::Level;

/// Writes one line; the macros call this.
pub fn write(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    crate::bindings::wasmvol::driver::log::write(level, message);
    #[cfg(not(target_family = "wasm"))]
    #[expect(clippy::print_stderr, reason = "a native test has no host to log to")]
    {
        eprintln!("{level:?}: {message}");
    }
}

/// Something failed.
#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, &::std::format!($($arg)*)) };
}

/// Something is wrong and the driver goes on.
#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, &::std::format!($($arg)*)) };
}

/// Something that an operator wants to know.
#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($arg)*)) };
}

/// Something that the driver's author wants to know.
#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($arg)*)) };
}
