//! `wasmvol secret …`: passwords and keys that drivers' volumes name, and never hold.
//!
//! Root's command line writes them and mountd reads them; the daemon can do neither. Where they lie is the operator's word: what the
//! daemon says is compared and never followed. Nothing here prints a byte of one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Read, stdin};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::secret::{BYTES_MAX, Bytes, FILE_MAX};
use wasmvol_plan::{DriverName, NameError, Peer, Secret, SecretName};

use super::output::{Output, say};
use super::rooted::RootedDir;
use super::{CliError, StateDir};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::Status;
use crate::volumes::Time;

/// The directory of secrets, in the state directory.
const SECRETS: &str = "secrets";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Keep a secret, which comes from stdin or a file; one of that name is replaced, with all that it was for
    Set {
        #[command(flatten)]
        state: StateDir,
        /// What volumes name it by
        #[arg(value_parser = name)]
        name: SecretName,
        /// A driver that it is for; may be repeated
        #[arg(long = "driver", value_name = "DRIVER", required = true, value_parser = driver)]
        drivers: Vec<DriverName>,
        /// A server that may get it: a host name, an address or a network; may be repeated. Without one it stays on this machine
        #[arg(long = "peer", value_name = "HOST")]
        peers: Vec<Peer>,
        /// Where it is read from [default: stdin]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List secrets and for whom they are
    Ls {
        #[command(flatten)]
        state: StateDir,
    },
    /// Remove a secret; volumes that name it cannot be mounted any more
    Rm {
        #[command(flatten)]
        state: StateDir,
        #[arg(value_parser = name)]
        name: SecretName,
    },
}

/// What is shown of a secret.
#[derive(Debug, Serialize)]
struct Shown {
    name: SecretName,
    drivers: Vec<DriverName>,
    peers: Vec<String>,
    set_at: String,
}

fn name(text: &str) -> Result<SecretName, NameError> {
    SecretName::parse(text)
}

fn driver(text: &str) -> Result<DriverName, NameError> {
    DriverName::parse(text)
}

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Set { state, name, drivers, peers, file } => {
            let (secrets, status) = directory(&state, client)?;
            let secret = Secret::new(drivers, peers, read(file.as_deref())?);
            let secret = secret.map_err(|fault| CliError::Refused(fault.message))?;
            let written = secrets.write(name.as_str(), secret.file().expose(), 0o600);
            written.map_err(CliError::io(secrets.shown(name.as_str())))?;
            let shown = about(&secrets, name)?;
            // It may be loaded later; more often it is misspelt.
            let is_loaded = |driver: &DriverName| {
                status.as_ref().is_none_or(|status| status.drivers.contains_key(driver))
            };
            for driver in shown.drivers.iter().filter(|driver| !is_loaded(driver)) {
                say(&format!("wasmvol: no driver `{driver}` is loaded"));
            }
            output.own(&shown, |shown| output.line(shown.name.as_str()))?;
        }
        Command::Ls { state } => list(&directory(&state, client)?.0, output)?,
        Command::Rm { state, name } => {
            let (secrets, _) = directory(&state, client)?;
            let removed = secrets.remove(name.as_str());
            if !removed.map_err(CliError::io(secrets.shown(name.as_str())))? {
                return Err(absent(&name));
            }
            output.own(&BTreeMap::from([("removed", [&name])]), |_| output.line(name.as_str()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of secrets in the operator's state directory, if a daemon that runs has the same; and how that daemon is.
fn directory(state: &StateDir, client: &Client) -> Result<(RootedDir, Option<Status>), CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::Refused("secrets are root's: try again with sudo".into()));
    }
    let ours = state.path()?;
    let status = match client.get("/status") {
        Err(ClientError::NoDaemon(_)) => None,
        answer => Some(parse::<Status>(&answer?)?),
    };
    if let Some(theirs) = status.as_ref().map(|status| &status.places.state_dir)
        && *theirs != ours
    {
        return Err(CliError::Refused(format!(
            "this daemon's state lies in {theirs:?}, not in {ours:?}: name the directory that it was served with by `--state-dir`"
        )));
    }
    let secrets = RootedDir::open(ours).and_then(|state| state.inside(SECRETS));
    let secrets = secrets.map_err(|e| match e {
        CliError::Io(what, e) if e.kind() == std::io::ErrorKind::NotFound => CliError::Io(
            format!("no {what}: start `wasmvol serve` once, or name its `--state-dir`"),
            e,
        ),
        other => other,
    })?;
    Ok((secrets, status))
}

/// The bytes to keep: at most one more than may be.
fn read(file: Option<&Path>) -> Result<Bytes, CliError> {
    // A buffer that had to grow would leave a copy behind.
    let mut bytes = Vec::with_capacity(BYTES_MAX + 1);
    let max = BYTES_MAX as u64 + 1;
    match file {
        Some(file) => {
            let what = || CliError::io(format!("`{}`", file.display()));
            let file = File::open(file).map_err(what())?;
            file.take(max).read_to_end(&mut bytes).map_err(what())?;
        }
        None if stdin().is_terminal() => {
            return Err(CliError::Refused(
                "a terminal would show what is typed: pipe the secret in, or name a file by `--file`".into(),
            ));
        }
        None => {
            stdin().take(max).read_to_end(&mut bytes).map_err(CliError::io("stdin"))?;
        }
    }
    Ok(Bytes::new(bytes))
}

/// What is shown of the secret that has this name.
fn about(secrets: &RootedDir, name: SecretName) -> Result<Shown, CliError> {
    let what = || secrets.shown(name.as_str());
    let read = secrets.read(name.as_str(), FILE_MAX + 1).map_err(CliError::io(what()))?;
    let Some((bytes, file)) = read else { return Err(absent(&name)) };
    let secret = Secret::parse(&Bytes::new(bytes))
        .map_err(|fault| CliError::Refused(format!("{}: {fault}", what())))?;
    let set_at = Time(u64::try_from(file.mtime()).unwrap_or(0)).text();
    let peers = secret.peers.iter().map(Peer::to_string).collect();
    Ok(Shown { name, drivers: secret.drivers.clone(), peers, set_at })
}

fn list(secrets: &RootedDir, output: &Output) -> Result<(), CliError> {
    let mut shown = Vec::new();
    for entry in secrets.names().map_err(CliError::io(secrets.shown("")))? {
        match SecretName::parse(&entry).map_err(|_| ()).map(|name| about(secrets, name)) {
            Ok(Ok(secret)) => shown.push(secret),
            Ok(Err(e)) => say(&format!("wasmvol: {e}: set it again, or remove it")),
            Err(()) => say(&format!("wasmvol: {} is no secret", Quoted::new(&entry))),
        }
    }
    let row = |secret: &Shown| {
        let drivers: Vec<_> = secret.drivers.iter().map(DriverName::as_str).collect();
        [
            secret.name.to_string(),
            drivers.join(","),
            if secret.peers.is_empty() { "-".into() } else { secret.peers.join(",") },
            secret.set_at.clone(),
        ]
    };
    Ok(output.own(&shown, |shown| {
        let rows: Vec<_> = shown.iter().map(row).collect();
        let heads = ["NAME", "DRIVERS", "PEERS", "SET"];
        output.table(heads, &rows, "no secrets: keep one with `wasmvol secret set NAME`");
    })?)
}

fn absent(name: &SecretName) -> CliError {
    CliError::Refused(format!("secret `{name}`: no such secret"))
}
