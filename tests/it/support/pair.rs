//! A dockerd and its wasmvol.

use std::sync::{Arc, Mutex, Weak};

use serde_json::Value;

use super::docker::Docker;
use super::wasmvol::Wasmvol;
use super::{Outcome, shell};

/// A dockerd and the wasmvol that it finds in its plugin directory.
pub(crate) struct Pair {
    pub(crate) wasmvol: Wasmvol,
    pub(crate) docker: Docker,
}

impl Pair {
    /// Starts a wasmvol for this dockerd.
    pub(crate) fn with(docker: Docker) -> Self {
        Self { wasmvol: Wasmvol::start_for(&docker.plugins()), docker }
    }

    /// A pair that no other test uses.
    pub(crate) fn own() -> Self {
        Self::with(Docker::start())
    }

    /// Runs a line of shell in which `docker` and `wasmvol` are these.
    pub(crate) fn shell(&self, line: &str) -> Outcome {
        shell(line, &[self.docker.variables(), self.wasmvol.variables()].concat())
    }

    /// The pair that tests share while any of them runs.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Pair>> = Mutex::new(Weak::new());
        // A test that failed to start the pair poisons nothing: the next one tries again.
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let pair = Arc::new(Self::own());
            *shared = Arc::downgrade(&pair);
            pair
        })
    }

    /// Makes a volume of the default driver.
    pub(crate) fn volume(&self, name: &str) {
        self.docker.ok(&format!("volume create -d wasmvol {name}"));
    }

    /// Starts a container that runs for as long as the test, with the volume at /data.
    pub(crate) fn sleeper(&self, container: &str, volume: &str) {
        self.docker
            .ok(&format!("run -d --init --name {container} -v {volume}:/data busybox sleep 1000"));
    }

    /// Inspects a volume.
    pub(crate) fn inspect(&self, volume: &str) -> Value {
        let text = self.docker.ok(&format!("volume inspect {volume}"));
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }
}
