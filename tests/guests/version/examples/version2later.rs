//! A version that reads what the second one wrote, and takes over what the first one did.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("2.1.0" of form "2", asks for [], migrates);
