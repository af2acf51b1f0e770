//! The first version.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("1.0.0" of form "1", asks for []);
