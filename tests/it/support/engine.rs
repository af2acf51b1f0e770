//! What dockerd and podman have in common, so that a question to both is written once.

use std::sync::{Mutex, Weak};

use super::Outcome;
use super::pair::Pair;

/// A container engine and its command line.
pub(crate) trait Engine: Sized + Send + Sync + 'static {
    /// Begins the line that starts a container in the background, which ends when it is told to.
    const RUN: &str;
    /// Begins the line that removes a running container without waiting for it.
    const DISCARD: &str;
    /// Begins the line that stops a container without waiting for it.
    const STOP: &str;

    /// Starts one, and a wasmvol that it knows.
    fn with_wasmvol() -> Pair<Self>;

    /// The pair that tests share while any of them runs.
    fn shared() -> &'static Mutex<Weak<Pair<Self>>>;

    /// Runs its command line with LINE, as a shell would.
    fn cli(&self, line: &str) -> Outcome;

    /// Runs LINE, which must succeed, and answers what it printed.
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        self.cli(line).ok()
    }

    /// Runs LINE, which must fail, and answers what it complained of.
    #[track_caller]
    fn refused(&self, line: &str) -> String {
        self.cli(line).refused()
    }
}

/// Makes two tests of each question, which is a function over an [`Engine`]: one asks docker, one podman.
macro_rules! ask_every_engine {
    ($($question:ident),* $(,)?) => {
        mod of_docker {
            $(#[test] fn $question() { super::$question::<crate::support::docker::Docker>(); })*
        }
        mod of_podman {
            $(#[test] fn $question() { super::$question::<crate::support::podman::Podman>(); })*
        }
    };
}
pub(crate) use ask_every_engine;
