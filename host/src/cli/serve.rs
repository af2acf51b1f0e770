//! `wasmvol serve`: checks what can be checked before anything runs, then becomes `wasmvol-mountd`.
//!
//! It never starts the daemon itself: mountd does, without privileges.

use std::ffi::OsString;
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::{Gid, Uid, User};

use super::namespace::{self, Whose};
use super::output::say;
use super::{CliError, ConfigFile, StateDir};
use crate::admin::client::SOCKET;
use crate::config::Config;
use crate::daemon::inherit;

/// The plugin's name: `docker volume create -d wasmvol`.
pub(super) const PLUGIN: &str = "wasmvol";
/// Where dockerd looks for plugins.
pub(super) const PLUGIN_DIR: &str = "/run/docker/plugins";
/// Where records and data are kept.
pub(super) const STATE_DIR: &str = "/var/lib/wasmvol";
/// The user of the daemon, if the system has it.
const USER: &str = "wasmvol";
/// The uid of the daemon where nothing names one: in a range that distributions leave alone.
const UID: u32 = 64817;
/// The program that has root.
pub(super) const MOUNTD: &str = "wasmvol-mountd";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    state: StateDir,
    /// Where the plugin's socket is made
    #[arg(long, value_name = "DIR", default_value = PLUGIN_DIR)]
    plugin_dir: PathBuf,
    /// User of the daemon, by name or number [default: wasmvol, else the owner of the records, else 64817]
    #[arg(long)]
    user: Option<String>,
    /// Leave the drivers alone that came with this program: `driver check --mount` is about another
    #[arg(long, hide = true)]
    without_drivers: bool,
}

/// Becomes mountd; returns only if that cannot be.
pub(super) fn run(arguments: Arguments, runtime_dir: &Path) -> Result<ExitCode, CliError> {
    if !Uid::effective().is_root() {
        return Err(CliError::Refused(
            "serve mounts, so it needs root: try again with sudo".into(),
        ));
    }
    let config_file = arguments.config.path()?;
    let config = Config::read(&config_file)?;
    if !config_file.exists() {
        say(&format!("wasmvol: no `{}`: everything is as by default", config_file.display()));
    }
    if let Some(why) = namespace::hidden_because(Whose::Own, runtime_dir) {
        return Err(CliError::Misconfigured(format!(
            "{why}; run it outside of `unshare` and, under systemd, without PrivateTmp=, ProtectSystem= and the like, or type `mount --make-rshared /` before"
        )));
    }
    let state_dir = arguments.state.path()?;
    let plugin_dir = absolute(&arguments.plugin_dir)?;
    let config_dir = arguments.config.directory()?;
    let (uid, gid) = user(arguments.user.as_deref(), &state_dir)?;
    let program = std::env::current_exe().map_err(CliError::io("our own program"))?;
    let beside = program.parent().unwrap_or(Path::new("/"));

    let mut mountd = Command::new(beside.join(MOUNTD));
    mountd.arg("--daemon").arg(&program);
    mountd.arg("--state-dir").arg(&state_dir);
    mountd.arg("--runtime-dir").arg(runtime_dir);
    mountd.arg("--config-dir").arg(&config_dir);
    if let Some(drivers) = first_party(beside).filter(|_| !arguments.without_drivers) {
        mountd.arg("--drivers-dir").arg(drivers);
    }
    mountd.arg("--uid").arg(uid.to_string()).arg("--gid").arg(gid.to_string());
    let [plugin, admin] = sockets(&plugin_dir, runtime_dir)?;
    mountd.args([plugin, admin].concat());
    mountd.arg("--").arg("--default-driver").arg(config.default_driver());
    mountd.arg("--log").arg(config.log());
    mountd.arg("--shown-config-dir").arg(&config_dir);
    mountd.arg("--shown-state-dir").arg(&state_dir);
    mountd.arg("--shown-plugin-dir").arg(&plugin_dir);
    // Ours from systemd have become arguments; the daemon's from mountd come the same way.
    for variable in ["LISTEN_PID", "LISTEN_FDNAMES"] {
        mountd.env_remove(variable);
    }
    let (variable, count) = inherit::COUNT;
    mountd.env(variable, count);
    let error = mountd.exec();
    let mountd = beside.join(MOUNTD);
    Err(CliError::Io(
        format!("`{}` must lie beside wasmvol, and cannot be run", mountd.display()),
        error,
    ))
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(CliError::io(path.display().to_string()))
}

