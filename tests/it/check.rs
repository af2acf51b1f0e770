//! Does `driver check` tell a driver that keeps the contract from one that does not? Ours pass; each promise that a hostile one breaks is
//! found, and no other is blamed; and with `--mount` it happens for real and nothing is left of it.

mod broken;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::Value;

use crate::drivers::{component, hostile};
use crate::support::ec2::Ec2;
use crate::support::git::Git;
use crate::support::wasmvol::{PROGRAMS, is_running, send};
use crate::support::{Outcome, SOON, Scratch, copy_program, mounts, open_to_all, outcome, until};

const CREATED: &str = "a volume is created twice";
const SERVED: &str = "a host can serve what it asks for";
/// What is done for real.
const REAL: [&str; 6] = [
    "a wasmvol of its own loads it",
    "a volume is made for real",
    "it is mounted",
    "what is written is read back",
    "it is unmounted",
    "it is removed, and nothing is left",
];
/// A key that no server has.
const KEY: &str = "host-key=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE";

/// The drivers that come with wasmvol, and what each needs to be checked whole.
const OURS: [(&str, &[&str]); 14] = [
    ("btrfs", &["-o", "size=64m"]),
    ("cifs", &["-o", "server=nas", "-o", "share=team", "--grant", "share=cifs:nas"]),
    ("glusterfs", &["-o", "servers=a,b", "-o", "volume=data", "--grant", "program=glusterfs"]),
    ("image", &["-o", "size=8m", "--grant", "image"]),
    ("local", &[]),
    (
        "local",
        &[
            "-o",
            "type=none",
            "-o",
            "o=bind",
            "-o",
            "device=/srv/a",
            "--grant",
            "host-directory=/srv",
        ],
    ),
    ("nfs", &["-o", "server=10.0.0.5", "-o", "export=/srv", "--grant", "share=nfs4:10.0.0.0/8"]),
    ("overlay", &["-o", "lower=/srv/a", "--grant", "host-directory=/srv"]),
    ("overlay", &["-o", "over=base"]),
    ("rclone", &["-o", "remote=nas:data", "-o", "config=remotes", "--grant", "program=rclone"]),
    ("s3fs", &["-o", "bucket=data", "-o", "secret=key", "--grant", "program=s3fs"]),
    (
        "sshfs",
        &["-o", "host=nas", "-o", "path=/d", "-o", KEY, "-o", "key=k", "--grant", "program=sshfs"],
    ),
    ("tmpfs", &["-o", "size=64m"]),
    ("vfs", &["--grant", "host-directory=/srv"]),
];

/// Those that ask servers when a volume is made: checked with one each.
const ASKING: [&str; 2] = ["ebs", "git"];

fn faulty() -> PathBuf {
    component("guests/faulty.wasm")
}

fn command(component: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAMS.join("wasmvol"));
    command.args(["driver", "check"]).arg(component).args(arguments);
    command
}

fn check(component: &Path, arguments: &[&str]) -> Outcome {
    outcome(&format!("driver check {arguments:?}"), &mut command(component, arguments))
}

/// What it says as JSON, and with which status it ends.
fn report(component: &Path, arguments: &[&str]) -> (Value, Option<i32>) {
    let outcome = check(component, &[arguments, &["--json"]].concat());
    let report = serde_json::from_str(&outcome.stdout);
    (report.unwrap_or_else(|e| panic!("{e}: {outcome:?}")), outcome.code)
}

/// The checks that came out so, each with its detail.
fn with_result<'a>(report: &'a Value, result: &str) -> Vec<(&'a str, &'a str)> {
    let checks = report["checks"].as_array().unwrap().iter();
    let those = checks.filter(|check| check["result"] == result);
    those.map(|c| (c["check"].as_str().unwrap(), c["detail"].as_str().unwrap())).collect()
}

#[track_caller]
fn passes(component: &Path, arguments: &[&str]) -> Value {
    let (report, code) = report(component, arguments);
    assert_eq!(with_result(&report, "fail"), [], "{arguments:?}");
    assert_eq!((&report["passed"], code), (&Value::Bool(true), Some(0)), "{arguments:?}");
    report
}

/// What asks a server is not asked with odd values: each would be something there.
#[track_caller]
fn passes_with_its_server(driver: &str, arguments: &[&str]) {
    let report = passes(&component(&format!("drivers/{driver}.wasm")), arguments);
    let skipped = with_result(&report, "skipped");
    let names: Vec<_> = skipped.iter().map(|(check, _)| *check).collect();
    assert_eq!(names, ["odd values are answered"], "{skipped:?}");
}

