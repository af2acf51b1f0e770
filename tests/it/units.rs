//! Are the units of host/systemd what systemd understands, and what the service can live with? Which ends of it does systemd take for good?

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::wasmvol::Wasmvol;
use crate::support::{Scratch, outcome};

const UNITS: [&str; 2] = ["wasmvol.service", "wasmvol.socket"];
/// Settings that give a service a mount namespace of its own, where no engine sees its mounts.
const NAMESPACES: [&str; 17] = [
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateUsers",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernel",
    "ProtectControlGroups",
    "ProtectProc",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "InaccessiblePaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "RootDirectory",
    "MountFlags",
];

fn unit(name: &str) -> String {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("host/systemd");
    fs::read_to_string(units.join(name)).unwrap()
}

#[test]
fn systemd_understands_every_line() {
    let scratch = Scratch::new();
    let places = UNITS.map(|name| scratch.path().join(name));
    for (name, place) in UNITS.iter().zip(&places) {
        // Nothing is installed here.
        fs::write(place, unit(name).replace("/usr/bin/wasmvol", "/bin/true")).unwrap();
    }
    let output = Command::new("systemd-analyze").arg("verify").args(&places).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about_ours = said.lines().filter(|line| line.contains("wasmvol."));
    assert_eq!(about_ours.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(output.status.success(), "{said}");
}

#[test]
fn no_setting_hides_the_mounts_of_the_service() {
    let service = unit("wasmvol.service");
    for line in service.lines() {
        let hides = NAMESPACES.iter().any(|setting| line.starts_with(setting));
        assert!(!hides, "{line}");
    }
}

#[test]
fn what_trying_again_cannot_mend_is_not_tried_again() {
    let service = unit("wasmvol.service");
    let line = service.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let never: Vec<i32> = line.unwrap().split(' ').map(|status| status.parse().unwrap()).collect();
    let broken = Wasmvol::install();
    fs::write(broken.path("etc/wasmvol.toml"), "default-drivr = \"tmpfs\"\n").unwrap();
    let refusals: [(&Wasmvol, &[&str], i32, &str); 5] = [
        (&broken, &[], 78, "unknown field `default-drivr`"),
        (&Wasmvol::install(), &["--user", "root"], 78, "must not run as root"),
        (&Wasmvol::install(), &["--user", "nobody-of-that-name"], 78, "there is no user"),
        (&Wasmvol::install(), &["--nonsense"], 2, "--nonsense"),
        (&Wasmvol::start(), &[], 75, "another"),
    ];
    for (wasmvol, arguments, status, part) in refusals {
        let mut serve = wasmvol.serve(&[]);
        let outcome = outcome("serve", serve.args(arguments));
        assert_eq!(outcome.code, Some(status), "{outcome:?}");
        assert!(outcome.stderr.contains(part), "{outcome:?}");
        assert!(never.contains(&status), "{status} is not in the unit");
    }
}
