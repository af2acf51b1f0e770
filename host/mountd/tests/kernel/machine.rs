//! A machine for one test: a mount namespace, directories, and a mountd in it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, test_kill_process};
use wasmvol_plan::frame::{Frame, Inventory, Mount};
use wasmvol_plan::{
    Directory, DriverName, Facts, Fault, Id, Owner, Plan, Release, Reply, Request, Source, Storage,
    Tmpfs,
};

use crate::relay::receive;

/// The daemon's uid in these tests.
pub(crate) const UID: u32 = 64817;
/// Waiting for something that will happen: only a broken program reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

static MACHINES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Machine {
    pub(crate) dir: PathBuf,
    /// Keeps the namespace while no mountd runs.
    init: Child,
    pub(crate) mountd: Option<Child>,
    stream: Option<UnixStream>,
    number: u64,
    /// The open file that came with the last answer.
    file: Option<OwnedFd>,
}

impl Machine {
    /// A machine with a mountd that answers.
    pub(crate) fn start() -> Self {
        let mut machine = Self::empty();
        machine.boot(&[]);
        machine
    }

    /// A machine on which nothing runs yet.
    pub(crate) fn empty() -> Self {
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("mountd-{}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let dir = dir.canonicalize().unwrap();
        let mut init = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
            ])
            .arg("mount --make-rshared / && echo up && exec sleep infinity")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        init.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        Self { dir, init, mountd: None, stream: None, number: 0, file: None }
    }

    /// A command in the machine's namespace.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.init.id().to_string(), "setpriv", "--pdeathsig", "KILL"]);
        command.arg(program);
        command
    }

    /// A shell line that starts in the machine's directory: to enter a namespace leads to its root.
    fn at_home(&self, line: &str) -> String {
        format!("cd {} && {line}", self.dir.display())
    }

    /// Runs a shell line in the machine's namespace and answers whether it succeeded.
    pub(crate) fn sh(&self, line: &str) -> bool {
        let mut command = self.command("sh");
        command.arg("-c").arg(self.at_home(line)).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// The command line that `wasmvol serve` would write.
    pub(crate) fn mountd(&self) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_wasmvol-mountd"));
        let dir = |name: &str| self.dir.join(name);
        command.arg("--daemon").arg(std::env::current_exe().unwrap());
        command.arg("--state-dir").arg(dir("state")).arg("--runtime-dir").arg(dir("run"));
        command.arg("--config-dir").arg(dir("etc"));
        command.args(["--uid", &UID.to_string(), "--gid", &UID.to_string(), "--plugin"]);
        command.arg(format!("wasmvol={}", dir("plugins/wasmvol.sock").display()));
        command.arg("--admin").arg(dir("run/admin.sock"));
        command.env_remove("WASMVOL_KILL_AT");
        command
    }

    /// Starts mountd, with variables in its environment, and waits until it answers.
    pub(crate) fn boot(&mut self, env: &[(&str, &str)]) {
        self.stream = None;
        self.mountd = Some(self.mountd().envs(env.iter().copied()).spawn().unwrap());
        self.survey(Inventory::Mounts);
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.mountd.as_ref().unwrap())
    }

    /// The process number of the running daemon.
    pub(crate) fn daemon(&self) -> Pid {
        let pid = self.pid().as_raw_nonzero();
        eventually("a daemon runs", || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().find_map(|child| {
                let line = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
                if line.starts_with("wasmvol\0daemon") {
                    Pid::from_raw(child.parse().ok()?)
                } else {
                    None
                }
            })
        })
    }

    /// Kills mountd as `kill -9` does and waits for its end and the daemon's.
    pub(crate) fn kill(&mut self) {
        let daemon = self.daemon();
        rustix::process::kill_process(self.pid(), Signal::KILL).unwrap();
        self.mountd.take().unwrap().wait().unwrap();
        gone(daemon);
    }

    /// A path as the machine sees it.
    pub(crate) fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.dir.join(path);
        Path::new(&format!("/proc/{}/root", self.init.id())).join(path.strip_prefix("/").unwrap())
    }

    /// A volume's mountpoint as the machine sees it.
    pub(crate) fn volume(&self, id: Id) -> PathBuf {
        self.inside(format!("run/mnt/{id}"))
    }

    /// The lines of the machine's mountinfo for a volume's mountpoint.
    pub(crate) fn lines(&self, id: Id) -> Vec<String> {
        let point = format!(" {} ", self.dir.join(format!("run/mnt/{id}")).display());
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.init.id())).unwrap();
        text.lines().filter(|line| line.contains(&point)).map(str::to_owned).collect()
    }

    /// Sends bytes as one frame and reads one.
    pub(crate) fn raw(&mut self, frame: &[u8]) -> Frame<Reply> {
        let socket = self.dir.join("plugins/wasmvol.sock");
        let connect = || UnixStream::connect(&socket).ok();
        let stream = self.stream.get_or_insert_with(|| eventually("the socket is there", connect));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&u32::try_from(frame.len()).unwrap().to_ne_bytes()).unwrap();
        stream.write_all(frame).unwrap();
        let (answer, file) = read(stream).expect("mountd answers");
        self.file = file;
        answer
    }

    /// Asks one thing.
    pub(crate) fn ask(&mut self, body: Request) -> Reply {
        self.number += 1;
        let reply = self.raw(&Frame { number: self.number, body }.encode().unwrap());
        assert_eq!(reply.number, self.number);
        reply.body
    }

    /// Asks many things at once; the answers in the order of the requests.
    pub(crate) fn ask_all(&mut self, bodies: Vec<Request>) -> Vec<Reply> {
        let stream = self.stream.as_mut().unwrap();
        let count = bodies.len();
        for (number, body) in (0..).zip(bodies) {
            let frame = Frame { number, body }.encode().unwrap();
            stream.write_all(&u32::try_from(frame.len()).unwrap().to_ne_bytes()).unwrap();
            stream.write_all(&frame).unwrap();
        }
        let mut replies: Vec<_> =
            (0..count).map(|_| read(stream).expect("mountd answers").0).collect();
        replies.sort_by_key(|reply| reply.number);
        replies.into_iter().map(|reply| reply.body).collect()
    }

    /// Asks one thing of a mountd that may be killed by it: then there is no answer.
    pub(crate) fn try_ask(&mut self, body: Request) -> Option<Reply> {
        let daemon = self.daemon();
        let frame = Frame { number: 1, body }.encode().unwrap();
        let stream = self.stream.as_mut().unwrap();
        stream.write_all(&u32::try_from(frame.len()).unwrap().to_ne_bytes()).unwrap();
        stream.write_all(&frame).unwrap();
        let reply = read(stream).map(|(frame, _)| frame.body);
        if reply.is_none() {
            self.mountd.take().unwrap().wait().unwrap();
            gone(daemon);
        }
        reply
    }

    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
    }

    pub(crate) fn survey(&mut self, kind: Inventory) -> (Vec<Id>, Vec<String>) {
        match self.ask(Request::Survey { kind, after: None }) {
            Reply::Surveyed { entries, strangers, more: false } => {
                (entries.into_iter().map(|(id, _)| id).collect(), strangers)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn make(&mut self, id: Id, owner: Owner) {
        let storage = Storage::Directory(Directory { owner, limit: None, over: None });
        assert_eq!(self.ask(make(id, storage)), Reply::Made);
    }

    /// Opens the root of new storage as its driver gets it.
    pub(crate) fn fill(&mut self, id: Id, storage: &Storage) -> Result<OwnedFd, Fault> {
        match self.ask(Request::Fill { id, driver: driver(), storage: storage.clone() }) {
            Reply::Opened => Ok(self.file.take().expect("the root comes with the answer")),
            Reply::Failed(fault) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    /// Has taken over what was filled in.
    pub(crate) fn settle(&mut self, id: Id, storage: &Storage) -> Result<(), Fault> {
        match self.ask(Request::Settle { id, driver: driver(), storage: storage.clone() }) {
            Reply::Settled => Ok(()),
            Reply::Failed(fault) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn mount(&mut self, id: Id, plan: Plan) -> Result<Facts, Fault> {
        self.mount_for(id, plan, None, None)
    }

    pub(crate) fn mount_for(
        &mut self,
        id: Id,
        plan: Plan,
        peer: Option<u32>,
        last: Option<Facts>,
    ) -> Result<Facts, Fault> {
        match self.ask(mount_request(id, plan, peer, last)) {
            Reply::Mounted(facts) => Ok(facts),
            Reply::Failed(fault) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn unmount(&mut self, id: Id) -> Release {
        match self.ask(Request::Unmount { id, attached: None }) {
            Reply::Unmounted(release) => release,
            other => panic!("{other:?}"),
        }
    }

    /// A container that has the volume at `/mnt`; it ends when it is dropped.
    pub(crate) fn container(&self, id: Id) -> Container {
        self.namespace("slave", &format!("mount --bind run/mnt/{id} /mnt"))
    }

    /// A process in a copy of the machine's mount namespace that has run a shell line there.
    pub(crate) fn namespace(&self, propagation: &str, line: &str) -> Container {
        self.unshare(&["--mount", "--propagation", propagation], line)
    }

    /// The same in a user namespace of its own.
    pub(crate) fn user_namespace(&self, line: &str) -> Container {
        self.unshare(&["--user", "--map-root-user", "--mount"], line)
    }

    fn unshare(&self, flags: &[&str], line: &str) -> Container {
        let line = self.at_home(&format!("{line} && echo up && exec sleep infinity"));
        let mut command = self.command("unshare");
        let mut child =
            command.args(flags).args(["sh", "-c", &line]).stdout(Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).expect("the line succeeds");
        Container(child)
    }
}

fn read(stream: &mut UnixStream) -> Option<(Frame<Reply>, Option<OwnedFd>)> {
    let mut length = [0; 4];
    let (_, file) = receive(&*stream, &mut length).ok().filter(|(read, _)| *read == 4)?;
    let mut frame = vec![0; u32::from_ne_bytes(length) as usize];
    stream.read_exact(&mut frame).ok()?;
    Some((Frame::decode(&frame).unwrap(), file))
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.mountd.iter_mut().chain([&mut self.init]) {
            let _ended = child.kill();
            child.wait().unwrap();
        }
        let _immutable_is_the_tests =
            Command::new("chattr").args(["-R", "-i"]).arg(&self.dir).stderr(Stdio::null()).status();
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A process in a mount namespace of its own.
pub(crate) struct Container(Child);

impl Container {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs a shell line in it and answers whether it succeeded.
    pub(crate) fn sh(&self, line: &str) -> bool {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.pid().to_string(), "sh", "-c", line]);
        command.stderr(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Waits for an event that has no message: polls until it is there.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn gone(process: Pid) {
    eventually("the process ends", || test_kill_process(process).is_err().then_some(()));
}

pub(crate) fn driver() -> DriverName {
    DriverName::parse("local").unwrap()
}

pub(crate) fn id(number: u128) -> Id {
    Id::from_bits(number)
}

pub(crate) const OWNER: Owner = Owner { uid: 1000, gid: 1001, mode: 0o2750 };

pub(crate) fn directory() -> Storage {
    Storage::Directory(Directory { owner: OWNER, limit: None, over: None })
}

/// A plan that mounts the volume's directory.
pub(crate) fn plain() -> Plan {
    Plan { source: Source::Storage, read_only: false, no_exec: false, subpath: None, id_map: None }
}

/// A plan that mounts a tmpfs of one MiB.
pub(crate) fn tmpfs() -> Plan {
    let source = Source::Tmpfs(Tmpfs { size: Some(1 << 20), inodes: Some(100), owner: OWNER });
    Plan { source, ..plain() }
}

pub(crate) fn make(id: Id, storage: Storage) -> Request {
    Request::Make { id, driver: driver(), storage, note: Vec::new() }
}

/// Of a volume that [`make`] has made of [`directory`].
pub(crate) fn trash(id: Id) -> Request {
    Request::Trash { id, driver: driver(), storage: directory() }
}

pub(crate) fn mount_request(id: Id, plan: Plan, peer: Option<u32>, last: Option<Facts>) -> Request {
    Request::Mount(Box::new(Mount { id, driver: driver(), storage: directory(), plan, peer, last }))
}
