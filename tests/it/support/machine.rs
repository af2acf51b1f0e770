//! A machine for an engine: process and mount namespaces of its own that end all at once.
//!
//! Its mount namespace is a slave of the test's, as a service's may be of the host's: what wasmvol mounts appears there, what
//! the engine mounts stays there. Its init is a shell that reads until its input closes, which the kernel does when the test run
//! ends, however it ends; with init go all processes, containers and mounts.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::Scratch;

/// An empty /run and /dev/shm, and /run/docker and /etc/docker from the machine's own directory.
const INIT: &str = r#"
set -eu
read -r pid _ </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/docker /etc/docker
mount --bind "$1/run" /run/docker
mount --bind "$1/etc" /etc/docker
echo "$pid"
exec >&-
read -r _
"#;

/// A running machine.
pub(crate) struct Machine {
    unshare: Child,
    init: u32,
    door: Option<ChildStdin>,
    // Dropped last: by then nothing uses it.
    dir: Scratch,
}

impl Machine {
    /// Boots a machine that sees what is mounted in the test's namespace.
    pub(crate) fn boot() -> Self {
        Self::with_propagation("slave")
    }

    /// Boots a machine that does not see what is mounted elsewhere after this.
    pub(crate) fn boot_blind() -> Self {
        Self::with_propagation("private")
    }

    fn with_propagation(propagation: &str) -> Self {
        let dir = Scratch::new();
        dir.dir("run");
        dir.dir("etc");
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", propagation])
            .args(["bash", "-c", INIT, "init"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let door = unshare.stdin.take();
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let init = line.trim().parse().expect("the machine's init did not come up");
        Self { unshare, init, door, dir }
    }

    /// A path of the machine's own directory, the same inside and outside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory in it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.dir.dir(name)
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid", "--", program]);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.door.take());
        let _ = self.unshare.wait();
    }
}
