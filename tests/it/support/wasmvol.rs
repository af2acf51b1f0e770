//! A wasmvol of the test's own: the shipped programs, started as `wasmvol serve`, in directories of the test's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::mounts::{self, Mount};
use super::plugin::Plugin;
use super::{Outcome, Scratch, mortal, shell, spawn, until};

/// A start takes milliseconds, but for the first one, which compiles the drivers.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A stop drains what runs: the longest is a Mount.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// What is tried again by itself is tried every few seconds.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// Where the built programs are: beside this test's own directory.
pub(crate) static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = std::env::current_exe().unwrap();
    let dir = own.parent().and_then(Path::parent).unwrap().to_owned();
    for program in ["wasmvol", "wasmvol-mountd"] {
        assert!(
            dir.join(program).exists(),
            "no `{program}` in {}: run `make build`",
            dir.display()
        );
    }
    dir
});

/// One installation and, most of the time, its running programs.
pub(crate) struct Wasmvol {
    mountd: Option<Child>,
    plugins: PathBuf,
    environment: Vec<(String, String)>,
    dir: Scratch,
}

impl Wasmvol {
    /// A running daemon with a plugin directory of its own.
    pub(crate) fn start() -> Self {
        let mut wasmvol = Self::install();
        wasmvol.run();
        wasmvol
    }

    /// A running daemon whose plugin socket is in an engine's plugin directory.
    pub(crate) fn start_for(plugins: &Path) -> Self {
        let mut wasmvol = Self::install();
        wasmvol.run_for(plugins);
        wasmvol
    }

    /// Starts the programs with their socket in an engine's plugin directory.
    pub(crate) fn run_for(&mut self, plugins: &Path) {
        self.plugins = plugins.to_owned();
        self.run();
    }

    /// Directories and a configuration; nothing runs yet.
    pub(crate) fn install() -> Self {
        let dir = Scratch::new();
        fs::write(dir.dir("etc").join("wasmvol.toml"), "").unwrap();
        let plugins = dir.dir("plugins");
        Self { mountd: None, plugins, environment: Vec::new(), dir }
    }

    /// The same, and its state lies on a file system of this type and size.
    pub(crate) fn install_on(filesystem: &str, bytes: u64) -> Self {
        let wasmvol = Self::install();
        wasmvol.mount_disk(filesystem, bytes, &wasmvol.state());
        wasmvol
    }

    /// Makes a directory, with a file system of this type and size on it.
    pub(crate) fn mount_disk(&self, filesystem: &str, bytes: u64, place: &Path) {
        let disk = self.path("disk");
        fs::create_dir(place).unwrap();
        File::create_new(&disk).unwrap().set_len(bytes).unwrap();
        let (disk, place) = (disk.display(), place.display());
        shell(&format!("mkfs.{filesystem} -q {disk} && mount -o loop {disk} {place}"), &[]).ok();
    }

    /// Sets the variables of the next starts.
    pub(crate) fn set_variables(&mut self, variables: &[(&str, &str)]) {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.environment = variables.iter().map(own).collect();
    }

