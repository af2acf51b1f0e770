//! Does rclone serve a volume as if the kernel did? It mounts by itself, so it has to be handed its mount; it keeps what was written on
//! the disk, so that must not be lost; and its configuration is a secret.

use std::fs;

use rustix::process::Signal;

use crate::drivers::component;
use crate::support::canary::Canary;
use crate::support::programs::{health, is_closed_to_its_user, is_unprivileged, running};
use crate::support::wasmvol::{Wasmvol, is_running, send};
use crate::support::webdav::Webdav;
use crate::support::{SOON, until};

/// Keeps a configuration of rclone's under a name.
fn keep(wasmvol: &Wasmvol, name: &str, config: &str) {
    let file = wasmvol.path("rclone.conf");
    fs::write(&file, config).unwrap();
    wasmvol.cli(&format!("secret set {name} --driver rclone --file {}", file.display())).ok();
    fs::remove_file(file).unwrap();
}

/// A server, and a wasmvol that may run rclone and has the server's configuration under the name `config`; and its password.
fn both() -> (Webdav, Wasmvol, Canary) {
    let password = Canary::new();
    let webdav = Webdav::start(password.bytes());
    let wasmvol = Wasmvol::start();
    let rclone = component("drivers/rclone.wasm");
    wasmvol.cli(&format!("driver load {} --grant program=rclone", rclone.display())).ok();
    let obscured = webdav.obscured(password.bytes());
    keep(&wasmvol, "config", &webdav.config(&obscured));
    (webdav, wasmvol, Canary::of(&obscured))
}

/// Makes a volume of a server's; `more` replaces and adds options.
fn create(
    wasmvol: &Wasmvol,
    webdav: &Webdav,
    name: &str,
    more: &[(&str, &str)],
) -> Result<(), String> {
    let remote = webdav.remote();
    let mut options = vec![("driver", "rclone"), ("remote", &remote), ("config", "config")];
    options.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
    options.extend(more);
    wasmvol.plugin().create(name, &options)
}

fn programs(webdav: &Webdav) -> Vec<u32> {
    running("rclone", &webdav.remote())
}

