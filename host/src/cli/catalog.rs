//! `wasmvol catalog export|import`: all records as lines of JSON, from a daemon that runs or from the directory of one that does not.
//!
//! The catalog belongs to the daemon's user, so without a daemon this program becomes that user before it opens anything there.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde_json::json;

use super::output::{Output, say};
use super::{CliError, StateDir};
use crate::admin::client::{Client, ClientError};
use crate::catalog::durable::Catalog;
use crate::catalog::transfer;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print all records, as lines of JSON; without a daemon, those in its state directory
    Export {
        #[command(flatten)]
        state: StateDir,
    },
    /// Fill a new wasmvol's catalog from an export, after its first start and while none runs; data in `volumes/` is copied apart
    Import {
        /// The export; `-` is stdin
        file: PathBuf,
        #[command(flatten)]
        state: StateDir,
    },
}

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Export { state } => match client.get("/catalog") {
            Ok(lines) => output.bytes(&lines),
            Err(ClientError::NoDaemon(_)) => output.bytes(&export(&state.path()?)?),
            Err(e) => return Err(e.into()),
        },
        Command::Import { file, state } => {
            let text = read(&file)?;
            let (volumes, drivers) = Offline::enter(&state.path()?)?.import(&text)?;
            output.own(&json!({ "volumes": volumes, "drivers": drivers }), |_| {
                say(&format!("{volumes} volumes and {drivers} drivers are in the catalog now"));
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn export(state_dir: &Path) -> Result<Vec<u8>, CliError> {
    let offline = Offline::enter(state_dir)?;
    let (_catalog, contents) = Catalog::open(&offline.dir())?;
    transfer::export(&contents).map_err(|e| CliError::Refused(e.to_string()))
}

fn read(file: &Path) -> Result<String, CliError> {
    let what = format!("`{}`", file.display());
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(CliError::io("stdin"))?;
    } else {
        text = std::fs::read_to_string(file).map_err(CliError::io(what))?;
    }
    Ok(text)
}

/// A catalog without a daemon: locked, and opened as the daemon's own user.
struct Offline {
    catalog: File,
    _lock: Flock<File>,
}

impl Offline {
    fn enter(state_dir: &Path) -> Result<Self, CliError> {
        let path = state_dir.join("catalog");
        let catalog = File::open(&path).map_err(|e| {
            CliError::Io(
                format!("no catalog in `{}`, start `wasmvol serve` once", path.display()),
                e,
            )
        })?;
        let lock_path = state_dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .open(&lock_path)
            .map_err(CliError::io(format!("`{}`", lock_path.display())))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| {
            CliError::Refused(format!(
                "a daemon runs in `{}`: stop it, or name its `--runtime-dir`",
                state_dir.display()
            ))
        })?;
        let owner = catalog.metadata().map_err(CliError::io("catalog"))?;
        become_owner(owner.uid(), owner.gid()).map_err(CliError::io("the daemon's user"))?;
        Ok(Self { catalog, _lock: lock })
    }

    /// Its directory, by a path that the daemon's user can walk wherever it lies.
    fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.catalog.as_raw_fd()))
    }

    fn import(&self, text: &str) -> Result<(usize, usize), CliError> {
        transfer::import(&self.dir(), text).map_err(|e| CliError::Refused(e.to_string()))
    }
}

/// Gives up root for good: files made from here on are the daemon's, and a link planted among them leads nowhere new.
fn become_owner(uid: u32, gid: u32) -> std::io::Result<()> {
    if Uid::effective().as_raw() == uid {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}
