//! Does `kill -9` at every named step of every verb, and of recovery itself, leave what was promised?
//!
//! Each test goes through the steps of one verb in one installation: arm a step, ask, see the daemon or mountd die there, let it
//! come back, check; ask again as an engine would, and check again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde_json::json;
use wasmvol_plan::steps;

use crate::checker::{self, Ledger, Verb};
use crate::support::container::Container;
use crate::support::mounts::Mount;
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::{Wasmvol, send};
use crate::support::{open_to_all, until};

/// A step is reached, or never.
const SOON: Duration = Duration::from_secs(20);

/// One installation, what it has promised, and the containers that run.
struct Subject {
    wasmvol: Wasmvol,
    ledger: Ledger,
    containers: BTreeMap<String, Container>,
    /// While this file is there, the armed step kills.
    flag: PathBuf,
    /// A volume's name is used for one step only, so that no step helps the next.
    round: u32,
}

impl Subject {
    fn new(name: &str) -> Self {
        let wasmvol = Wasmvol::start();
        let mut ledger = Ledger::default();
        ledger.plant_strangers(&wasmvol);
        let flag = open_to_all(name);
        let mut subject = Self { wasmvol, ledger, containers: BTreeMap::new(), flag, round: 0 };
        subject.restart_armed("none");
        subject
    }

    /// Kills everything and starts it so that `step` would kill once the flag is there.
    fn restart_armed(&mut self, step: &str) {
        self.wasmvol.kill_mountd();
        let armed = format!("{step}@{}", self.flag.display());
        self.wasmvol.set_variables(&[(steps::KILL_AT, &armed)]);
        self.wasmvol.run();
        self.round += 1;
    }

    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.round)
    }

    /// Asks for a verb, which must succeed.
    fn done(&mut self, verb: &Verb) {
        let answer = self.ask(verb).unwrap_or_else(|| panic!("no answer to {verb:?}"));
        answer.unwrap_or_else(|e| panic!("{verb:?}: {e}"));
        self.acknowledged(verb);
    }

    /// Asks for a verb. None: there was no answer.
    fn ask(&self, verb: &Verb) -> Option<Result<(), String>> {
        let (endpoint, body) = wire(verb);
        self.wasmvol.plugin().try_call(endpoint, &body).ok().map(|answer| answer.result().map(drop))
    }

    fn acknowledged(&mut self, verb: &Verb) {
        self.ledger = std::mem::take(&mut self.ledger).after(verb);
        match verb {
            Verb::Mount { name, .. } => self.note_mount(name),
            Verb::Create { name, .. } => {
                let shown = self.wasmvol.plugin().get(name).unwrap();
                let id = shown["Status"]["id"].as_str().unwrap().to_owned();
                let promise = self.ledger.promise(name);
                assert!(promise.id.as_ref().is_none_or(|there| *there == id));
                promise.id = Some(id);
            }
            Verb::Unmount { .. } | Verb::Remove { .. } => {}
        }
    }

    /// Notes the mount as it is now, and leaves a file in it.
    fn note_mount(&mut self, name: &str) {
        let mount = self.mount_of(name);
        let promise = self.ledger.promise(name);
        let seen = (mount.device, mount.root);
        assert!(
            promise.mount.as_ref().is_none_or(|there| *there == seen),
            "`{name}` changed its mount"
        );
        promise.mount = Some(seen);
        let canary = format!("of {name}");
        fs::write(PathBuf::from(mount.path).join("canary"), &canary).unwrap();
        promise.canary = Some(canary);
    }

    fn mount_of(&self, name: &str) -> Mount {
        let path = self.wasmvol.plugin().path(name).unwrap();
        let mut mounts = self.wasmvol.volume_mounts();
        mounts.retain(|mount| Path::new(&mount.path) == path);
        assert_eq!(mounts.len(), 1, "`{name}` is mounted once");
        mounts.remove(0)
    }

    /// Starts a container on a mounted volume.
    fn hold(&mut self, name: &str) {
        let path = self.wasmvol.plugin().path(name).unwrap();
        self.containers.insert(name.to_owned(), Container::with(&path));
        self.ledger.promise(name).is_held = true;
    }

    /// Ends the container and waits until wasmvol has noticed.
    fn let_go(&mut self, name: &str) {
        drop(self.containers.remove(name));
        let promise = self.ledger.promise(name);
        promise.is_held = false;
        if promise.holders.is_empty() {
            promise.mount = None;
            self.wasmvol.wait_unmounted(name);
        }
    }

    /// Asks for a verb that dies at the armed step, lets everything come back, checks, asks again, and checks again.
    fn killed_in(&mut self, step: &str, verb: &Verb) {
        fs::write(&self.flag, "").unwrap();
        let answer = self.ask(verb);
        assert!(!self.flag.exists(), "{verb:?} did not come to the step `{step}`: {answer:?}");
        assert_ne!(answer, Some(Ok(())), "a verb that dies at `{step}` cannot be acknowledged");
        self.come_back(step);
        self.check(std::slice::from_ref(verb));
        self.done(verb);
        self.check(&[]);
    }

    /// Waits until wasmvol answers again after a kill at this step. The daemon is started by mountd; mountd by the test, as the
    /// service manager would.
    fn come_back(&mut self, step: &str) {
        if steps::MOUNTD.contains(&step) {
            self.wasmvol.wait_end();
            self.wasmvol.run();
        } else {
            self.wasmvol.wait_ready();
        }
    }

    fn check(&mut self, doubts: &[Verb]) {
        checker::check(&self.wasmvol, &mut self.ledger, &self.containers, doubts);
    }

    /// Takes every volume away again.
    fn clear(&mut self) {
        for name in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.let_go(&name);
        }
        for (name, promise) in self.ledger.volumes.clone() {
            for (id, count) in promise.holders {
                (0..count).for_each(|_| self.done(&unmounting(&name, &id)));
            }
            self.wasmvol.wait_unmounted(&name);
            self.done(&removing(&name));
        }
        self.check(&[]);
    }
}