/// Drivers that came with this program: in a build tree, or installed.
pub(super) fn first_party(beside: &Path) -> Option<PathBuf> {
    let parent = beside.parent()?;
    ["drivers", "lib/wasmvol/drivers"].iter().map(|d| parent.join(d)).find(|d| d.is_dir())
}

/// The daemon's uid and gid.
fn user(wanted: Option<&str>, state_dir: &Path) -> Result<(u32, u32), CliError> {
    let owner = || std::fs::metadata(state_dir.join("catalog")).ok().map(|m| (m.uid(), m.gid()));
    let found = match wanted {
        Some(name) => match name.parse::<u32>() {
            Ok(uid) => named(User::from_uid(Uid::from_raw(uid))).or(Some((uid, uid))),
            Err(_) => Some(named(User::from_name(name)).ok_or_else(|| {
                CliError::Misconfigured(format!(
                    "there is no user `{name}`: make it, or leave `--user` out"
                ))
            })?),
        },
        None => named(User::from_name(USER)).or_else(|| owner().filter(|(uid, _)| *uid != 0)),
    };
    let (uid, gid) = found.unwrap_or((UID, UID));
    if uid == 0 || gid == 0 {
        return Err(CliError::Misconfigured(
            "the daemon must not run as root: name another user with `--user`".into(),
        ));
    }
    Ok((uid, gid))
}

fn named(user: nix::Result<Option<User>>) -> Option<(u32, u32)> {
    user.ok().flatten().map(|User { uid, gid, .. }: User| (Uid::as_raw(uid), Gid::as_raw(gid)))
}

/// mountd's arguments for the plugin socket and the admin socket: systemd's if it passes any, else paths to bind.
fn sockets(plugin_dir: &Path, runtime_dir: &Path) -> Result<[Vec<OsString>; 2], CliError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let [plugin, admin] = roles(&names, passed.len());
    let mut take = |index: Option<usize>| match index {
        Some(index) => passed
            .take_unix_listener(index)
            .and_then(|socket| socket.map(inheritable).transpose())
            .map_err(CliError::io("systemd's socket")),
        None => Ok(None),
    };
    let plugin = match take(plugin)? {
        Some(fd) => ["--plugin-fd".into(), format!("{PLUGIN}={fd}").into()],
        None => {
            let mut value = OsString::from(format!("{PLUGIN}="));
            value.push(plugin_dir.join(format!("{PLUGIN}.sock")));
            ["--plugin".into(), value]
        }
    };
    let admin: [OsString; 2] = match take(admin)? {
        Some(fd) => ["--admin-fd".into(), fd.to_string().into()],
        None => ["--admin".into(), runtime_dir.join(SOCKET).into()],
    };
    Ok([plugin.to_vec(), admin.to_vec()])
}

/// Which of systemd's sockets is which: by the names `plugin` and `admin` (FileDescriptorName=), else by their order.
fn roles(names: &str, count: usize) -> [Option<usize>; 2] {
    let named = |name: &str| names.split(':').take(count).position(|n| n == name);
    match [named("plugin"), named("admin")] {
        [None, None] => [(count > 0).then_some(0), (count > 1).then_some(1)],
        found => found,
    }
}

/// A listener's number, open for the program that this one becomes.
fn inheritable(socket: UnixListener) -> std::io::Result<RawFd> {
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(socket.into_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_systemd_go_by_name_and_else_by_order() {
        assert_eq!(roles("", 0), [None, None]);
        assert_eq!(roles("", 1), [Some(0), None]);
        assert_eq!(roles("wasmvol.socket:wasmvol.socket", 2), [Some(0), Some(1)]);
        assert_eq!(roles("admin:plugin", 2), [Some(1), Some(0)]);
        assert_eq!(roles("admin", 1), [None, Some(0)]);
    }

    #[test]
    fn a_number_is_a_user_even_if_the_system_does_not_know_it() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(user(Some("54321"), state.path()).unwrap(), (54321, 54321));
    }

    #[test]
    fn root_is_refused_as_the_daemons_user() {
        let state = tempfile::tempdir().unwrap();
        assert!(user(Some("0"), state.path()).is_err());
        assert!(user(Some("root"), state.path()).is_err());
    }
}
