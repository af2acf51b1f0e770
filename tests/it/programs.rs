//! Does a program serve a volume as if the kernel did? It outlives wasmvol and not its mount, its end is noticed, and it gets its secrets
//! where nobody else looks.

use std::fs;

use rustix::process::Signal;

use crate::drivers::component;
use crate::support::canary::Canary;
use crate::support::programs::{health, is_closed_to_its_user, is_unprivileged, running};
use crate::support::sshd::Sshd;
use crate::support::wasmvol::{Wasmvol, is_running, send};
use crate::support::{SOON, until};

/// A wasmvol whose `sshfs` may run the program, and that has the key of a server under the name `key`.
fn with_sshfs(sshd: &Sshd) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    let sshfs = component("drivers/sshfs.wasm");
    wasmvol.cli(&format!("driver load {} --grant program=sshfs", sshfs.display())).ok();
    let set = format!("secret set key --driver sshfs --peer {} --file", sshd.place().0);
    wasmvol.cli(&format!("{set} {}", sshd.key().display())).ok();
    wasmvol
}

/// Makes a volume of what a server serves; `more` replaces and adds options.
fn create(wasmvol: &Wasmvol, sshd: &Sshd, name: &str, more: &[(&str, &str)]) -> Result<(), String> {
    let ((host, port), path) = (sshd.place(), sshd.served().display().to_string());
    let host_key = sshd.host_key();
    let mut options = vec![
        ("driver", "sshfs"),
        ("host", &host),
        ("port", &port),
        ("path", &path),
        ("host-key", &host_key),
    ];
    if !more.iter().any(|(key, _)| *key == "password") {
        options.push(("key", "key"));
    }
    options.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
    options.extend(more);
    wasmvol.plugin().create(name, &options)
}

/// The programs that serve what lies beneath a server's directory.
fn programs(sshd: &Sshd) -> Vec<u32> {
    running("sshfs", &sshd.served().display().to_string())
}

#[test]
fn what_is_written_to_a_volume_is_on_the_server_and_the_program_ends_with_the_mount() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    assert_eq!(fs::read_to_string(sshd.served().join("file")).unwrap(), "kept");
    assert_eq!(programs(&sshd).len(), 1);
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    until("the program ends", SOON, || programs(&sshd).is_empty().then_some(()));
    wasmvol.plugin().remove("far").unwrap();
    assert!(
        sshd.served().join("file").exists(),
        "a volume that was removed took the server's data with it"
    );
}

#[test]
fn a_program_outlives_the_daemon_and_mountd() {
    let sshd = Sshd::start();
    let mut wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let before = programs(&sshd);
    wasmvol.kill_daemon();
    fs::write(path.join("one"), "").unwrap();
    wasmvol.kill_mountd();
    fs::write(path.join("two"), "").unwrap();
    wasmvol.run();
    assert!(wasmvol.stop().success());
    fs::write(path.join("three"), "").unwrap();
    wasmvol.run();
    assert_eq!(wasmvol.plugin().mount("far", "another").unwrap(), path);
    assert_eq!(programs(&sshd), before, "another program was started");
    assert_eq!(fs::read_dir(sshd.served()).unwrap().count(), 3);
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
    until("the program ends", SOON, || programs(&sshd).is_empty().then_some(()));
}

#[test]
fn the_end_of_a_program_is_seen_and_the_next_mount_starts_it_again() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    let program = programs(&sshd)[0];
    send(program, Signal::KILL);
    until("the program ends", SOON, || (!is_running(program)).then_some(()));
    let ended = "degraded: program `sshfs` has ended: it is started again at the next Mount";
    until("Status tells it", SOON, || (health(&wasmvol, "far") == ended).then_some(()));
    let found = wasmvol.cli("doctor");
    assert!(found.stdout.contains(ended), "{found:?}");
    wasmvol.plugin().mount("far", "another").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
    assert!(!wasmvol.is_mounted("far"));
}

#[test]
fn a_connection_that_was_lost_is_made_again_by_the_same_program() {
    let mut sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    let password = Canary::new();
    password.set(&wasmvol, "password", "sshfs", &format!("--peer {}", sshd.place().0));
    sshd.set_password(password.bytes());
    for (name, more) in [("by-key", &[][..]), ("by-password", &[("password", "password")])] {
        create(&wasmvol, &sshd, name, more).unwrap();
        let path = wasmvol.plugin().mount(name, "id").unwrap();
        let before = programs(&sshd);
        let [connection] = running("ssh", &sshd.place().0)[..] else { panic!("one connection") };
        send(connection, Signal::KILL);
        until("the connection ends", SOON, || (!is_running(connection)).then_some(()));
        // What nothing of this machine has in its memory.
        fs::write(sshd.served().join(name), "behind").unwrap();
        let read = || fs::read_to_string(path.join(name)).ok();
        assert_eq!(until("the volume answers again", SOON, read), "behind");
        assert_eq!(programs(&sshd), before);
        assert_eq!(health(&wasmvol, name), "ok");
        wasmvol.plugin().unmount(name, "id").unwrap();
        until("the program ends", SOON, || programs(&sshd).is_empty().then_some(()));
    }
}

