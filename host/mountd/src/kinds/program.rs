//! A file system that a program of the host serves: the program is started in a room of its own, with the
//! file of a mount that was made for it.
//!
//! Called in a child. The program outlives the child, mountd and the daemon; it ends when its file system is mounted nowhere any more,
//! because then the kernel closes the connection. While it lives it has a lock on `programs/ID`, which it inherited: so anybody can ask
//! whether it does, and nobody asks its file system, which could take for ever to answer. What it keeps on the disk is the volume's
//! storage, on which it has another lock: it may still bring to its server what was written when its volume is mounted again, or removed.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, StatxFlags, fstatvfs, openat, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::open_tree;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use wasmvol_plan::frame::{Mount, PAGE};
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{Fault, FaultKind, Id, Program, Server, Storage};

use super::command::{Command, Content, command};
use super::room::{NOBODY, Room};
use super::{Assembled, Shows, rclone};
use crate::anchor::{CLONE, NONE, create};
use crate::attach::tag;
use crate::fault::{Context, fault, text};
use crate::mounter::Mounter;
use crate::places::{BENEATH, DIRECTORY, Places, own};
use crate::scan::names;
use crate::sys::{Flags, Propagation, mount_setattr};

/// How often it is looked whether a program has ended.
const AGAIN: Duration = Duration::from_millis(10);

pub(super) fn assemble(
    mounter: &Mounter,
    wanted: &Mount,
    program: &Program,
) -> Result<Assembled, Fault> {
    let id = wanted.id;
    let command = command(program)?;
    let server = command.server.as_deref().map(|host| Server { host, address: host.parse().ok() });
    let secret = |name: &str| mounter.places.secret(name, &wanted.driver, server);
    let kept = match (command.keeps_files, &wanted.storage) {
        (false, _) => None,
        // What was opened before is of use in the room only if it is attached nowhere.
        (true, Storage::Directory(_)) => Some(Kept::take(&mounter.places, id)?),
        (true, _) => {
            let why = format!("{} keeps files: its volume needs a directory", program.name);
            return fault(FaultKind::Invalid, why);
        }
    };
    let lock = mounter.places.lock_for_a_program(id)?;
    let mut room = Room::enter(&mounter.anchor.path)?;
    kept.iter().try_for_each(|kept| room.show(&kept.tree))?;
    for (name, content) in &command.files {
        match content {
            Content::Text(text) => room.file(name, text.as_bytes())?,
            Content::Secret(secret_name) => room.keep(name, secret(secret_name)?.bytes())?,
            Content::Password(secret_name) => {
                let line = Bytes::new(format!("{}\n", secret(secret_name)?.password()?).into());
                room.keep(name, line.expose())?;
            }
            Content::Config(secret_name) => {
                let config = secret(secret_name)?;
                rclone::check_config(secret_name, config.bytes())?;
                room.keep(name, config.bytes())?;
            }
        }
    }
    let locks = (&lock, kept.as_ref().map(|kept| &kept.lock));
    let served = serve(&room, &command, locks, id, &program.name, wanted.plan.read_only);
    let tree = served.inspect_err(|_| mounter.places.forget_program(id))?;
    let tree = match &wanted.plan.subpath {
        None => tree,
        Some(subpath) => mounter.only(&tree, subpath)?,
    };
    Ok(Assembled { tree, shows: Shows::Unknown })
}

/// Its type has the name of the program.
pub(super) fn is_it(line: &Entry<'_>) -> bool {
    line.filesystem.starts_with("fuse")
}

