//! Does the client of Gluster serve a volume as if the kernel did? Against a real glusterd.

use std::fs;

use rustix::process::Signal;

use crate::drivers::component;
use crate::support::gluster::Gluster;
use crate::support::programs::{health, is_unprivileged, running};
use crate::support::shelf::Shelf;
use crate::support::wasmvol::{Wasmvol, is_running, send};
use crate::support::{SOON, until};

/// A wasmvol that may run the client.
fn with(gluster: &Gluster) -> Wasmvol {
    let mut wasmvol = Wasmvol::install();
    gluster.run(&mut wasmvol);
    let driver = component("drivers/glusterfs.wasm");
    wasmvol.cli(&format!("driver load {} --grant program=glusterfs", driver.display())).ok();
    wasmvol
}

/// Makes a volume of the server's; `more` replaces and adds options.
fn create(
    wasmvol: &Wasmvol,
    gluster: &Gluster,
    name: &str,
    more: &[(&str, &str)],
) -> Result<(), String> {
    let mut options = vec![("driver", "glusterfs"), ("volume", gluster.volume.as_str())];
    // The first one is nowhere: the second one is asked then.
    options.push(("servers", "10.0.0.2,10.0.0.1"));
    options.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
    options.extend(more);
    wasmvol.plugin().create(name, &options)
}

fn programs(gluster: &Gluster) -> Vec<u32> {
    running("glusterfs", &format!("--volfile-id={}", gluster.volume))
}

#[test]
fn what_was_written_is_at_the_server_and_comes_back_and_the_program_ends_with_the_mount() {
    let gluster = Gluster::start();
    let wasmvol = with(&gluster);
    create(&wasmvol, &gluster, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::create_dir(path.join("dir")).unwrap();
    fs::write(path.join("dir/file"), "kept").unwrap();
    assert_eq!(fs::read_to_string(gluster.brick().join("dir/file")).unwrap(), "kept");
    let program = programs(&gluster);
    assert_eq!(program.len(), 1);
    is_unprivileged(program[0]);
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    until("the program ends", SOON, || programs(&gluster).is_empty().then_some(()));
    create(&wasmvol, &gluster, "part", &[("subdir", "dir"), ("read-only", "true")]).unwrap();
    let path = wasmvol.plugin().mount("part", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    let error = fs::write(path.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    wasmvol.plugin().unmount("part", "id").unwrap();
    until("the program ends", SOON, || programs(&gluster).is_empty().then_some(()));
}

#[test]
fn it_outlives_the_daemon_and_mountd_and_its_end_is_seen() {
    let gluster = Gluster::start();
    let mut wasmvol = with(&gluster);
    create(&wasmvol, &gluster, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let before = programs(&gluster);
    wasmvol.kill_daemon();
    fs::write(path.join("one"), "kept").unwrap();
    wasmvol.kill_mountd();
    fs::write(path.join("two"), "kept").unwrap();
    gluster.run(&mut wasmvol);
    assert_eq!(wasmvol.plugin().mount("far", "another").unwrap(), path);
    assert_eq!(programs(&gluster), before, "another program was started");
    assert_eq!(health(&wasmvol, "far"), "ok");

    send(before[0], Signal::KILL);
    until("the program ends", SOON, || (!is_running(before[0])).then_some(()));
    let ended = "degraded: program `glusterfs` has ended: it is started again at the next Mount";
    until("Status tells it", SOON, || (health(&wasmvol, "far") == ended).then_some(()));
    let found = wasmvol.cli("doctor");
    assert!(found.stdout.contains(ended), "{found:?}");
    wasmvol.plugin().mount("far", "third").unwrap();
    assert_eq!(fs::read_to_string(path.join("two")).unwrap(), "kept");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another", "third"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
    assert!(!wasmvol.is_mounted("far"));
    until("the program ends", SOON, || programs(&gluster).is_empty().then_some(()));
}

#[test]
fn what_cannot_be_mounted_says_why_in_one_line_and_leaves_nothing() {
    let gluster = Gluster::start();
    let shelf = Shelf::of(with(&gluster));
    let there = [("servers", "10.0.0.1"), ("volume", gluster.volume.as_str())];
    for (key, value, part) in [
        ("volume", "another", "another"),
        ("servers", "10.0.0.2", "disconnected from remote-host: 10.0.0.2"),
        ("port", "1", "disconnected from remote-host: 10.0.0.1"),
        ("subdir", "nothing", "Server authentication failed"),
    ] {
        let mut options = there.to_vec();
        options.retain(|(other, _)| *other != key);
        options.push((key, value));
        let error = shelf.refused("glusterfs", &options);
        assert!(error.contains(part), "{key}: {error}");
    }
    // But for these it could be mounted.
    shelf.create("far", "glusterfs", &there).unwrap();
    shelf.wasmvol.plugin().mount("far", "id").unwrap();
    shelf.wasmvol.plugin().unmount("far", "id").unwrap();
    until("the program ends", SOON, || programs(&gluster).is_empty().then_some(()));
}

#[test]
fn it_is_refused_with_the_cure_where_it_was_not_granted() {
    let wasmvol = Wasmvol::start();
    let options = [("driver", "glusterfs"), ("servers", "10.0.0.1"), ("volume", "data")];
    let made = wasmvol.plugin().create("far", &options);
    let error = made.and_then(|()| wasmvol.plugin().mount("far", "id")).unwrap_err();
    assert!(error.contains("`wasmvol driver grant glusterfs 'program=glusterfs'`"), "{error}");
    assert_eq!(wasmvol.volume_mounts(), []);
}
