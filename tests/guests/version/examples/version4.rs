//! A version that reads what the first one wrote, and mounts what nobody granted.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("4.0.0" of form "1", asks for []);
