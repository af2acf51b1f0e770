//! A wasmvol of this run's own: the shipped programs in directories of their own.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{Client, named};
use crate::{Places, Result};

/// A first start compiles the drivers; no other takes a second.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a socket that is not there yet is tried again: less than what is measured.
const TRY_AGAIN: Duration = Duration::from_micros(200);
/// Connections that fill an instance.
const FILLERS: usize = 16;

/// One installation, and its programs while they run.
pub(crate) struct Instance {
    mountd: Option<Child>,
    state: PathBuf,
    runtime: PathBuf,
    plugins: PathBuf,
}

/// How often the stores committed since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commits {
    pub(crate) catalog: f64,
    pub(crate) mount_table: f64,
}

impl Instance {
    /// Directories of its own, and a daemon that serves every verb.
    pub(crate) fn start(places: &Places, name: &str) -> Result<Self> {
        let state = places.state.join(name);
        let runtime = places.runtime.join(name);
        let plugins = runtime.join("plugins");
        fs::create_dir_all(&plugins)?;
        fs::create_dir_all(state.join("etc"))?;
        fs::write(state.join("etc/wasmvol.toml"), "")?;
        let mut instance = Self { mountd: None, state, runtime: runtime.join("run"), plugins };
        instance.launch()?;
        instance.changing_verb()?;
        // What shows drivers waits until they are compiled and loaded.
        instance.command(&["driver", "ls"])?;
        Ok(instance)
    }

    /// Grants a driver something.
    pub(crate) fn grant(&self, driver: &str, line: &str) -> Result<()> {
        let grants = self.state.join("etc/grants.d");
        fs::create_dir_all(&grants)?;
        Ok(fs::write(grants.join(driver), line)?)
    }

    /// Keeps what is in a file as a secret, for one server or for a use that names none.
    pub(crate) fn secret(
        &self,
        name: &str,
        driver: &str,
        peer: Option<&str>,
        file: &Path,
    ) -> Result<()> {
        let (file, state) = (file.display().to_string(), self.state.join("state"));
        let state = state.display().to_string();
        let set = ["secret", "set", name, "--driver", driver, "--file", &file];
        let peer = peer.map_or_else(Vec::new, |peer| vec!["--peer", peer]);
        self.command(&[&set[..], &peer, &["--state-dir", &state]].concat())
    }

    /// Loads a guest of the tests.
    pub(crate) fn load(&self, guest: &str) -> Result<()> {
        let file = program("wasmvol")?.with_file_name("..").join("guests").join(guest);
        self.load_file(&file.with_extension("wasm"))
    }

    /// Loads a component.
    pub(crate) fn load_file(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        let config = self.state.join("etc/wasmvol.toml").display().to_string();
        self.command(&["driver", "load", &file, "--config", &config])
    }

    /// Runs a command of its command line, for what that does.
    fn command(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(program("wasmvol")?);
        command.args(words).arg("--runtime-dir").arg(&self.runtime).stdout(Stdio::null());
        if command.status()?.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
    }

