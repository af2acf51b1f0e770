//! What every test stands on: a place on disk, programs that die with the test run, and waiting with a deadline.
//!
//! Nothing outlives a run, however it ends. Engines live in a [`machine`], whose processes and mounts the kernel takes away with
//! its init. Other programs get SIGKILL when this process ends. What is left of mounts, control groups and files is cleared by
//! the janitor, a shell that waits for the end of its input.

pub(crate) mod canary;
pub(crate) mod container;
pub(crate) mod docker;
pub(crate) mod ec2;
pub(crate) mod engine;
pub(crate) mod git;
pub(crate) mod gluster;
pub(crate) mod loops;
pub(crate) mod machine;
pub(crate) mod moto;
pub(crate) mod mounts;
pub(crate) mod pair;
pub(crate) mod plugin;
pub(crate) mod podman;
pub(crate) mod programs;
pub(crate) mod registry;
pub(crate) mod s3;
pub(crate) mod shelf;
pub(crate) mod sshd;
pub(crate) mod wasmvol;
pub(crate) mod webdav;

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Longest that a command may take: a hang becomes a failure. dockerd's own longest wait is 120 s, and what builds a driver may download.
const COMMAND_DEADLINE: Duration = Duration::from_secs(300);
/// What settles by itself does so within seconds, or in one slow round of the daemon's, 30 s; only a broken program reaches this.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, deadline: Duration, look: impl FnMut() -> Option<T>) -> T {
    let found = try_until(deadline, look);
    found.unwrap_or_else(|| panic!("waited {} s in vain: {what}", deadline.as_secs()))
}

/// Waits until `look` finds something, or until the deadline.
pub(crate) fn try_until<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Copies a program that is run afterwards. In a process of its own: a child that another thread forks meanwhile would have the copy
/// open for writing, and who starts it would be told that the file is busy.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "`{}` cannot be copied: {status}", from.display());
}

/// A directory of one test, gone when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory, open to root alone, as root's home is.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = GROUND.root.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a directory in it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        mounts::clear(&self.0);
        // What cannot be deleted now is the janitor's: a drop must not hide why a test failed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A path where any user may make and remove a file: for what the daemon does under its own user.
pub(crate) fn open_to_all(name: &str) -> PathBuf {
    let dir = GROUND.root.join("open");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    dir.join(name)
}

/// An address of this machine for one server of a test's. With one of its own it can have any port, also one below those that the kernel
/// hands out: else another test could get that port before the server does, or who waits for the server could connect to itself.
pub(crate) fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert_ne!(number, u8::MAX, "more servers than this run has addresses for");
    // Another run of this machine has another part of them.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, number)
}

/// The name of this run's control groups.
pub(crate) fn cgroup() -> &'static str {
    &GROUND.cgroup
}

/// What every test shares. Made once; taken away by the janitor.
struct Ground {
    root: PathBuf,
    cgroup: String,
    /// Its input is closed by the kernel when this process ends; then it begins.
    _janitor: Child,
    spawner: Mutex<mpsc::Sender<Job>>,
}

/// One program to start, and where its handle goes.
type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    check_namespace();
    let name = format!("wasmvol-it-{}", std::process::id());
    let root = std::env::temp_dir().join(&name);
    fs::create_dir(&root).unwrap();
    let janitor = Command::new("setsid")
        .args(["bash", "-c", JANITOR, "janitor"])
        .arg(&root)
        .arg(&name)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in jobs {
            answer.send(command.spawn()).unwrap();
        }
    });
    Ground { root, cgroup: name, _janitor: janitor, spawner: Mutex::new(sender) }
});

/// Clears what a run left, after its end; gives up after half a minute.
const JANITOR: &str = r#"
read -r _
mounts() { awk -v under="$1/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | tac; }
for _ in $(seq 300); do
    mounts "$1" | while read -r mount; do umount "$mount"; done
    find /sys/fs/cgroup -depth -type d -path "*/$2*" -exec rmdir {} +
    [ -z "$(mounts "$1")" ] && rm -rf --one-file-system "$1" && exit
    sleep 0.1
done
"#;

/// Refuses to run where mounts could leak into the machine or would not reach a dockerd.
fn check_namespace() {
    const CURE: &str = "run the tests with `make test`, or as root: unshare -m --propagation private \
                        sh -c 'mount --make-rshared / && exec cargo test --release -p wasmvol-tests'";
    assert!(rustix::process::geteuid().is_root(), "not root: {CURE}");
    // Init may have capabilities that this process lacks; then its namespace cannot be read, and the next question decides.
    let of_init = fs::read_link("/proc/1/ns/mnt").ok();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert!(of_init != Some(own), "this is the machine's own mount namespace: {CURE}");
    let shared = mounts::all().iter().any(|m| m.path == "/" && m.is_shared);
    assert!(shared, "the root mount of this namespace is not shared: {CURE}");
}

/// A command that is killed when the test run ends, however that ends.
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Starts a program from a thread that lives as long as the run: the kernel sends the death signal of [`mortal`] when the
/// *thread* that started the program ends, and a test's thread ends with the test.
pub(crate) fn spawn(command: Command) -> Child {
    let (answer, child) = mpsc::channel();
    GROUND.spawner.lock().unwrap().send((command, answer)).unwrap();
    child.recv().unwrap().unwrap()
}

/// How a command ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) line: String,
    /// None: killed by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What the command printed; it must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "`{}` failed: {}{}", self.line, self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// What the command complained of; it must have failed.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_ne!(self.code, Some(0), "`{}` succeeded: {}", self.line, self.stdout);
        self.stderr.trim_end().to_owned()
    }
}

/// Runs a line of shell with these variables to its end.
pub(crate) fn shell(line: &str, variables: &[(&str, OsString)]) -> Outcome {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=1").arg(COMMAND_DEADLINE.as_secs().to_string());
    command.args(["sh", "-c", line]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    outcome(line, &mut command)
}

/// Runs a command to its end.
pub(crate) fn outcome(line: &str, command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Outcome {
        line: line.to_owned(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A file system that nothing is written to until this goes.
pub(crate) struct Frozen(PathBuf);

impl Frozen {
    pub(crate) fn new(place: PathBuf) -> Self {
        assert!(Command::new("fsfreeze").arg("-f").arg(&place).status().unwrap().success());
        Self(place)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _thawed = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}
