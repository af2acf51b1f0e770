//! What volumes of every kind stand on: directories to grant, a btrfs, an SSH server; and the same file systems mounted by hand.
//!
//! Made once for a run, beneath its directories. What is mounted by hand is unmounted by who asked for it, or by `tests/bench.sh`.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::instance::{Instance, mortal};
use crate::{Places, Result};

/// How long sshd may take to listen, and how often that is looked at.
const LISTENING: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The kinds that need no other machine.
pub(crate) const DRIVERS: [&str; 7] =
    ["local", "vfs", "tmpfs", "overlay", "image", "btrfs", "sshfs"];

/// Mounted by hand at `$1`, with the disk's directory `$2` for what it needs; SSH by `$3`, the port, and `$4`, the server's directory.
/// Each as wasmvol does it, and as its manual page says.
const BY_HAND: [(&str, &str); 7] = [
    ("local", r#"mkdir "$2" && ln -s "$2" "$1""#),
    ("vfs", r#"mkdir "$2" && ln -s "$2" "$1""#),
    ("tmpfs", r#"mkdir "$1" && mount -t tmpfs -o size=256m bare "$1""#),
    (
        "overlay",
        r#"mkdir "$1" "$2" "$2/lower" "$2/upper" "$2/work"
           mount -t overlay -o "lowerdir=$2/lower,upperdir=$2/upper,workdir=$2/work" bare "$1""#,
    ),
    (
        "image",
        r#"mkdir "$1" && fallocate -l 256M "$2"
           device=$(losetup --find --show --direct-io=on --sector-size 4096 "$2")
           mkfs.ext4 -q -F -b 4096 -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "$device"
           mount -o noinit_itable "$device" "$1"
           losetup --detach "$device""#,
    ),
    ("btrfs", r#"btrfs subvolume create "$2" >/dev/null && ln -s "$2" "$1""#),
    (
        "sshfs",
        r#"mkdir "$1" && sshfs "root@127.0.0.1:$4/served" "$1" -p "$3" -F /dev/null \
           -o reconnect,allow_other,default_permissions,BatchMode=yes,StrictHostKeyChecking=yes \
           -o "IdentityFile=$4/user,UserKnownHostsFile=$4/known,ServerAliveInterval=15""#,
    ),
];

/// All of it.
pub(crate) struct Ground {
    /// A wasmvol whose state is on the btrfs.
    pub(crate) on_btrfs: Instance,
    /// On the disk.
    disk: PathBuf,
    btrfs: PathBuf,
    /// Where what is mounted by hand appears.
    places: PathBuf,
    sshd: Sshd,
}

impl Ground {
    pub(crate) fn make(at: &Places) -> Result<Self> {
        let (disk, places) = (at.state.join("ground"), at.runtime.join("by-hand"));
        let btrfs = at.runtime.join("btrfs");
        for directory in [&disk, &places, &btrfs, &disk.join("root/lower")] {
            fs::create_dir_all(directory)?;
        }
        let make = r#"truncate -s 8G "$1" && mkfs.btrfs -q "$1" >/dev/null 2>&1 && mount -o loop "$1" "$2""#;
        shell(make, &[&disk.join("btrfs"), &btrfs])?;
        let sshd = Sshd::start(&disk.join("ssh"))?;
        let at = Places { state: btrfs.clone(), runtime: at.runtime.clone() };
        let on_btrfs = Instance::start(&at, "on-btrfs")?;
        Ok(Self { on_btrfs, disk, btrfs, places, sshd })
    }

    /// Grants the drivers of a wasmvol all of it; for named directories a root of its own, else each would find those of the others.
    pub(crate) fn grant(&self, instance: &Instance, name: &str) -> Result<()> {
        let root = self.disk.join("root");
        let of_vfs = root.join(name);
        fs::create_dir(&of_vfs)?;
        let grant = |directory: &Path| format!("host-directory={}", directory.display());
        for (driver, line) in [
            ("vfs", grant(&of_vfs).as_str()),
            ("overlay", &grant(&root)),
            ("image", "image"),
            ("sshfs", "program=sshfs"),
        ] {
            instance.grant(driver, line)?;
        }
        instance.secret("key", "sshfs", "127.0.0.1", &self.sshd.dir.join("user"))
    }

    /// The body of a Create.
    pub(crate) fn create(&self, name: &str, driver: &str, image: &str) -> Result<String> {
        let text = |path: &Path| path.display().to_string();
        let options = match driver {
            "tmpfs" => vec![("size", "256m".to_owned())],
            // Else what is removed stays.
            "vfs" => vec![("reclaim", "delete".to_owned())],
            "overlay" => vec![("lower", text(&self.disk.join("root/lower")))],
            "image" => vec![("size", image.to_owned())],
            "sshfs" => vec![
                ("host", "127.0.0.1".to_owned()),
                ("port", self.sshd.port.to_string()),
                ("path", text(&self.sshd.dir.join("served"))),
                ("host-key", fs::read_to_string(self.sshd.dir.join("host.pub"))?.trim().to_owned()),
                ("key", "key".to_owned()),
            ],
            _ => Vec::new(),
        };
        let mut given = Map::from_iter([("driver".to_owned(), json!(driver))]);
        given.extend(options.into_iter().map(|(key, value)| (key.to_owned(), json!(value))));
        Ok(json!({ "Name": name, "Opts": Value::Object(given) }).to_string())
    }

    /// Mounts the same file system as a driver by hand, and answers where.
    pub(crate) fn by_hand(&self, driver: &str) -> Result<PathBuf> {
        let line = BY_HAND.iter().find(|(other, _)| *other == driver).map(|(_, line)| line);
        let line = line.ok_or_else(|| format!("nobody knows how to mount a {driver} by hand"))?;
        let (place, disk) = (self.places.join(driver), self.disk.join(driver));
        // The same file system that the volume lies on.
        let disk = if driver == "btrfs" { self.btrfs.join("by-hand") } else { disk };
        let port = PathBuf::from(self.sshd.port.to_string());
        shell(line, &[&place, &disk, &port, &self.sshd.dir])?;
        Ok(place)
    }
}

/// An SSH server of the run's own, with a directory that it serves.
struct Sshd {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Sshd {
    fn start(dir: &Path) -> Result<Self> {
        let make = r#"mkdir -p "$1/served" /run/sshd && for key in host user; do
            ssh-keygen -q -t ed25519 -N "" -f "$1/$key"; done"#;
        shell(make, &[dir])?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = dir.display();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        );
        fs::write(dir.join("config"), config)?;
        let key = fs::read_to_string(dir.join("host.pub"))?;
        fs::write(dir.join("known"), format!("* {key}"))?;
        let mut server = mortal(Path::new("/usr/sbin/sshd"));
        server.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let sshd = Self { dir: dir.to_owned(), port, child };
        let end = Instant::now() + LISTENING;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end {
                return Err("sshd does not listen".into());
            }
            sleep(LOOK_AGAIN);
        }
        Ok(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended by itself, and the run is over anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a line of shell with these as its arguments, up to the first thing that fails.
fn shell(line: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-euc", line, "by-hand"]).args(arguments).stdin(Stdio::null());
    if command.status()?.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}
