//! A version with another form, which takes over what the first one wrote.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("2.0.0" of form "2", asks for [], migrates);
