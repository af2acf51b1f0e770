//! The engine against real components: good ones, hostile ones, and files that are none.
//!
//! The guests are built before: `cargo build --profile driver --target wasm32-wasip2 -p hostile -p rogue`. The compiling child is the
//! example `call` of this package, which `cargo test` builds along.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod abilities;
mod backend;
mod cache;
mod compile;
mod frozen;
mod hostile;
mod http;
mod keeping;
mod load;
mod meter;
mod stage;
