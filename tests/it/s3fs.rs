//! Does s3fs serve a bucket as if the kernel did? Against a real S3 server, with keys that are a secret.

use std::fs;

use rustix::process::Signal;

use crate::drivers::component;
use crate::support::canary::Canary;
use crate::support::programs::{health, is_closed_to_its_user, is_unprivileged, running};
use crate::support::s3::S3;
use crate::support::wasmvol::{Wasmvol, is_running, send};
use crate::support::{SOON, until};

/// Keeps keys under a name, for a server.
fn keep(wasmvol: &Wasmvol, name: &str, keys: &str, peer: &str) {
    let file = wasmvol.path("keys");
    fs::write(&file, keys).unwrap();
    let set = format!("secret set {name} --driver s3fs --peer {peer} --file");
    wasmvol.cli(&format!("{set} {}", file.display())).ok();
    fs::remove_file(file).unwrap();
}

/// A wasmvol that may run s3fs and has the server's keys under the name `keys`.
fn with(s3: &S3) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    let s3fs = component("drivers/s3fs.wasm");
    wasmvol.cli(&format!("driver load {} --grant program=s3fs", s3fs.display())).ok();
    keep(&wasmvol, "keys", &s3.keys, &s3.address.to_string());
    wasmvol
}

/// Makes a volume of a bucket; `more` replaces and adds options.
fn create(wasmvol: &Wasmvol, s3: &S3, name: &str, more: &[(&str, &str)]) -> Result<(), String> {
    let url = s3.url();
    let mut options = vec![("driver", "s3fs"), ("bucket", "bucket"), ("secret", "keys")];
    options.extend([("endpoint", url.as_str()), ("path-style", "true")]);
    options.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
    options.extend(more);
    wasmvol.plugin().create(name, &options)
}

fn programs(s3: &S3) -> Vec<u32> {
    running("s3fs", &format!("url={}", s3.url()))
}

