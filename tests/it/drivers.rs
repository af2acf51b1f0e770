//! Can a driver hurt anybody but itself, and do drivers come and go as the operator says?

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::Value;

use crate::support::Scratch;
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::{PROGRAMS, Wasmvol};

/// The component that does everything that a driver must not do.
pub(crate) fn hostile() -> PathBuf {
    component("guests/hostile.wasm")
}

/// A component below target/.
pub(crate) fn component(name: &str) -> PathBuf {
    let path = PROGRAMS.parent().unwrap().join(name);
    assert!(path.exists(), "no {}: run `make test`, which builds it", path.display());
    path
}

/// A wasmvol with the hostile driver and one volume of another driver.
fn with_hostile() -> Wasmvol {
    let wasmvol = Wasmvol::start();
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    wasmvol.plugin().create("bystander", &[]).unwrap();
    wasmvol
}

#[test]
fn names_that_no_engine_takes_are_told_once_and_not_at_each_look() {
    let wasmvol = Wasmvol::start();
    let load = format!("driver load {} --setting do=list-odd-name", hostile().display());
    wasmvol.cli(&load).ok();
    for _ in 0..3 {
        let found = wasmvol.json("volume scan hostile")["volumes"].take();
        assert_eq!((&found[0]["name"], &found[0]["state"]), (&"../v".into(), &"refused".into()));
    }
    let says = "driver `hostile` knows volumes whose names are not allowed: 1 volume: `../v`";
    assert_eq!(wasmvol.log().matches(says).count(), 1);
}

/// What a driver may do wrong in a call, and what the error must say of it behind the driver's name.
const MISDEEDS: [(&str, &str); 16] = [
    ("loop", "driver did not answer within "),
    ("recurse", "driver asked for more than its limit of 512 KiB of stack"),
    ("grow", "driver asked for more than its limit of 64 MiB of memory"),
    ("panic", "driver crashed: out of cheese"),
    ("quiet-abort", "driver crashed: "),
    ("exit", "driver exited with status 1"),
    ("exit-well", "driver exited with status 0"),
    ("fail", r"backend is\u{a}full \u{1b}[31m"),
    ("long-error", "xxxx"),
    ("giant-error", "driver asked for more than its limit of 1 MiB in one answer"),
    ("large-state", "driver broke the contract: state has 65537 bytes: at most 65536 are allowed"),
    ("giant-state", "driver asked for more than its limit of 1 MiB in one answer"),
    ("bad-mode", "driver broke the contract: mode 10755 is not allowed"),
    ("image", "images are not granted: `wasmvol driver grant hostile 'image'`"),
    ("lie-over", "it names volume `bystander`, which no option of its user's does"),
    ("log-huge", "driver asked for more than its limit of 1 MiB in one answer"),
];

#[test]
fn a_driver_that_misbehaves_costs_one_clear_error() {
    let wasmvol = with_hostile();
    let plugin = wasmvol.plugin();
    for (act, reason) in MISDEEDS {
        let error = plugin.create(act, &[("driver", "hostile"), ("do", act)]).expect_err(act);
        assert!(error.contains(&format!("driver `hostile`: {reason}")), "{act}: {error}");
        assert!(error.chars().all(|c| !c.is_control()), "{act}: {error:?}");
        assert!(error.len() < 4096, "{act}: an error of {} bytes", error.len());
        // Nobody else notices, and nothing is left of the attempt.
        plugin.mount("bystander", act).unwrap();
        plugin.unmount("bystander", act).unwrap();
        // An undo that the driver refuses as well is parked under its name; the name is not shown.
        assert_eq!(plugin.list(), ["bystander"], "{act}");
    }
    assert_eq!(wasmvol.entries("volumes").len(), 1);
}

