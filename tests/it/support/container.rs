//! What the kernel sees of a container: a process whose own mount namespace has a volume. No engine is told of its end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Scratch;
use super::mounts::{self, Mount};

/// Binds the volume, says so, and stays until its input closes.
const PROCESS: &str = r#"mount --bind "$1" "$2" && echo ready && exec >&- && read -r _"#;

/// A running container.
pub(crate) struct Container {
    process: Child,
    dir: Scratch,
}

impl Container {
    /// Starts a container with what is mounted at `mountpoint`.
    pub(crate) fn with(mountpoint: &Path) -> Self {
        let dir = Scratch::new();
        let mut process = Command::new("unshare")
            .args(["--mount", "--propagation", "slave", "bash", "-c", PROCESS, "container"])
            .arg(mountpoint)
            .arg(dir.dir("data"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the container did not start");
        Self { process, dir }
    }

    /// The volume's mount inside.
    pub(crate) fn mount(&self) -> Mount {
        let data = self.dir.path().join("data");
        let all = mounts::of_process(self.process.id());
        all.into_iter().find(|m| Path::new(&m.path) == data).expect("the volume was taken away")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
