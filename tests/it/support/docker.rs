//! A dockerd of the test's own, and its command line.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use super::engine::Engine;
use super::machine::Machine;
use super::pair::Pair;
use super::{Outcome, cgroup, copy_program, outcome, shell, until};

/// dockerd answers after 0.2 s on an idle machine; after a start without its plugin it takes 75 s.
const START_DEADLINE: Duration = Duration::from_secs(140);
/// Containers get 10 s to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A running dockerd with one image, `busybox`.
pub(crate) struct Docker {
    dockerd: Child,
    is_live_restore: bool,
    machine: Machine,
}

impl Docker {
    /// Starts a dockerd.
    pub(crate) fn start() -> Self {
        Self::on(Machine::boot(), false)
    }

    /// Starts a dockerd that does not see what is mounted after its start.
    pub(crate) fn start_blind() -> Self {
        Self::on(Machine::boot_blind(), false)
    }

    /// Starts a dockerd whose containers outlive it.
    pub(crate) fn start_with_live_restore() -> Self {
        Self::on(Machine::boot(), true)
    }

    fn on(machine: Machine, is_live_restore: bool) -> Self {
        machine.dir("run/plugins");
        let dockerd = launch(&machine, is_live_restore);
        let docker = Self { dockerd, is_live_restore, machine };
        docker.wait_ready();
        docker.import_busybox();
        docker
    }

    /// Where a plugin's socket goes.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.machine.path("run/plugins")
    }

    /// Runs a line of shell in which `docker` is this one.
    pub(crate) fn shell(&self, line: &str) -> Outcome {
        shell(line, &self.variables())
    }

    /// The variables of a shell in which `docker` is this one.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut host = OsString::from("unix://");
        host.push(self.socket());
        let config = self.machine.path("client");
        vec![("DOCKER_HOST", host), ("DOCKER_CONFIG", config.into_os_string())]
    }

    /// What dockerd has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.machine.path("dockerd.log")).unwrap_or_default()
    }

    /// Ends dockerd with SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
    }

    /// Ends dockerd with SIGKILL. Its containers die only when the next one starts, unless live-restore holds.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
    }

    /// Starts dockerd again in the same machine, after [`Docker::stop`] or [`Docker::kill`].
    pub(crate) fn start_again(&mut self) {
        self.dockerd = launch(&self.machine, self.is_live_restore);
        self.wait_ready();
    }

    fn socket(&self) -> PathBuf {
        self.machine.path("docker.sock")
    }

    fn signal(&mut self, signal: &str) {
        let pidfile = self.machine.path("docker.pid");
        let pid = fs::read_to_string(&pidfile).unwrap();
        let mut kill = self.machine.command("kill");
        outcome("kill dockerd", kill.args([&format!("-{signal}"), pid.trim()])).ok();
        until("dockerd ends", STOP_DEADLINE, || self.dockerd.try_wait().unwrap());
        let _ = fs::remove_file(pidfile);
    }

    fn wait_ready(&self) {
        let socket = self.socket();
        until("dockerd answers", START_DEADLINE, || {
            UnixStream::connect(&socket).ok()?;
            (self.cli("version").code == Some(0)).then_some(())
        });
    }

    /// An image without a registry: one static program under many names.
    fn import_busybox(&self) {
        let image = busybox(&self.machine.dir("image"));
        self.shell(&format!("tar -C {} -c . | docker import - busybox:latest", image.display()))
            .ok();
    }
}

/// Lays out a root directory with Debian's static busybox, and answers it.
pub(crate) fn busybox(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(dir.join("tmp")).unwrap();
    copy_program(Path::new("/bin/busybox"), &bin.join("busybox"));
    for name in [
        "sh", "cat", "ls", "sleep", "echo", "touch", "id", "mount", "umount", "stat", "dd", "true",
        "rm", "mkdir",
    ] {
        let link = bin.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link).unwrap();
        }
    }
    dir.to_owned()
}

fn launch(machine: &Machine, is_live_restore: bool) -> Child {
    let mut command: Command = machine.command("dockerd");
    let pair = |flag: &str, path: &OsStr| [flag.into(), path.to_owned()];
    command
        .args(pair("--data-root", machine.path("data").as_os_str()))
        .args(pair("--exec-root", machine.path("exec").as_os_str()))
        .args(pair("--pidfile", machine.path("docker.pid").as_os_str()))
        .arg(format!("--host=unix://{}", machine.path("docker.sock").display()))
        .arg(format!("--cgroup-parent=/{}", cgroup()))
        .args(["--bridge=none", "--iptables=false", "--ip-masq=false"]);
    if is_live_restore {
        command.arg("--live-restore");
    }
    let log = File::options().create(true).append(true).open(machine.path("dockerd.log")).unwrap();
    command.stdout(Stdio::null()).stderr(log).spawn().expect("the Debian package docker.io")
}

impl Engine for Docker {
    const RUN: &str = "run -d --init";
    const DISCARD: &str = "rm -f";
    const STOP: &str = "stop -t 1";

    fn with_wasmvol() -> Pair<Self> {
        Pair::with(Self::start())
    }

    fn shared() -> &'static Mutex<Weak<Pair<Self>>> {
        static SHARED: Mutex<Weak<Pair<Docker>>> = Mutex::new(Weak::new());
        &SHARED
    }

    fn cli(&self, line: &str) -> Outcome {
        self.shell(&format!("docker {line}"))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the end of dockerd's log:");
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
    }
}