#[test]
fn what_was_written_is_at_the_remote_once_the_program_has_ended_and_comes_back() {
    let (webdav, wasmvol, _) = both();
    create(&wasmvol, &webdav, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let much = vec![b'x'; 3 << 20];
    fs::write(path.join("file"), &much).unwrap();
    fs::create_dir(path.join("dir")).unwrap();
    assert_eq!(programs(&webdav).len(), 1);
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    until("the program ends", SOON, || programs(&webdav).is_empty().then_some(()));
    assert!(fs::read(webdav.served().join("file")).unwrap() == much, "not all of it was uploaded");
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    assert!(fs::read(path.join("file")).unwrap() == much && path.join("dir").is_dir());
    wasmvol.plugin().unmount("far", "id").unwrap();
    until("the program ends", SOON, || programs(&webdav).is_empty().then_some(()));
    wasmvol.plugin().remove("far").unwrap();
    assert!(webdav.served().join("file").exists(), "a removed volume took the remote's data along");
}

#[test]
fn a_directory_of_this_host_is_a_remote_too_and_is_shown_as_was_asked_for() {
    let wasmvol = Wasmvol::start();
    let rclone = component("drivers/rclone.wasm");
    wasmvol.cli(&format!("driver load {} --grant program=rclone", rclone.display())).ok();
    let dir = crate::support::open_to_all("rclone-of-this-host");
    fs::create_dir_all(dir.join("inside")).unwrap();
    fs::write(dir.join("inside/file"), "kept").unwrap();
    keep(&wasmvol, "config", &format!("[here]\ntype = alias\nremote = {}\n", dir.display()));
    let shown = [("uid", "33"), ("gid", "34"), ("file-mode", "640"), ("dir-mode", "750")];
    let more = [("driver", "rclone"), ("remote", "here:inside"), ("config", "config")];
    let off = [("cache", "off"), ("read-only", "true")];
    wasmvol.plugin().create("near", &[&more[..], &shown, &off].concat()).unwrap();
    let path = wasmvol.plugin().mount("near", "id").unwrap();
    let line = wasmvol.shell(&format!("stat -c '%u %g %a' {0} {0}/file", path.display())).ok();
    assert_eq!(line, "33 34 750\n33 34 640");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    let error = fs::write(path.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(wasmvol.entries("volumes"), Vec::<String>::new(), "nothing is kept, but has room");
    wasmvol.plugin().unmount("near", "id").unwrap();
}

/// A volume that is unmounted, with a file for a server that is not there; its program goes on.
fn with_an_upload_that_waits() -> (Webdav, Wasmvol) {
    let (mut webdav, wasmvol, _) = both();
    create(&wasmvol, &webdav, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    webdav.stop();
    fs::write(path.join("file"), "kept").unwrap();
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    assert_eq!(programs(&webdav).len(), 1, "it ended, and took along what nobody has");
    (webdav, wasmvol)
}

#[test]
fn what_waits_for_its_upload_is_uploaded_after_the_unmount() {
    let (mut webdav, wasmvol) = with_an_upload_that_waits();
    let error = wasmvol.plugin().mount("far", "id").unwrap_err();
    assert!(error.contains("still brings to its server what was written"), "{error}");
    webdav.run();
    until("the program ends", SOON, || programs(&webdav).is_empty().then_some(()));
    // Who ends has no command line any more while it still has its lock. Where it had just given up, the next one goes on.
    let mount = || match wasmvol.plugin().mount("far", "id") {
        Err(error) => {
            assert!(error.contains("still brings to its server"), "{error}");
            None
        }
        Ok(path) => Some(path),
    };
    until("it can be mounted again", SOON, mount);
    let file = || fs::read_to_string(webdav.served().join("file")).ok();
    until("it is uploaded", SOON, || (file()? == "kept").then_some(()));
    wasmvol.plugin().unmount("far", "id").unwrap();
}

#[test]
fn a_volume_is_removed_once_nothing_waits_for_its_upload() {
    let (mut webdav, wasmvol) = with_an_upload_that_waits();
    let error = wasmvol.plugin().remove("far").unwrap_err();
    assert!(error.contains("has it at `/dev/shm/kept`"), "{error}");
    assert_eq!(wasmvol.plugin().list(), ["far"]);
    assert_eq!(wasmvol.entries("volumes").len(), 1);
    webdav.run();
    until("it is removed", SOON, || wasmvol.plugin().list().is_empty().then_some(()));
    assert_eq!(programs(&webdav), Vec::<u32>::new());
}

#[test]
fn it_outlives_the_daemon_and_mountd() {
    let (webdav, mut wasmvol, _) = both();
    create(&wasmvol, &webdav, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let before = programs(&webdav);
    wasmvol.kill_daemon();
    fs::write(path.join("one"), "").unwrap();
    wasmvol.kill_mountd();
    fs::write(path.join("two"), "").unwrap();
    wasmvol.run();
    assert_eq!(wasmvol.plugin().mount("far", "another").unwrap(), path);
    assert_eq!(programs(&webdav), before, "another program was started");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
    until("the program ends", SOON, || programs(&webdav).is_empty().then_some(()));
    assert_eq!(fs::read_dir(webdav.served()).unwrap().count(), 2);
}

#[test]
fn its_end_is_seen_and_the_next_mount_starts_it_again_with_what_it_had_not_uploaded() {
    let (webdav, wasmvol, _) = both();
    create(&wasmvol, &webdav, "far", &[("write-back", "1h")]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    // The kernel tells it after that of the close: only then is the file whole on the disk.
    let kept = wasmvol.state().join("volumes").display().to_string();
    let noted = || wasmvol.shell(&format!("grep -rq '\"Size\": 4,' {kept}")).code == Some(0);
    until("it has noted the file", SOON, || noted().then_some(()));
    let program = programs(&webdav)[0];
    send(program, Signal::KILL);
    until("the program ends", SOON, || (!is_running(program)).then_some(()));
    let ended = "degraded: program `rclone` has ended: it is started again at the next Mount";
    until("Status tells it", SOON, || (health(&wasmvol, "far") == ended).then_some(()));
    let found = wasmvol.cli("doctor");
    assert!(found.stdout.contains(ended), "{found:?}");
    assert!(!webdav.served().join("file").exists());
    wasmvol.plugin().mount("far", "another").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
}

#[test]
fn its_configuration_is_found_nowhere_and_it_has_no_privilege() {
    let (webdav, wasmvol, password) = both();
    create(&wasmvol, &webdav, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "").unwrap();
    password.is_nowhere(&wasmvol, &["far"], &[]);
    is_unprivileged(programs(&webdav)[0]);
    is_closed_to_its_user(programs(&webdav)[0]);
    wasmvol.plugin().unmount("far", "id").unwrap();

    let wrong = webdav.obscured("wrong");
    keep(&wasmvol, "wrong", &webdav.config(&wrong));
    create(&wasmvol, &webdav, "closed", &[("config", "wrong")]).unwrap();
    let error = wasmvol.plugin().mount("closed", "id").unwrap_err();
    assert!(error.contains("401 Unauthorized") && !error.contains('\n'), "{error}");
    assert_eq!(wasmvol.volume_mounts().len(), 0);
    Canary::of(&wrong).is_nowhere(&wasmvol, &["closed"], &[error]);
    until("both have ended", SOON, || programs(&webdav).is_empty().then_some(()));
}

#[test]
fn what_is_no_configuration_is_shown_to_nobody() {
    let (webdav, wasmvol, _) = both();
    // A word that rclone would repeat as a line that it cannot parse, and a value that it would repeat as one that it cannot use.
    let (word, value) = (Canary::new(), Canary::new());
    keep(&wasmvol, "word", word.bytes());
    let remote = webdav.remote();
    let name = remote.trim_end_matches(':');
    keep(
        &wasmvol,
        "value",
        &format!("[{name}]\ntype = webdav\nurl = http://me:{}%zz@h\n", value.bytes()),
    );
    for (config, canary, part) in [
        ("word", word, "secret `word` is no rclone.conf in clear: line 1 is neither"),
        ("value", value, "holds a part of a secret"),
    ] {
        create(&wasmvol, &webdav, config, &[("config", config)]).unwrap();
        let error = wasmvol.plugin().mount(config, "id").unwrap_err();
        assert!(error.contains(part), "{error}");
        canary.is_nowhere(&wasmvol, &[config], &[error]);
    }
    assert_eq!(programs(&webdav), Vec::<u32>::new());
}

#[test]
fn a_configuration_that_is_kept_for_a_server_is_refused() {
    let (webdav, wasmvol, _) = both();
    Canary::new().set(&wasmvol, "peers", "rclone", "--peer 127.0.0.1");
    create(&wasmvol, &webdav, "far", &[("config", "peers")]).unwrap();
    let error = wasmvol.plugin().mount("far", "id").unwrap_err();
    let why = "secret `peers` is not for a use that names no server, because it has peers";
    assert!(error.contains(why), "{error}");
    assert_eq!(programs(&webdav), Vec::<u32>::new());
}

#[test]
fn what_cannot_be_mounted_says_why_in_one_line_and_leaves_nothing() {
    let (mut webdav, wasmvol, _) = both();
    webdav.stop();
    keep(&wasmvol, "empty", "[other]\ntype = memory\n");
    for (at, (key, value, part)) in [
        ("cache", "writes", "connection refused"),
        ("config", "empty", "didn't find section in config file"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{at}");
        create(&wasmvol, &webdav, &name, &[(key, value)]).unwrap();
        let error = wasmvol.plugin().mount(&name, "id").unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{key}: {error}");
        assert!(!wasmvol.is_mounted(&name));
        wasmvol.plugin().remove(&name).unwrap();
    }
    assert_eq!(programs(&webdav), Vec::<u32>::new());
}

#[test]
fn it_is_refused_with_the_cure_where_it_was_not_granted() {
    let webdav = Webdav::start("word");
    let wasmvol = Wasmvol::start();
    keep(&wasmvol, "config", "[other]\ntype = memory\n");
    let made = create(&wasmvol, &webdav, "far", &[]);
    let error = made.and_then(|()| wasmvol.plugin().mount("far", "id")).unwrap_err();
    assert!(error.contains("`wasmvol driver grant rclone 'program=rclone'`"), "{error}");
    assert_eq!(programs(&webdav), Vec::<u32>::new());
}