#[test]
fn what_was_written_is_in_the_bucket_and_comes_back_and_the_program_ends_with_the_mount() {
    let s3 = S3::open();
    let wasmvol = with(&s3);
    create(&wasmvol, &s3, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    fs::create_dir(path.join("dir")).unwrap();
    assert_eq!(s3.object("file").unwrap(), "kept");
    assert_eq!(programs(&s3).len(), 1);
    wasmvol.plugin().unmount("far", "id").unwrap();
    assert!(!wasmvol.is_mounted("far"));
    until("the program ends", SOON, || programs(&s3).is_empty().then_some(()));
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
    wasmvol.plugin().unmount("far", "id").unwrap();
    until("the program ends", SOON, || programs(&s3).is_empty().then_some(()));
    wasmvol.plugin().remove("far").unwrap();
    assert!(s3.object("file").is_some(), "a removed volume took the bucket's data along");
}

#[test]
fn a_prefix_is_all_that_a_volume_shows_and_read_only_is_read_only() {
    let s3 = S3::open();
    let wasmvol = with(&s3);
    create(&wasmvol, &s3, "all", &[]).unwrap();
    let all = wasmvol.plugin().mount("all", "id").unwrap();
    fs::create_dir(all.join("part")).unwrap();
    fs::write(all.join("part/file"), "kept").unwrap();
    create(&wasmvol, &s3, "part", &[("prefix", "part"), ("read-only", "true")]).unwrap();
    let part = wasmvol.plugin().mount("part", "id").unwrap();
    assert_eq!(fs::read_to_string(part.join("file")).unwrap(), "kept");
    let error = fs::write(part.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for volume in ["all", "part"] {
        wasmvol.plugin().unmount(volume, "id").unwrap();
    }
}

#[test]
fn it_outlives_the_daemon_and_mountd() {
    let s3 = S3::open();
    let mut wasmvol = with(&s3);
    create(&wasmvol, &s3, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    let before = programs(&s3);
    wasmvol.kill_daemon();
    fs::write(path.join("one"), "1").unwrap();
    wasmvol.kill_mountd();
    fs::write(path.join("two"), "2").unwrap();
    wasmvol.run();
    assert_eq!(wasmvol.plugin().mount("far", "another").unwrap(), path);
    assert_eq!(programs(&s3), before, "another program was started");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
    until("the program ends", SOON, || programs(&s3).is_empty().then_some(()));
    assert!(s3.object("one").is_some() && s3.object("two").is_some());
}

#[test]
fn its_end_is_seen_and_the_next_mount_starts_it_again() {
    let s3 = S3::open();
    let wasmvol = with(&s3);
    create(&wasmvol, &s3, "far", &[]).unwrap();
    let path = wasmvol.plugin().mount("far", "id").unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    let program = programs(&s3)[0];
    send(program, Signal::KILL);
    until("the program ends", SOON, || (!is_running(program)).then_some(()));
    let ended = "degraded: program `s3fs` has ended: it is started again at the next Mount";
    until("Status tells it", SOON, || (health(&wasmvol, "far") == ended).then_some(()));
    let found = wasmvol.cli("doctor");
    assert!(found.stdout.contains(ended), "{found:?}");
    wasmvol.plugin().mount("far", "another").unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(health(&wasmvol, "far"), "ok");
    for id in ["id", "another"] {
        wasmvol.plugin().unmount("far", id).unwrap();
    }
}

#[test]
fn its_keys_open_a_bucket_and_are_found_nowhere_and_others_do_not() {
    let s3 = S3::closed();
    let wasmvol = with(&s3);
    create(&wasmvol, &s3, "far", &[]).unwrap();
    wasmvol.plugin().mount("far", "id").unwrap();
    is_unprivileged(programs(&s3)[0]);
    is_closed_to_its_user(programs(&s3)[0]);
    let (access, secret) = s3.keys.split_once(':').unwrap();
    for part in [access, secret] {
        Canary::of(part).is_nowhere(&wasmvol, &["far"], &[]);
    }
    wasmvol.plugin().unmount("far", "id").unwrap();

    let wrong = Canary::new();
    keep(&wasmvol, "wrong", &format!("{access}:{}", wrong.bytes()), &s3.address.to_string());
    create(&wasmvol, &s3, "closed", &[("secret", "wrong")]).unwrap();
    let error = wasmvol.plugin().mount("closed", "id").unwrap_err();
    assert!(error.contains("invalid credentials") && !error.contains('\n'), "{error}");
    wrong.is_nowhere(&wasmvol, &["closed"], &[error]);
    assert_eq!(wasmvol.volume_mounts().len(), 0);
    until("both have ended", SOON, || programs(&s3).is_empty().then_some(()));
}

#[test]
fn what_cannot_be_mounted_says_why_in_one_line_and_leaves_nothing() {
    let s3 = S3::open();
    let wasmvol = with(&s3);
    keep(&wasmvol, "elsewhere", &s3.keys, "other.example");
    let address = s3.address.to_string();
    keep(&wasmvol, "odd", "no keys at all", &address);
    // Nobody listens at the first port, and nobody may.
    let nowhere = format!("http://{address}:1");
    let elsewhere = format!("secret `elsewhere` is not for server `{address}`");
    for (at, (key, value, part)) in [
        ("bucket", "another", "bucket or key not found"),
        ("endpoint", nowhere.as_str(), "unable to connect"),
        ("secret", "elsewhere", elsewhere.as_str()),
        ("secret", "odd", "passwd file"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{at}");
        create(&wasmvol, &s3, &name, &[(key, value)]).unwrap();
        let error = wasmvol.plugin().mount(&name, "id").unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{key}: {error}");
        assert!(!wasmvol.is_mounted(&name));
        wasmvol.plugin().remove(&name).unwrap();
    }
    assert_eq!(programs(&s3), Vec::<u32>::new());
    assert_eq!(running("s3fs", &format!("url={nowhere}")), Vec::<u32>::new());
}

#[test]
fn it_is_refused_with_the_cure_where_it_was_not_granted() {
    let s3 = S3::open();
    let wasmvol = Wasmvol::start();
    keep(&wasmvol, "keys", &s3.keys, &s3.address.to_string());
    let made = create(&wasmvol, &s3, "far", &[]);
    let error = made.and_then(|()| wasmvol.plugin().mount("far", "id")).unwrap_err();
    assert!(error.contains("`wasmvol driver grant s3fs 'program=s3fs'`"), "{error}");
    assert_eq!(programs(&s3), Vec::<u32>::new());
}
