//! `driver check --mount`: a volume of the driver made, mounted, used and removed for real, by a wasmvol of this process's own.
//!
//! The command runs itself again as the first process of a mount and a process namespace, which nothing of the machine is mounted from or
//! into and which the kernel takes away with it. There `wasmvol serve` is started over directories beneath one that is new, and asked as
//! any other: its mountd mounts, its daemon runs the driver without privileges. What a driver was granted, a server or a directory of the
//! host, is the machine's own.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tempfile::TempDir;
use wasmvol_driver::Reclaim;
use wasmvol_plan::DriverName;

use super::{Given, Secrets};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Changed, Create, Load, Volume};
use crate::cli::CliError;
use crate::cli::component::{Component, announce};
use crate::cli::output::Output;
use crate::conformance::{Finding, SERVED, Stop, Verdict};
use crate::volumes::options::Asked;

/// Tells the first process of the namespaces its directory.
const PLACE: &str = "WASMVOL_CHECK_PLACE";
/// What its directories are called.
const PREFIX: &str = "wasmvol-check-";
/// How long one that was made may be without its lock.
const UNLOCKED_MAX: Duration = Duration::from_secs(60);
/// How long a wasmvol may take to answer that loads no driver by itself.
const READY: Duration = Duration::from_secs(30);
/// How often it is asked until then.
const AGAIN: Duration = Duration::from_millis(10);
/// What is written: more than a page, and no round number.
const BYTES: usize = 100_003;
/// The volume's name.
const VOLUME: &str = "checked";
/// The file in it.
const FILE: &str = "wasmvol-check";

/// A new directory that only its owner can enter, and that goes when it is dropped. `TMPDIR` says on which disk. It is locked meanwhile.
pub(super) struct Directory {
    directory: TempDir,
    _lock: File,
}

impl Directory {
    pub(super) fn new() -> io::Result<Self> {
        sweep(&std::env::temp_dir());
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let lock = File::open(directory.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { directory, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what checks of this user have left that were killed: nobody locks it any more.
fn sweep(parent: &Path) {
    let is_left = |path: &Path| -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let about = directory.metadata()?;
        let age = about.modified()?.elapsed().unwrap_or_default();
        let is_own = about.uid() == rustix::process::geteuid().as_raw();
        Ok(is_own
            && age >= UNLOCKED_MAX
            && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok())
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && is_left(&entry.path()).unwrap_or(false)
        {
            // What cannot be removed now is found again.
            let _left = fs::remove_dir_all(entry.path());
        }
    }
}

/// The directory of this process, if it is the first one of namespaces that were made for it.
pub(super) fn place() -> Option<PathBuf> {
    let is_first = std::process::id() == 1;
    std::env::var_os(PLACE).filter(|_| is_first).map(PathBuf::from)
}

/// Does the same command again in namespaces of its own.
pub(super) fn enter() -> Result<ExitCode, CliError> {
    if !rustix::process::geteuid().is_root() {
        let why = "`--mount` mounts, so it needs root: try again with sudo, or without it";
        return Err(CliError::Refused(why.into()));
    }
    let program = std::env::current_exe().map_err(CliError::io("our own program"))?;
    let place = Directory::new().map_err(CliError::io("a directory for `--mount`"))?;
    // Whichever of them is killed, the rest goes with it.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(PLACE, place.path())
        .status()
        .map_err(CliError::io("`setpriv` and `unshare` of util-linux, which `--mount` needs"))?;
    let shown = place.path().display().to_string();
    place.directory.close().map_err(CliError::io(format!("`{shown}` stays")))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map(ExitCode::from).ok_or_else(|| CliError::Refused(format!("it was ended: {status}")))
}

type Step<'a> = fn(&mut Real<'a>) -> Result<String, Stop>;

/// What is done, in order. A volume that could not be used is removed all the same.
fn steps<'a>() -> [(&'static str, Step<'a>); 6] {
    [
        ("a wasmvol of its own loads it", Real::serve),
        ("a volume is made for real", Real::make),
        ("it is mounted", Real::mount),
        ("what is written is read back", Real::use_it),
        ("it is unmounted", Real::unmount),
        ("it is removed, and nothing is left", Real::remove),
    ]
}

/// What it is done with.
pub(super) struct What<'a> {
    pub(super) driver: DriverName,
    pub(super) component: &'a Component,
    pub(super) given: &'a Given,
    pub(super) asked: Asked,
    pub(super) secrets: Secrets,
    pub(super) output: &'a Output,
}

