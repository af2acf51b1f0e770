//! A WebDAV server of one test's own, rclone's: its port on 127.0.0.1, its password, and a directory that it serves. Ends with the run.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::{SOON, Scratch, mortal, shell, spawn, until};

pub(crate) struct Webdav {
    pub(crate) port: u16,
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut webdav = Self { port, scratch, child: None };
        webdav.run();
        webdav
    }

    pub(crate) fn run(&mut self) {
        let port = self.port;
        let mut command = mortal("rclone");
        command.args(["serve", "webdav", "served", "--htpasswd", "users", "--config", "/dev/null"]);
        command.args(["--addr", &format!("127.0.0.1:{port}")]).current_dir(self.scratch.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(spawn(command));
        until("the server listens", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
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
        format!("dav{}:", self.port)
    }

    /// A password as rclone's configurations have it.
    pub(crate) fn obscured(&self, password: &str) -> String {
        let word = self.scratch.path().join("word");
        fs::write(&word, password).unwrap();
        shell(&format!("rclone --config /dev/null obscure - <{}", word.display()), &[]).ok()
    }

    /// The configuration that has its remote, with an obscured password.
    pub(crate) fn config(&self, obscured: &str) -> String {
        let (port, name) = (self.port, self.remote());
        let name = name.trim_end_matches(':');
        format!(
            "[{name}]\ntype = webdav\nurl = http://127.0.0.1:{port}\nvendor = other\nuser = me\npass = {obscured}\n"
        )
    }
}

impl Drop for Webdav {
    fn drop(&mut self) {
        self.stop();
    }
}
