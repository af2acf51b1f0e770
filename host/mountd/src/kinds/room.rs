//! The room of a program: a mount namespace of its own, in which a tmpfs that nobody else sees holds its files.
//!
//! Made by `program`, in a child, which is in it from then on. The room lives as long as the program, also where mountd does not: what
//! the program started with is there when it connects again. The volumes of this wasmvol are not to be seen in it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, makedev, openat};
use rustix::io::Errno;
use rustix::mount::{self, MoveMountFlags, UnmountFlags};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wasmvol_plan::secret::{self, Bytes};
use wasmvol_plan::{Fault, FaultKind, IdMap, IdRange};

use super::command::{Command, FUSE_FD, INPUT, KEPT, MOUNTPOINT};
use super::id_map::namespace;
use crate::anchor::{CLONE, superblock};
use crate::fault::{Context, fault};
use crate::places::DIRECTORY;
use crate::sys::{self, Propagation};

/// Where the tmpfs lies in the namespace: a directory that every Linux has, and in which no file system's program looks for anything.
pub(super) const ROOM: &str = "/dev/shm";
/// Keys, a configuration, a helper, and what a program has to say.
const SIZE: &str = "8m";
/// The number of `/dev/fuse`, and where a program has one of its own.
const FUSE_DEVICE: (u32, u32) = (10, 229);
const OWN_FUSE: &str = "/dev/shm/fuse";
/// Where its helper lies.
const HELPERS: &str = "/dev/shm/bin";
/// All of its environment: where it finds other programs, as sshfs does ssh.
const PATH: &str = "PATH=/dev/shm/bin:/usr/bin:/bin:/usr/sbin:/sbin";
/// Whom a program runs as: its mount is made for it, so it needs no privilege.
pub(super) const NOBODY: u32 = 65534;
/// Most bytes that a program is heard to say about its end, and most characters of it that are told.
const HEARD_MAX: u64 = 16 * 1024;
const TOLD_MAX: usize = 200;

pub(super) struct Room {
    top: OwnedFd,
    log: OwnedFd,
    /// What was put into it and is told to nobody.
    secrets: Vec<Bytes>,
}