#[test]
fn a_program_that_hangs_delays_nobody_but_who_reads_its_volume() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[]).unwrap();
    wasmvol.plugin().create("near", &[]).unwrap();
    wasmvol.plugin().mount("far", "id").unwrap();
    let program = programs(&sshd)[0];
    send(program, Signal::STOP);
    let near = wasmvol.plugin().mount("near", "id").unwrap();
    fs::write(near.join("file"), "").unwrap();
    wasmvol.plugin().mount("far", "another").unwrap();
    assert_eq!(health(&wasmvol, "far"), "ok");
    wasmvol.plugin().unmount("far", "another").unwrap();
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    send(program, Signal::CONT);
    until("the program ends", SOON, || (!is_running(program)).then_some(()));
}

#[test]
fn the_key_of_a_server_is_found_nowhere() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[]).unwrap();
    wasmvol.plugin().mount("far", "id").unwrap();
    let key = fs::read_to_string(sshd.key()).unwrap();
    let line = key.lines().nth(3).unwrap();
    assert!(line.len() > 60, "{line} is no part of a key that could be told from others");
    Canary::of(line).is_nowhere(&wasmvol, &["far"], &[]);
    is_unprivileged(programs(&sshd)[0]);
    is_closed_to_its_user(programs(&sshd)[0]);
    wasmvol.plugin().unmount("far", "id").unwrap();
}

#[test]
fn a_password_opens_a_volume_and_is_found_nowhere() {
    let mut sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    let canary = Canary::new();
    let peer = format!("--peer {}", sshd.place().0);
    canary.set(&wasmvol, "password", "sshfs", &peer);
    sshd.set_password(canary.bytes());
    create(&wasmvol, &sshd, "far", &[("password", "password")]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "").unwrap();
    assert!(sshd.served().join("file").exists());
    canary.is_nowhere(&wasmvol, &["far"], &[]);
    wasmvol.plugin().unmount("far", "id").unwrap();

    Canary::new().set(&wasmvol, "wrong", "sshfs", &peer);
    create(&wasmvol, &sshd, "closed", &[("password", "wrong")]).unwrap();
    let error = wasmvol.plugin().mount("closed", "id").unwrap_err();
    assert!(error.contains("Permission denied"), "{error}");
    assert_eq!(wasmvol.volume_mounts().len(), 0);
    canary.is_nowhere(&wasmvol, &["closed"], &[error]);
}

#[test]
fn what_cannot_be_mounted_says_why_in_one_line_and_leaves_nothing() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    let nothing = sshd.served().join("nothing").display().to_string();
    wasmvol
        .cli(&format!(
            "secret set elsewhere --driver sshfs --peer other.example --file {}",
            sshd.key().display()
        ))
        .ok();
    let other_key = sshd.other_key();
    let elsewhere = format!("secret `elsewhere` is not for server `{}`", sshd.place().0);
    for (at, (key, value, part)) in [
        ("host-key", other_key.as_str(), "Host key verification failed"),
        ("path", nothing.as_str(), "No such file or directory"),
        ("port", "1", "Connection refused"),
        ("key", "elsewhere", elsewhere.as_str()),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{at}");
        create(&wasmvol, &sshd, &name, &[(key, value)]).unwrap();
        let error = wasmvol.plugin().mount(&name, "id").unwrap_err();
        // sshfs may notice that its ssh has gone before that has said why.
        let is_told = error.contains(part) || key == "port" && error.contains("Broken pipe");
        assert!(is_told && !error.contains('\n'), "{key}: {error}");
        assert!(!wasmvol.is_mounted(&name));
    }
    until("its programs end", SOON, || programs(&sshd).is_empty().then_some(()));
}

#[test]
fn a_program_that_was_not_granted_is_refused_with_the_cure() {
    let sshd = Sshd::start();
    let wasmvol = Wasmvol::start();
    Canary::new().set(&wasmvol, "key", "sshfs", &format!("--peer {}", sshd.place().0));
    let made = create(&wasmvol, &sshd, "far", &[]);
    let error = made.and_then(|()| wasmvol.plugin().mount("far", "id")).unwrap_err();
    assert!(error.contains("`wasmvol driver grant sshfs 'program=sshfs'`"), "{error}");
    assert_eq!(programs(&sshd), Vec::<u32>::new());
}

#[test]
fn a_read_only_volume_refuses_writes() {
    let sshd = Sshd::start();
    let wasmvol = with_sshfs(&sshd);
    create(&wasmvol, &sshd, "far", &[("ro", "true")]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let error = fs::write(path.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    wasmvol.plugin().unmount("far", "id").unwrap();
}
