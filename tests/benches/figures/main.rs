//! `make bench`: the figures of README.md, measured in one run against what they are compared with, printed as ratios.
//!
//! `tests/bench.sh` starts it as root, in a mount namespace and in directories of its own: `figures STATE RUNTIME [--json]`. It starts
//! the shipped programs, a bare hyper server (itself, `figures bare`), an sshd and rclones, and ends them all. It checks nothing: a figure that
//! misses its goal is printed as such.

mod bare;
mod calls;
mod client;
mod creates;
mod files;
mod gets;
mod ground;
mod hostile;
mod idle;
mod instance;
mod machine;
mod many;
mod mounts;
mod rclone;
mod report;
mod servers;
mod shelf;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use ground::Ground;
use instance::Instance;
use report::Report;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Volumes of the instance that stands for a small machine.
const FEW: usize = 10;

/// Where this run keeps things.
struct Places {
    /// On a disk: what is durable must pay for it.
    state: PathBuf,
    /// On a tmpfs, as `/run` is.
    runtime: PathBuf,
}

fn main() -> ExitCode {
    // cargo adds `--bench` where it runs this itself.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["compile-driver"] => return wasmvol_driver::compile_stdin_to_stdout(),
        ["bare", socket, answer] => bare::serve(Path::new(socket), Path::new(answer)),
        [state, runtime] => figures(state, runtime, Report::to_text),
        [state, runtime, "--json"] => figures(state, runtime, Report::to_json),
        _ => Err("usage: figures STATE RUNTIME [--json]; `make bench` starts it".into()),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    say(&format!("bench: {error}"));
    ExitCode::FAILURE
}

fn figures(state: &str, runtime: &str, show: fn(&Report) -> String) -> Result<()> {
    let places = Places { state: state.into(), runtime: runtime.into() };
    let begin = Instant::now();
    machine::wait_until_quiet();
    let mut report = Report::new();

    phase("start and idle memory");
    let mut few = Instance::start(&places, "few")?;
    idle::measure(&mut few, &mut report)?;
    few.fill(0..FEW)?;
    phase("sandboxed calls");
    calls::measure(&places, &mut report)?;
    phase("Get beside a bare server");
    gets::measure(&places, &few, &mut report)?;
    phase("Mount and Unmount");
    mounts::measure(&places, &few, &mut report)?;
    phase("files on each kind of storage");
    let mut ground = Ground::make(&places)?;
    ground.grant(&few, "few")?;
    ground.grant(&ground.on_btrfs, "on-btrfs")?;
    files::measure(&ground, &few, &mut report)?;
    phase("200 volumes of every kind");
    shelf::measure(&ground, &mut report)?;
    ground.on_btrfs.stop()?;
    phase("hostile drivers");
    hostile::measure(&places, &mut report)?;
    phase("Create and Remove");
    creates::measure(&places, &few, &mut report)?;
    phase("10,000 volumes");
    let mut many = Instance::start(&places, "many")?;
    let own = many::fill(&mut many)?;
    many::measure(&few, &mut many, &mut report)?;
    many.stop()?;
    few.stop()?;
    phase("rclone serve docker");
    if let Err(error) = rclone::measure(&places, &own, &mut report) {
        say(&format!("bench: rclone did not follow: {error}"));
    }

    report.end(begin.elapsed());
    io::stdout().write_all(show(&report).as_bytes())?;
    Ok(())
}

/// What is being measured, for who waits.
fn phase(name: &str) {
    say(&format!("bench: {name}"));
}

fn say(line: &str) {
    // Nothing is left to do if stderr is gone.
    let _ = writeln!(io::stderr(), "{line}");
}
