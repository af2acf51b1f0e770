//! Does a secret stay one? What root's command line keeps is shown by nobody, spent for those alone that it is for, and found nowhere
//! but in its own file.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::canary::Canary;
use crate::support::open_to_all;
use crate::support::wasmvol::Wasmvol;

/// The file of a secret.
fn file(wasmvol: &Wasmvol, name: &str) -> PathBuf {
    wasmvol.state().join("secrets").join(name)
}

#[test]
fn a_secret_is_kept_from_a_pipe_and_a_file_for_root_alone() {
    let wasmvol = Wasmvol::start();
    let set =
        "wasmvol secret set nas --driver cifs --driver sshfs --peer nas.example --peer 10.0.0.0/8";
    assert_eq!(wasmvol.shell(&format!("umask 0 && printf 'one\\n' | {set}")).ok(), "nas");
    let head = "driver cifs\ndriver sshfs\npeer nas.example\npeer 10.0.0.0/8\n\n";
    assert_eq!(fs::read_to_string(file(&wasmvol, "nas")).unwrap(), format!("{head}one\n"));
    let stat = fs::metadata(file(&wasmvol, "nas")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o600));

    fs::write(wasmvol.path("key"), b"\xfftwo").unwrap();
    let key = wasmvol.path("key").display().to_string();
    assert_eq!(wasmvol.cli(&format!("secret set nas --driver image --file {key}")).ok(), "nas");
    assert_eq!(fs::read(file(&wasmvol, "nas")).unwrap(), b"driver image\n\n\xfftwo");
    assert_eq!(wasmvol.entries("secrets"), ["nas"]);
}

#[test]
fn secrets_are_listed_with_whom_they_are_for_and_never_shown() {
    let wasmvol = Wasmvol::start();
    let none = wasmvol.cli("secret ls");
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    assert!(none.stderr.contains("wasmvol secret set"), "{none:?}");
    Canary::new().set(&wasmvol, "nas", "cifs", "--driver sshfs --peer NAS.example --peer ::1");
    let canary = Canary::new();
    canary.set(&wasmvol, "disk", "image", "");
    let table = wasmvol.cli("secret ls").ok();
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "DRIVERS", "PEERS", "SET"]);
    assert_eq!(rows[1][..3], ["disk", "image", "-"]);
    assert_eq!(rows[2][..3], ["nas", "cifs,sshfs", "nas.example,::1"]);
    let shown = wasmvol.json("secret ls");
    assert_eq!(shown[1]["drivers"], json!(["cifs", "sshfs"]));
    assert_eq!(shown[1]["peers"], json!(["nas.example", "::1"]));
    assert_eq!(shown[0]["set_at"], rows[1][3]);
    canary.is_nowhere(&wasmvol, &[], &[table]);
}

#[test]
fn a_secret_that_was_removed_is_gone() {
    let wasmvol = Wasmvol::start();
    Canary::new().set(&wasmvol, "nas", "cifs", "");
    assert_eq!(wasmvol.json("secret rm nas"), json!({ "removed": ["nas"] }));
    assert_eq!(wasmvol.entries("secrets"), Vec::<String>::new());
    let said = wasmvol.cli("secret rm nas");
    assert_eq!(
        (said.code, said.stderr.as_str()),
        (Some(1), "wasmvol: secret `nas`: no such secret\n")
    );
}

#[test]
fn what_cannot_be_kept_is_refused_and_changes_nothing() {
    let wasmvol = Wasmvol::start();
    fs::write(wasmvol.path("long"), vec![b'x'; 65_537]).unwrap();
    fs::write(wasmvol.path("full"), vec![b'x'; 65_536]).unwrap();
    let long = wasmvol.path("long").display().to_string();
    for (line, code, part) in [
        (format!("nas --driver cifs --file {long}"), 1, "at most 65536 bytes"),
        ("nas --driver cifs --file /dev/null".into(), 1, "at least one byte"),
        ("nas --driver cifs --file /no/such".into(), 1, "`/no/such`"),
        ("nas --driver cifs".into(), 1, "at least one byte"),
        ("nas --file /etc/hostname".into(), 2, "--driver"),
        ("../nas --driver cifs".into(), 2, "a secret's name"),
        ("Nas --driver cifs".into(), 2, "a secret's name"),
        ("nas --driver ../x".into(), 2, "driver name"),
        ("nas --driver cifs --peer '*'".into(), 2, "use a host name"),
        ("nas --driver cifs --peer 10.0.0.1/8".into(), 2, "use a host name"),
        (format!("nas --driver cifs --file {long} {}", "--peer a ".repeat(17)), 1, "at most 16"),
    ] {
        let said = wasmvol.cli(&format!("secret set {line}"));
        assert_eq!((said.code, said.stdout.as_str()), (Some(code), ""), "{said:?}");
        assert!(said.stderr.contains(part), "{said:?}");
    }
    assert_eq!(wasmvol.entries("secrets"), Vec::<String>::new());
    let full = wasmvol.path("full").display().to_string();
    wasmvol.cli(&format!("secret set nas --driver cifs --file {full}")).ok();
}

