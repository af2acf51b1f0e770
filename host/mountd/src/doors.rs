//! The listening sockets: bound here or taken from systemd, and held while daemons come and go, so that no client meets a closed
//! door.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wasmvol_plan::{Fault, FaultKind};

use crate::args::Listen;
use crate::fault::{Context, fault};

/// Connections that wait for an accept, also while a daemon is started again: 200 creates at once fit.
const BACKLOG: i32 = 1024;

/// One listening socket.
pub(crate) struct Door {
    pub(crate) socket: OwnedFd,
    /// Path and inode, if it was bound here.
    bound: Option<(String, u64)>,
}

impl Door {
    /// Uses an inherited socket, or binds one with mode 0600. `Busy` if somebody else listens there.
    pub(crate) fn open(listen: Listen) -> Result<Self, Fault> {
        let socket = match listen {
            Listen::Path(path) => return bind(path),
            Listen::Inherited(socket) => socket,
        };
        match rustix::net::sockopt::socket_acceptconn(&socket) {
            Ok(true) => Ok(Self { socket, bound: None }),
            _ => fault(FaultKind::Invalid, "an inherited file is no listening socket"),
        }
    }

    /// Takes the name away, unless it is somebody else's by now.
    pub(crate) fn close(self) {
        if let Some((path, inode)) = self.bound
            && rustix::fs::lstat(&path).is_ok_and(|stat| stat.st_ino == inode)
        {
            // A name that stays is stale: the next start takes it away.
            let _stays = rustix::fs::unlink(&path);
        }
    }
}

fn stream() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn bind(path: String) -> Result<Door, Fault> {
    let what = format_args!("listen on `{path}`");
    if let Some(parent) = Path::new(&path).parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).trying(what)?;
    }
    let address = SocketAddrUnix::new(&path).trying(what)?;
    match rustix::fs::lstat(&path) {
        Err(Errno::NOENT) => {}
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            let why = format!("`{path}` is there and no socket: move it away");
            return fault(FaultKind::Failed, why);
        }
        found => {
            found.trying(what)?;
            // Nobody listens on a stale one.
            if rustix::net::connect(&stream().trying(what)?, &address) != Err(Errno::CONNREFUSED) {
                let why = format!("another process listens on `{path}`: stop it");
                return fault(FaultKind::Busy, why);
            }
            rustix::fs::unlink(&path).trying(what)?;
        }
    }
    let socket = stream().trying(what)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    bound.and_then(|()| rustix::net::listen(&socket, BACKLOG)).trying(what)?;
    let inode = rustix::fs::lstat(&path).trying(what)?.st_ino;
    Ok(Door { socket, bound: Some((path, inode)) })
}
