//! What volumes of every kind stand on: directories to grant, a btrfs, servers; and the same file systems mounted by hand.
//!
//! Made once for a run, beneath its directories. What is mounted by hand is unmounted by who asked for it, or by `tests/bench.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::instance::Instance;
use crate::servers::Server;
use crate::{Places, Result};

/// The kinds that need no other machine.
pub(crate) const DRIVERS: [&str; 8] =
    ["local", "vfs", "tmpfs", "overlay", "image", "btrfs", "sshfs", "rclone"];

/// Whether a program serves it, which asks a server for each file.
pub(crate) fn is_served(driver: &str) -> bool {
    matches!(driver, "sshfs" | "rclone")
}

/// Mounted by hand at `$1`, with the disk's directory `$2` for what it needs; a program's by `$3`, the port, and `$4`, the directory of
/// its server. Each as wasmvol does it, and as its manual page says.
const BY_HAND: [(&str, &str); 8] = [
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
    (
        "rclone",
        // In a session of its own, as ours is: the kernel shares the processors out by session, and this one is busy measuring.
        r#"mkdir "$1" && setsid --wait rclone mount dav:by-hand "$1" --daemon --config "$4/rclone.conf" --cache-dir "$2" \
           --allow-other --default-permissions --umask 0 --vfs-cache-mode writes --vfs-cache-max-size 1G \
           --vfs-write-back 1h"#,
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
    sshd: Server,
    webdav: Server,
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
        let sshd = Server::sshd(&disk.join("ssh"))?;
        let webdav = Server::webdav(&disk.join("webdav"))?;
        let at = Places { state: btrfs.clone(), runtime: at.runtime.clone() };
        let on_btrfs = Instance::start(&at, "on-btrfs")?;
        Ok(Self { on_btrfs, disk, btrfs, places, sshd, webdav })
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
            ("rclone", "program=rclone"),
        ] {
            instance.grant(driver, line)?;
        }
        instance.secret("remotes", "rclone", None, &self.webdav.dir.join("rclone.conf"))?;
        instance.secret("key", "sshfs", Some("127.0.0.1"), &self.sshd.dir.join("user"))
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
                ("path", text(&self.sshd.served())),
                ("host-key", fs::read_to_string(self.sshd.dir.join("host.pub"))?.trim().to_owned()),
                ("key", "key".to_owned()),
            ],
            "rclone" => vec![
                ("remote", "dav:own".to_owned()),
                ("config", "remotes".to_owned()),
                // A file that is deleted while it is being uploaded is an error of rclone 1.60's own, by hand too: none of ours is
                // there for long enough to be uploaded.
                ("write-back", "1h".to_owned()),
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
        let server = if driver == "rclone" { &self.webdav } else { &self.sshd };
        let port = PathBuf::from(server.port.to_string());
        shell(line, &[&place, &disk, &port, &server.dir])?;
        Ok(place)
    }
}

/// Runs a line of shell with these as its arguments, up to the first thing that fails.
pub(crate) fn shell(line: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-euc", line, "by-hand"]).args(arguments).stdin(Stdio::null());
    if command.status()?.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}
