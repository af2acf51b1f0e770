//! Secrets: which file mountd takes for one, and for whom. That it goes to its peers alone is shown where it is spent.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use wasmvol_plan::{DriverName, Fault, FaultKind, Reply, Request, SecretName};

use crate::machine::Machine;

pub(crate) const TESTS: &[(&str, fn())] = tests![
    a_secret_is_found_for_its_driver_alone,
    a_secret_that_is_not_kept_is_missing_with_the_cure,
    a_file_that_is_not_roots_alone_is_no_secret,
    what_is_no_plain_file_is_no_secret,
    what_a_file_holds_is_not_repeated,
];

/// A machine that keeps the secret `nas` for driver `cifs`, and its file.
fn keeping() -> (Machine, PathBuf) {
    let machine = Machine::start();
    let file = machine.dir.join("state/secrets/nas");
    fs::write(&file, "driver cifs\npeer nas.example\n\nhunter2").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    (machine, file)
}

fn find(machine: &mut Machine, driver: &str) -> Result<(), Fault> {
    let driver = DriverName::parse(driver).unwrap();
    let name = SecretName::parse("nas").unwrap();
    match machine.ask(Request::Secret { driver, name }) {
        Reply::Kept => Ok(()),
        Reply::Failed(fault) => Err(fault),
        other => panic!("{other:?}"),
    }
}

/// It is refused with the kind and these words; and its bytes are in no answer.
#[track_caller]
fn refused(machine: &mut Machine, kind: FaultKind, words: &str) {
    let fault = find(machine, "cifs").unwrap_err();
    assert_eq!(fault.kind, kind, "{fault}");
    assert!(fault.message.contains(words), "{fault}");
    assert!(fault.message.contains("`wasmvol secret set nas --driver cifs`"), "{fault}");
    assert!(!fault.message.contains("hunter2"), "{fault}");
}

fn a_secret_is_found_for_its_driver_alone() {
    let (mut machine, _) = keeping();
    assert_eq!(find(&mut machine, "cifs"), Ok(()));
    let fault = find(&mut machine, "sshfs").unwrap_err();
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    assert!(fault.message.contains("secret `nas` is not for driver `sshfs`"), "{fault}");
    assert!(fault.message.contains("`wasmvol secret set nas --driver sshfs`"), "{fault}");
}

fn a_secret_that_is_not_kept_is_missing_with_the_cure() {
    let (mut machine, file) = keeping();
    fs::remove_file(file).unwrap();
    refused(&mut machine, FaultKind::Missing, "no secret `nas` is kept");
}

fn a_file_that_is_not_roots_alone_is_no_secret() {
    let (mut machine, file) = keeping();
    for mode in [0o640, 0o604, 0o620, 0o601] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        refused(&mut machine, FaultKind::Denied, "others than root may open");
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(crate::machine::UID), None).unwrap();
    refused(&mut machine, FaultKind::Denied, "others than root may open");
}

fn what_is_no_plain_file_is_no_secret() {
    let (mut machine, file) = keeping();
    let aside = file.with_file_name("aside");
    fs::rename(&file, &aside).unwrap();
    symlink(&aside, &file).unwrap();
    refused(&mut machine, FaultKind::Denied, "is a link");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&mut machine, FaultKind::Denied, "is no plain file");
    fs::remove_dir(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused(&mut machine, FaultKind::Denied, "is no plain file");
}

fn what_a_file_holds_is_not_repeated() {
    let (mut machine, file) = keeping();
    for content in ["hunter2", "hunter2\n\nhunter2", "", "driver hunter2!\n\nx", "driver cifs\n\n"]
    {
        fs::write(&file, content).unwrap();
        refused(&mut machine, FaultKind::Denied, "secret `nas` is none");
    }
    fs::write(&file, format!("driver cifs\n\n{}", "hunter2".repeat(20_000))).unwrap();
    refused(&mut machine, FaultKind::Denied, "at most 65536 bytes");
}
