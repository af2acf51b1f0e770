//! Servers of the run's own, each with a directory that it serves, which programs reach: an SSH server and rclone's WebDAV server.
//!
//! Started by `ground`, once for a run. Each listens on the loopback at a port that was free, and ends with the run.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::ground::shell;
use crate::instance::mortal;

/// How long a server may take to listen, and how often that is looked at.
const LISTENING: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// One of them.
pub(crate) struct Server {
    /// What it serves is `served` in it; keys and configurations lie beside.
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    child: Child,
}

impl Server {
    /// An SSH server that lets root in by the key `user`; `known` has its own, `host`.
    pub(crate) fn sshd(dir: &Path) -> Result<Self> {
        let make = r#"mkdir -p "$1/served" /run/sshd && for key in host user; do
            ssh-keygen -q -t ed25519 -N "" -f "$1/$key"; done"#;
        shell(make, &[dir])?;
        let port = free_port()?;
        let at = dir.display();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        );
        fs::write(dir.join("config"), config)?;
        let key = fs::read_to_string(dir.join("host.pub"))?;
        fs::write(dir.join("known"), format!("* {key}"))?;
        let mut server = mortal(Path::new("/usr/sbin/sshd"));
        server.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        Self::start(server, dir, port)
    }

    /// A WebDAV server that lets everybody in; its remote is `dav:` in the configuration `rclone.conf`. It serves two directories, so
    /// that what one of two rclones still uploads is never the other's.
    pub(crate) fn webdav(dir: &Path) -> Result<Self> {
        for part in ["served/own", "served/by-hand"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let port = free_port()?;
        let url = format!("http://127.0.0.1:{port}");
        let config = format!("[dav]\ntype = webdav\nurl = {url}\nvendor = other\n");
        fs::write(dir.join("rclone.conf"), config)?;
        let mut server = mortal(Path::new("/usr/bin/rclone"));
        server.args(["serve", "webdav", "--config", "/dev/null", "--addr"]);
        server.arg(format!("127.0.0.1:{port}")).arg(dir.join("served"));
        Self::start(server, dir, port)
    }

    fn start(mut server: Command, dir: &Path, port: u16) -> Result<Self> {
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let started = Self { dir: dir.to_owned(), port, child };
        let end = Instant::now() + LISTENING;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end {
                return Err(format!("{server:?} does not listen").into());
            }
            sleep(LOOK_AGAIN);
        }
        Ok(started)
    }

    /// What it serves.
    pub(crate) fn served(&self) -> PathBuf {
        self.dir.join("served")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, and the run is over anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
