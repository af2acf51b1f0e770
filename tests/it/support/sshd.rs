//! An SSH server of one test's own: its keys, its address, and a directory that it serves. Ends with the test run.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::{SOON, Scratch, mortal, outcome, own_address, spawn, until};

const PORT: u16 = 2222;

pub(crate) struct Sshd {
    address: Ipv4Addr,
    scratch: Scratch,
    child: Option<Child>,
}

impl Sshd {
    pub(crate) fn start() -> Self {
        let scratch = Scratch::new();
        scratch.dir("served");
        for key in ["host", "user"] {
            let file = scratch.path().join(key).display().to_string();
            let args = ["-q", "-t", "ed25519", "-N", "", "-f", &file];
            outcome("ssh-keygen", std::process::Command::new("ssh-keygen").args(args)).ok();
        }
        // Where it puts a connection that has not logged in yet; its package makes it only where systemd runs.
        fs::create_dir_all("/run/sshd").unwrap();
        let address = own_address();
        let dir = scratch.path().display();
        let config = format!(
            "ListenAddress {address}:{PORT}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication yes\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        );
        fs::write(scratch.path().join("config"), config).unwrap();
        let mut sshd = Self { address, scratch, child: None };
        sshd.run();
        sshd
    }

    /// Lets root in with a password.
    pub(crate) fn set_password(&mut self, password: &str) {
        let file = self.scratch.path().join("password");
        fs::write(&file, password).unwrap();
        let line = format!("openssl passwd -6 -stdin <{}", file.display());
        let hash = super::shell(&line, &[]).ok();
        fs::remove_file(file).unwrap();
        let shadow = format!("root:{hash}:19000:0:99999:7:::\n");
        fs::write(self.scratch.path().join("shadow"), shadow).unwrap();
        self.stop();
        self.run();
    }

    fn run(&mut self) {
        // It sees a password of root's that nobody else does.
        let line = "[ ! -e shadow ] || mount --bind shadow /etc/shadow; exec /usr/sbin/sshd -D -e -f config";
        let mut command = mortal("unshare");
        command.args(["--mount", "sh", "-c", line]).current_dir(self.scratch.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(spawn(command));
        until("sshd listens", SOON, || TcpStream::connect((self.address, PORT)).ok());
    }

    /// What a volume's `host` and `port` are.
    pub(crate) fn place(&self) -> (String, String) {
        (self.address.to_string(), PORT.to_string())
    }

    /// The directory that it serves.
    pub(crate) fn served(&self) -> PathBuf {
        self.scratch.path().join("served")
    }

    /// The file of the private key that it lets in.
    pub(crate) fn key(&self) -> PathBuf {
        self.scratch.path().join("user")
    }

    /// Its own public key.
    pub(crate) fn host_key(&self) -> String {
        fs::read_to_string(self.scratch.path().join("host.pub")).unwrap().trim().to_owned()
    }

    /// A public key that is not its own.
    pub(crate) fn other_key(&self) -> String {
        fs::read_to_string(self.scratch.path().join("user.pub")).unwrap().trim().to_owned()
    }
}

impl Sshd {
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended = child.kill();
            let _waited = child.wait();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
