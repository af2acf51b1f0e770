//! Components in OCI registries, for the command line: pushed, signed, looked at, verified and pulled.
//!
//! [`Registry::open`] is for one [`Reference`]. [`Registry::look`] answers with an [`Offer`], all that can be known of a component
//! before its bytes are downloaded: size, imports and exports; [`Registry::signature`] says whose [`Signature`] it has.
//! [`Registry::fetch`] downloads those bytes, and [`Registry::push`] uploads some. What comes from a registry is bounded before it is read, and trusted for nothing that
//! a digest or a key does not say.

mod artifact;
mod auth;
mod bundle;
mod client;
mod cosign;
mod credentials;
mod digest;
mod error;
mod fetch;
mod partial;
mod push;
mod reference;
mod sealed;
mod signature;

pub use client::Registry;
pub use cosign::{Keys, Signer, SigningKey};
pub use error::RegistryError;
pub use fetch::Offer;
pub use push::Pushed;
pub use reference::Reference;
pub use signature::Signature;