fn wire(verb: &Verb) -> (&'static str, String) {
    let (endpoint, body) = match verb {
        Verb::Create { name, driver } => {
            ("VolumeDriver.Create", json!({ "Name": name, "Opts": { "driver": driver } }))
        }
        Verb::Mount { name, id } => ("VolumeDriver.Mount", json!({ "Name": name, "ID": id })),
        Verb::Unmount { name, id } => ("VolumeDriver.Unmount", json!({ "Name": name, "ID": id })),
        Verb::Remove { name } => ("VolumeDriver.Remove", json!({ "Name": name })),
    };
    (endpoint, body.to_string())
}

fn creating(name: &str, driver: &str) -> Verb {
    Verb::Create { name: name.to_owned(), driver: driver.to_owned() }
}

fn mounting(name: &str, id: &str) -> Verb {
    Verb::Mount { name: name.to_owned(), id: id.to_owned() }
}

fn unmounting(name: &str, id: &str) -> Verb {
    Verb::Unmount { name: name.to_owned(), id: id.to_owned() }
}

fn removing(name: &str) -> Verb {
    Verb::Remove { name: name.to_owned() }
}

/// The named steps that begin with one of these words: all of a verb's.
fn steps_of(verbs: &[&str]) -> Vec<&'static str> {
    let is_wanted = |step: &&&str| verbs.contains(&step.split('.').next().unwrap());
    steps::DAEMON.iter().chain(steps::MOUNTD).filter(is_wanted).copied().collect()
}

#[test]
fn every_step_belongs_to_a_verb_that_is_tried() {
    let tried = steps_of(&[
        "create", "make", "mount", "attach", "unmount", "detach", "remove", "trash", "recover",
    ]);
    assert_eq!(tried.len(), steps::DAEMON.len() + steps::MOUNTD.len());
}

#[test]
fn killed_in_create() {
    let mut subject = Subject::new("create");
    for step in steps_of(&["create", "make"]) {
        subject.restart_armed(step);
        let name = subject.name("volume");
        subject.killed_in(step, &creating(&name, "local"));
        subject.done(&mounting(&name, "id"));
        subject.done(&unmounting(&name, "id"));
        subject.check(&[]);
    }
    subject.clear();
}

