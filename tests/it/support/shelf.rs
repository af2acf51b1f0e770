//! A wasmvol whose drivers have all that an operator can grant them, over one directory of the host; and what would be left of a volume
//! that should not have been made.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::wasmvol::{PROGRAMS, Wasmvol};
use super::{SOON, Scratch, until};

/// Options of a driver.
pub(crate) type Options<'a> = &'a [(&'a str, &'a str)];

/// What each driver takes and needs, where nothing else is said: a volume of each can be created.
const USUAL: [(&str, Options<'_>); 13] = [
    ("local", &[]),
    ("tmpfs", &[]),
    ("vfs", &[("reclaim", "delete")]),
    ("overlay", &[("lower", "ROOT/a")]),
    ("image", &[("size", "8m")]),
    ("btrfs", &[]),
    ("nfs", &[("server", "127.0.0.1"), ("export", "/srv")]),
    ("cifs", &[("server", "127.0.0.1"), ("share", "team")]),
    ("sshfs", &[("host", "127.0.0.1"), ("path", "/srv"), ("host-key", KEY), ("key", "key")]),
    ("s3fs", &[("bucket", "data"), ("endpoint", "http://127.0.0.1:1"), ("secret", "key")]),
    ("rclone", &[("remote", "nas:data"), ("config", "remotes")]),
    ("glusterfs", &[("servers", "127.0.0.1"), ("volume", "data")]),
    ("rogue", &[]),
];
/// A key that no server has.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE";

/// Such a wasmvol.
pub(crate) struct Shelf {
    pub(crate) wasmvol: Wasmvol,
    host: Scratch,
}

/// All that a volume could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    listed: Vec<String>,
    mounted: Vec<String>,
    storage: Vec<String>,
    loops: usize,
    programs: Vec<String>,
    granted: Vec<PathBuf>,
    troubles: Value,
}

impl Shelf {
    pub(crate) fn start() -> Self {
        let mut wasmvol = Wasmvol::install();
        wasmvol.run();
        Self::of(wasmvol)
    }

    /// Grants all of it to the drivers of a wasmvol that runs.
    pub(crate) fn of(wasmvol: Wasmvol) -> Self {
        let host = Scratch::new();
        fs::write(host.dir("root/a/deep").join("inside"), "").unwrap();
        let shelf = Self { wasmvol, host };
        let root = shelf.root().display().to_string();
        let directory = format!("host-directory={root}");
        let shares = ["nfs", "nfs4", "cifs"].map(|kind| format!("share={kind}:127.0.0.1"));
        let [nfs, nfs4, cifs] = &shares;
        let image = "image".to_owned();
        let grants: [(&str, &[&String]); 6] = [
            ("local", &[&directory, nfs, nfs4, cifs]),
            ("vfs", &[&directory]),
            ("overlay", &[&directory]),
            ("image", &[&image]),
            ("nfs", &[nfs, nfs4]),
            ("cifs", &[cifs]),
        ];
        for (driver, grants) in grants {
            shelf.grant(driver, grants);
        }
        for program in ["sshfs", "rclone", "s3fs", "glusterfs"] {
            shelf.grant(program, &[&format!("program={program}")]);
        }
        shelf.secret("key", "--driver sshfs --driver s3fs --peer 127.0.0.0/8");
        // One that names servers itself is for no other.
        shelf.wasmvol.shell("echo '[nas]' | wasmvol secret set remotes --driver rclone").ok();
        // A root has its markers and its trash from its first volume on.
        let plugin = shelf.wasmvol.plugin();
        plugin.create("first", &[("driver", "vfs"), ("reclaim", "delete")]).unwrap();
        plugin.remove("first").unwrap();
        let trash = shelf.root().join(".wasmvol-trash");
        until("the first one is deleted", SOON, || tree(&trash).is_empty().then_some(()));
        shelf
    }

    fn grant(&self, driver: &str, grants: &[&String]) {
        let component = PROGRAMS.parent().unwrap().join(format!("drivers/{driver}.wasm"));
        let grants: String = grants.iter().map(|grant| format!(" --grant {grant}")).collect();
        self.wasmvol.cli(&format!("driver load {}{grants}", component.display())).ok();
    }

    /// The directory that is granted; it has `a/deep` with a file `inside`.
    pub(crate) fn root(&self) -> PathBuf {
        self.host.path().join("root")
    }

