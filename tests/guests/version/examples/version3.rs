//! A version with another form, which takes over nothing.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("3.0.0" of form "3", asks for []);