#[test]
fn killed_in_the_first_mount() {
    let mut subject = Subject::new("mount");
    for step in steps_of(&["mount", "attach"]) {
        for driver in ["local", "tmpfs"] {
            subject.restart_armed(step);
            let name = subject.name(driver);
            subject.done(&creating(&name, driver));
            subject.killed_in(step, &mounting(&name, "id"));
            subject.note_mount(&name);
            subject.check(&[]);
        }
    }
    subject.clear();
}

#[test]
fn killed_in_a_further_mount() {
    let mut subject = Subject::new("mount-more");
    for step in steps_of(&["mount"]) {
        for (driver, id) in [("local", "second"), ("tmpfs", "second"), ("tmpfs", "first")] {
            subject.restart_armed(step);
            let name = subject.name(driver);
            subject.done(&creating(&name, driver));
            subject.done(&mounting(&name, "first"));
            subject.hold(&name);
            subject.killed_in(step, &mounting(&name, id));
        }
    }
    subject.clear();
}

#[test]
fn killed_in_the_last_unmount() {
    let mut subject = Subject::new("unmount");
    for step in steps_of(&["unmount", "detach"]) {
        for driver in ["local", "tmpfs"] {
            subject.restart_armed(step);
            let name = subject.name(driver);
            subject.done(&creating(&name, driver));
            subject.done(&mounting(&name, "id"));
            subject.killed_in(step, &unmounting(&name, "id"));
        }
    }
    subject.clear();
}

#[test]
fn killed_in_an_unmount_that_leaves_other_holders() {
    let mut subject = Subject::new("unmount-one");
    for step in ["unmount.begin", "unmount.released"] {
        subject.restart_armed(step);
        let name = subject.name("volume");
        subject.done(&creating(&name, "tmpfs"));
        subject.done(&mounting(&name, "first"));
        subject.done(&mounting(&name, "second"));
        subject.killed_in(step, &unmounting(&name, "first"));
    }
    subject.clear();
}

#[test]
fn killed_in_an_unmount_while_a_container_still_has_the_volume() {
    let mut subject = Subject::new("drain");
    for step in steps_of(&["unmount"]) {
        for driver in ["local", "tmpfs"] {
            subject.restart_armed(step);
            let name = subject.name(driver);
            subject.done(&creating(&name, driver));
            subject.done(&mounting(&name, "id"));
            subject.hold(&name);
            subject.killed_in(step, &unmounting(&name, "id"));
            // The next Mount takes the same file system back.
            subject.done(&mounting(&name, "again"));
            subject.check(&[]);
        }
    }
    subject.clear();
}

#[test]
fn killed_in_remove() {
    let mut subject = Subject::new("remove");
    for step in steps_of(&["remove", "trash"]) {
        subject.restart_armed(step);
        let name = subject.name("volume");
        subject.done(&creating(&name, "local"));
        subject.done(&mounting(&name, "id"));
        subject.done(&unmounting(&name, "id"));
        subject.killed_in(step, &removing(&name));
        // The name is free, and a new volume of that name is another one, and empty.
        subject.done(&creating(&name, "local"));
        subject.done(&mounting(&name, "id"));
        let path = subject.wasmvol.plugin().path(&name).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "only the new volume's canary");
        subject.check(&[]);
    }
    subject.clear();
}

#[test]
fn killed_in_a_recovery_from_verbs_that_had_begun() {
    killed_in_recovery("begun", false);
}

#[test]
fn killed_in_a_recovery_from_verbs_whose_effects_nobody_has_recorded() {
    killed_in_recovery("unrecorded", true);
}