/// What it takes, and what there is by now.
struct Real<'a> {
    what: &'a What<'a>,
    place: &'a Path,
    /// Why no host could mount it.
    unserved: Option<&'a str>,
    service: Option<Service>,
    is_made: bool,
    mountpoint: Option<PathBuf>,
}

/// Goes through all steps, if `checks` have shown that it can be mounted.
pub(super) fn run(what: &What<'_>, place: &Path, checks: &[Finding]) -> Vec<Finding> {
    let served = checks.iter().find(|found| found.check == SERVED);
    let unserved = served.filter(|found| found.result != Verdict::Ok);
    let unserved = unserved.map(|found| found.detail.as_str());
    let (service, is_made, mountpoint) = (None, false, None);
    let mut real = Real { what, place, unserved, service, is_made, mountpoint };
    let each = steps().into_iter().map(|(check, step)| {
        let begin = Instant::now();
        let asked = step(&mut real);
        Finding::new(check, asked, begin.elapsed())
    });
    each.collect()
}

fn lacking(what: &str) -> Stop {
    Stop::Lacking(what.to_owned())
}

fn broken(error: ClientError) -> Stop {
    Stop::Broken(error.to_string())
}

/// An error of this machine's, and what it happened to.
fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Stop {
    move |error| Stop::Broken(format!("`{}`: {error}", path.display()))
}

impl Real<'_> {
    fn serve(&mut self) -> Result<String, Stop> {
        if let Some(why) = self.unserved {
            return Err(lacking(why));
        }
        let What { driver, component, given, secrets: kept, .. } = self.what;
        let (etc, state) = (self.place.join("etc"), self.place.join("state"));
        let secrets = state.join("secrets");
        for (path, mode) in [(&etc, 0o755), (&etc.join("grants.d"), 0o755), (&state, 0o755)] {
            make_directory(path, mode)?;
        }
        make_directory(&secrets, 0o700)?;
        write(&etc.join("wasmvol.toml"), b"", 0o644)?;
        let grants = given.grants.join("\n");
        write(&etc.join("grants.d").join(driver.as_str()), grants.as_bytes(), 0o644)?;
        for (name, secret) in kept {
            write(&secrets.join(name.as_str()), secret.file().expose(), 0o600)?;
        }
        let service = self.service.insert(Service::start(self.place)?);
        service.wait_ready()?;
        // Compiled again, by that daemon: what the suite has compiled a component could have changed that had got out of the sandbox
        // there, and as machine code it would be in the daemon, under the uid that the machine's own wasmvol has.
        let changed = Changed { settings: given.settings(), unset: Vec::new() };
        let load = Load { name: Some(driver.clone()), changed, origin: None };
        let mut body = serde_json::to_vec(&load).map_err(|e| broken(ClientError::Answer(e)))?;
        body.push(b'\n');
        body.extend(&component.bytes);
        announce(&component.bytes, self.what.output);
        service.client.post("/drivers", body).map_err(broken)?;
        Ok(String::new())
    }

    fn make(&mut self) -> Result<String, Stop> {
        let mut options = self.what.asked.given.clone();
        options.insert("driver".to_owned(), self.what.driver.to_string());
        if let Some(reclaim) = self.what.asked.reclaim {
            let text = if reclaim == Reclaim::Delete { "delete" } else { "retain" };
            options.insert("reclaim".to_owned(), text.to_owned());
        }
        let create = Create { name: VOLUME.to_owned(), options };
        let body = serde_json::to_vec(&create).map_err(|e| broken(ClientError::Answer(e)))?;
        let answer = self.client()?.post("/volumes", body).map_err(broken)?;
        self.is_made = true;
        let volume: Volume = parse(&answer).map_err(broken)?;
        let storage = volume.status.get("storage").and_then(serde_json::Value::as_str);
        Ok(format!("storage: {}", storage.unwrap_or_default()))
    }

    fn mount(&mut self) -> Result<String, Stop> {
        let path = format!("/volumes/{VOLUME}/mount");
        let answer = self.made()?.post(&path, "").map_err(broken)?;
        let volume: Volume = parse(&answer).map_err(broken)?;
        self.mountpoint = Some(volume.mountpoint.into());
        Ok(String::new())
    }

    /// The file goes again: a server or a directory of the host may keep it else.
    fn use_it(&mut self) -> Result<String, Stop> {
        let file = self.mounted()?.join(FILE);
        let bytes: Vec<u8> = (0..BYTES).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let written = File::create_new(&file).and_then(|mut created| {
            created.write_all(&bytes)?;
            created.sync_all()
        });
        match written {
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                return Err(lacking("it is read-only"));
            }
            written => written.map_err(io_at(&file))?,
        }
        let mut back = Vec::new();
        File::open(&file).and_then(|mut file| file.read_to_end(&mut back)).map_err(io_at(&file))?;
        fs::remove_file(&file).map_err(io_at(&file))?;
        if back != bytes {
            return Err(Stop::Broken("other bytes are read than were written".to_owned()));
        }
        Ok(format!("{BYTES} bytes"))
    }

    fn unmount(&mut self) -> Result<String, Stop> {
        self.mounted()?;
        self.made()?.post(&format!("/volumes/{VOLUME}/unmount"), "").map_err(broken)?;
        Ok(String::new())
    }

    fn remove(&mut self) -> Result<String, Stop> {
        let client = self.made()?;
        client.delete(&format!("/volumes/{VOLUME}")).map_err(broken)?;
        let left: Vec<Volume> = client.get("/volumes").and_then(|a| parse(&a)).map_err(broken)?;
        if !left.is_empty() {
            return Err(Stop::Broken("it is listed still".to_owned()));
        }
        if let Some(mountpoint) = &self.mountpoint
            && mountpoint.try_exists().map_err(io_at(mountpoint))?
        {
            return Err(Stop::Broken("its mountpoint is there still".to_owned()));
        }
        Ok(String::new())
    }

    fn client(&self) -> Result<&Client, Stop> {
        let service = self.service.as_ref().ok_or_else(|| lacking("it is not loaded"))?;
        Ok(&service.client)
    }

    fn made(&self) -> Result<&Client, Stop> {
        if self.is_made { self.client() } else { Err(lacking("no volume was made")) }
    }

    fn mounted(&self) -> Result<&Path, Stop> {
        self.mountpoint.as_deref().ok_or_else(|| lacking("it was not mounted"))
    }
}

