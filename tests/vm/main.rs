//! Tests of what only the machine of tests/vm.sh has: file servers, and a kernel with their file systems, encryption and project quotas.
//!
//! One module a question; `it` says how such tests are written, and its `support` is shared.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test says what it expects by failing"
)]

#[path = "../it"]
#[allow(dead_code, unused_imports, unused_macros, reason = "other tests use the rest")]
mod it {
    pub(crate) mod support;
}
mod encryption;
mod quotas;
mod shares;

pub(crate) use it::support;
