//! Does `kill -9` at every named step of every verb, and of recovery itself, leave what was promised?
//!
//! Each test goes through the steps of one verb in one installation: arm a step, ask, see the daemon or mountd die there, let it
//! come back, check; ask again as an engine would, and check again.

mod subject;

use std::fs;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde_json::json;
use wasmvol_plan::steps;

use crate::abilities;
use crate::checker::{self, Verb};
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::send;
use crate::support::{SOON, until};
use subject::{Subject, creating, mounting, removing, unmounting, wire};

/// The named steps that begin with one of these words: all of a verb's.
fn steps_of(verbs: &[&str]) -> Vec<&'static str> {
    let is_wanted = |step: &&&str| verbs.contains(&step.split('.').next().unwrap());
    steps::DAEMON.iter().chain(steps::MOUNTD).filter(is_wanted).copied().collect()
}

#[test]
fn every_step_belongs_to_a_verb_that_is_tried() {
    let tried = steps_of(&[
        "create", "make", "mount", "attach", "unmount", "detach", "remove", "trash", "purge",
        "recover",
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
fn killed_in_the_purge_of_what_was_kept() {
    let mut subject = Subject::new("purge");
    for step in steps_of(&["purge", "trash"]) {
        subject.restart_armed(step);
        let plugin = subject.wasmvol.plugin();
        plugin.create("kept", &[("reclaim", "retain")]).unwrap();
        plugin.remove("kept").unwrap();
        let kept = subject.wasmvol.json("volume ls --retained");
        let id = kept[0]["id"].as_str().unwrap().to_owned();
        // By now the name is another volume's.
        let doubted = subject.wasmvol.cli("volume create kept").ok();
        fs::write(&subject.flag, "").unwrap();
        subject.wasmvol.cli(&format!("volume purge {id}")).refused();
        assert!(!subject.flag.exists(), "a purge did not come to the step `{step}`");
        subject.come_back(step);
        until(&format!("a purge that died at `{step}` is finished"), SOON, || {
            let kept = subject.wasmvol.json("volume ls --retained");
            (kept == json!([]) && !subject.wasmvol.entries("volumes").contains(&id)).then_some(())
        });
        subject.wasmvol.plugin().get(&doubted).unwrap();
        subject.wasmvol.plugin().remove(&doubted).unwrap();
    }
    subject.clear();
}

#[test]
fn killed_where_a_driver_stores_fills_or_attaches_something() {
    let mut subject = Subject::new("abilities");
    abilities::load(&subject.wasmvol, "");
    let verbs: [fn(&str) -> Verb; 4] = [
        |name| creating(name, "able"),
        |name| mounting(name, "id"),
        |name| unmounting(name, "id"),
        |name| removing(name),
    ];
    for step in steps::ABILITIES.iter().chain(steps::FILL) {
        let dies_in: &[usize] = match step.split('.').next().unwrap() {
            "store" => &[0, 1, 2, 3],
            "fill" => &[0],
            "reach" => &[1],
            "let-go" => &[2],
            other => panic!("no verb is known that comes to `{other}`"),
        };
        for dies in dies_in {
            subject.restart_armed(step);
            let name = subject.name("able");
            for (at, verb) in verbs.iter().map(|verb| verb(&name)).enumerate() {
                if at == *dies {
                    subject.killed_in(step, &verb);
                } else {
                    subject.done(&verb);
                }
                let stored = abilities::stored(&subject.wasmvol);
                for (key, wanted) in [("made", at < 3), ("attached", at == 1)] {
                    let is_kept = stored.contains(&format!("{key}/{name}="));
                    assert_eq!(is_kept, wanted, "{key}: `{stored}` after `{step}`, {verb:?}");
                }
                if at == 1 {
                    let text = subject.wasmvol.plugin().path(&name).unwrap().join("text");
                    assert_eq!(fs::read_to_string(text).unwrap(), format!("of {name}"), "{step}");
                }
            }
            subject.check(&[]);
        }
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
    let mut quiet = 0;
    until("all of them wait for mountd", SOON, || {
        quiet = if is_asleep(subject.wasmvol.daemon()) { quiet + 1 } else { 0 };
        (quiet > 3).then_some(())
    });
    checker::answers_from_memory(&subject.wasmvol, &subject.ledger);
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

/// Whether no thread of a process runs, or wants to, or waits for a disk.
fn is_asleep(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut states = threads.flatten().filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    });
    states.all(|state| state == 'S')
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
