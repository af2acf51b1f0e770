//! `wasmvol-mountd`: the only part of wasmvol with root, and the parent of the daemon.
//!
//! `wasmvol serve` becomes this program. It takes the locks, holds the listening sockets, adopts the anchor, starts the daemon
//! without privileges and carries out the plans that the daemon sends, after checking each again. It speaks no HTTP, reads no JSON
//! and runs no wasm; the daemon's frames are all that it listens to.

mod anchor;
mod args;
mod attach;
mod daemon;
mod doors;
mod fault;
mod kinds;
mod mounter;
mod namespaces;
mod parent;
mod places;
mod reaper;
mod scan;
mod storage;
mod sys;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use wasmvol_plan::{Fault, FaultKind};

use args::Args;
use fault::Context;

/// The command line makes no sense (EX_USAGE).
const USAGE: u8 = 64;
/// Another wasmvol is in the way (EX_TEMPFAIL).
const IN_THE_WAY: u8 = 75;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| kinds::fusermount::is_meant(&name)) {
        return ExitCode::from(kinds::fusermount::run());
    }
    let (status, why) = match Args::parse(std::env::args_os().skip(1)).map(serve) {
        Ok(Ok(status)) => return ExitCode::from(status),
        Ok(Err(fault)) if fault.kind == FaultKind::Busy => (IN_THE_WAY, fault.message),
        Ok(Err(fault)) => (1, fault.message),
        Err(why) => (USAGE, why),
    };
    say(why);
    ExitCode::from(status)
}

fn serve(args: Args) -> Result<u8, Fault> {
    let what = "prepare this process";
    // Modes are given exactly. Nothing of this process may end on a disk.
    rustix::process::umask(rustix::fs::Mode::empty());
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).trying(what)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).trying(what)?;
    let signals = sys::signal_fd().trying(what)?;
    let mounter = mounter::Mounter::open(places::Places::open(&args)?)?;
    let program = daemon::Program::open(&args, &mounter)?;
    let [plugin, admin] = args.listen;
    let doors = [doors::Door::open(plugin)?, doors::Door::open(admin)?];
    Ok(parent::run(mounter, program, doors, &signals))
}

/// Writes one line to stderr.
pub(crate) fn say(line: impl Display) {
    // There is nowhere to complain about a log that cannot be written.
    let _lost = writeln!(std::io::stderr(), "wasmvol-mountd: {line}");
}