#[test]
fn a_driver_that_names_a_volume_by_a_default_of_its_own_does_not_get_it() {
    let wasmvol = with_hostile();
    let load = format!("driver load {} --name guesser", hostile().display());
    wasmvol.cli(&format!("{load} --setting do=name-a-volume")).ok();
    let plugin = wasmvol.plugin();
    let options = [("driver", "guesser"), ("do", "lie-over")];
    let error = plugin.create("above", &options).unwrap_err();
    let why = "it names volume `bystander`, which no option of its user's does";
    assert!(error.contains(&format!("driver `guesser`: {why}")), "{error}");
    assert_eq!(plugin.list(), ["bystander"]);
    // Where its user says the same, it is the user's word.
    plugin.create("above", &[&options[..], &[("below", "bystander")]].concat()).unwrap();
    plugin.remove("above").unwrap();
}

#[test]
fn a_looping_driver_delays_no_other() {
    let wasmvol = with_hostile();
    let plugin = wasmvol.plugin();
    let mut loops = Vec::new();
    for i in 0..4 {
        let mut socket = Socket::connect(&plugin.socket).unwrap();
        let body = format!(r#"{{"Name":"loop-{i}","Opts":{{"driver":"hostile","do":"loop"}}}}"#);
        socket.send(request("VolumeDriver.Create", &body)).unwrap();
        loops.push(socket);
    }
    for _ in 0..2 {
        plugin.mount("bystander", "id").unwrap();
        plugin.unmount("bystander", "id").unwrap();
    }
    // What was asked last was answered first. A loop ends after 2 s, and so does its undo: the four have not waited for one each.
    assert!(loops.iter_mut().all(Socket::is_silent), "a loop ended before its neighbours' calls");
    for mut socket in loops {
        let error = socket.read().unwrap().result().unwrap_err();
        assert!(error.contains("driver did not answer within "), "{error}");
    }
}

#[test]
fn a_plan_that_breaks_the_contract_mounts_nothing() {
    let wasmvol = with_hostile();
    let plugin = wasmvol.plugin();
    for (act, reason) in [
        ("parent", "driver broke the contract: subpath `a/../../b` is not allowed"),
        ("absolute", "driver broke the contract: subpath `/etc` is not allowed"),
        ("empty-subpath", "driver broke the contract: subpath `` is not allowed"),
        ("long-subpath", "driver broke the contract: subpath has 200001 bytes: at most "),
        ("served", "source `served` is not served by this version of wasmvol"),
    ] {
        plugin.create(act, &[("driver", "hostile"), ("do", act)]).unwrap();
        let error = plugin.mount(act, "id").expect_err(act);
        assert!(error.starts_with(&format!("driver `hostile`: {reason}")), "{act}: {error}");
        assert!(error.chars().all(|c| !c.is_control()) && error.len() < 4096, "{act}: {error}");
        assert!(!wasmvol.is_mounted(act), "{act}");
        plugin.unmount(act, "id").unwrap();
        plugin.remove(act).unwrap();
    }
}

#[test]
fn a_driver_sees_no_file_and_no_network() {
    let wasmvol = with_hostile();
    for act in ["read-files", "connect", "look-around"] {
        wasmvol.plugin().create(act, &[("driver", "hostile"), ("do", act)]).unwrap();
    }
}

#[test]
fn a_flood_of_log_lines_is_cut() {
    let wasmvol = with_hostile();
    for act in ["log-flood", "stderr-flood", "stdout-flood", "endless-line", "escapes"] {
        wasmvol.plugin().create(act, &[("driver", "hostile"), ("do", act)]).unwrap();
    }
    let log = wasmvol.log();
    assert!(log.contains("over its limit of 16 KiB a call"), "{log}");
    let lines = log.matches("driver=hostile").count();
    assert!(lines < 2_000, "{lines} lines, of more than 6,000");
    assert!(!log.contains('\u{1b}'), "escape sequences reach no terminal");
}

#[test]
fn a_component_that_is_none_is_refused() {
    let wasmvol = Wasmvol::start();
    let file = wasmvol.path("bad.wasm");
    for bytes in [&b""[..], b"no wasm at all", b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"] {
        std::fs::write(&file, bytes).unwrap();
        let outcome = wasmvol.cli(&format!("driver load {} --name bad", file.display()));
        let error = outcome.clone().refused();
        assert_eq!((outcome.code, error.lines().count()), (Some(1), 1), "{error}");
    }
    let outcome = wasmvol.cli("driver load /no/such/file.wasm");
    assert!(outcome.refused().contains("/no/such/file.wasm"));
}

#[test]
fn a_description_that_lies_is_refused_at_load() {
    let wasmvol = Wasmvol::start();
    for (act, reason) in [
        ("bad-name", "`../hostile`"),
        ("no-version", "version is empty"),
        ("long-version", "version has 100000 bytes: at most 64 are allowed"),
        ("reserved-option", "option `reclaim` is the host's own"),
        ("bad-option", "option key `Do It` is not made of"),
        ("option-twice", "option `do` is described twice"),
        ("many-options", "description has 1000 options: at most 64 are allowed"),
        ("loop", "`describe` failed: driver did not answer within "),
        ("panic", "`describe` failed: driver crashed: out of cheese"),
    ] {
        let line = format!("driver load {} --name liar --setting do={act}", hostile().display());
        let error = wasmvol.cli(&line).refused();
        assert!(error.contains(reason), "{act}: {error}");
        assert_eq!(error.lines().count(), 1, "{act}: {error}");
    }
    assert_eq!(names(&wasmvol), shipped());
}

fn names(wasmvol: &Wasmvol) -> Vec<String> {
    let drivers = wasmvol.json("driver ls");
    drivers.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

/// The drivers that come with wasmvol, in order.
fn shipped() -> Vec<String> {
    let built = fs::read_dir(PROGRAMS.with_file_name("drivers")).unwrap();
    let name = |file: String| Some(file.strip_suffix(".wasm")?.to_owned());
    let mut names: Vec<String> =
        built.filter_map(|entry| name(entry.unwrap().file_name().into_string().unwrap())).collect();
    names.sort();
    names
}

#[test]
fn a_driver_is_loaded_without_a_restart_and_outlives_one() {
    let mut wasmvol = Wasmvol::start();
    assert_eq!(names(&wasmvol), shipped());
    let plugin = wasmvol.plugin();
    let error = plugin.create("early", &[("driver", "hostile")]).unwrap_err();
    assert_eq!(error, "driver `hostile` is not loaded: load it with `wasmvol driver load`");
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    plugin.create("late", &[("driver", "hostile")]).unwrap();
    plugin.mount("late", "id").unwrap();
    wasmvol.kill_daemon();
    assert!(names(&wasmvol).contains(&"hostile".to_owned()));
    plugin.unmount("late", "id").unwrap();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    plugin.mount("late", "id").unwrap();
    plugin.unmount("late", "id").unwrap();
}

#[test]
fn a_component_that_was_changed_on_the_disk_is_not_run_after_a_restart() {
    let mut wasmvol = with_hostile();
    wasmvol.plugin().create("depends", &[("driver", "hostile")]).unwrap();
    let digest = wasmvol.json("driver inspect hostile")["digest"].as_str().unwrap().to_owned();
    assert!(wasmvol.stop().success());
    // A driver as good as any, and not the one that was loaded.
    let kept = wasmvol.state().join("drivers").join(format!("{digest}.wasm"));
    assert!(kept.exists());
    fs::copy(component("drivers/tmpfs.wasm"), &kept).unwrap();
    wasmvol.run();
    let failed = wasmvol.json("driver inspect hostile")["failed"].to_string();
    assert!(failed.contains("its bytes have changed"), "{failed}");
    let error = wasmvol.plugin().mount("depends", "id").unwrap_err();
    assert!(error.contains("`hostile`"), "{error}");
    assert!(wasmvol.log().contains("its bytes have changed"), "{}", wasmvol.log());
}

#[test]
fn what_was_refused_leaves_no_machine_code() {
    let wasmvol = Wasmvol::start();
    let before = wasmvol.entries("cache");
    wasmvol.cli(&format!("driver load {} --setting do=bad-name", hostile().display())).refused();
    assert_eq!(wasmvol.entries("cache"), before);
    // Refused for its grants, it may be loaded the next moment, and is compiled already.
    let greedy = component("guests/version1greedy.wasm");
    wasmvol.cli(&format!("driver load {}", greedy.display())).refused();
    assert_eq!(wasmvol.entries("cache").len(), before.len() + 1);
    wasmvol.cli(&format!("driver load {}", hostile().display())).ok();
    wasmvol.cli("driver unload hostile").ok();
    assert_eq!(wasmvol.entries("cache"), before);
}

#[test]
fn a_driver_with_volumes_is_not_unloaded() {
    let wasmvol = with_hostile();
    let plugin = wasmvol.plugin();
    plugin.create("depends", &[("driver", "hostile")]).unwrap();
    let error = wasmvol.cli("driver unload hostile").refused();
    assert!(error.contains("`depends`"), "{error}");
    plugin.remove("depends").unwrap();
    wasmvol.cli("driver unload hostile").ok();
    plugin.create("depends", &[("driver", "hostile")]).unwrap_err();
    let error = wasmvol.cli("driver unload hostile").refused();
    assert!(error.contains("no driver `hostile` is loaded"), "{error}");
}

/// What is granted to the drivers of a wasmvol, by name.
fn granted(wasmvol: &Wasmvol) -> BTreeMap<String, String> {
    let files = fs::read_dir(wasmvol.config().with_file_name("grants.d")).unwrap();
    files
        .map(|file| file.unwrap())
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, fs::read_to_string(file.path()).unwrap())
        })
        .collect()
}