/// A wasmvol that runs, until this is dropped.
struct Service {
    mountd: Child,
    client: Client,
    log: PathBuf,
}

impl Service {
    fn start(place: &Path) -> Result<Self, Stop> {
        let log = place.join("log");
        let file = File::create(&log).map_err(io_at(&log))?;
        let program = std::env::current_exe().map_err(io_at(Path::new("our own program")))?;
        let runtime = place.join("run");
        let mut serve = Command::new(&program);
        serve.arg("--runtime-dir").arg(&runtime).args(["serve", "--without-drivers"]);
        serve.arg("--config").arg(place.join("etc/wasmvol.toml"));
        serve.arg("--state-dir").arg(place.join("state"));
        serve.arg("--plugin-dir").arg(place.join("plugins"));
        // What a service manager or a shell meant for somebody else.
        let path = std::env::var_os("PATH").unwrap_or_default();
        serve.env_clear().env("PATH", path).stdin(Stdio::null());
        serve.stdout(file.try_clone().map_err(io_at(&log))?).stderr(file);
        let mountd = serve.spawn().map_err(io_at(&program))?;
        Ok(Self { mountd, client: Client::new(&runtime), log })
    }

    fn wait_ready(&mut self) -> Result<(), Stop> {
        let until = Instant::now() + READY;
        while let Err(error) = self.client.get("/status") {
            let has_ended = self.mountd.try_wait().is_ok_and(|status| status.is_some());
            if has_ended || Instant::now() > until {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().rfind(|line| !line.trim().is_empty());
                let why = last.map_or_else(|| error.to_string(), str::to_owned);
                return Err(Stop::Broken(format!("wasmvol does not start: {why}")));
            }
            std::thread::sleep(AGAIN);
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its daemon ends with it, and whatever else it started with the namespace.
        let _gone = self.mountd.kill().and_then(|()| self.mountd.wait());
    }
}

/// Whatever the caller's umask is.
fn make_directory(path: &Path, mode: u32) -> Result<(), Stop> {
    let made = DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode))).map_err(io_at(path))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Stop> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)
    });
    written.map_err(io_at(path))
}
