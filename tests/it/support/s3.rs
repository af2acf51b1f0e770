//! An S3 server of one test's own, moto: its address, and `bucket` in its memory. Ends with the run.
//!
//! moto comes from PyPI once for all runs, with versions that are written down, into a place beside the built programs.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::LazyLock;

use super::wasmvol::PROGRAMS;
use super::{SOON, Scratch, mortal, own_address, shell, spawn, until};

const PORT: u16 = 5000;

/// What is installed; other ones get another place.
const REQUIREMENTS: &str = include_str!("s3/requirements.txt");
const PREPARE: &str = include_str!("s3/prepare.py");

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

pub(crate) struct S3 {
    pub(crate) address: Ipv4Addr,
    /// `ACCESS:SECRET` of somebody who may do everything.
    pub(crate) keys: String,
    child: Child,
}

impl S3 {
    /// A server that lets everybody in.
    pub(crate) fn open() -> Self {
        Self::start("open")
    }

    /// A server that looks at signatures. It reads those of requests with a `/` in their query otherwise than s3fs writes them, so what
    /// is in its bucket cannot be listed.
    pub(crate) fn closed() -> Self {
        Self::start("closed")
    }

    fn start(how: &str) -> Self {
        let address = own_address();
        let mut command = mortal(MOTO.join("moto_server"));
        command.args(["-H", &address.to_string(), "-p", &PORT.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command);
        until("the server listens", SOON, || TcpStream::connect((address, PORT)).ok());
        let scratch = Scratch::new();
        let script = scratch.path().join("prepare.py");
        fs::write(&script, PREPARE).unwrap();
        let python = MOTO.join("python");
        let line =
            format!("{} {} http://{address}:{PORT} {how}", python.display(), script.display());
        Self { address, keys: shell(&line, &[]).ok(), child }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// What is in the bucket under a name, where the server looks at no signature; but it wants one.
    pub(crate) fn object(&self, name: &str) -> Option<String> {
        let signed = "-H 'Authorization: AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'";
        let line = format!("curl --silent --fail {signed} {}/bucket/{name}", self.url());
        let outcome = shell(&line, &[]);
        (outcome.code == Some(0)).then_some(outcome.stdout)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
