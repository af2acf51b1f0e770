//! A disk of this machine that a test may fill: a loop device over a file. Gone when dropped.

use std::fs::File;
use std::path::Path;
use std::process::Command;

pub(crate) struct Loop(String);

impl Loop {
    /// A blank disk of this size, which lies in a new file.
    pub(crate) fn blank(file: &Path, bytes: u64) -> Self {
        File::create_new(file).unwrap().set_len(bytes).unwrap();
        Self::of(file)
    }

    /// A disk with what a file holds.
    pub(crate) fn of(file: &Path) -> Self {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert!(device.starts_with("/dev/loop"), "{device}");
        Self(device)
    }

    /// `/dev/loop7`
    pub(crate) fn device(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _detached = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