    /// A directory beside it, which is not.
    pub(crate) fn outside(&self) -> PathBuf {
        self.host.dir("outside")
    }

    /// Keeps a line of text under a name.
    pub(crate) fn secret(&self, name: &str, whom: &str) {
        let line = format!("echo 'open sesame' | wasmvol secret set {name} {whom}");
        self.wasmvol.shell(&line).ok();
    }

    /// The usual options of a driver with these in their place or beside them; `ROOT` in a value is the granted directory.
    pub(crate) fn options(&self, driver: &str, more: Options<'_>) -> Vec<(String, String)> {
        let (_, usual) = USUAL.iter().find(|(other, _)| *other == driver).unwrap();
        let replaced = |(key, _): &&(&str, &str)| !more.iter().any(|(other, _)| other == key);
        let root = self.root().display().to_string();
        [("driver", driver)]
            .iter()
            .chain(usual.iter().filter(replaced))
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), value.replace("ROOT", &root)))
            .collect()
    }

    pub(crate) fn create(&self, name: &str, driver: &str, more: Options<'_>) -> Result<(), String> {
        let options = self.options(driver, more);
        let options: Vec<_> = options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.wasmvol.plugin().create(name, &options)
    }

    /// What a driver with these options is refused with, at Create or else at Mount. The error must be a line for people, and nothing may
    /// be left.
    #[track_caller]
    pub(crate) fn refused(&self, driver: &str, more: Options<'_>) -> String {
        const NAME: &str = "bad-input";
        let plugin = self.wasmvol.plugin();
        // What an earlier volume has left goes by itself.
        self.wasmvol.wait_reaped();
        let before = self.traces();
        let error = match self.create(NAME, driver, more) {
            Err(error) => error,
            Ok(()) => {
                let Err(error) = plugin.mount(NAME, "id") else {
                    panic!("{driver} {more:?} was mounted")
                };
                assert!(!self.wasmvol.is_mounted(NAME), "{driver} {more:?}: {error}");
                plugin.remove(NAME).unwrap();
                error
            }
        };
        self.left_as(&before);
        assert_is_a_line(&error);
        let repeats_it = error.contains(&format!("volume `{NAME}`"));
        assert!(!repeats_it, "the engine says the volume's name already: {error}");
        error
    }

    /// Waits until what is undone in the background is, and compares.
    #[track_caller]
    fn left_as(&self, before: &Traces) {
        let is_same = || (self.traces() == *before).then_some(());
        if super::try_until(SOON, is_same).is_none() {
            assert_eq!(self.traces(), *before);
        }
    }

    fn traces(&self) -> Traces {
        let wasmvol = &self.wasmvol;
        let storage = ["volumes", "trash"].map(|place| wasmvol.entries(place)).concat();
        let mounted = wasmvol.volume_mounts().into_iter().map(|mount| mount.path).collect();
        let programs = fs::read_dir(wasmvol.runtime().join("programs")).into_iter().flatten();
        Traces {
            listed: wasmvol.plugin().list(),
            mounted,
            storage,
            loops: loops(&wasmvol.state()),
            programs: programs.map(|e| e.unwrap().file_name().into_string().unwrap()).collect(),
            granted: tree(&self.root()),
            troubles: wasmvol.json("status")["troubles"].clone(),
        }
    }
}

/// An error as ARCHITECTURE.md wants it.
#[track_caller]
pub(crate) fn assert_is_a_line(error: &str) {
    assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
    assert!(!error.starts_with(char::is_uppercase), "an error begins in lower case: {error}");
    assert!(!error.ends_with('.'), "an error has no full stop: {error}");
    assert!(!error.contains("VolumeDriver"), "an engine says the verb already: {error}");
}

/// The loop devices whose files lie beneath a directory.
pub(crate) fn loops(beneath: &Path) -> usize {
    let backing =
        |device: fs::DirEntry| fs::read_to_string(device.path().join("loop/backing_file"));
    let devices =
        fs::read_dir("/sys/block").unwrap().filter_map(|device| backing(device.unwrap()).ok());
    devices.filter(|file| Path::new(file).starts_with(beneath)).count()
}

/// Everything beneath a directory, in order; links are not followed.
pub(crate) fn tree(top: &Path) -> Vec<PathBuf> {
    let (mut found, mut queue) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
