//! The programs that mountd knows: each has a file of its own, in which an option of a plan has a place on its command line, or is
//! refused.
//!
//! Pure. Called by `program`, in a child. Nothing of a plan becomes a part of a word that a program would read as more than a value, and
//! no secret is in a word: it lies in a file of the room, or comes through stdin.

use wasmvol_plan::{Fault, FaultKind, Program};

use super::{glusterfs, rclone, s3fs, sshfs};
use crate::fault::fault;

/// What is in a file of the room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    /// A secret of that name, as it is.
    Secret(String),
    /// A secret of that name, as one line.
    Password(String),
    /// A secret of that name, as it is, which `check_config` of rclone's takes.
    Config(String),
}

/// A program and how it is started.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) path: &'static str,
    pub(super) argv: Vec<String>,
    /// Files of the room by their names; [`INPUT`] is stdin.
    pub(super) files: Vec<(&'static str, Content)>,
    /// Who gets the secrets, where the command line says it.
    pub(super) server: Option<String>,
    /// Whether a line says nothing of why it ends, although it comes last.
    pub(super) is_noise: fn(&str) -> bool,
    /// What it calls to mount, where it does not take a mount by its number: a helper that hands it over answers there.
    pub(super) helper: Option<&'static str>,
    /// It begins to serve without a word to its server: only who looks hears whether that one answers.
    pub(super) begins_blindly: bool,
    /// It keeps files on the disk: the storage of its volume is for them.
    pub(super) keeps_files: bool,
}

/// The file that becomes stdin, and goes.
pub(super) const INPUT: &str = "input";
/// The number under which a program has its `/dev/fuse`.
pub(super) const FUSE_FD: i32 = 7;
/// Where a program believes that it mounts, if it wants a directory.
pub(super) const MOUNTPOINT: &str = "/dev/shm/mnt";
/// Where a program that keeps files on the disk finds the storage of its volume.
pub(super) const KEPT: &str = "/dev/shm/kept";

/// The command line for a plan.
pub(super) fn command(program: &Program) -> Result<Command, Fault> {
    match program.name.as_str() {
        "sshfs" => sshfs::command(program),
        "rclone" => rclone::command(program),
        "s3fs" => s3fs::command(program),
        "glusterfs" => glusterfs::command(program),
        name => fault(FaultKind::Invalid, format!("this host knows no program `{name}`")),
    }
}

/// Refuses an option of a plan.
pub(super) fn odd<T>(program: &Program, key: &str) -> Result<T, Fault> {
    let name = &program.name;
    fault(FaultKind::Invalid, format!("{name} has no option `{key}`, or not with such a value"))
}