impl Room {
    /// Leaves the namespace of mountd for one without the anchor's volumes.
    pub(super) fn enter(anchor: &str) -> Result<Self, Fault> {
        let what = "make a room for a program";
        sys::unshare_mounts().trying(what)?;
        // What the host unmounts goes here too: a room keeps nothing busy.
        mount::mount_change("/", Propagation::DOWNSTREAM | Propagation::REC).trying(what)?;
        mount::unmount(anchor, UnmountFlags::DETACH).trying(what)?;
        let options = [("source", "wasmvol-room"), ("mode", "0711"), ("size", SIZE)];
        let tree =
            superblock("tmpfs", &options.map(|(key, value)| (key, value.to_owned())), false)?;
        mount::move_mount(&tree, "", CWD, ROOM, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .trying(format_args!("make a room for a program in `{ROOM}`"))?;
        let top = openat(&tree, ".", DIRECTORY, Mode::empty()).trying(what)?;
        for path in [MOUNTPOINT, KEPT, HELPERS] {
            rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).trying(what)?;
        }
        let nobody = (Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)));
        rustix::fs::chown(MOUNTPOINT, nobody.0, nobody.1).trying(what)?;
        Ok(Self { log: create(&top, "log").trying(what)?, top, secrets: Vec::new() })
    }

    /// Shows a directory in it, which is attached nowhere yet.
    pub(super) fn show(&self, tree: &OwnedFd) -> Result<(), Fault> {
        let here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        mount::move_mount(tree, "", CWD, KEPT, here).trying("show a program its volume's storage")
    }

    /// Puts this very program where another one looks for its helper: in its `PATH`, and over the host's own.
    pub(super) fn help(&self, helper: &str) -> Result<(), Fault> {
        let what = format_args!("stand in for `{helper}`");
        let name = helper.rsplit('/').next().unwrap_or_default();
        let own = std::fs::read("/proc/self/exe").trying(what)?;
        let path = format!("{HELPERS}/{name}");
        std::fs::write(&path, own).trying(what)?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o555)).trying(what)?;
        // Some open the device before they ask their helper. That is for everybody where udev runs, and elsewhere not: theirs is.
        let (kind, all) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
        let made = rustix::fs::mknodat(
            &self.top,
            "fuse",
            kind,
            all,
            makedev(FUSE_DEVICE.0, FUSE_DEVICE.1),
        );
        let device = if made.is_ok() { OWN_FUSE } else { "/dev/fuse" };
        for (from, over) in [(path.as_str(), helper), (device, "/dev/fuse")] {
            let copy = mount::open_tree(CWD, from, CLONE).trying(what)?;
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
            match mount::move_mount(&copy, "", CWD, over, flags) {
                // It is looked for in `PATH` then.
                Err(Errno::NOENT) => {}
                other => other.trying(what)?,
            }
        }
        Ok(())
    }

    /// Puts a file into it that only the program can read.
    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let file = create(&self.top, name).map(File::from);
        file.map_err(std::io::Error::from)
            .and_then(|mut file| file.write_all(bytes))
            .trying(format_args!("write `{name}` for a program"))
    }

    /// The same with a secret: of what the program says, no line with a part of it is told.
    pub(super) fn keep(&mut self, name: &str, secret: &[u8]) -> Result<(), Fault> {
        self.secrets.push(Bytes::new(secret.to_owned()));
        self.file(name, secret)
    }

    /// Starts a program in the room, with these files and no other: locks, which it keeps for as long as it lives, and its `/dev/fuse`.
    pub(super) fn start(
        &self,
        command: &Command,
        (lock, kept): (&OwnedFd, Option<&OwnedFd>),
        fuse: &OwnedFd,
    ) -> Result<Pid, Fault> {
        let path = command.path;
        let what = format_args!("start `{path}`");
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let program = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let why = format!("`{path}` is not there: install the package that has it");
                return fault(FaultKind::Missing, why);
            }
            opened => opened.trying(what)?,
        };
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let input = openat(&self.top, INPUT, flags, Mode::RUSR).trying(what)?;
        rustix::fs::unlinkat(&self.top, INPUT, rustix::fs::AtFlags::empty()).trying(what)?;
        let argv: Result<Vec<_>, _> =
            command.argv.iter().map(|w| CString::new(w.as_str())).collect();
        let argv = argv.map_err(|_| Errno::INVAL).trying(what)?;
        let env = [CString::new(PATH).map_err(|_| Errno::INVAL).trying(what)?];
        let users = self.users()?;
        let fds = [&input, &self.log, &program, lock, fuse].into_iter().chain(kept).chain(&users);
        let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
        debug_assert_eq!(sys::FIRST_FD + 4, FUSE_FD);
        let users = users.is_some().then_some(FUSE_FD + 1 + i32::from(kept.is_some()));
        let become_program = || {
            let [input, log, program] = [0, 1, 2].map(|at| sys::inherited(sys::FIRST_FD + at));
            let program = program?;
            sys::set_stdio(&input?, &log?)?;
            rustix::process::umask(Mode::from_raw_mode(0o077));
            rustix::process::chdir("/")?;
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_groups(&[])?;
            if let Some(number) = users {
                let users = sys::inherited(number)?;
                move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
            }
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            rustix::thread::set_no_new_privs(true)?;
            Err::<std::convert::Infallible, Errno>(sys::exec(&program, &argv, &env))
        };
        sys::fork(&fds, || {
            become_program().map_or_else(|e| e.raw_os_error(), |never| match never {})
        })
        .trying(what)
    }

    /// The user namespace of a program that has a secret: who is of the same user, as the programs of other volumes are, would look into
    /// it otherwise, and find that. Others stay in this one, where glusterfs can open the device by itself, on older kernels, too.
    fn users(&self) -> Result<Option<OwnedFd>, Fault> {
        if self.secrets.is_empty() {
            return Ok(None);
        }
        let nobody = || vec![IdRange { disk: NOBODY, shown: NOBODY, count: 1 }];
        namespace(&IdMap { users: nobody(), groups: nobody() }).map(Some)
    }

    /// What a program said last, in one line.
    pub(super) fn last_words(&self, command: &Command) -> String {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let log = openat(&self.top, "log", flags, Mode::empty()).map(File::from);
        // Nothing that it said is told then.
        let text = log.map_err(Into::into).and_then(|log| end(log, HEARD_MAX)).unwrap_or_default();
        told(&text, command.is_noise, &self.secrets)
    }
}