#[test]
fn a_driver_that_fills_volumes_from_a_server_keeps_the_contract() {
    let server = Git::serve();
    server.shell("echo hello >file && tar -cf archive.tar file");
    let url = format!("archive={}/archive.tar", server.origin());
    let grant = format!("http={}", server.origin());
    passes_with_its_server("git", &["-o", &url, "--grant", &grant]);
}

#[test]
fn a_driver_of_a_clouds_disks_keeps_the_contract() {
    let ec2 = Ec2::start();
    let scratch = Scratch::new();
    let key = scratch.path().join("key");
    fs::write(&key, &ec2.key).unwrap();
    let settings = [
        "region=us-east-1".to_owned(),
        "key=ec2".to_owned(),
        format!("endpoint={}", ec2.moto.url()),
        format!("zone={}", ec2.zone),
        format!("instance={}", ec2.machines[0]),
        "device=/dev/disk".to_owned(),
    ];
    let grants =
        [format!("http={}", ec2.moto.url()), "reveal=ec2".into(), "device=/dev/disk".into()];
    let secret = format!("ec2={}", key.display());
    let mut arguments = vec!["-o", "size=1g", "--secret", &secret];
    arguments.extend(settings.iter().flat_map(|setting| ["--setting", setting]));
    arguments.extend(grants.iter().flat_map(|grant| ["--grant", grant]));
    passes_with_its_server("ebs", &arguments);
}

#[test]
fn every_driver_that_comes_with_wasmvol_keeps_the_contract() {
    for (driver, arguments) in OURS {
        let report = passes(&component(&format!("drivers/{driver}.wasm")), arguments);
        assert_eq!(with_result(&report, "skipped"), [], "{driver} {arguments:?}");
        assert_eq!(report["driver"], driver);
    }
    let built = fs::read_dir(component("drivers")).unwrap();
    let name = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let built: BTreeSet<_> = built.map(|file| name(file.unwrap().path())).collect();
    let ours = OURS.iter().map(|(driver, _)| *driver).chain(ASKING);
    let checked = ours.map(str::to_owned).collect();
    assert_eq!(built, checked, "a driver is built, and not checked here");
}

#[test]
fn a_driver_with_every_ability_is_asked_for_each_of_them() {
    let report = passes(&faulty(), &["--grant", "image"]);
    assert_eq!(with_result(&report, "skipped"), []);
    let calls = report["calls"].as_object().unwrap();
    let verbs: Vec<_> = calls.keys().map(String::as_str).collect();
    assert_eq!(
        verbs,
        [
            "attach", "check", "create", "describe", "detach", "list", "migrate", "path",
            "populate", "remove", "resize"
        ]
    );
    for (verb, told) in calls {
        let number = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("{verb}: {told}"));
        assert!(number("calls") > 0 && number("memory") > 64 << 10, "{verb}: {told}");
        assert!(told["slowest-ms"].as_f64().unwrap() > 0.0, "{verb}: {told}");
    }
    assert!(calls["create"]["answer"].as_u64().unwrap() > 0);
}

#[test]
fn what_only_an_operator_gives_is_asked_for_and_is_no_failure() {
    let lacks = |component: &Path, arguments: &[&str], check: &str| {
        let report = passes(component, arguments);
        let skipped = with_result(&report, "skipped");
        assert_eq!(skipped[0].0, check, "{arguments:?}: {skipped:?}");
        skipped[0].1.to_owned()
    };
    let driver = |name: &str| component(&format!("drivers/{name}.wasm"));
    let image = lacks(&driver("image"), &["-o", "size=8m"], SERVED);
    assert!(image.starts_with("needs a grant: ") && image.contains("`--grant 'image'`"), "{image}");
    let vfs = lacks(&driver("vfs"), &[], CREATED);
    assert!(vfs.contains("`--grant 'host-directory=PATH'`"), "{vfs}");
    // One that asks a backend, and one that wants to know a secret.
    let http = ["--grant", "image", "--setting", "fault=http"];
    let http = lacks(&faulty(), &http, CREATED);
    assert!(http.contains("`--grant 'http=https://backend.test'`"), "{http}");
    let reveals = ["--grant", "image", "--setting", "fault=reveal", "-o", "key=signing"];
    let reveal = lacks(&faulty(), &reveals, CREATED);
    assert!(reveal.contains("`--grant reveal=signing`"), "{reveal}");
    let granted = [&reveals[..], &["--grant", "reveal=signing"]].concat();
    let secret = lacks(&faulty(), &granted, CREATED);
    assert!(secret.contains("`--secret signing=FILE`"), "{secret}");
    let scratch = Scratch::new();
    let file = scratch.path().join("key");
    fs::write(&file, "open sesame").unwrap();
    let given = format!("signing={}", file.display());
    let report = passes(&faulty(), &[&granted[..], &["--secret", &given]].concat());
    assert_eq!(with_result(&report, "skipped"), []);
}

