//! A version that reads what the first one wrote, and wants more than that.
// Its exports have no names that a native linker takes.
#![cfg(target_family = "wasm")]

version::version!("1.1.0" of form "1", asks for ["suid", "http=https://api.example"]);
