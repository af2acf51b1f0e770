//! The directories of one daemon, each opened once at start and used as an fd ever after; and the locks that make it the only one.
//!
//! `volumes/`, `trash/` and `secrets/` are root's, `catalog/`, `drivers/`, `cache/` and the mount table's the daemon's; all 0700.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid, openat2};
use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind};

use crate::anchor::identity;
use crate::args::Args;
use crate::fault::{Context, fault};

/// How long a start waits for the daemon before it: a restart by systemd meets the end of the old one.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often a taken lock is tried again.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// How an opened directory is used: listed, synced and searched.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How a directory is opened only to be passed to a mount call.
pub(crate) const PLACE: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How paths beneath a directory are resolved: whatever is planted there, they stay in it and in its mount.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The opened directories.
pub(crate) struct Places {
    /// Canonical paths of the runtime, the state and the configuration directory.
    pub(crate) runtime: String,
    pub(crate) state: String,
    pub(crate) config: String,
    pub(crate) volumes: OwnedFd,
    pub(crate) trash: OwnedFd,
    /// What root's command line keeps for drivers; a kind reads it by `secret`.
    pub(crate) secrets: OwnedFd,
    /// A file for each volume that a program serves, which has it locked.
    pub(crate) programs: OwnedFd,
    /// `grants.d` in the configuration directory: what the daemon may read of it, whatever the mode around it.
    pub(crate) grants: OwnedFd,
    /// Always empty: the second layer that an overlay without upper directory needs.
    pub(crate) empty: OwnedFd,
    /// What the daemon inherits, in the order of its fds: catalog, components, cache, mount table.
    pub(crate) daemons: [OwnedFd; 4],
    pub(crate) drivers: Option<OwnedFd>,
    /// Whom the daemon runs as.
    pub(crate) daemon: (u32, u32),
    /// The daemon inherits it too: as long as one of them lives, no other starts.
    pub(crate) lock: File,
    _runtime_lock: File,
}

impl Places {
    /// Takes the locks, makes what is missing and opens everything. `Busy` if another process holds a lock.
    pub(crate) fn open(args: &Args) -> Result<Self, Fault> {
        let state = root_directory(&args.state)?;
        let runtime = root_directory(&args.runtime)?;
        let state_lock = lock(&state, &args.state)?;
        let runtime_lock = lock(&runtime, &args.runtime)?;
        let daemons = |parent, name| inner_directory(parent, name, args.uid, args.gid);
        let grants = root_directory(&format!("{}/grants.d", args.config))?;
        let places = Self {
            runtime: path_of(&runtime)?,
            state: path_of(&state)?,
            config: path_of(&open(&args.config)?)?,
            volumes: inner_directory(&state, "volumes", 0, 0)?,
            trash: inner_directory(&state, "trash", 0, 0)?,
            secrets: inner_directory(&state, "secrets", 0, 0)?,
            programs: inner_directory(&runtime, "programs", 0, 0)?,
            grants,
            empty: inner_directory(&runtime, "empty", 0, 0)?,
            daemons: [
                daemons(&state, "catalog")?,
                daemons(&state, "drivers")?,
                daemons(&state, "cache")?,
                daemons(&runtime, "table")?,
            ],
            drivers: args.drivers.as_deref().map(open).transpose()?,
            daemon: (args.uid, args.gid),
            lock: state_lock,
            _runtime_lock: runtime_lock,
        };
        let shown = |place| identity(place, "").trying("look at `volumes` and `trash`");
        if shown(&places.volumes)? != shown(&places.trash)? {
            let why = "`volumes` and `trash` are not on one mount, so nothing could be removed";
            let cure = format!("mount the file system at `{}` itself", args.state);
            return fault(FaultKind::Invalid, format!("{why}: {cure}"));
        }
        Ok(places)
    }

    /// What a child that makes or mounts a volume needs.
    pub(crate) fn of_a_child(&self) -> Vec<BorrowedFd<'_>> {
        let places = [&self.volumes, &self.trash, &self.secrets, &self.programs];
        places.into_iter().chain([&self.grants, &self.empty]).map(AsFd::as_fd).collect()
    }
}

/// The path of an opened directory, without links.
pub(crate) fn path_of(directory: &OwnedFd) -> Result<String, Fault> {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = std::fs::read_link(&link).trying(format_args!("read `{link}`"))?;
    match path.into_os_string().into_string() {
        Ok(path) if !path.contains(char::is_control) => Ok(path),
        _ => fault(FaultKind::Invalid, "the path of a directory is no plain text: use another"),
    }
}

fn open(path: &str) -> Result<OwnedFd, Fault> {
    // Not NOFOLLOW: an administrator may put a whole directory elsewhere.
    rustix::fs::open(path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())
        .trying(format_args!("open the directory `{path}`"))
}

/// Makes a directory with its parents, open to search by all, and opens it. Nobody but root may be able to write there.
fn root_directory(path: &str) -> Result<OwnedFd, Fault> {
    let what = format_args!("make the directory `{path}`");
    DirBuilder::new().recursive(true).mode(0o755).create(path).trying(what)?;
    let directory = open(path)?;
    let stat = rustix::fs::fstat(&directory).trying(what)?;
    if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
        let why = format!("others than root can write to `{path}`: chown root and chmod go-w it");
        return fault(FaultKind::Denied, why);
    }
    Ok(directory)
}

/// Makes a directory of mode 0700 for one owner and opens it. Root's is handed over; a third one's is refused.
fn inner_directory(parent: &OwnedFd, name: &str, uid: u32, gid: u32) -> Result<OwnedFd, Fault> {
    let what = format_args!("prepare the directory `{name}`");
    let directory = make_and_open(parent, name, ResolveFlags::NO_SYMLINKS).trying(what)?;
    let owner = rustix::fs::fstat(&directory).trying(what)?.st_uid;
    if owner != 0 && owner != uid {
        let cure = format!("run with `--user {owner}`, or chown -R it to {uid}:{gid}");
        return fault(FaultKind::Denied, format!("`{name}` belongs to uid {owner}: {cure}"));
    }
    own(&directory, uid, gid, Mode::RWXU).trying(what)?;
    Ok(directory)
}

/// Makes a directory where there is none, and opens it in any case.
pub(crate) fn make_and_open(
    parent: &OwnedFd,
    name: &str,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => openat2(parent, name, DIRECTORY, Mode::empty(), resolve),
        Err(e) => Err(e),
    }
}

/// Sets owner and mode exactly. The mode comes last, because chown(2) clears bits of it.
pub(crate) fn own(directory: &OwnedFd, uid: u32, gid: u32, mode: Mode) -> Result<(), Errno> {
    rustix::fs::fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(directory, mode)
}

/// Locks `lock` in a directory and leaves this process's number in it.
fn lock(directory: &OwnedFd, path: &str) -> Result<File, Fault> {
    let what = format_args!("lock `{path}/lock`");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, "lock", flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(file.trying(what)?);
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LOCK_AGAIN),
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _without_a_number = (&file).take(16).read_to_string(&mut pid);
                let who = format!("another wasmvol (process {}): stop that one", pid.trim());
                return fault(FaultKind::Busy, format!("`{path}` is in use by {who}"));
            }
            other => break other.trying(what)?,
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).trying(what)?;
    Ok(file)
}
