//! An engine and its wasmvol.

use std::sync::Arc;

use serde_json::Value;

use super::docker::Docker;
use super::engine::Engine;
use super::wasmvol::Wasmvol;
use super::{Outcome, shell};

/// An engine and the wasmvol that it has as a plugin.
pub(crate) struct Pair<E> {
    pub(crate) wasmvol: Wasmvol,
    pub(crate) engine: E,
}

impl<E: Engine> Pair<E> {
    /// A pair that no other test uses.
    pub(crate) fn own() -> Self {
        E::with_wasmvol()
    }

    /// The pair that tests share while any of them runs.
    pub(crate) fn shared() -> Arc<Self> {
        // A test that failed to start the pair poisons nothing: the next one tries again.
        let mut shared = E::shared().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let pair = Arc::new(Self::own());
            *shared = Arc::downgrade(&pair);
            pair
        })
    }

    /// Makes a volume of the default driver.
    pub(crate) fn volume(&self, name: &str) {
        self.engine.ok(&format!("volume create --driver wasmvol {name}"));
    }

    /// Starts a container that runs for as long as the test, with the volume at /data.
    pub(crate) fn sleeper(&self, container: &str, volume: &str) {
        let run = E::RUN;
        self.engine.ok(&format!("{run} --name {container} -v {volume}:/data busybox sleep 1000"));
    }

    /// Removes a container that runs.
    pub(crate) fn discard(&self, container: &str) {
        self.engine.ok(&format!("{} {container}", E::DISCARD));
    }

    /// Inspects a volume.
    pub(crate) fn inspect(&self, volume: &str) -> Value {
        let text = self.engine.ok(&format!("volume inspect {volume}"));
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }
}

impl Pair<Docker> {
    /// Starts a wasmvol for this dockerd.
    pub(crate) fn with(engine: Docker) -> Self {
        Self { wasmvol: Wasmvol::start_for(&engine.plugins()), engine }
    }

    /// Runs a line of shell in which `docker` and `wasmvol` are these.
    pub(crate) fn shell(&self, line: &str) -> Outcome {
        shell(line, &[self.engine.variables(), self.wasmvol.variables()].concat())
    }
}