/// The whole lines among the last bytes of a file.
fn end(mut file: File, most: u64) -> std::io::Result<String> {
    let skipped = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A part of a secret could not be recognised in a part of a line.
    let whole =
        if skipped == 0 { Some(&*text) } else { text.split_once('\n').map(|(_, rest)| rest) };
    Ok(whole.unwrap_or_default().to_owned())
}

/// The last line that says something, as a part of a line of ours; but none with a part of a secret.
fn told(text: &str, is_noise: fn(&str) -> bool, secrets: &[Bytes]) -> String {
    let is_noise = |line: &str| line.is_empty() || is_noise(line);
    let mut lines = text.lines().map(str::trim).filter(|line| !is_noise(line));
    let last = lines.next_back().unwrap_or("it says nothing");
    let last = secret::told(secrets, last).trim_end_matches('.');
    last.chars().flat_map(wasmvol_plan::name::escaped).take(TOLD_MAX).collect()
}

fn create(top: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    let file = openat(top, name, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of these words, where these secrets were put into the room.
    fn told_with(text: &str, secrets: &[&str]) -> String {
        let secrets: Vec<_> = secrets.iter().map(|secret| Bytes::new((*secret).into())).collect();
        told(text, |line| line.starts_with("noise"), &secrets)
    }

    #[test]
    fn what_holds_a_part_of_a_secret_is_left_out() {
        let config = "[nas]\ntype = webdav\r\nuser = me\npass = hunter2.\nurl = http://u:word@h\n";
        for (text, secret) in [
            ("could not parse line: hunter2", "hunter2"),
            ("could not parse line: hunter2", "hunter2\n"),
            ("cannot reveal hunter2.", config),
            ("parse \"http://u:word@h\": invalid", config),
            ("no user SECRET", "ACCESS:SECRET\n"),
            ("bad line b3BlbnNz in key", "-----BEGIN KEY-----\n  b3BlbnNz\n-----END KEY-----\n"),
        ] {
            let told = told_with(&format!("{text}\nnoise\n"), &["another", secret]);
            assert!(told.ends_with("holds a part of a secret"), "{text}: {told}");
        }
    }

    #[test]
    fn the_last_line_that_says_why_is_told_without_its_end() {
        let config = "[nas]\ntype = webdav\nurl = http://h\npass = hunter2\nx = me\n";
        let line = "webdav at http://h: me: connection refused";
        assert_eq!(told_with(&format!("first\n {line}.\n\nnoise\n"), &[config]), line);
        assert_eq!(told_with("noise", &[]), "it says nothing");
        assert_eq!(told_with("a\x1b[2Jb", &[]), "a\\u{1b}[2Jb");
        assert_eq!(told_with(&"x".repeat(9999), &[]).len(), TOLD_MAX);
    }

    #[test]
    fn of_much_the_end_is_heard_and_no_part_of_a_line() {
        let log = |text: &str| {
            let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let mut file = File::from(file);
            file.write_all(text.as_bytes()).unwrap();
            end(file, 10).unwrap()
        };
        assert_eq!(log("one\ntwo"), "one\ntwo");
        assert_eq!(log("one and two\nlast\n"), "last\n");
        assert_eq!(log("a line that is too long"), "");
    }
}
