//! One installation that is killed again and again, and the calls that a crash test makes to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use wasmvol_plan::steps;

use crate::checker::{self, Ledger, Verb};
use crate::support::container::Container;
use crate::support::mounts::Mount;
use crate::support::open_to_all;
use crate::support::wasmvol::Wasmvol;

/// One installation, what it has promised, and the containers that run.
pub(crate) struct Subject {
    pub(crate) wasmvol: Wasmvol,
    pub(crate) ledger: Ledger,
    containers: BTreeMap<String, Container>,
    /// While this file is there, the armed step kills.
    pub(crate) flag: PathBuf,
    /// A volume's name is used for one step only, so that no step helps the next.
    round: u32,
}

impl Subject {
    pub(crate) fn new(name: &str) -> Self {
        let wasmvol = Wasmvol::start();
        let mut ledger = Ledger::default();
        ledger.plant_strangers(&wasmvol);
        let flag = open_to_all(name);
        let mut subject = Self { wasmvol, ledger, containers: BTreeMap::new(), flag, round: 0 };
        subject.restart_armed("none");
        subject
    }

    /// Kills everything and starts it so that `step` would kill once the flag is there.
    pub(crate) fn restart_armed(&mut self, step: &str) {
        self.wasmvol.kill_mountd();
        let armed = format!("{step}@{}", self.flag.display());
        self.wasmvol.set_variables(&[(steps::KILL_AT, &armed)]);
        self.wasmvol.run();
        self.round += 1;
    }

    pub(crate) fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.round)
    }

    /// Asks for a verb, which must succeed.
    pub(crate) fn done(&mut self, verb: &Verb) {
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
    pub(crate) fn note_mount(&mut self, name: &str) {
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

    pub(crate) fn mount_of(&self, name: &str) -> Mount {
        let path = self.wasmvol.plugin().path(name).unwrap();
        let mut mounts = self.wasmvol.volume_mounts();
        mounts.retain(|mount| Path::new(&mount.path) == path);
        assert_eq!(mounts.len(), 1, "`{name}` is mounted once");
        mounts.remove(0)
    }

    /// Starts a container on a mounted volume.
    pub(crate) fn hold(&mut self, name: &str) {
        let path = self.wasmvol.plugin().path(name).unwrap();
        self.containers.insert(name.to_owned(), Container::with(&path));
        self.ledger.promise(name).is_held = true;
    }

    /// Ends the container and waits until wasmvol has noticed.
    pub(crate) fn let_go(&mut self, name: &str) {
        drop(self.containers.remove(name));
        let promise = self.ledger.promise(name);
        promise.is_held = false;
        if promise.holders.is_empty() {
            promise.mount = None;
            self.wasmvol.wait_unmounted(name);
        }
    }

    /// Asks for a verb that dies at the armed step, lets everything come back, checks, asks again, and checks again.
    pub(crate) fn killed_in(&mut self, step: &str, verb: &Verb) {
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
    pub(crate) fn come_back(&mut self, step: &str) {
        if steps::MOUNTD.contains(&step) || steps::FILL.contains(&step) {
            self.wasmvol.wait_end();
            self.wasmvol.run();
        } else {
            self.wasmvol.wait_ready();
        }
    }

    pub(crate) fn check(&mut self, doubts: &[Verb]) {
        checker::check(&self.wasmvol, &mut self.ledger, &self.containers, doubts);
    }

    /// Takes every volume away again.
    pub(crate) fn clear(&mut self) {
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

pub(crate) fn wire(verb: &Verb) -> (&'static str, String) {
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

pub(crate) fn creating(name: &str, driver: &str) -> Verb {
    Verb::Create { name: name.to_owned(), driver: driver.to_owned() }
}

pub(crate) fn mounting(name: &str, id: &str) -> Verb {
    Verb::Mount { name: name.to_owned(), id: id.to_owned() }
}

pub(crate) fn unmounting(name: &str, id: &str) -> Verb {
    Verb::Unmount { name: name.to_owned(), id: id.to_owned() }
}

pub(crate) fn removing(name: &str) -> Verb {
    Verb::Remove { name: name.to_owned() }
}
