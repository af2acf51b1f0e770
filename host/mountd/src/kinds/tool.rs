//! Programs of the host that make or check a file system: a fixed list, each run by its absolute path.
//!
//! Called in a child of `job`, whose deadline ends them too: they are of its process group, and die with it. They get arguments and
//! nothing else of ours: no shell, no environment, no open file.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitOptions;
use wasmvol_plan::name::escaped;
use wasmvol_plan::{Fault, FaultKind};

use crate::daemon::die_with;
use crate::fault::{Context, fault};
use crate::sys;

/// Where an administrator's programs lie; the first that has one is taken.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How much of a program's words is kept, from their end: the last line is what is told.
const WORDS_MAX: usize = 4096;
/// Most characters of that line.
const LINE_MAX: usize = 300;

/// A program that may be run.
#[derive(Clone, Copy)]
pub(super) struct Tool {
    name: &'static str,
    /// The Debian package that it comes with.
    package: &'static str,
}

pub(super) const MKFS_EXT4: Tool = Tool { name: "mkfs.ext4", package: "e2fsprogs" };
pub(super) const E2FSCK: Tool = Tool { name: "e2fsck", package: "e2fsprogs" };
pub(super) const MKFS_XFS: Tool = Tool { name: "mkfs.xfs", package: "xfsprogs" };
pub(super) const CRYPTSETUP: Tool = Tool { name: "cryptsetup", package: "cryptsetup-bin" };
pub(super) const MKFS_BTRFS: Tool = Tool { name: "mkfs.btrfs", package: "btrfs-progs" };

/// How a program ended.
pub(super) struct Ended {
    /// Its exit status; none if a signal ended it.
    pub(super) status: Option<i32>,
    /// The last line that it wrote.
    pub(super) last: String,
}

impl Tool {
    /// Runs it to its end.
    pub(super) fn run(self, arguments: &[&str]) -> Result<Ended, Fault> {
        self.run_with(arguments, &[])
    }

    /// The same; it reads `input` from its stdin. That is at most a secret, which a pipe holds before anybody reads it.
    pub(super) fn run_with(self, arguments: &[&str], input: &[u8]) -> Result<Ended, Fault> {
        let what = format_args!("run `{}`", self.name);
        let program = self.open()?;
        let words = std::iter::once(self.name).chain(arguments.iter().copied()).map(CString::new);
        let argv: Vec<CString> =
            words.collect::<Result<_, _>>().map_err(|_| Errno::INVAL).trying(what)?;
        let (hear, speak) = pipe_with(PipeFlags::CLOEXEC).trying(what)?;
        let parent = rustix::process::getpid();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).trying(what)?;
        let written = rustix::io::write(&write, input).trying(what)?;
        if written < input.len() {
            return fault(FaultKind::Failed, format!("`{}` gets too long an input", self.name));
        }
        drop(write);
        let files = [&read, &speak, &speak, &program].map(AsFd::as_fd);
        let pid = sys::fork_from(0, &files, || {
            let program = sys::inherited(sys::FIRST_FD);
            let run = program.and_then(|program| {
                die_with(parent)?;
                Err::<(), _>(sys::exec(&program, &argv, &[]))
            });
            run.map_or_else(Errno::raw_os_error, |()| 0)
        });
        let pid = pid.trying(what)?;
        drop(speak);
        let last = last_line(&hear).trying(what)?;
        let ended = rustix::process::waitpid(Some(pid), WaitOptions::empty()).trying(what)?;
        Ok(Ended { status: ended.and_then(|(_, status)| status.exit_status()), last })
    }

    /// Runs it; another status than 0 is an error with its last line.
    pub(super) fn succeed(self, arguments: &[&str]) -> Result<(), Fault> {
        let ended = self.run(arguments)?;
        if ended.status == Some(0) {
            Ok(())
        } else {
            fault(FaultKind::Failed, self.failure(&ended))
        }
    }

    /// How it failed, in one line.
    pub(super) fn failure(self, Ended { status, last }: &Ended) -> String {
        let how = status.map_or_else(
            || "was killed".to_owned(),
            |status| format!("failed with status {status}"),
        );
        let words = if last.is_empty() { String::new() } else { format!(": {last}") };
        format!("`{}` {how}{words}", self.name)
    }

    fn open(self) -> Result<OwnedFd, Fault> {
        for directory in DIRECTORIES {
            let path = format!("{directory}/{}", self.name);
            match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT) => {}
                opened => return opened.trying(format_args!("use `{}`", self.name)),
            }
        }
        let Self { name, package } = self;
        fault(
            FaultKind::Failed,
            format!("this host has no `{name}`: install the Debian package `{package}`"),
        )
    }
}

/// Reads to the end, so that the program is never stopped by what it says, and answers its last line.
fn last_line(from: &OwnedFd) -> Result<String, Errno> {
    let (mut kept, mut read) = (Vec::new(), [0u8; WORDS_MAX]);
    loop {
        match rustix::io::read(from, &mut read) {
            Ok(0) => break,
            Ok(length) => kept.extend(read.iter().take(length)),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        kept.drain(..kept.len().saturating_sub(WORDS_MAX));
    }
    let text = String::from_utf8_lossy(&kept);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    // It becomes a part of a line of ours.
    let last = last.trim_end_matches('.');
    Ok(last.chars().flat_map(escaped).take(LINE_MAX).collect())
}
