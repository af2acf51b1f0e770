//! A component of which nobody knows yet whether to trust it, looked into without a daemon.
//!
//! It is compiled and asked to describe itself in a process of its own, which root starts as nobody: as in the daemon, what breaks out of
//! the sandbox has no privileges.

use std::collections::BTreeMap;
use std::io::{Read, Write, stdin};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use wasmvol_driver::{Compiler, Engine, EngineOptions};
use wasmvol_plan::DriverName;

use super::CliError;
use crate::admin::types::Checked;

/// The subcommand that is that process.
const DESCRIBE: &str = "describe-driver";
/// The user that owns nothing.
const NOBODY: u32 = 65534;
/// Most bytes of its answer: as many as one of the engine's may have, each of which may be escaped.
const ANSWER_MAX: u64 = 8 << 20;
/// Most bytes of its error: a line.
const ERROR_MAX: u64 = 64 << 10;

/// What a component is, and what it says of itself.
pub(super) fn describe(component: &[u8]) -> Result<Checked, CliError> {
    let io = || CliError::io("no process can be started to look into it");
    // By its path nobody may have no way to it.
    let mut command = Command::new("/proc/self/exe");
    command.arg(DESCRIBE).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if rustix::process::geteuid().is_root() {
        // Nothing of root's own: not even where it keeps what is temporary.
        command.env_clear().uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    let mut child = command.spawn().map_err(io())?;
    if let Some(mut input) = child.stdin.take() {
        // One that has ended already says why.
        let _ = input.write_all(component);
    }
    let answer = taken(child.stdout.take(), ANSWER_MAX).map_err(io())?;
    let said = taken(child.stderr.take(), ERROR_MAX).map_err(io())?;
    // One that still writes is not waited for.
    let _ = child.kill();
    if !child.wait().map_err(io())?.success() {
        let line = String::from_utf8_lossy(&said).lines().next_back().map(str::to_owned);
        let line = line.unwrap_or_else(|| "the process that looked into it was ended".to_owned());
        let line = line.strip_prefix("wasmvol: ").unwrap_or(&line);
        return Err(CliError::Refused(
            line.chars().flat_map(wasmvol_plan::name::escaped).collect(),
        ));
    }
    Ok(crate::admin::client::parse(&answer)?)
}

fn taken(pipe: Option<impl Read>, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(max).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Describes the component on stdin, as JSON on stdout.
pub(super) fn describe_stdin_to_stdout() -> Result<ExitCode, CliError> {
    let mut component = Vec::new();
    stdin().read_to_end(&mut component).map_err(CliError::io("the component"))?;
    let place = tempfile::Builder::new().prefix("wasmvol-").tempdir();
    let place = place.map_err(CliError::io("a directory for what is compiled"))?;
    let compiler =
        Compiler { program: "/proc/self/exe".into(), args: vec!["compile-driver".into()] };
    let options = EngineOptions { cache: place.path().to_owned(), compiler, calls_max: 1 };
    let refused = |error: wasmvol_driver::LoadError| CliError::Refused(error.to_string());
    let engine = Engine::new(options).map_err(refused)?;
    let driver = engine.load(&DriverName::parse("unnamed")?, &component, BTreeMap::new());
    let described = Checked::of(&driver.map_err(refused)?);
    super::output::Output::new(true).own(&described, |_| ())?;
    Ok(ExitCode::SUCCESS)
}