    /// Starts the programs and waits until they answer.
    pub(crate) fn run(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the programs and does not wait.
    pub(crate) fn launch(&mut self) {
        assert!(self.mountd.is_none(), "it runs already");
        let command = self.serve(&[]);
        self.launch_as(command);
    }

    /// Starts the programs by a command that becomes [`Wasmvol::serve`]'s.
    pub(crate) fn launch_as(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.mountd = Some(spawn(command));
    }

    /// The command that serves, behind the words of another program that becomes it.
    pub(crate) fn serve(&self, before: &[&str]) -> Command {
        let program = PROGRAMS.join("wasmvol");
        let mut words = before.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = mortal(words.next().unwrap());
        command.args(words).arg("serve").args(self.flags());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Waits until everything is up: Activate answers, recovery has ended, and drivers are loaded.
    pub(crate) fn wait_ready(&mut self) {
        self.wait_answering();
        // An Unmount of a volume that is not there changes nothing and waits for the end of recovery as every changing verb.
        let _ = self.plugin().unmount("there-is-no-such-volume", "none");
        // What shows drivers waits for them.
        self.cli("driver ls").ok();
    }

    /// Waits until Activate answers: drivers may still be compiled, and recovery may still run.
    pub(crate) fn wait_answering(&mut self) {
        until("wasmvol answers", READY_DEADLINE, || {
            if let Some(status) = self.mountd.as_mut().unwrap().try_wait().unwrap() {
                panic!("wasmvol ended with {status}: {}", self.log());
            }
            let answer = self.plugin().try_call("Plugin.Activate", "").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// The flags that say where everything is.
    pub(crate) fn flags(&self) -> Vec<String> {
        let flag = |name: &str, path: &Path| [format!("--{name}"), path.display().to_string()];
        [
            flag("config", &self.config()),
            flag("state-dir", &self.state()),
            flag("runtime-dir", &self.runtime()),
            flag("plugin-dir", &self.plugins),
        ]
        .concat()
    }

    /// Runs `wasmvol LINE` against this daemon, as a shell would.
    pub(crate) fn cli(&self, line: &str) -> Outcome {
        self.shell(&format!("wasmvol {line}"))
    }

    /// Runs a line of shell in which `wasmvol` is this one.
    pub(crate) fn shell(&self, line: &str) -> Outcome {
        shell(line, &self.variables())
    }

    /// The variables of a shell in which `wasmvol` is this one.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut path = PROGRAMS.clone().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        vec![
            ("PATH", path),
            ("WASMVOL_RUNTIME_DIR", self.runtime().into_os_string()),
            ("WASMVOL_CONFIG", self.config().into_os_string()),
            ("WASMVOL_STATE_DIR", self.state().into_os_string()),
            ("XDG_CACHE_HOME", self.path("cache").into_os_string()),
        ]
    }

    /// Runs `wasmvol LINE --json`, which must succeed, and answers what it printed.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        let text = self.cli(&format!("{line} --json")).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e} in {text}"))
    }

    /// A client of its plugin socket.
    pub(crate) fn plugin(&self) -> Plugin {
        Plugin { socket: self.plugins.join("wasmvol.sock") }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The configuration, beside which grants lie.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("etc/wasmvol.toml")
    }

    /// A path in the test's own directory, beside state and runtime.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of all mountpoints.
    pub(crate) fn anchor(&self) -> PathBuf {
        self.runtime().join("mnt")
    }

    /// What is mounted below the anchor, itself left out.
    pub(crate) fn volume_mounts(&self) -> Vec<Mount> {
        let anchor = self.anchor();
        let is_below =
            |m: &Mount| Path::new(&m.path).starts_with(&anchor) && Path::new(&m.path) != anchor;
        mounts::all().into_iter().filter(is_below).collect()
    }

    /// Whether something is mounted at a volume's mountpoint.
    #[track_caller]
    pub(crate) fn is_mounted(&self, volume: &str) -> bool {
        is_mountpoint(&self.plugin().path(volume).unwrap())
    }

    /// Waits until a volume is unmounted: a holder that is just ending delays it.
    pub(crate) fn wait_unmounted(&self, volume: &str) {
        let path = self.plugin().path(volume).unwrap();
        let what = format!("`{volume}` is unmounted");
        until(&what, SETTLE_DEADLINE, || (!is_mountpoint(&path)).then_some(()));
    }

    /// Waits until the reaper has emptied the trash.
    pub(crate) fn wait_reaped(&self) {
        until("the trash is empty", SETTLE_DEADLINE, || {
            self.entries("trash").is_empty().then_some(())
        });
    }

    /// Names in a directory of the state, in order: `volumes`, `trash`.
    pub(crate) fn entries(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.state().join(directory)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Process id of mountd.
    pub(crate) fn mountd(&self) -> u32 {
        self.mountd.as_ref().expect("it does not run").id()
    }

    /// Process id of the daemon, once mountd has started it.
    pub(crate) fn daemon(&self) -> u32 {
        let mountd = self.mountd();
        until("mountd starts the daemon", READY_DEADLINE, || daemon_of(mountd))
    }

    /// Process ids of mountd's children: the daemon, and who does slow work.
    pub(crate) fn children(&self) -> Vec<u32> {
        children_of(self.mountd())
    }

    /// How often the daemon has called write or writev, as it does for an answer of two parts. The kernel counts no send here: a server
    /// that sent its parts one by one would show none.
    pub(crate) fn writes(&self) -> u64 {
        let counts = fs::read_to_string(format!("/proc/{}/io", self.daemon())).unwrap();
        let count = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
        count.unwrap().parse().unwrap()
    }

    /// Kills the daemon alone and waits until mountd has started another that answers.
    pub(crate) fn kill_daemon(&mut self) {
        let daemon = self.daemon();
        send(daemon, Signal::KILL);
        until("the daemon ends", STOP_DEADLINE, || {
            (daemon_of(self.mountd()) != Some(daemon)).then_some(())
        });
        self.wait_ready();
    }

    /// Kills mountd, and so the daemon. Nothing runs afterwards.
    pub(crate) fn kill_mountd(&mut self) {
        send(self.mountd(), Signal::KILL);
        self.wait_end();
    }

    /// Asks for an end with SIGTERM and waits for it.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Sends mountd a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.mountd(), signal);
    }

    /// Waits until nothing runs any more, and answers how mountd ended.
    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        let daemon = daemon_of(self.mountd());
        let mut mountd = self.mountd.take().expect("it does not run");
        let status = until("mountd ends", STOP_DEADLINE, || mountd.try_wait().unwrap());
        if let Some(daemon) = daemon {
            until("the daemon dies with mountd", STOP_DEADLINE, || {
                (!is_running(daemon)).then_some(())
            });
        }
        status
    }

    /// What the programs have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Wasmvol {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("the end of wasmvol's log:");
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
        if let Some(mut mountd) = self.mountd.take() {
            let daemon = daemon_of(mountd.id());
            let _ = mountd.kill();
            let _ = mountd.wait();
            // It dies with mountd; the directories must not go before it.
            while daemon.is_some_and(is_running) {
                std::thread::yield_now();
            }
        }
    }
}

fn is_mountpoint(path: &Path) -> bool {
    mounts::all().iter().any(|m| Path::new(&m.path) == path)
}

/// The child of mountd that is the daemon.
fn daemon_of(mountd: u32) -> Option<u32> {
    children_of(mountd).into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).nth(1) == Some(b"daemon")
    })
}

/// The processes that another one started and that have not been waited for.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Sends a process a signal.
pub(crate) fn send(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(process.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Whether a process is there and no zombie.
pub(crate) fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}