#[test]
fn a_terminal_that_would_show_a_secret_is_refused() {
    let wasmvol = Wasmvol::start();
    let said = wasmvol.shell("script -qec 'wasmvol secret set nas --driver cifs' /dev/null");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains("a terminal would show what is typed"), "{said:?}");
}

#[test]
fn nobody_but_root_keeps_a_secret() {
    let wasmvol = Wasmvol::start();
    // The build may lie where that user cannot look. A copy that this process wrote could still be open in another test's child.
    let copy = open_to_all("wasmvol-of-a-user").display().to_string();
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let said = wasmvol.shell(&format!(
        "install -m 755 \"$(command -v wasmvol)\" {copy} && {user} {copy} secret ls"
    ));
    assert!(said.refused().contains("try again with sudo"));
}

#[test]
fn another_state_directory_than_the_daemons_is_refused() {
    let wasmvol = Wasmvol::start();
    let other = wasmvol.path("other");
    fs::create_dir_all(other.join("secrets")).unwrap();
    let set = format!("secret set nas --driver cifs --state-dir {}", other.display());
    let said = wasmvol.cli(&set).refused();
    assert!(said.contains("`--state-dir`") && said.contains("/state\""), "{said}");
    assert_eq!(fs::read_dir(other.join("secrets")).unwrap().count(), 0);
}

#[test]
fn a_driver_that_is_not_there_is_told_and_gets_its_secret_all_the_same() {
    let wasmvol = Wasmvol::start();
    fs::write(wasmvol.path("key"), "key").unwrap();
    let set = format!(
        "secret set key --driver local --driver lcoal --file {}",
        wasmvol.path("key").display()
    );
    let said = wasmvol.cli(&set);
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "key\n"), "{said:?}");
    assert_eq!(said.stderr, "wasmvol: no driver `lcoal` is loaded\n");
    assert_eq!(wasmvol.json("secret ls")[0]["drivers"], json!(["local", "lcoal"]));
}

#[test]
fn secrets_are_kept_and_listed_while_no_daemon_runs() {
    let mut wasmvol = Wasmvol::install();
    let said = wasmvol.cli("secret ls").refused();
    assert!(said.contains("start `wasmvol serve` once"), "{said}");
    wasmvol.run();
    assert!(wasmvol.stop().success());
    Canary::new().set(&wasmvol, "nas", "cifs", "");
    assert_eq!(wasmvol.json("secret ls")[0]["name"], "nas");
}

#[test]
fn what_is_no_secret_is_told_beside_those_that_are() {
    let wasmvol = Wasmvol::start();
    Canary::new().set(&wasmvol, "nas", "cifs", "");
    fs::write(file(&wasmvol, "odd"), "hunter2").unwrap();
    symlink("/etc/shadow", file(&wasmvol, "link")).unwrap();
    fs::write(file(&wasmvol, "nas.new"), "hunter2").unwrap();
    let listed = wasmvol.cli("secret ls --json");
    let shown: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    for part in ["/secrets/odd`", "/secrets/link`", "`nas.new`"] {
        assert!(listed.stderr.contains(part), "{part}: {listed:?}");
    }
    assert!(!listed.stderr.contains("hunter2"), "{listed:?}");
    wasmvol.cli("secret rm nas").ok();
    assert_eq!(
        wasmvol.entries("secrets"),
        ["link", "odd"],
        "what a killed write left goes with it"
    );
}

