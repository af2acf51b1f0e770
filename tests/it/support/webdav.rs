//! A WebDAV server of one test's own, rclone's: its address, its password, and a directory that it serves. Ends with the run.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::{SOON, Scratch, mortal, own_address, shell, spawn, until};

const PORT: u16 = 8080;

pub(crate) struct Webdav {
    address: Ipv4Addr,
    scratch: Scratch,
    child: Option<Child>,
}

impl Webdav {
    /// A server that lets `me` in with a password.
    pub(crate) fn start(password: &str) -> Self {
        let scratch = Scratch::new();
        scratch.dir("served");
        let word = scratch.path().join("word");
        fs::write(&word, password).unwrap();
        let hash = shell(&format!("openssl passwd -apr1 -stdin <{}", word.display()), &[]).ok();
        fs::write(scratch.path().join("users"), format!("me:{hash}\n")).unwrap();
        let mut webdav = Self { address: own_address(), scratch, child: None };
        webdav.run();
        webdav
    }

    pub(crate) fn run(&mut self) {
        let address = self.address;
        let mut command = mortal("rclone");
        command.args(["serve", "webdav", "served", "--htpasswd", "users", "--config", "/dev/null"]);
        command.args(["--addr", &format!("{address}:{PORT}")]).current_dir(self.scratch.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(spawn(command));
        until("the server listens", SOON, || TcpStream::connect((address, PORT)).ok());
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended = child.kill();
            let _waited = child.wait();
        }
    }

    /// The directory that it serves.
    pub(crate) fn served(&self) -> PathBuf {
        self.scratch.path().join("served")
    }

    /// What its remote is called: no other test has one of that name.
    pub(crate) fn remote(&self) -> String {
        format!("dav-{}:", self.address)
    }

    /// A password as rclone's configurations have it.
    pub(crate) fn obscured(&self, password: &str) -> String {
        let word = self.scratch.path().join("word");
        fs::write(&word, password).unwrap();
        shell(&format!("rclone --config /dev/null obscure - <{}", word.display()), &[]).ok()
    }

    /// The configuration that has its remote, with an obscured password.
    pub(crate) fn config(&self, obscured: &str) -> String {
        let (address, name) = (self.address, self.remote());
        let name = name.trim_end_matches(':');
        format!(
            "[{name}]\ntype = webdav\nurl = http://{address}:{PORT}\nvendor = other\nuser = me\npass = {obscured}\n"
        )
    }
}

impl Drop for Webdav {
    fn drop(&mut self) {
        self.stop();
    }
}
