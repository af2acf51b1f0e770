//! The driver engine: WebAssembly components behind the volume contract.
//!
//! The daemon loads a component and calls its verbs; every call gets a fresh instance, a deadline and limits, so nothing that a
//! driver does in one call reaches another call, another driver or the host. The only package that names wasmtime, and the last
//! place where a generated type appears: what leaves here is in [`types`] and `wasmvol_plan`.

pub mod types;

pub use types::{
    CallError, Created, Description, ErrorCode, Found, OptionSpec, Reclaim, Value, ValueType,
    Volume,
};
