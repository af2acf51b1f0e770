//! The command line: what a person types, one file a subcommand.
//!
//! stdout carries data only, as tables or as JSON with `--json`; messages go to stderr. With `--json` a command that changes
//! something prints one object of what it did; one that did nothing prints nothing there. Exit status: 0 done, 1 not done, 2 not
//! understood; `serve` ends with 75 where another daemon has the directories, and with 78 where its configuration must be mended first.

mod catalog;
mod check;
mod component;
mod doctor;
mod driver;
mod grants;
mod inspect;
mod namespace;
mod new;
mod output;
mod progress;
mod rooted;
mod sandbox;
mod secret;
mod serve;
mod status;
mod transfer;
mod volume;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::admin::client::{Client, ClientError};
use crate::{config, daemon};
use output::Output;

/// The runtime directory, unless it is moved.
const RUNTIME_DIR: &str = "/run/wasmvol";
/// The variable that says what is logged, over the configuration.
const LOG_VARIABLE: &str = "WASMVOL_LOG";

/// Volumes for Docker and Podman whose drivers are WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "wasmvol", version, arg_required_else_help = true)]
struct Cli {
    /// Directory of the daemon's sockets and mounts
    #[arg(long, global = true, value_name = "DIR", env = "WASMVOL_RUNTIME_DIR", default_value = RUNTIME_DIR)]
    runtime_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon, as root
    Serve(serve::Arguments),
    /// Load, list, unload, pull and push drivers
    #[command(subcommand)]
    Driver(driver::Command),
    /// Create, list, mount and remove volumes without Docker
    #[command(subcommand)]
    Volume(volume::Command),
    /// Keep, list and remove passwords and keys that volumes name
    #[command(subcommand)]
    Secret(secret::Command),
    /// Show the daemon and what holds what
    Status,
    /// Find what is wrong, and the command that mends it
    Doctor(doctor::Arguments),
    /// Write or read all records as lines of JSON
    #[command(subcommand)]
    Catalog(catalog::Command),
    /// The daemon itself, started by wasmvol-mountd
    #[command(hide = true)]
    Daemon(Box<daemon::Arguments>),
    /// Compile the component on stdin to machine code on stdout
    #[command(hide = true)]
    CompileDriver,
    /// Say what the component on stdin is
    #[command(hide = true)]
    DescribeDriver,
    /// Put the component on stdin through what a host may ask of it
    #[command(hide = true)]
    CheckDriver(check::Apart),
}

/// Which configuration: the operator says it to `serve` and to what writes grants, and both take it for the same.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration that the daemon is served with; grants lie beside it in `grants.d`
    #[arg(long, value_name = "FILE", env = "WASMVOL_CONFIG", default_value = config::DEFAULT)]
    config: PathBuf,
}

impl ConfigFile {
    fn path(&self) -> Result<PathBuf, CliError> {
        let shown = || self.config.display().to_string();
        std::path::absolute(&self.config).map_err(|e| CliError::Io(shown(), e))
    }

    /// The directory that it lies in.
    fn directory(&self) -> Result<PathBuf, CliError> {
        Ok(self.path()?.parent().unwrap_or(Path::new("/")).to_owned())
    }
}

/// Which state directory: the operator says it to `serve` and to what reads or writes there, and both take it for the same.
#[derive(Debug, clap::Args)]
struct StateDir {
    /// Where records, data and secrets are kept
    #[arg(long, value_name = "DIR", env = "WASMVOL_STATE_DIR", default_value = serve::STATE_DIR)]
    state_dir: PathBuf,
}

impl StateDir {
    fn path(&self) -> Result<PathBuf, CliError> {
        let shown = || self.state_dir.display().to_string();
        std::path::absolute(&self.state_dir).map_err(|e| CliError::Io(shown(), e))
    }
}

/// Why a subcommand was not done. `Display` is one line.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Name(#[from] wasmvol_plan::NameError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Registry(#[from] wasmvol_registry::RegistryError),
    #[error(transparent)]
    Store(#[from] crate::catalog::StoreError),
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("{0}")]
    Refused(String),
    /// As it is configured, or placed, it can never serve.
    #[error("{0}")]
    Misconfigured(String),
}

impl CliError {
    /// Whether to try again would help is what a service manager asks.
    fn status(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Misconfigured(_) => ExitCode::from(daemon::CANNOT_RUN),
            _ => ExitCode::FAILURE,
        }
    }

    /// What the daemon refused, behind what it is about: its own words leave that out, since Docker prints it before them.
    fn about(what: impl Into<String>) -> impl FnOnce(ClientError) -> Self {
        move |error| match error {
            ClientError::Refused(why) => Self::Refused(format!("{}: {why}", what.into())),
            other => other.into(),
        }
    }

    /// An error of the system's and what it happened to.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self::Io(what.into(), e)
    }
}

/// Understands the command line, and does it.
pub(crate) fn run() -> ExitCode {
    // A directory that is not there is shown as it was typed.
    let Cli { runtime_dir, json, command } = Cli::parse();
    let runtime_dir = std::path::absolute(&runtime_dir).unwrap_or(runtime_dir);
    let client = Client::new(&runtime_dir);
    let output = Output::new(json);
    let done = match command {
        Command::Daemon(arguments) => {
            log_to_stderr(&arguments.passed.log);
            return daemon::run(*arguments);
        }
        Command::CompileDriver => return wasmvol_driver::compile_stdin_to_stdout(),
        Command::DescribeDriver => sandbox::describe_stdin_to_stdout(),
        Command::CheckDriver(apart) => check::run_apart(&apart),
        Command::Serve(_) if json => {
            let why = "`--json` is not for `serve`, which prints nothing but its log";
            Cli::command().error(clap::error::ErrorKind::ArgumentConflict, why).exit()
        }
        Command::Serve(arguments) => serve::run(arguments, &runtime_dir),
        Command::Driver(command) => driver::run(command, &client, &output),
        Command::Volume(command) => volume::run(command, &client, &output),
        Command::Secret(command) => secret::run(command, &client, &output),
        Command::Status => status::run(&client, &output),
        Command::Doctor(arguments) => doctor::run(&arguments, &runtime_dir, &client, &output),
        Command::Catalog(command) => catalog::run(command, &client, &output),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            output::say(&format!("wasmvol: {e}"));
            e.status()
        }
    }
}

/// Logs to stderr, one line an event; journald and a terminal both have their own clock.
fn log_to_stderr(from_config: &str) {
    use std::io::IsTerminal;
    let wanted = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| from_config.to_owned());
    let level = wanted.parse::<LevelFilter>();
    let unreadable = level.is_err();
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    if unreadable {
        tracing::warn!(
            "log level `{wanted}` is not understood: use `error`, `warn`, `info` or `debug`"
        );
    }
}
