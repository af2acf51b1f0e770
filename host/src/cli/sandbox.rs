//! A component of which nobody knows yet whether to trust it, in a process of its own, without a daemon.
//!
//! There it is compiled and called. Where root starts that process it becomes nobody before it has seen any of the component, with nothing
//! of root's environment and files: as in the daemon, what breaks out of the sandbox has no privileges. `driver inspect` has it describe
//! itself there, `driver check` goes through it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::os::fd::RawFd;
use std::process::{Command, ExitCode, Stdio};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, Signal};
use wasmvol_driver::{Compiler, Description, Engine, EngineOptions, OptionSpec, close_all_but};
use wasmvol_plan::{DriverName, name::escaped};

use super::output::{Output, say};
use super::{CliError, LOG_VARIABLE};
use crate::admin::types::Checked;
use crate::drivers::digest;

/// The subcommand that describes.
const DESCRIBE: &str = "describe-driver";
/// The user that owns nothing.
pub(super) const NOBODY: u32 = 65534;
/// Most bytes of an answer: as many as one of the engine's may have, each of which may be escaped.
const ANSWER_MAX: u64 = 8 << 20;
/// Most bytes of a line of its log.
const LINE_MAX: u64 = 64 << 10;
/// What its error begins with, as each of ours does.
const ERROR: &str = "wasmvol: ";

/// Whether who typed this has privileges that no component may get.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// This program again, as a process that a component may be run in: its subcommand begins with [`lock_up`].
pub(super) fn command(subcommand: &str) -> Command {
    // By its path nobody may have no way to it.
    let mut command = Command::new("/proc/self/exe");
    command.arg(subcommand).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if is_root() {
        // Nothing of root's own: not even where it keeps what is temporary.
        command.env_clear().current_dir("/");
        command.envs(std::env::var_os(LOG_VARIABLE).map(|level| (LOG_VARIABLE, level)));
    }
    command
}

/// Gives up what a process like that never needs, before it has seen any of the component; `handed` are the files that it was given.
/// Root's becomes nobody here and not where it is started: nobody's other processes could look into one that has begun as nobody.
pub(super) fn lock_up(handed: &[RawFd]) -> Result<(), CliError> {
    let io = || CliError::io("a process for the component");
    close_all_but(handed).map_err(io())?;
    let locked = || -> std::io::Result<()> {
        // Who shares a terminal with root can type into it.
        rustix::process::setsid()?;
        if is_root() {
            setgroups(&[])?;
            let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            setresgid(group, group, group)?;
            setresuid(user, user, user)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        // No other process of nobody's looks into it, where secrets may be.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        // Nobody would read its answer, and a ^C does not get here. Whoever changes its user loses this.
        Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    locked().map_err(io())
}

/// Starts one, hands it the component, and takes what it prints. What it logs is logged here meanwhile; what it complains of is the error.
pub(super) fn ask(command: &mut Command, component: &[u8]) -> Result<Vec<u8>, CliError> {
    let io = || CliError::io("no process can be started for the component");
    let mut child = command.spawn().map_err(io())?;
    let (input, output, log) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (answer, error) = std::thread::scope(|scope| {
        let error = scope.spawn(|| log.and_then(pass_on));
        if let Some(mut input) = input {
            // One that has ended already says why.
            let _ = input.write_all(component);
        }
        let mut answer = Vec::new();
        let read = output.map(|output| output.take(ANSWER_MAX).read_to_end(&mut answer));
        // One that still writes is not waited for.
        let _ = child.kill();
        (read.transpose().map(|_| answer), error.join().unwrap_or_default())
    });
    let status = child.wait().map_err(io())?;
    if !status.success() {
        let why =
            error.unwrap_or_else(|| format!("the process that it was in was ended: {status}"));
        return Err(CliError::Refused(why));
    }
    answer.map_err(io())
}

/// Prints every line but that of an error, of which the last one is answered. Who writes them is not trusted.
fn pass_on(log: impl Read) -> Option<String> {
    let (mut log, mut error) = (BufReader::new(log), None);
    loop {
        let mut line = Vec::new();
        let read = log.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
        if read.is_ok_and(|count| count > 0) {
            let line = told(String::from_utf8_lossy(&line).trim_end());
            match line.strip_prefix(ERROR) {
                Some(why) => error = Some(why.to_owned()),
                None => say(&line),
            }
        } else {
            return error;
        }
    }
}

/// A text of such a process, as a terminal may show it.
pub(super) fn told(text: &str) -> String {
    text.chars().flat_map(escaped).collect()
}

/// How it has the component compiled.
pub(super) fn compiler() -> Compiler {
    Compiler { program: "/proc/self/exe".into(), args: vec!["compile-driver".into()] }
}

/// What a component is, and what it says of itself, as a terminal may show it. A refusal names it as `shown`.
pub(super) fn describe(shown: &str, component: &[u8]) -> Result<Checked, CliError> {
    let answer = ask(&mut command(DESCRIBE), component).map_err(|error| match error {
        CliError::Refused(why) => CliError::Refused(format!("{shown}: {why}")),
        other => other,
    })?;
    let said: Checked = crate::admin::client::parse(&answer)?;
    let Description { name, version, help, options, grants } = said.description;
    let option = |OptionSpec { key, value_type, required, default, help }: OptionSpec| OptionSpec {
        key: told(&key),
        value_type,
        required,
        default: default.as_deref().map(told),
        help: told(&help),
    };
    let all = |texts: Vec<String>| texts.iter().map(|text| told(text)).collect();
    Ok(Checked {
        contract: told(&said.contract),
        imports: all(said.imports),
        abilities: said.abilities,
        // Of what is here, and not of what it was taken for.
        size: component.len(),
        digest: digest(component),
        description: Description {
            name: told(&name),
            version: told(&version),
            help: told(&help),
            options: options.into_iter().map(option).collect(),
            grants: all(grants),
        },
    })
}

/// Describes the component on stdin, as JSON on stdout.
pub(super) fn describe_stdin_to_stdout() -> Result<ExitCode, CliError> {
    lock_up(&[])?;
    let component = component()?;
    let place = tempfile::Builder::new().prefix("wasmvol-").tempdir();
    let place = place.map_err(CliError::io("a directory for what is compiled"))?;
    let options =
        EngineOptions { cache: place.path().to_owned(), compiler: compiler(), calls_max: 1 };
    let refused = |error: wasmvol_driver::LoadError| CliError::Refused(error.to_string());
    let engine = Engine::new(options).map_err(refused)?;
    let driver = engine.load(&DriverName::parse("unnamed")?, &component, BTreeMap::new());
    let described = Checked::of(&driver.map_err(refused)?);
    Output::new(true).own(&described, |_| ())?;
    Ok(ExitCode::SUCCESS)
}

/// What was handed over.
pub(super) fn component() -> Result<Vec<u8>, CliError> {
    let mut component = Vec::new();
    stdin().read_to_end(&mut component).map_err(CliError::io("the component"))?;
    Ok(component)
}
