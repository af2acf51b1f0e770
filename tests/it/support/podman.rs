//! A podman of the test's own: its storage, its configuration, its containers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, Weak};

use super::docker::busybox;
use super::engine::Engine;
use super::machine::Machine;
use super::pair::Pair;
use super::wasmvol::Wasmvol;
use super::{Outcome, outcome};

/// A podman with one image, `busybox`, and one volume plugin.
pub(crate) struct Podman {
    machine: Machine,
}

impl Podman {
    /// Sets up a podman that knows the plugin `name` at `socket`.
    pub(crate) fn with_plugin(name: &str, socket: &Path) -> Self {
        let machine = Machine::boot();
        // No network, and limits below the machine's own: runc refuses podman's defaults where those are lower.
        let configuration = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [engine.volume_plugins]\n{name} = \"{}\"\n\
             [containers]\nnetns = \"none\"\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
            socket.display()
        );
        fs::write(machine.path("containers.conf"), configuration).unwrap();
        let podman = Self { machine };
        let image = busybox(&podman.machine.dir("image"));
        podman
            .shell(&format!("tar -C {} -c . | podman import - busybox:latest", image.display()))
            .ok();
        podman
    }

    /// Runs a line of shell in which `podman` is this one.
    fn shell(&self, line: &str) -> Outcome {
        let at = |name: &str| self.machine.path(name).display().to_string();
        let function = format!(
            "podman() {{ command podman --root {} --runroot {} --tmpdir {} \"$@\"; }}; {line}",
            at("data"),
            at("runroot"),
            at("tmp")
        );
        let mut command: Command = self.machine.command("timeout");
        command.args(["--kill-after=1", "100", "bash", "-c", &function]);
        command.env("CONTAINERS_CONF", at("containers.conf"));
        outcome(line, &mut command)
    }
}

impl Engine for Podman {
    const RUN: &str = "run -d";
    const DISCARD: &str = "rm -f -t 0";
    const STOP: &str = "stop -t 0";

    fn with_wasmvol() -> Pair<Self> {
        let wasmvol = Wasmvol::start();
        Pair { engine: Self::with_plugin("wasmvol", &wasmvol.plugin().socket), wasmvol }
    }

    fn shared() -> &'static Mutex<Weak<Pair<Self>>> {
        static SHARED: Mutex<Weak<Pair<Podman>>> = Mutex::new(Weak::new());
        &SHARED
    }

    fn cli(&self, line: &str) -> Outcome {
        self.shell(&format!("podman {line}"))
    }
}