#[test]
fn a_person_sees_what_was_asked_and_what_each_verb_took() {
    let outcome = check(&component("drivers/tmpfs.wasm"), &["-o", "size=64m"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let shown: String = outcome.stdout.lines().map(|line| format!("{}\n", plain(line))).collect();
    let expected = "\
CHECK | RESULT | TIME | DETAIL
a host loads it | ok | time | size
it describes itself | ok | time | tmpfs 0.1.0, 5 options
every default is a value of its option | ok | time | 3 defaults
a volume is created twice | ok | time | no storage
its plan is the same each time | ok | time | memory
a host can serve what it asks for | ok | time
two volumes are apart | ok | time
so are two of one name | ok | time | with `size=96m`
a volume is removed twice | ok | time | its data is deleted
one that never was is removed | ok | time
what it knows is listed | ok | time | 0 found
names at the limit are answered | ok | time | 1 to 128 characters
odd values are answered | ok | time | 24 volumes, 19 refused
unknown options are refused, or change nothing | ok | time
state that is not its own is answered | ok | time
time changes no plan | ok | time
no call comes near a limit | ok | time
all that was made is removed | ok | time

VERB | CALLS | SLOWEST | MEMORY | ANSWER
create | 45 | time | size | size
describe | 3 | time | size | size
list | 2 | time | size | size
path | 27 | time | size | size
remove | 29 | time | size | size
";
    assert_eq!(shown, expected, "{}", outcome.stdout);
}

/// A line's cells, with times and sizes told by their kind alone.
fn plain(line: &str) -> String {
    let kind = |cell: &str| match cell.split_once(' ') {
        Some((number, unit)) if number.parse::<f64>().is_ok() => match unit {
            "us" | "ms" | "s" => "time".to_owned(),
            "B" | "KiB" | "MiB" => "size".to_owned(),
            _ => cell.to_owned(),
        },
        _ => cell.to_owned(),
    };
    let cells = line.split("   ").map(str::trim).filter(|cell| !cell.is_empty());
    cells.map(kind).collect::<Vec<_>>().join(" | ")
}

#[test]
fn a_program_gets_one_object_with_every_check_and_what_was_checked() {
    let (report, code) = report(&component("drivers/image.wasm"), &["-o", "size=8m"]);
    assert_eq!(code, Some(0));
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["calls", "checks", "digest", "driver", "passed", "size", "version"]);
    assert_eq!((&report["driver"], &report["version"]), (&"image".into(), &"0.1.0".into()));
    let file = fs::metadata(component("drivers/image.wasm")).unwrap();
    assert_eq!(report["size"], file.len());
    assert_eq!(report["digest"].as_str().unwrap().len(), 64);
    for check in report["checks"].as_array().unwrap() {
        let keys: Vec<_> = check.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["check", "detail", "ms", "result"]);
        let known = ["ok", "fail", "skipped"];
        assert!(known.contains(&check["result"].as_str().unwrap()), "{check}");
        assert!(check["ms"].is_f64(), "{check}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_in_one_line() {
    let sshfs = component("drivers/sshfs.wasm");
    let local = component("drivers/local.wasm");
    let absent = Path::new("/no/such/file.wasm");
    let asked: [(&Path, &[&str], &str); 6] = [
        (&sshfs, &["-o", "port=22"], "give `-o host=…` (name or address of the server), `-o path"),
        (&local, &["-o", "sise=1g"], "no option `sise`: did you mean `size`?"),
        (&local, &["-o", "driver=tmpfs"], "leave `-o driver=tmpfs` out"),
        (&local, &["--grant", "everything"], "`everything` is no grant"),
        (&local, &["--secret", "key=/no/such/key"], "`/no/such/key`"),
        (absent, &[], "`/no/such/file.wasm`"),
    ];
    for (component, arguments, part) in asked {
        let outcome = check(component, arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        assert!(outcome.stderr.contains(part), "{outcome:?}");
    }
    assert_eq!(check(&local, &["--no-such-flag"]).code, Some(2));
    let failed = check(&hostile(), &["-o", "do=panic"]);
    assert_eq!((failed.code, failed.stderr.lines().count()), (Some(1), 1), "{failed:?}");
    assert!(failed.stderr.contains(" fails 3 of 18 checks"), "{failed:?}");
}

#[test]
fn nobody_needs_root_but_to_mount_and_is_told_so() {
    let place = open_to_all("check");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
    let (program, driver) = (place.join("wasmvol"), place.join("tmpfs.wasm"));
    copy_program(&PROGRAMS.join("wasmvol"), &program);
    copy_program(&component("drivers/tmpfs.wasm"), &driver);
    fs::set_permissions(&driver, Permissions::from_mode(0o644)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        command.args(["driver", "check"]).arg(&driver).args(arguments).env("TMPDIR", &place);
        outcome("driver check as nobody", &mut command)
    };
    as_nobody(&[]).ok();
    let refused = as_nobody(&["--mount"]).refused();
    assert!(refused.contains("`--mount` mounts, so it needs root"), "{refused}");
    let left: BTreeSet<_> = fs::read_dir(&place).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [program, driver].into(), "something was left");
}

#[test]
fn a_volume_is_used_for_real_and_nothing_is_left_of_it() {
    let image: &[&str] = &["-o", "size=16m", "--grant", "image"];
    let layer: &[&str] = &["-o", "lower=/usr", "--grant", "host-directory=/usr"];
    for (component, arguments) in [
        (component("drivers/local.wasm"), &["-o", "uid=7"][..]),
        (component("drivers/tmpfs.wasm"), &["-o", "size=1m"]),
        (component("drivers/image.wasm"), image),
        (component("drivers/overlay.wasm"), layer),
        (faulty(), &["--grant", "image"]),
    ] {
        let place = Scratch::new();
        let before = mounts::all();
        let mut command = command(&component, &[arguments, &["--mount", "--json"]].concat());
        let outcome = outcome("driver check --mount", command.env("TMPDIR", place.path()));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let ok: Vec<_> = with_result(&report, "ok").into_iter().map(|(check, _)| check).collect();
        assert!(ok.ends_with(&REAL), "{outcome:?}");
        let ours = |mount: &mounts::Mount| Path::new(&mount.path).starts_with(place.path());
        assert!(!mounts::all().iter().any(ours), "a mount is seen outside");
        assert!(before.iter().all(|mount| !ours(mount)));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "a directory is left");
    }
}

#[test]
fn what_cannot_be_used_for_real_fails_there_and_what_is_not_granted_is_not_tried() {
    let real = |component: PathBuf, arguments: &[&str], result: &str| {
        let (report, code) = report(&component, &[arguments, &["--mount"]].concat());
        let found = with_result(&report, result).into_iter();
        let found: Vec<_> = found.map(|(c, d)| (c.to_owned(), d.to_owned())).collect();
        (found, code)
    };
    let image = component("drivers/image.wasm");
    let (skipped, code) = real(image, &["-o", "size=16m"], "skipped");
    let names: Vec<_> = skipped[1..].iter().map(|(check, _)| check.as_str()).collect();
    assert_eq!((names.as_slice(), code), (&REAL[..], Some(0)));
    assert!(skipped[1].1.contains("`--grant 'image'`"), "{skipped:?}");
    // No host has this directory: its plan is in order, and its mount is not.
    let bind = ["-o", "type=none", "-o", "o=bind", "-o", "device=/srv/no/such/place"];
    let bind = [&bind[..], &["--grant", "host-directory=/srv"]].concat();
    let (failed, code) = real(component("drivers/local.wasm"), &bind, "fail");
    assert_eq!((failed.len(), code), (1, Some(1)), "{failed:?}");
    assert_eq!(failed[0].0, "it is mounted");
    assert!(failed[0].1.contains("/srv/no/such/place"), "{failed:?}");
}

/// A check of a component that loops in its calls, while it runs, and the process where that is loaded.
fn looping(driver: &Path, place: &Scratch, arguments: &[&str]) -> (Child, u32) {
    let mut command = command(driver, &[&["-o", "do=loop"], arguments].concat());
    command.env("TMPDIR", place.path()).env("ROOTS_OWN", "open sesame");
    let running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let inside = until("the component is loaded", SOON, || {
        with_descendants(running.id()).into_iter().find(|process| has_loaded(*process))
    });
    (running, inside)
}

/// A process and all that it, or one of those, has started and that is there still.
fn with_descendants(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    for at in 0.. {
        let Some(parent) = found.get(at) else { break };
        let threads = fs::read_dir(format!("/proc/{parent}/task"));
        let children = threads
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: String = children.collect();
        found.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
    }
    found
}

/// Whether a process has machine code of a component.
fn has_loaded(process: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"));
    maps.is_ok_and(|maps| maps.contains(".cwasm"))
}

#[test]
fn where_root_checks_it_a_component_is_nobodys_and_has_nothing_of_roots() {
    // What is open here is open in what is started here.
    let place = Scratch::new();
    let open = place.path().join("of-roots");
    fs::write(&open, "").unwrap();
    let _inherited = rustix::fs::open(&open, OFlags::RDONLY, Mode::empty()).unwrap();
    for arguments in [&[][..], &["--mount"]] {
        let place = Scratch::new();
        let (mut running, inside) = looping(&hostile(), &place, arguments);
        let files = |process: u32| -> Vec<PathBuf> {
            let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
            entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
        };
        assert!(files(running.id()).contains(&open), "it was not inherited at all");
        assert!(!files(inside).contains(&open), "{arguments:?}");
        let status = fs::read_to_string(format!("/proc/{inside}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!([field("Uid:"), field("Gid:")], ["65534 65534 65534 65534"; 2], "{arguments:?}");
        for none in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(none), "0000000000000000", "{arguments:?}: {none}");
        }
        assert_eq!((field("Groups:").as_str(), field("NoNewPrivs:").as_str()), ("", "1"));
        let environment = fs::read_to_string(format!("/proc/{inside}/environ")).unwrap();
        assert_eq!(environment, "", "{arguments:?}");
        let stat = fs::read_to_string(format!("/proc/{inside}/stat")).unwrap();
        let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
        assert_eq!(session, inside.to_string(), "{arguments:?}: it may have root's terminal");
        let owner = fs::metadata(format!("/proc/{inside}/environ")).unwrap().uid();
        assert_eq!(owner, 0, "{arguments:?}: others of nobody's can look into it");
        for process in with_descendants(running.id()).into_iter().filter(|other| *other != inside) {
            assert!(!has_loaded(process), "{arguments:?}: root has loaded it");
        }
        running.kill().unwrap();
        running.wait().unwrap();
    }
}

#[test]
fn who_kills_it_has_killed_all_of_it() {
    for arguments in [&[][..], &["--mount"]] {
        let place = Scratch::new();
        let driver = place.path().join("hostile.wasm");
        fs::copy(hostile(), &driver).unwrap();
        let (mut running, inside) = looping(&driver, &place, arguments);
        // The command, and with namespaces what makes them and the same command in them.
        let those = if arguments.is_empty() { 1 } else { 3 };
        assert_eq!(naming(&driver), those, "{arguments:?}");
        send(running.id(), Signal::KILL);
        running.wait().unwrap();
        until("all of it has ended", SOON, || {
            (naming(&driver) == 0 && !is_running(inside)).then_some(())
        });
    }
}

#[test]
fn what_a_check_leaves_that_was_killed_the_next_one_takes_away_and_no_running_ones() {
    let place = Scratch::new();
    let directories = || -> BTreeSet<PathBuf> {
        fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let begin = || {
        let before = directories();
        let mut command = command(&hostile(), &["-o", "do=loop"]);
        let running = command.env("TMPDIR", place.path()).spawn().unwrap();
        let new = || directories().difference(&before).next().cloned();
        let own = until("it has its directory", SOON, || {
            new().filter(|directory| directory.join("apart/scratch").exists())
        });
        // So long ago that it would be locked.
        let directory = fs::File::open(&own).unwrap();
        directory.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
        // It is not to end by itself meanwhile.
        send(running.id(), Signal::STOP);
        (running, own)
    };
    let ((mut killed, left), (mut running, own)) = (begin(), begin());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(left.exists(), "nothing was left");
    let tmpfs = component("drivers/tmpfs.wasm");
    outcome("driver check", command(&tmpfs, &[]).env("TMPDIR", place.path())).ok();
    assert_eq!(directories(), [own].into());
    running.kill().unwrap();
    running.wait().unwrap();
}

/// How many processes have a file among their arguments.
fn naming(file: &Path) -> usize {
    let file = file.as_os_str().as_encoded_bytes();
    let has = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == file)
    };
    fs::read_dir("/proc").unwrap().map(Result::unwrap).filter(has).count()
}
