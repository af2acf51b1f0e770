//! What do `make run` and `make demo` say to a newcomer? host/run.sh, in a machine of its own, with no engine but those that a test
//! puts there; and tests/demo.sh.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::machine::Machine;
use crate::support::{shell, until};

/// A start compiles the drivers once.
const READY: Duration = Duration::from_secs(60);
/// What the script calls, beside the shell's own commands.
const TOOLS: [&str; 7] = ["id", "cat", "grep", "awk", "date", "sleep", "dirname"];

/// A run of the script, and the machine that ends with it.
struct Run {
    machine: Machine,
    script: Child,
}

impl Run {
    /// Starts the script where these commands are engines, by a command that becomes it.
    fn start(engines: &[&str], by: &str) -> Self {
        // Private, so that nothing is seen outside; shared, as a host's is.
        let machine = Machine::boot_blind();
        let bin = machine.dir("bin");
        for tool in TOOLS {
            symlink(Path::new("/usr/bin").join(tool), bin.join(tool)).unwrap();
        }
        for engine in engines {
            fs::write(bin.join(engine), "").unwrap();
            fs::set_permissions(bin.join(engine), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(machine.path("wasmvol.toml"), "").unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("host/run.sh");
        let line = format!(
            "mount --make-rshared / && echo $$ >{pid} && exec {by} PATH={bin} {script} --state-dir {state} --config {config}",
            pid = machine.path("pid").display(),
            bin = bin.display(),
            script = script.display(),
            state = machine.path("state").display(),
            config = machine.path("wasmvol.toml").display(),
        );
        let said = fs::File::create(machine.path("said")).unwrap();
        let mut command = machine.command("sh");
        command.args(["-c", &line]).env_remove("DOCKER_HOST");
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let script = command.spawn().unwrap();
        Self { machine, script }
    }

    fn serving(engines: &[&str]) -> Self {
        let run = Self::start(engines, "env");
        run.wait_serving();
        run
    }

    fn wait_serving(&self) {
        until("it says what to type", READY, || {
            self.said().contains("Ctrl-C ends it").then_some(())
        });
    }

    fn said(&self) -> String {
        fs::read_to_string(self.machine.path("said")).unwrap()
    }

    fn wasmvol(&self, line: &str) -> PathBuf {
        let output = self.ask(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    }

    fn ask(&self, line: &str) -> Output {
        let program = crate::support::wasmvol::PROGRAMS.join("wasmvol");
        let mut command = self.machine.command(program.to_str().unwrap());
        command.args(line.split(' ')).output().unwrap()
    }

    /// Kills mountd, the daemon's parent, by the number that it has inside.
    fn kill_mountd(&self) {
        let status = self.ask("status --json");
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let daemon = status["pid"].as_u64().unwrap();
        let line = format!("kill -9 $(awk '/^PPid:/ {{ print $2 }}' /proc/{daemon}/status)");
        assert!(self.machine.command("sh").args(["-c", &line]).status().unwrap().success());
    }

    /// Ends it as Ctrl-C does, and answers what it says to the end.
    fn end(mut self) -> String {
        let before = self.said().len();
        let pid = fs::read_to_string(self.machine.path("pid")).unwrap();
        let mut kill = self.machine.command("kill");
        assert!(kill.args(["-TERM", pid.trim()]).status().unwrap().success());
        let status = until("it ends", READY, || self.script.try_wait().unwrap());
        assert!(status.success(), "{}", self.said());
        self.said().split_off(before)
    }
}

#[test]
fn without_an_engine_it_points_to_the_tour() {
    let run = Run::serving(&[]);
    let said = run.said();
    assert!(said.contains("Neither docker nor podman") && said.contains("`make demo`"), "{said}");
    assert!(!said.contains("docker volume create") && !said.contains("containers.conf"), "{said}");
    let config = run.machine.path("wasmvol.toml");
    let load = format!("driver load FILE --config {}\n", config.display());
    assert!(said.contains(&load), "{said}");
    assert!(!run.end().contains("Two cures"), "nobody waits for it");
}

#[test]
fn for_podman_it_prints_the_lines_of_its_configuration() {
    let run = Run::serving(&["podman"]);
    let said = run.said();
    let lines = "[engine.volume_plugins]\n  wasmvol = \"/run/docker/plugins/wasmvol.sock\"\n";
    assert!(said.contains(lines), "{said}");
    // podman 4.3 knows no `-d`.
    assert!(said.contains("podman volume create --driver wasmvol"), "{said}");
    assert!(!said.contains("docker volume create"), "{said}");
    run.end();
}

#[test]
fn where_dockerd_does_not_run_it_says_how_to_start_it() {
    let run = Run::serving(&["docker"]);
    let said = run.said();
    assert!(said.contains("docker volume create -d wasmvol data"), "{said}");
    assert!(said.contains("dockerd does not run") && said.contains("start docker"), "{said}");
    run.end();
}

#[test]
fn at_the_end_it_says_what_stays_and_how_docker_does_without_it() {
    let run = Run::serving(&["docker"]);
    run.wasmvol("volume create staying");
    let mountpoint = run.wasmvol("volume mount staying");
    let last_words = run.end();
    let named = format!("\n  staying at {}\n", mountpoint.display());
    for part in [named.as_str(), "15 s", "make run", "systemctl restart docker"] {
        assert!(last_words.contains(part), "{part} is not in {last_words}");
    }
}

#[test]
fn a_server_that_is_killed_is_started_again_with_what_it_had() {
    let run = Run::serving(&[]);
    run.wasmvol("volume create kept");
    let mountpoint = run.wasmvol("volume mount kept");
    for times in 1..=2 {
        run.kill_mountd();
        until("it is started again", READY, || {
            (run.said().matches("it is started again").count() == times).then_some(())
        });
        until("it answers", READY, || run.ask("status").status.success().then_some(()));
        assert_eq!(run.wasmvol("volume mount kept"), mountpoint);
    }
    let last_words = run.end();
    assert!(last_words.contains(mountpoint.to_str().unwrap()), "{last_words}");
}

#[test]
fn where_no_engine_would_see_a_mount_it_does_not_serve_and_says_why() {
    let mut run = Run::start(&["docker"], "unshare --mount --propagation private env");
    let status = until("it refuses", READY, || run.script.try_wait().unwrap());
    let said = run.said();
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("mount namespace of its own") && said.contains("make-rshared"), "{said}");
    assert!(!said.contains("wasmvol serves"), "{said}");
    assert!(!said.contains("Terminated"), "{said}");
}

#[test]
fn an_anchor_of_an_earlier_run_that_is_covered_is_not_waited_for() {
    // As where another /run was mounted over the one of an earlier run.
    let cover = "sh -c 'mkdir -p /run/wasmvol/mnt && mount -t tmpfs wasmvol-anchor /run/wasmvol/mnt && \
                 mount -t tmpfs -o mode=755 tmpfs /run/wasmvol && exec env \"$@\"' sh";
    let run = Run::start(&[], cover);
    run.wait_serving();
    run.end();
}

#[test]
fn the_tour_goes_to_its_end_and_leaves_nothing() {
    let tour = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo.sh");
    let said = shell(&tour.display().to_string(), &[]).ok();
    assert!(said.ends_with("done: nothing is left of this tour"), "{said}");
    let read = said.lines().filter(|line| *line == "written before the crash").count();
    assert_eq!(read, 2, "once while nothing serves, once when it serves again: {said}");
    let place = said.lines().find(|line| line.starts_with("/tmp/wasmvol-demo.")).unwrap();
    let place: PathBuf = Path::new(place).iter().take(3).collect();
    assert!(!place.exists(), "{} is left", place.display());
}
