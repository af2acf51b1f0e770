//! Is SEMANTICS.md true? Its table of verbs and states, cell by cell, and what it says of kept data.
//!
//! The state "half done" is the crash tests'; holders are those of docker and protocol.

use crate::support::container::Container;
use crate::support::wasmvol::Wasmvol;

/// A volume in one of the states, of a daemon of its own.
struct Subject {
    wasmvol: Wasmvol,
    container: Option<Container>,
}

const NAME: &str = "subject";
const OTHER: &str = "already exists with other options";

impl Subject {
    fn absent() -> Self {
        Self { wasmvol: Wasmvol::start(), container: None }
    }

    fn ready() -> Self {
        let subject = Self::absent();
        subject.create("0700").unwrap();
        subject
    }

    fn mounted() -> Self {
        let subject = Self::ready();
        subject.mount().unwrap();
        subject
    }

    fn draining() -> Self {
        let mut subject = Self::mounted();
        let path = subject.wasmvol.plugin().path(NAME).unwrap();
        subject.container = Some(Container::with(&path));
        subject.unmount().unwrap();
        assert!(subject.health().starts_with("draining"), "{}", subject.health());
        subject
    }

    fn create(&self, mode: &str) -> Result<(), String> {
        self.wasmvol.plugin().create(NAME, &[("driver", "tmpfs"), ("mode", mode)])
    }

    fn mount(&self) -> Result<(), String> {
        self.wasmvol.plugin().mount(NAME, "id").map(drop)
    }

    fn unmount(&self) -> Result<(), String> {
        self.wasmvol.plugin().unmount(NAME, "id")
    }

    fn remove(&self) -> Result<(), String> {
        self.wasmvol.plugin().remove(NAME)
    }

    fn is_there(&self) -> bool {
        let plugin = self.wasmvol.plugin();
        let is_there = plugin.get(NAME).is_ok();
        assert_eq!(plugin.path(NAME).is_ok(), is_there);
        assert_eq!(plugin.list().contains(&NAME.to_owned()), is_there);
        is_there
    }

    fn health(&self) -> String {
        let shown = self.wasmvol.plugin().get(NAME).unwrap();
        shown["Status"]["health"].as_str().unwrap().to_owned()
    }

    fn is_mounted(&self) -> bool {
        self.wasmvol.is_mounted(NAME)
    }
}

#[test]
fn create() {
    let absent = Subject::absent();
    assert!(!absent.is_there());
    absent.create("0700").unwrap();
    assert!(absent.is_there());
    for subject in [Subject::ready(), Subject::mounted(), Subject::draining()] {
        let before = subject.is_mounted();
        subject.create("0700").unwrap();
        let error = subject.create("0711").unwrap_err();
        assert!(error.contains(OTHER) && error.contains("`mode`"), "{error}");
        let error = subject.wasmvol.plugin().create(NAME, &[]).unwrap_err();
        assert!(error.contains(OTHER) && error.contains("driver"), "{error}");
        assert_eq!(subject.is_mounted(), before);
    }
}

#[test]
fn mount() {
    let absent = Subject::absent();
    assert_eq!(absent.mount().unwrap_err(), "no such volume");
    for subject in [Subject::ready(), Subject::mounted(), Subject::draining()] {
        let held = subject.container.as_ref().map(Container::mount);
        subject.mount().unwrap();
        assert_eq!(subject.health(), "ok");
        let mounts = subject.wasmvol.volume_mounts();
        assert_eq!(mounts.len(), 1);
        assert!(
            held.is_none_or(|held| held.device == mounts[0].device),
            "the same one is taken back"
        );
    }
}

#[test]
fn unmount() {
    for subject in [Subject::absent(), Subject::ready()] {
        subject.unmount().unwrap();
    }
    let mounted = Subject::mounted();
    mounted.mount().unwrap();
    mounted.unmount().unwrap();
    assert!(mounted.is_mounted());
    mounted.unmount().unwrap();
    assert!(!mounted.is_mounted());
    let mut draining = Subject::draining();
    draining.unmount().unwrap();
    assert!(draining.is_mounted());
    drop(draining.container.take());
    draining.unmount().unwrap();
    assert!(!draining.is_mounted(), "it is tried again at once, not only later");
}

#[test]
fn remove() {
    Subject::absent().remove().unwrap();
    let ready = Subject::ready();
    ready.remove().unwrap();
    assert!(!ready.is_there());
    let mounted = Subject::mounted();
    let error = mounted.remove().unwrap_err();
    assert!(error.contains("is in use") && error.contains("docker"), "{error}");
    assert!(mounted.is_there() && mounted.is_mounted());
    let mut draining = Subject::draining();
    let error = draining.remove().unwrap_err();
    assert!(error.contains("is in use: process "), "{error}");
    assert!(draining.is_there() && draining.is_mounted());
    drop(draining.container.take());
    draining.remove().unwrap();
    assert!(!draining.is_there());
    assert_eq!(draining.wasmvol.volume_mounts(), []);
}

#[test]
fn data_is_kept_where_the_user_or_the_driver_says_so() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    wasmvol.cli(&format!("driver load {}", crate::drivers::hostile().display())).ok();
    for (name, options) in [
        ("by-user", &[("reclaim", "retain")][..]),
        ("by-driver", &[("driver", "hostile"), ("do", "retain")]),
        ("against-driver", &[("driver", "hostile"), ("do", "retain"), ("reclaim", "delete")]),
    ] {
        plugin.create(name, options).unwrap();
        let path = plugin.mount(name, "id").unwrap();
        std::fs::write(path.join("file"), name).unwrap();
        let id = path.file_name().unwrap().to_str().unwrap().to_owned();
        plugin.unmount(name, "id").unwrap();
        plugin.remove(name).unwrap();
        plugin.get(name).unwrap_err();
        let kept = wasmvol.state().join("volumes").join(&id).join("data/file");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), name);
        let kept = wasmvol.cli("volume ls --retained").ok();
        assert!(kept.contains(&id), "where `{name}` is is said: {kept}");
        // The name is free for another volume.
        plugin.create(name, &[]).unwrap();
        plugin.remove(name).unwrap();
    }
    let kept = wasmvol.entries("volumes");
    assert_eq!(kept.len(), 3);
    wasmvol.kill_mountd();
    wasmvol.run();
    assert_eq!(wasmvol.entries("volumes"), kept);
}

#[test]
fn data_that_was_put_back_is_kept_as_asked() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    plugin.create("valued", &[("reclaim", "retain")]).unwrap();
    let path = plugin.mount("valued", "id").unwrap();
    std::fs::write(path.join("file"), "kept").unwrap();
    plugin.unmount("valued", "id").unwrap();
    assert!(wasmvol.stop().success());
    let there = wasmvol.state().join("volumes").join(path.file_name().unwrap());
    let away = wasmvol.state().join("away");
    std::fs::rename(&there, &away).unwrap();
    wasmvol.run();
    let status = plugin.get("valued").unwrap()["Status"]["health"].to_string();
    assert!(status.contains("missing"), "{status}");
    std::fs::rename(&away, &there).unwrap();
    plugin.remove("valued").unwrap();
    assert_eq!(std::fs::read_to_string(there.join("data/file")).unwrap(), "kept");
    assert!(wasmvol.cli("volume ls --retained").ok().contains("valued"));
}

#[test]
fn a_user_asks_for_deletion_or_retention_and_nothing_else() {
    let wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    for reserved in ["reclaim", "from", "plugin"] {
        plugin.create("reserved", &[(reserved, "nonsense")]).expect_err(reserved);
    }
}
