//! `wasmvol doctor`: what is wrong, and the command that mends it; with a daemon or without one.
//!
//! It changes nothing. Exit status 1 if anything was found.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::utsname::uname;
use wasmvol_plan::mountinfo;

use super::CliError;
use super::namespace::{self, Whose};
use super::output::{Output, say};
use super::serve::{MOUNTD, PLUGIN, PLUGIN_DIR};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Kept, Status, Trouble};

/// The new mount API, with mount_setattr(2), is complete from here on.
const KERNEL_MIN: (u32, u32) = (5, 12);
/// Where dockerd looks for plugins that are named by a file.
const SPEC_DIRS: [&str; 2] = ["/etc/docker/plugins", "/usr/lib/docker/plugins"];
/// The directory of all mountpoints, in the runtime directory.
const ANCHOR: &str = "mnt";
/// Who holds the sockets of units.
const INIT: (u32, &str) = (1, "systemd");
/// Processes that run containers and stay: podman is gone between two commands.
const ENGINES: [&str; 1] = ["dockerd"];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the plugin's socket is, if no daemon says it
    #[arg(long, value_name = "DIR", default_value = PLUGIN_DIR)]
    plugin_dir: PathBuf,
}

pub(super) fn run(
    arguments: &Arguments,
    runtime_dir: &Path,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let status = match client.get("/status") {
        Ok(answer) => Some(parse::<Status>(&answer)?),
        Err(ClientError::NoDaemon(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let places = status.as_ref().map(|s| &s.places);
    let plugin_dir = places.map_or(&arguments.plugin_dir, |p| &p.plugin_dir);
    let runtime_dir = places.map_or(runtime_dir, |p| &p.runtime_dir);
    let (mut found, mut kept) = (Vec::new(), 0);
    found.extend(programs());
    found.extend(kernel());
    found.extend(sockets(plugin_dir, status.is_some()));
    found.extend(taken_names(plugin_dir));
    match &status {
        Some(Status { pid, .. }) => {
            // It is the daemon's namespace that counts: this command may be typed in any.
            let anchor = runtime_dir.join(ANCHOR);
            found.extend(namespace::hidden_because(Whose::Daemon(*pid), &anchor).map(|why| trouble(
                "mount namespace",
                why,
                "systemctl restart wasmvol  # or end `wasmvol serve` and start it again; outside of `unshare`, containers and units with PrivateTmp= or ProtectSystem=",
            )));
            found.extend(blind_engines(runtime_dir, plugin_dir));
            found.extend(parse::<Vec<Trouble>>(&client.get("/troubles")?)?);
            kept = parse::<Vec<Kept>>(&client.get("/kept")?)?.len();
        }
        None => {
            found.extend(no_daemon(runtime_dir));
            found.extend(namespace::hidden_because(Whose::Own, runtime_dir).map(|why| trouble(
                "mount namespace",
                why,
                "mount --make-rshared /  # or run `wasmvol serve` outside of `unshare`, containers and units with PrivateTmp= or ProtectSystem=",
            )));
        }
    }
    let status = show(&found, output)?;
    if kept > 0 {
        output.note(&format!(
            "data of removed volumes is kept, as asked: {kept}; `wasmvol volume ls --retained` says where, `wasmvol volume purge ID` deletes it"
        ));
    }
    Ok(status)
}

fn show(found: &[Trouble], output: &Output) -> Result<ExitCode, CliError> {
    output.own(&found, |found| {
        if found.is_empty() {
            say("nothing is wrong");
        }
        for Trouble { what, why, cure } in *found {
            output.line(&format!("{what}: {why}"));
            output.line(&format!("  mend it: {cure}"));
        }
    })?;
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn trouble(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Trouble {
    Trouble { what: what.into(), why: why.into(), cure: cure.into() }
}

fn remove(path: &Path) -> String {
    format!("rm '{}'", path.display())
}

/// The program that mounts must lie beside this one.
fn programs() -> Option<Trouble> {
    let mountd = std::env::current_exe().ok()?.with_file_name(MOUNTD);
    let why = "is not there, so `wasmvol serve` cannot run";
    (!mountd.is_file())
        .then(|| trouble(mountd.display().to_string(), why, "make build  # or install it again"))
}

fn kernel() -> Option<Trouble> {
    let release = uname().ok()?.release().to_string_lossy().into_owned();
    let (major, minor) = KERNEL_MIN;
    let why =
        format!("release {release} lacks mount_setattr(2): {major}.{minor} is the first with it");
    (version(&release)? < KERNEL_MIN).then(|| {
        trouble(
            "kernel",
            why,
            "apt-get install linux-image-amd64 && reboot  # or what installs a newer one here",
        )
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Plugin sockets that nobody listens on: dockerd waits 15 s for each of them, whatever plugin it is.
fn sockets(plugin_dir: &Path, daemon_runs: bool) -> Vec<Trouble> {
    let ours = plugin_dir.join(format!("{PLUGIN}.sock"));
    let mut found = Vec::new();
    for path in entries(plugin_dir) {
        if !path.metadata().is_ok_and(|m| m.file_type().is_socket()) {
            continue;
        }
        let shown = path.display().to_string();
        match UnixStream::connect(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                let why = "nobody listens there, and dockerd waits 15 s for it at every `docker volume ls`";
                found.push(trouble(shown, why, remove(&path)));
            }
            Ok(stream) if path == ours && !daemon_runs => {
                let listener = listener(&stream);
                found.push(foreign(shown, listener, &crate::machine::command_of(listener)));
            }
            _ => {}
        }
    }
    if daemon_runs && !ours.exists() {
        let why = "is gone, so dockerd does not find the plugin";
        found.push(trouble(
            ours.display().to_string(),
            why,
            "systemctl restart wasmvol  # or end `wasmvol serve`, and start it again",
        ));
    }
    found
}

/// Process id of who listens at the other end; 0 where the kernel does not say, or it lies outside of this pid namespace.
fn listener(stream: &UnixStream) -> u32 {
    let peer = getsockopt(stream, PeerCredentials).ok();
    peer.and_then(|peer| u32::try_from(peer.pid()).ok()).unwrap_or(0)
}

/// Our socket with a listener, and no daemon of ours behind it.
fn foreign(socket: String, pid: u32, command: &str) -> Trouble {
    if (pid, command) == INIT {
        let why = "systemd listens there for wasmvol.service, which does not run: requests wait";
        return trouble(socket, why, "systemctl start wasmvol");
    }
    let why = "another process listens there, not the daemon of this runtime directory";
    let cure =
        "ss -xlp  # shows whose it is: stop that, or name its directory with `--runtime-dir`";
    trouble(socket, why, cure)
}

/// Other files by which dockerd would find a plugin of our name.
fn taken_names(plugin_dir: &Path) -> Vec<Trouble> {
    let mut candidates = vec![plugin_dir.join(PLUGIN).join(format!("{PLUGIN}.sock"))];
    for dir in SPEC_DIRS.map(PathBuf::from) {
        for extension in ["spec", "json"] {
            let file = format!("{PLUGIN}.{extension}");
            candidates.extend([dir.join(&file), dir.join(PLUGIN).join(file)]);
        }
    }
    let why = format!("names another plugin `{PLUGIN}`, and dockerd may take that one");
    candidates.retain(|path| path.exists());
    candidates.iter().map(|p| trouble(p.display().to_string(), &why, remove(p))).collect()
}

fn no_daemon(runtime_dir: &Path) -> Vec<Trouble> {
    let mut found = vec![trouble(
        "daemon",
        format!("none runs in `{}`", runtime_dir.display()),
        "systemctl start wasmvol  # or: wasmvol serve",
    )];
    let anchor = runtime_dir.join(ANCHOR);
    let mounted = mounts_of("self").iter().filter(|(at, _)| at.parent() == Some(&anchor)).count();
    if mounted > 0 {
        let why = format!("{mounted} volumes are still mounted there: their containers go on");
        let cure = "systemctl start wasmvol  # or: wasmvol serve; it takes them up";
        found.push(trouble(anchor.display().to_string(), why, cure));
    }
    found
}

/// Engines that find our plugin and do not see its mounts: their containers would find an empty directory.
fn blind_engines(runtime_dir: &Path, plugin_dir: &Path) -> Vec<Trouble> {
    let socket = format!("{PLUGIN}.sock");
    let Ok(plugin) = plugin_dir.join(&socket).metadata() else { return Vec::new() };
    // Each engine has its own view of the file system, and another one's plugin of our name is none of our business.
    let finds_us = |pid: u32| {
        let seen = format!("/proc/{pid}/root{PLUGIN_DIR}/{socket}");
        std::fs::metadata(seen).is_ok_and(|m| (m.dev(), m.ino()) == (plugin.dev(), plugin.ino()))
    };
    let anchor = runtime_dir.join(ANCHOR);
    let devices = |process: &str| -> BTreeSet<(u32, u32)> {
        let all = mounts_of(process);
        all.into_iter().filter(|(at, _)| *at == anchor).map(|(_, device)| device).collect()
    };
    // PID 1 stands for the host where this command itself runs elsewhere.
    let ours: BTreeSet<_> = [devices("self"), devices("1")].into_iter().flatten().collect();
    if ours.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (pid, name) in engines() {
        if finds_us(pid) && devices(&pid.to_string()).is_disjoint(&ours) {
            let why = format!(
                "does not see `{}`: its containers would find volumes empty",
                anchor.display()
            );
            let cure = "systemctl edit docker  # without PrivateMounts=, PrivateTmp=, ProtectSystem=; then restart it after wasmvol";
            found.push(trouble(format!("{name}, process {pid}"), why, cure));
        }
    }
    found
}

/// Running engines.
fn engines() -> Vec<(u32, String)> {
    let pids = entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
    pids.map(|pid| (pid, crate::machine::command_of(pid)))
        .filter(|(_, name)| ENGINES.contains(&name.as_str()))
        .collect()
}

/// Mountpoints and devices that a process sees; none if that cannot be read.
fn mounts_of(process: &str) -> Vec<(PathBuf, (u32, u32))> {
    let bytes = std::fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mounts = mountinfo::parse(&text).unwrap_or_default();
    mounts.iter().map(|m| (PathBuf::from(m.mount_point.as_ref()), m.device)).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_on_is_found_whatever_its_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let found = sockets(dir.path(), false);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].cure, format!("rm '{}'", path.display()));
    }

    #[test]
    fn a_socket_of_our_name_with_a_foreign_listener_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wasmvol.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(sockets(dir.path(), false).len(), 1);
        assert_eq!(sockets(dir.path(), true), []);
    }

    #[test]
    fn who_listens_is_the_process_that_made_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wasmvol.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener(&UnixStream::connect(&path).unwrap()), std::process::id());
    }

    #[test]
    fn a_socket_that_systemd_holds_is_mended_by_starting_the_service() {
        let held = |pid, command| foreign("wasmvol.sock".to_owned(), pid, command).cure;
        assert_eq!(held(1, "systemd"), "systemctl start wasmvol");
        // A user's own systemd, and a container's only process.
        for (pid, command) in [(4321, "systemd"), (1, "wasmvol-mountd"), (0, "")] {
            assert!(held(pid, command).starts_with("ss -xlp"), "{pid} {command}");
        }
    }

    #[test]
    fn a_socket_in_a_directory_of_its_own_takes_our_name() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("wasmvol");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("wasmvol.sock"), "").unwrap();
        assert_eq!(taken_names(dir.path()).len(), 1);
    }

    #[test]
    fn kernel_releases_of_distributions_are_understood() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.4.0+"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
    }
}
