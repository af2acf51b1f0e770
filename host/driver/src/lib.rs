//! The driver engine: WebAssembly components behind the volume contract.
//!
//! The daemon loads a component and calls its verbs; every call gets a fresh instance, a deadline and limits, so nothing that a
//! driver does in one call reaches another call, another driver or the host. The only package that names wasmtime, and the last
//! place where a generated type appears: what leaves here is in [`types`] and `wasmvol_plan`.
//!
//! In the order of a driver's life: [`Engine::load`] takes a component's bytes, `compile` makes machine code of them in a child
//! process, `cache` keeps that, `contract` speaks the version of the contract that the component exports, and [`Driver`] has the
//! verbs. Each verb is one `call`: a store with limits, a `pace` for what it computes, a `journal` for what the driver writes, a
//! `turnstile` to enter by.

mod answer;
mod cache;
mod call;
mod compile;
mod config;
mod contract;
mod driver;
mod engine;
mod http;
mod interfaces;
mod journal;
#[cfg(test)]
mod limits;
mod meter;
mod own;
mod pace;
mod reserve;
mod store;
mod ticker;
mod turnstile;
pub mod types;
mod wasi;

pub use compile::{COMPONENT_MAX, Compiler, close_all_but, compile_stdin_to_stdout};
pub use contract::check_interfaces;
pub use driver::{Driver, LIST_MAX};
pub use engine::{Engine, EngineOptions, LoadError};
pub use interfaces::Interfaces;
pub use meter::{Cost, Meter};
pub use pace::BEHIND_THREAD;
pub use types::{
    Abilities, Answer, CallError, Condition, Created, Description, ErrorCode, Found, Marked,
    OptionSpec, Populated, Progress, Reclaim, Report, Resized, Reveal, Root, Roots, Scope, Store,
    Uses, Value, ValueType, Volume,
};