#[test]
fn a_password_given_in_clear_is_refused_and_found_nowhere() {
    let mut wasmvol = Wasmvol::install();
    wasmvol.set_variables(&[("WASMVOL_LOG", "trace")]);
    wasmvol.run();
    let canary = Canary::new();
    canary.set(&wasmvol, "nas", "cifs", "");
    let secret = canary.bytes();
    let plugin = wasmvol.plugin();
    let mut said = Vec::new();
    for (key, value) in [
        ("password", secret.to_owned()),
        ("token", secret.to_owned()),
        ("o", format!("username=u,password={secret}")),
        ("size", format!("secret_key={secret}")),
        ("mode", format!("https://user:{secret}@host/path")),
    ] {
        said.push(plugin.create("refused", &[(key, value.as_str())]).unwrap_err());
    }
    assert!(said.iter().all(|error| error.contains("a password given in clear")), "{said:?}");
    assert_eq!(plugin.list(), Vec::<String>::new());
    plugin.create("bystander", &[]).unwrap();
    canary.is_nowhere(&wasmvol, &["bystander"], &said);
}

/// A wasmvol with a driver that takes a secret, and logs all that it can.
fn with_a_driver_that_takes_one() -> Wasmvol {
    let mut wasmvol = Wasmvol::install();
    wasmvol.set_variables(&[("WASMVOL_LOG", "trace")]);
    wasmvol.run();
    let component = crate::drivers::hostile().display().to_string();
    wasmvol.cli(&format!("driver load {component} --name taker --setting do=secret-option")).ok();
    wasmvol
}

#[test]
fn a_volume_names_its_secret_and_shows_no_byte_of_it() {
    let mut wasmvol = with_a_driver_that_takes_one();
    let canary = Canary::new();
    canary.set(&wasmvol, "nas", "taker", "--peer nas.example");
    let plugin = wasmvol.plugin();
    plugin.create("shown", &[("driver", "taker"), ("secret", "nas")]).unwrap();
    plugin.create("shown", &[("driver", "taker"), ("secret", "nas")]).unwrap();
    plugin.mount("shown", "id").unwrap();
    assert_eq!(plugin.get("shown").unwrap()["Status"]["options"]["secret"], "secret nas");
    canary.is_nowhere(&wasmvol, &["shown"], &[]);
    // What it was made with outlives the secret, and every restart.
    wasmvol.cli("secret rm nas").ok();
    wasmvol.kill_daemon();
    plugin.create("shown", &[("driver", "taker"), ("secret", "nas")]).unwrap();
    plugin.unmount("shown", "id").unwrap();
    plugin.remove("shown").unwrap();
}

#[test]
fn a_secret_that_is_not_kept_is_refused_before_anything_is_durable_and_not_repeated() {
    let wasmvol = with_a_driver_that_takes_one();
    let canary = Canary::new();
    canary.set(&wasmvol, "nas", "taker", "");
    // The password itself, where its name should be: it could be one.
    let error =
        wasmvol.plugin().create("refused", &[("driver", "taker"), ("secret", canary.bytes())]);
    let error = error.unwrap_err();
    let cure = "make it with `wasmvol secret set NAME --driver taker [--peer HOST]`";
    assert_eq!(error, format!("option `secret`: no secret of that name is kept: {cure}"));
    assert_eq!(wasmvol.plugin().list(), Vec::<String>::new());
    canary.is_nowhere(&wasmvol, &[], &[error]);
}

#[test]
fn a_secret_of_another_driver_is_refused_with_the_cure() {
    let wasmvol = with_a_driver_that_takes_one();
    Canary::new().set(&wasmvol, "nas", "cifs", "--peer nas.example");
    let error = wasmvol.plugin().create("refused", &[("driver", "taker"), ("secret", "nas")]);
    let error = error.unwrap_err();
    assert!(
        error.starts_with("option `secret`: secret `nas` is not for driver `taker`"),
        "{error}"
    );
    assert!(error.contains("`wasmvol secret set nas --driver taker`"), "{error}");
    let canary = Canary::new();
    canary.set(&wasmvol, "nas", "taker", "--driver cifs --peer nas.example");
    wasmvol.plugin().create("refused", &[("driver", "taker"), ("secret", "nas")]).unwrap();
    canary.is_nowhere(&wasmvol, &["refused"], &[error]);
}