#[test]
fn grants_are_written_where_the_operator_says_and_nowhere_else() {
    let wasmvol = Wasmvol::start();
    let elsewhere = Scratch::new();
    fs::create_dir(elsewhere.dir("etc").join("grants.d")).unwrap();
    let load = format!("driver load {} --grant suid", hostile().display());
    let by = format!("--config {}", elsewhere.path().join("etc/wasmvol.toml").display());
    // What the daemon says of a directory is said by an unprivileged user: root writes neither there nor where it would be of no use.
    for line in [format!("{load} {by}"), format!("driver unload tmpfs {by}")] {
        let error = wasmvol.cli(&line).refused();
        let theirs = wasmvol.config();
        assert!(error.contains("`--config`"), "{error}");
        assert!(error.contains(theirs.parent().unwrap().to_str().unwrap()), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(fs::read_dir(elsewhere.path().join("etc/grants.d")).unwrap().count(), 0);
    assert!(granted(&wasmvol).is_empty());
    assert_eq!(names(&wasmvol), shipped());
    wasmvol.cli(&load).ok();
    assert_eq!(granted(&wasmvol), [("hostile".into(), "suid\n".into())].into());
    wasmvol.cli("driver unload hostile").ok();
    assert!(granted(&wasmvol).is_empty());
}

#[test]
fn a_component_that_comes_under_a_name_with_grants_is_told_to_have_them() {
    let wasmvol = Wasmvol::start();
    let load = |component: PathBuf, more: &str| {
        let outcome =
            wasmvol.cli(&format!("driver load {} --name one {more}", component.display()));
        outcome.clone().ok();
        outcome.stderr
    };
    let scratch = component("guests/scratch.wasm");
    assert_eq!(load(hostile(), "--grant suid --grant dev"), "");
    let said = load(scratch.clone(), "");
    assert!(said.contains("`one` keeps what it was granted: `suid`, `dev`;"), "{said}");
    wasmvol.cli("driver revoke one suid").ok();
    assert_eq!(granted(&wasmvol), [("one".into(), "dev\n".into())].into());
    wasmvol.cli("driver unload one").ok();
    assert_eq!(load(scratch, ""), "");
    assert!(granted(&wasmvol).is_empty());
}

#[test]
fn grants_come_one_after_the_other_and_none_goes_that_a_volume_needs() {
    let wasmvol = Wasmvol::start();
    let bind = |name: &str| {
        let source = wasmvol.path(name);
        fs::create_dir(&source).unwrap();
        let options = format!("-o type=none -o o=bind -o device={}", source.display());
        wasmvol.cli(&format!("volume create {name} {options}")).ok();
        format!("host-directory={}", source.display())
    };
    let [one, two] = ["one", "two"].map(bind);
    let local = component("drivers/local.wasm");
    let load = |more: &str| wasmvol.cli(&format!("driver load {} {more}", local.display()));
    // The other volume waits for its own grant still.
    load(&format!("--grant {one}")).ok();
    wasmvol.cli("volume mount one").ok();
    wasmvol.cli("volume unmount one").ok();
    let error = wasmvol.cli("volume mount two").refused();
    assert!(error.contains(&format!("`wasmvol driver grant local '{two}'`")), "{error}");
    load(&format!("--grant {two}")).ok();
    for name in ["one", "two"] {
        wasmvol.cli(&format!("volume mount {name}")).ok();
    }
    let revoke = || wasmvol.cli(&format!("driver revoke local {one}"));
    let file =
        || fs::metadata(wasmvol.config().with_file_name("grants.d").join("local")).unwrap().ino();
    let before = file();
    let refused = revoke().refused();
    assert!(refused.contains("`one`"), "{refused}");
    assert_eq!(file(), before, "it was written for a moment");
    let both = BTreeMap::from([("local".to_owned(), format!("{one}\n{two}\n"))]);
    assert_eq!(granted(&wasmvol), both);
    for line in ["volume unmount one", "volume rm one"] {
        wasmvol.cli(line).ok();
    }
    revoke().ok();
    assert_eq!(granted(&wasmvol), [("local".into(), format!("{two}\n"))].into());
}

#[test]
fn what_cannot_be_meant_is_refused_at_the_load() {
    let wasmvol = Wasmvol::start();
    let load = |more: &str| wasmvol.cli(&format!("driver load {} {more}", hostile().display()));
    for (more, why) in [
        ("--setting do=odd-default", "option `odd` is not `true` or `false`: `yes`"),
        ("--setting do", "it has the form KEY=VALUE"),
        ("--grant nonsense", "wasmvol: `nonsense` is no grant: "),
    ] {
        let outcome = load(more);
        assert!(outcome.code != Some(0) && outcome.stderr.contains(why), "{outcome:?}");
    }
    assert_eq!(names(&wasmvol), shipped());
    assert!(granted(&wasmvol).is_empty());
    // Nor is what stands for something a grant.
    let vfs = component("drivers/vfs.wasm");
    let open = format!("driver load {} --grant host-directory=PATH", vfs.display());
    for line in [open.as_str(), "driver grant vfs host-directory=PATH"] {
        let error = wasmvol.cli(line).refused();
        assert!(error.contains("fill in what is written in capitals"), "{error}");
    }
}

#[test]
fn a_load_says_which_grants_a_driver_may_ask_for_and_has_not() {
    let wasmvol = Wasmvol::start();
    let load = |more: &str| {
        let nfs = component("drivers/nfs.wasm");
        let outcome = wasmvol.cli(&format!("driver load {} {more}", nfs.display()));
        outcome.clone().ok();
        outcome.stderr
    };
    let said = load("--grant share=nfs4:10.0.0.0/8");
    assert!(said.contains("`wasmvol driver grant nfs share=nfs:HOST`"), "{said}");
    assert!(!said.contains("share=nfs4"), "{said}");
    assert_eq!(load("--grant share=nfs:nas.example"), "");
}

#[test]
fn grants_are_not_touched_where_others_than_root_can_write() {
    let wasmvol = Wasmvol::start();
    let grants = wasmvol.config().with_file_name("grants.d");
    let mode = |mode| fs::set_permissions(&grants, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let load = format!("driver load {} --grant suid", hostile().display());
    for line in [&load, "driver unload tmpfs"] {
        let error = wasmvol.cli(line).refused();
        assert!(error.contains("others than root can write to `"), "{error}");
    }
    assert!(granted(&wasmvol).is_empty());
    assert_eq!(names(&wasmvol), shipped());
    mode(0o755);
    wasmvol.cli(&load).ok();
}

#[test]
fn what_came_with_wasmvol_stays_unloaded_until_it_is_loaded_again() {
    let mut wasmvol = Wasmvol::start();
    let file = component("drivers/tmpfs.wasm").canonicalize().unwrap();
    let load = format!("wasmvol driver load {}", file.display());
    let outcome = wasmvol.cli("driver unload tmpfs");
    assert!(outcome.stderr.contains(&format!("stays unloaded until `{load}`")), "{outcome:?}");
    assert_eq!(outcome.ok(), "tmpfs");
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert!(!names(&wasmvol).contains(&"tmpfs".to_owned()));
    wasmvol.plugin().create("memory", &[("driver", "tmpfs")]).unwrap_err();
    wasmvol.shell(&load).ok();
    let loaded = wasmvol.json("driver inspect tmpfs");
    assert_eq!(loaded["first_party"], true, "a newer wasmvol brings its own");
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert_eq!(names(&wasmvol), shipped());
}

#[test]
fn who_unloads_their_own_driver_does_not_get_another_of_that_name() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli(&format!("driver load {} --name tmpfs", hostile().display())).ok();
    wasmvol.cli("driver unload tmpfs").ok();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert!(!names(&wasmvol).contains(&"tmpfs".to_owned()));
}

#[test]
fn one_component_may_be_loaded_under_two_names_with_settings_of_their_own() {
    let wasmvol = Wasmvol::start();
    let load = |name: &str, colour: &str| {
        let line = "driver load";
        wasmvol
            .cli(&format!("{line} {} --name {name} --setting colour={colour}", hostile().display()))
            .ok();
    };
    load("first", "red");
    load("second", "blue");
    let drivers = wasmvol.json("driver ls");
    let colour = |name: &str| {
        let all = drivers.as_array().unwrap().iter();
        all.filter(|d| d["name"] == name)
            .map(|d| d["settings"]["colour"].clone())
            .collect::<Vec<Value>>()
    };
    assert_eq!((colour("first"), colour("second")), (vec!["red".into()], vec!["blue".into()]));
    wasmvol.cli("driver unload first").ok();
    wasmvol.plugin().create("left", &[("driver", "second")]).unwrap();
}

#[test]
fn a_plan_is_asked_for_once_of_each_driver_that_is_loaded() {
    let wasmvol = with_hostile();
    let plugin = wasmvol.plugin();
    let asked = || wasmvol.log().matches("was asked").count();
    let use_once = || {
        plugin.mount("planned", "id").unwrap();
        plugin.unmount("planned", "id").unwrap();
    };
    plugin.create("planned", &[("driver", "hostile"), ("do", "speak")]).unwrap();
    let created = asked();
    use_once();
    let planned = asked();
    use_once();
    assert_eq!((planned - created, asked()), (1, planned), "a plan that is known was asked for");
    // Its settings are a part of what the plan is made from.
    wasmvol.cli(&format!("driver load {} --setting colour=red", hostile().display())).ok();
    let loaded = asked();
    use_once();
    assert_eq!(asked(), loaded + 1, "another driver's plan was used");
}

/// One that answers, and whose drivers are still being compiled.
fn just_started() -> Wasmvol {
    let mut wasmvol = Wasmvol::install();
    wasmvol.launch();
    wasmvol.wait_answering();
    wasmvol
}

#[test]
fn the_first_list_after_a_start_is_whole() {
    let listed = just_started().cli("driver ls").ok();
    for name in shipped() {
        assert!(listed.lines().any(|line| line.starts_with(&name)), "{name} is not in {listed}");
    }
}

#[test]
fn what_is_loaded_right_after_a_start_is_not_replaced_by_what_came_with_it() {
    let mut wasmvol = just_started();
    let scratch = component("guests/scratch.wasm");
    wasmvol.cli(&format!("driver load {} --name tmpfs", scratch.display())).ok();
    wasmvol.wait_ready();
    let shown = wasmvol.cli("driver inspect tmpfs").ok();
    assert!(shown.contains("memory, up to the operator's ceiling"), "{shown}");
}