    /// Starts the programs and does not wait.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.state.join("log"))?;
        let mut command = mortal(&program("wasmvol")?);
        command.arg("serve").arg("--config").arg(self.state.join("etc/wasmvol.toml"));
        command.arg("--state-dir").arg(self.state.join("state"));
        command.arg("--runtime-dir").arg(&self.runtime).arg("--plugin-dir").arg(&self.plugins);
        command.stdout(log.try_clone()?).stderr(log);
        self.mountd = Some(command.spawn()?);
        Ok(())
    }

    /// Connects, as soon as there is a socket.
    pub(crate) fn connect(&self) -> Result<Client> {
        connect(&self.socket())
    }

    /// Waits until it answers at all: what needs no recovery.
    pub(crate) fn activate(&self) -> Result<()> {
        self.connect()?.call("Plugin.Activate", "").map(drop)
    }

    /// Makes a volume and removes it: what is served only after recovery.
    pub(crate) fn changing_verb(&self) -> Result<()> {
        let mut client = self.connect()?;
        client.call("VolumeDriver.Create", &named("first"))?;
        client.call("VolumeDriver.Remove", &named("first")).map(drop)
    }

    /// Ends it as a service is ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills it, daemon and all.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let daemon = self.daemon()?;
        if let Some(mut mountd) = self.mountd.take() {
            kill_process(Pid::from_child(&mountd), signal)?;
            mountd.wait()?;
        }
        let end = Instant::now() + START_PATIENCE;
        while Path::new(&format!("/proc/{daemon}/fd")).exists() {
            if Instant::now() > end {
                return Err("the daemon did not end with mountd".into());
            }
            std::thread::sleep(TRY_AGAIN);
        }
        Ok(())
    }

    /// Makes volumes `volume-N`.
    pub(crate) fn fill(&self, numbers: Range<usize>) -> Result<()> {
        let each = numbers.len().div_ceil(FILLERS);
        std::thread::scope(|scope| {
            let starts = numbers.clone().step_by(each.max(1));
            let fillers: Vec<_> = starts
                .map(|start| {
                    let share = start..(start + each).min(numbers.end);
                    scope.spawn(|| -> Result<()> {
                        let mut client = self.connect()?;
                        for number in share {
                            client.call("VolumeDriver.Create", &named(&volume(number)))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            fillers
                .into_iter()
                .try_for_each(|filler| filler.join().map_err(|_| "a filler panicked")?)
        })
    }

    /// mountd's process.
    pub(crate) fn mountd(&self) -> Result<u32> {
        self.mountd.as_ref().map(Child::id).ok_or_else(|| "it does not run".into())
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> Result<u32> {
        let mountd = self.mountd()?;
        let children = fs::read_to_string(format!("/proc/{mountd}/task/{mountd}/children"))?;
        let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let is_daemon = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"daemon")
        };
        pids.find(is_daemon).ok_or_else(|| "mountd has no daemon".into())
    }

    /// How often it committed so far.
    pub(crate) fn commits(&self) -> Result<Commits> {
        let mut command = Command::new(program("wasmvol")?);
        let status =
            command.args(["status", "--json", "--runtime-dir"]).arg(&self.runtime).output()?;
        let status: Value = serde_json::from_slice(&status.stdout)?;
        let of = |store: &str| {
            status
                .pointer(&format!("/commits/{store}/transactions"))
                .and_then(Value::as_f64)
                .ok_or_else(|| format!("`wasmvol status` shows no commits of {store}"))
        };
        Ok(Commits { catalog: of("catalog")?, mount_table: of("mount-table")? })
    }

    /// The plugin's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.plugins.join("wasmvol.sock")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut mountd) = self.mountd.take() {
            // It may have ended by itself, and the run is over anyway.
            let _ = mountd.kill();
            let _ = mountd.wait();
        }
    }
}

/// The name of a volume.
pub(crate) fn volume(number: usize) -> String {
    format!("volume-{number:05}")
}

/// Connects to a socket as soon as somebody listens there.
pub(crate) fn connect(socket: &Path) -> Result<Client> {
    let end = Instant::now() + START_PATIENCE;
    loop {
        match Client::connect(socket) {
            Err(e) if Instant::now() > end => return Err(e),
            Err(_) => std::thread::sleep(TRY_AGAIN),
            connected => return connected,
        }
    }
}

/// A program that dies with this one, however this one ends.
pub(crate) fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// A program that was built beside this one.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().and_then(Path::parent).map(|release| release.join(name));
    path.filter(|path| path.exists()).ok_or_else(|| format!("no `{name}`: run `make build`").into())
}

/// A driver that came with it.
pub(crate) fn driver(name: &str) -> Result<PathBuf> {
    let release = program("wasmvol")?;
    let target = release.parent().and_then(Path::parent).ok_or("no target directory")?;
    Ok(target.join("drivers").join(format!("{name}.wasm")))
}
