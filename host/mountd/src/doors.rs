//! The listening sockets: bound here or taken from systemd, and held while daemons come and go, so that no client meets a closed
//! door.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxFlags};
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
    /// Takes over a socket that this process was started with. To be called before anything else opens a file.
    pub(crate) fn inherit(listen: &Listen) -> Result<Option<Self>, Fault> {
        let Listen::Fd(number) = listen else { return Ok(None) };
        let what = || format!("use inherited file {number} as a socket");
        let socket = crate::sys::inherited(*number).trying(what)?;
        if rustix::net::sockopt::socket_acceptconn(&socket).trying(what)? {
            Ok(Some(Self { socket, bound: None }))
        } else {
            fault(FaultKind::Invalid, format!("inherited file {number} is not listening"))
        }
    }

    /// Binds a socket with mode 0600, unless it was inherited. `Busy` if somebody listens there.
    pub(crate) fn open(inherited: Option<Self>, listen: &Listen) -> Result<Self, Fault> {
        match (inherited, listen) {
            (None, Listen::Path(path)) => bind(path),
            (Some(door), _) => Ok(door),
            (None, Listen::Fd(number)) => {
                fault(FaultKind::Invalid, format!("inherited file {number} was not taken"))
            }
        }
    }

    /// Takes the name away, unless it is somebody else's by now.
    pub(crate) fn close(self) {
        if let Some((path, inode)) = self.bound
            && inode_of(&path) == Ok(inode)
            && let Err(e) = rustix::fs::unlink(&path)
        {
            crate::say(format_args!("cannot unlink `{path}`: {}", crate::fault::text(e)));
        }
    }
}

fn inode_of(path: &str) -> Result<u64, Errno> {
    let statx = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO)?;
    Ok(statx.stx_ino)
}

fn stream() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn bind(path: &str) -> Result<Door, Fault> {
    let what = || format!("listen on `{path}`");
    if let Some(parent) = Path::new(path).parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).trying(what)?;
    }
    let address = SocketAddrUnix::new(path).trying(what)?;
    clear(path, &address)?;
    let socket = stream().trying(what)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    bound.and_then(|()| rustix::net::listen(&socket, BACKLOG)).trying(what)?;
    let inode = inode_of(path).trying(what)?;
    Ok(Door { socket, bound: Some((path.to_owned(), inode)) })
}

/// Removes a socket that nobody listens on.
fn clear(path: &str, address: &SocketAddrUnix) -> Result<(), Fault> {
    let what = || format!("clear the way to `{path}`");
    let stat = match rustix::fs::lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e).trying(what),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return fault(FaultKind::Failed, format!("`{path}` is there and no socket: move it away"));
    }
    match rustix::net::connect(&stream().trying(what)?, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).trying(what),
        _ => fault(
            FaultKind::Busy,
            format!("another process listens on `{path}`: stop it, or choose another path"),
        ),
    }
}
