//! Amazon's services in memory, for one test of its own: moto, at an address of its own. Ends with the run.
//!
//! Used by `s3` and `ec2`, which prepare what a test needs there. moto comes from PyPI once for all runs, with versions that are written
//! down, into a place beside the built programs.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::LazyLock;

use rustix::process::Signal;

use super::wasmvol::{PROGRAMS, send};
use super::{SOON, Scratch, mortal, own_address, shell, spawn, until};

const PORT: u16 = 5000;

/// What is installed; other ones get another place.
const REQUIREMENTS: &str = include_str!("moto/requirements.txt");

/// Where moto's programs are.
static MOTO: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = PROGRAMS.parent().map(Path::to_owned).unwrap();
    let scratch = Scratch::new();
    let list = scratch.path().join("requirements.txt");
    fs::write(&list, REQUIREMENTS).unwrap();
    let (target, list) = (target.display(), list.display());
    // Another run may be about to do the same.
    let line = format!(
        "exec 9>{target}/moto.lock && flock 9 && cmp -s {list} {target}/moto/requirements.txt || \
         {{ rm -rf {target}/moto && python3 -m venv {target}/moto && \
         {target}/moto/bin/pip install --quiet --no-deps --disable-pip-version-check -r {list} && \
         cp {list} {target}/moto/requirements.txt; }}"
    );
    shell(&line, &[]).ok();
    PathBuf::from(format!("{target}/moto/bin"))
});

pub(crate) struct Moto {
    pub(crate) address: Ipv4Addr,
    child: Child,
}

impl Moto {
    pub(crate) fn start() -> Self {
        Self::start_at(own_address())
    }

    fn start_at(address: Ipv4Addr) -> Self {
        let mut command = mortal(MOTO.join("moto_server"));
        command.args(["-H", &address.to_string(), "-p", &PORT.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command);
        until("the server listens", SOON, || TcpStream::connect((address, PORT)).ok());
        Self { address, child }
    }

    /// Runs a script in Python with this server's address and further words; answers what it printed.
    pub(crate) fn prepare(&self, script: &str, words: &str) -> String {
        let scratch = Scratch::new();
        let file = scratch.path().join("prepare.py");
        fs::write(&file, script).unwrap();
        let (python, file) = (MOTO.join("python"), file.display());
        shell(&format!("{} {file} {} {words}", python.display(), self.url()), &[]).ok()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// Lets it answer nobody, and forget nothing.
    pub(crate) fn hang(&self) {
        send(self.child.id(), Signal::STOP);
    }

    /// Lets it answer again.
    pub(crate) fn go_on(&self) {
        send(self.child.id(), Signal::CONT);
    }

    /// Ends it; all that it knew is gone.
    pub(crate) fn stop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }

    /// Starts it again where it was, with nothing.
    pub(crate) fn begin_anew(&mut self) {
        self.stop();
        *self = Self::start_at(self.address);
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.stop();
    }
}