/// Dies in the middle of four verbs at once, loses mounts meanwhile, and dies again at each step of the recovery.
fn killed_in_recovery(name: &str, with_effects: bool) {
    let mut subject = Subject::new(name);
    let redone = ["remove.driver", "remove.trashed", "remove.forgotten"];
    for step in steps_of(&["recover", "trash", "detach", "attach"]).into_iter().chain(redone) {
        subject.restart_armed(step);
        let doubts = mess(&mut subject, with_effects);
        fs::write(&subject.flag, "").unwrap();
        subject.wasmvol.launch();
        let flag = subject.flag.clone();
        until(&format!("recovery comes to the step `{step}`"), SOON, || {
            (!flag.exists()).then_some(())
        });
        subject.come_back(step);
        subject.check(&doubts);
        let once = checker::digest(&subject.wasmvol);
        subject.wasmvol.kill_mountd();
        subject.wasmvol.run();
        assert_eq!(
            checker::digest(&subject.wasmvol),
            once,
            "I19 a second recovery changes nothing"
        );
        subject.check(&[]);
        subject.clear();
    }
}

/// Kills both programs in the middle of a Create, a Mount, an Unmount and a Remove, beside volumes in every other state, and takes
/// two mounts away. With effects: mountd has done what it was asked, and the daemon did not live to hear of it.
fn mess(subject: &mut Subject, with_effects: bool) -> Vec<Verb> {
    for (name, driver) in [
        ("quiet", "local"),
        ("kept", "local"),
        ("draining", "tmpfs"),
        ("lost", "local"),
        ("lost-but-held", "tmpfs"),
        ("arriving", "local"),
        ("leaving", "tmpfs"),
        ("going", "local"),
    ] {
        subject.done(&creating(name, driver));
    }
    for name in ["kept", "draining", "lost", "lost-but-held", "leaving"] {
        subject.done(&mounting(name, "id"));
    }
    subject.hold("draining");
    subject.hold("lost-but-held");
    subject.done(&unmounting("draining", "id"));
    let lost = ["lost", "lost-but-held"].map(|name| subject.mount_of(name).path);

    send(subject.wasmvol.mountd(), Signal::STOP);
    let doubts = vec![
        creating("making", "local"),
        mounting("arriving", "id"),
        unmounting("leaving", "id"),
        removing("going"),
    ];
    let open: Vec<Socket> = doubts.iter().map(|verb| begin(subject, verb)).collect();
    until("the verbs have begun", SOON, || has_begun(subject).then_some(()));
    if with_effects {
        let_mountd_finish(subject);
    }
    subject.wasmvol.kill_mountd();
    drop(open);
    for path in lost {
        unmount(&path, UnmountFlags::empty()).unwrap();
    }
    doubts
}

/// Sends a verb and does not wait for its answer.
fn begin(subject: &Subject, verb: &Verb) -> Socket {
    let (endpoint, body) = wire(verb);
    let mut socket = Socket::connect(&subject.wasmvol.plugin().socket).unwrap();
    socket.send(request(endpoint, &body)).unwrap();
    socket
}

/// Whether each of the four verbs has left a trace, and waits for mountd.
fn has_begun(subject: &Subject) -> bool {
    let troubles = subject.wasmvol.json("status")["troubles"].to_string();
    let leaving = subject.wasmvol.plugin().get("leaving").unwrap();
    troubles.contains("half made")
        && troubles.contains("being removed")
        && leaving["Status"]["holders"] == json!([])
}

/// Lets mountd do what it was asked while the daemon stands still.
fn let_mountd_finish(subject: &Subject) {
    let id = |name: &str| subject.ledger.volumes[name].id.clone().unwrap();
    let (going, arriving, leaving) = (id("going"), id("arriving"), id("leaving"));
    let storage = subject.wasmvol.entries("volumes").len();
    send(subject.wasmvol.daemon(), Signal::STOP);
    send(subject.wasmvol.mountd(), Signal::CONT);
    until("mountd has done what it was asked", SOON, || {
        let mounts = subject.wasmvol.volume_mounts();
        let is_mounted = |id: &str| mounts.iter().any(|m| m.path.ends_with(id));
        let entries = subject.wasmvol.entries("volumes");
        // One was made, one went into the trash.
        let is_done = is_mounted(&arriving)
            && !is_mounted(&leaving)
            && !entries.contains(&going)
            && entries.len() == storage;
        is_done.then_some(())
    });
}