/// Mounts `/dev/fuse`, and starts a program that serves it.
fn serve(
    room: &Room,
    command: &Command,
    locks: (&OwnedFd, Option<&OwnedFd>),
    id: Id,
    name: &str,
    read_only: bool,
) -> Result<OwnedFd, Fault> {
    let fuse = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .trying("open `/dev/fuse`: load the module `fuse`")?;
    let options = [
        ("source", tag(id)),
        ("subtype", name.to_owned()),
        ("fd", fuse.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", "0".to_owned()),
        ("group_id", "0".to_owned()),
        ("default_permissions", String::new()),
        ("allow_other", String::new()),
    ];
    let tree = create("fuse", &options, read_only)
        .or_else(|(e, words)| Err(e).trying(format_args!("mount for {name}{words}")))?;
    command.helper.map_or(Ok(()), |helper| room.help(helper))?;
    let pid = room.start(command, locks, &fuse)?;
    // Where the program ends, who waits for its file system hears that at once, once nobody else has the device.
    drop(fuse);
    let looked = || {
        fstatvfs(&tree)?;
        if command.begins_blindly {
            Dir::new(openat(&tree, ".", DIRECTORY, Mode::empty())?)?.next().transpose()?;
        }
        Ok(())
    };
    looked().map_err(|e| ended(room, command, pid, e))?;
    Ok(tree)
}

/// A directory on the disk that one program at a time has.
struct Kept {
    tree: OwnedFd,
    lock: OwnedFd,
}

impl Kept {
    fn take(places: &Places, id: Id) -> Result<Self, Fault> {
        let what = format_args!("give a program the storage of volume `{id}`");
        let lock =
            openat2(&places.volumes, format!("{id}/data"), DIRECTORY, Mode::empty(), BENEATH);
        let lock = lock.trying(what)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let why = "the program of its last mount has not ended: it still brings to its server what was written; try again";
                return fault(FaultKind::Busy, why);
            }
            other => other.trying(what)?,
        }
        own(&lock, NOBODY, NOBODY, Mode::RWXU).trying(what)?;
        let tree = open_tree(&lock, "", CLONE).trying(what)?;
        let flags = Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV | Flags::MOUNT_ATTR_NOEXEC;
        mount_setattr(&tree, flags, NONE, Propagation::PRIVATE).trying(what)?;
        Ok(Self { tree, lock })
    }
}

/// Ends a program that does not serve, and says why.
fn ended(room: &Room, command: &Command, pid: Pid, errno: Errno) -> Fault {
    // It has ended, or does now; either way it is waited for.
    let _ended = kill_process(pid, Signal::KILL);
    let _waited = waitpid(Some(pid), WaitOptions::empty());
    let (path, words) = (command.path, room.last_words(command));
    let why = match errno {
        Errno::NOTCONN | Errno::CONNABORTED => String::new(),
        errno => format!(" ({})", text(errno)),
    };
    Fault::new(FaultKind::Failed, format!("`{path}` does not serve it{why}: {words}"))
}

impl Places {
    /// A file that a program keeps locked for as long as it lives.
    fn lock_for_a_program(&self, id: Id) -> Result<OwnedFd, Fault> {
        let what = format_args!("note the program of volume `{id}`");
        // One that an earlier program left tells of that one.
        self.forget_program(id);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let lock = openat(&self.programs, id.to_string(), flags, Mode::RUSR).trying(what)?;
        // mountd may just be looking.
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).trying(what)?;
        Ok(lock)
    }

    /// Whether the program that was started for a volume has ended.
    pub(crate) fn has_ended(&self, id: Id) -> bool {
        let lock = self.find_program(id);
        let flock = |lock: OwnedFd| rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared);
        lock.is_some_and(|lock| flock(lock).is_ok())
    }

    /// Whether a program has a volume's storage, mounted or not.
    pub(crate) fn is_worked_in(&self, id: Id) -> bool {
        let open = openat2(&self.volumes, format!("{id}/data"), DIRECTORY, Mode::empty(), BENEATH);
        let flock = |lock| rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared);
        open.is_ok_and(|lock| flock(lock) == Err(Errno::WOULDBLOCK))
    }

    fn find_program(&self, id: Id) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat2(self.programs.as_fd(), id.to_string(), flags, Mode::empty(), BENEATH).ok()
    }

    /// The volumes whose programs have ended; as many as a frame has room for.
    pub(crate) fn ended_programs(&self) -> Result<Vec<Id>, Fault> {
        let names = names(&self.programs).trying("list the programs")?;
        let ids = names.iter().filter_map(|name| Id::parse(name).ok());
        Ok(ids.filter(|id| self.has_ended(*id)).take(PAGE).collect())
    }

    /// Closes what was unmounted last, and waits for the end of the program that served it, if one did: what was written is with the
    /// server then. Who waits for this goes on after a while.
    pub(super) fn see_out(&self, id: Id, tree: Option<OwnedFd>, patience: Duration) {
        let until = Instant::now() + patience;
        if let (Some(lock), Some(tree)) = (self.find_program(id), tree) {
            // Once it has answered this, it has heard of every file that was closed; what it has not heard of would stay on the disk
            // until the next mount.
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            let _ended = statx(&tree, "", flags, StatxFlags::BASIC_STATS);
            drop(tree);
            let has_ended = || rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
            while has_ended().is_err() && Instant::now() < until {
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// Its volume is mounted no more.
    pub(crate) fn forget_program(&self, id: Id) {
        // Most volumes have none.
        let _none = rustix::fs::unlinkat(&self.programs, id.to_string(), AtFlags::empty());
    }
}
