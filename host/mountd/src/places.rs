//! The directories of one daemon, each opened once at start and used as an fd ever after; and the locks that make it the only one.
//!
//! `volumes/`, `trash/` and `secrets/` are root's, `catalog/`, `drivers/`, `cache/` and the mount table's the daemon's; all 0700.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind};

use crate::args::Args;
use crate::fault::{Context, fault};

/// How long a start waits for the daemon before it: a restart by systemd meets the end of the old one.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often a taken lock is tried again.
const LOCK_AGAIN: Duration = Duration::from_millis(50);

/// How an opened directory is used: listed, synced and searched.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How paths beneath a directory are resolved: whatever is planted there, they stay in it and in its mount.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The opened directories.
pub(crate) struct Places {
    /// Canonical path of the runtime directory.
    pub(crate) runtime: String,
    pub(crate) volumes: OwnedFd,
    pub(crate) trash: OwnedFd,
    /// `grants.d` in the configuration directory, made where it is missing: what the daemon may read of it, whatever the mode of
    /// the directory around it.
    pub(crate) grants: OwnedFd,
    /// Always empty: the second layer that an overlay without upper directory needs.
    pub(crate) empty: OwnedFd,
    /// What the daemon inherits, in the order of its fds: catalog, components, cache, mount table.
    pub(crate) daemons: [OwnedFd; 4],
    pub(crate) drivers: Option<OwnedFd>,
    _locks: [File; 2],
}

impl Places {
    /// Takes the locks, makes what is missing and opens everything. `Busy` if another process holds a lock.
    pub(crate) fn open(args: &Args) -> Result<Self, Fault> {
        let state = root_directory(&args.state)?;
        let runtime = root_directory(&args.runtime)?;
        let locks = [lock(&state, &args.state)?, lock(&runtime, &args.runtime)?];
        let (uid, gid) = (args.uid, args.gid);
        let grants = root_directory(&format!("{}/grants.d", args.config))?;
        let _secrets = inner_directory(&state, "secrets", 0, 0)?;
        let drivers = match &args.drivers {
            Some(path) => Some(open(path)?),
            None => None,
        };
        Ok(Self {
            runtime: canonical(&args.runtime)?,
            volumes: inner_directory(&state, "volumes", 0, 0)?,
            trash: inner_directory(&state, "trash", 0, 0)?,
            grants,
            empty: inner_directory(&runtime, "empty", 0, 0)?,
            daemons: [
                inner_directory(&state, "catalog", uid, gid)?,
                inner_directory(&state, "drivers", uid, gid)?,
                inner_directory(&state, "cache", uid, gid)?,
                inner_directory(&runtime, "table", uid, gid)?,
            ],
            drivers,
            _locks: locks,
        })
    }
}

fn open(path: &str) -> Result<OwnedFd, Fault> {
    // Not NOFOLLOW: an administrator may put a whole directory elsewhere.
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .trying(|| format!("open the directory `{path}`"))
}

/// Makes a directory with its parents, open to search by all, and opens it. Nobody but root may be able to write there.
fn root_directory(path: &str) -> Result<OwnedFd, Fault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .trying(|| format!("make the directory `{path}`"))?;
    let directory = open(path)?;
    let stat = rustix::fs::fstat(&directory).trying(|| format!("look at `{path}`"))?;
    if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
        let cure = format!("chown root '{path}'; chmod go-w '{path}'");
        return fault(FaultKind::Denied, format!("others than root can write to `{path}`: {cure}"));
    }
    Ok(directory)
}

/// Makes a directory of mode 0700 for one owner and opens it. Root's is handed over; a third one's is refused.
fn inner_directory(parent: &OwnedFd, name: &str, uid: u32, gid: u32) -> Result<OwnedFd, Fault> {
    let what = || format!("prepare the directory `{name}`");
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).trying(what),
    }
    let directory = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()).trying(what)?;
    let stat = rustix::fs::fstat(&directory).trying(what)?;
    if stat.st_uid != 0 && stat.st_uid != uid {
        let owner = stat.st_uid;
        let why = format!(
            "`{name}` belongs to uid {owner}: run with `--user {owner}`, or chown -R it to {uid}:{gid}"
        );
        return fault(FaultKind::Denied, why);
    }
    own(&directory, uid, gid, Mode::RWXU).trying(what)?;
    Ok(directory)
}

/// Sets owner and mode exactly. The mode comes last, because chown(2) clears bits of it.
pub(crate) fn own(directory: &OwnedFd, uid: u32, gid: u32, mode: Mode) -> Result<(), Errno> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::fchown(directory, Some(uid), Some(gid))?;
    rustix::fs::fchmod(directory, mode)
}

fn canonical(path: &str) -> Result<String, Fault> {
    let whole = std::fs::canonicalize(path).trying(|| format!("resolve `{path}`"))?;
    match whole.into_os_string().into_string() {
        Ok(path) if !path.contains(char::is_control) => Ok(path),
        _ => fault(
            FaultKind::Invalid,
            format!("the real path of `{path}` is no plain text: use another"),
        ),
    }
}

/// Locks `lock` in a directory and leaves this process's number in it.
fn lock(directory: &OwnedFd, path: &str) -> Result<File, Fault> {
    let what = || format!("lock `{path}/lock`");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(
        rustix::fs::openat(directory, "lock", flags, Mode::RUSR | Mode::WUSR).trying(what)?,
    );
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LOCK_AGAIN),
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _unreadable_is_unnamed = (&file).take(16).read_to_string(&mut pid);
                let pid = pid
                    .trim()
                    .parse::<u32>()
                    .map(|pid| format!(" (process {pid})"))
                    .unwrap_or_default();
                return fault(
                    FaultKind::Busy,
                    format!(
                        "`{path}` is in use by another wasmvol{pid}: stop that one, or choose another directory"
                    ),
                );
            }
            Err(e) => return Err(e).trying(what),
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).trying(what)?;
    Ok(file)
}
