//! Does one version of a driver take the place of another while its volumes are in use, and does nobody notice?

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use wasmvol_plan::steps;

use crate::abilities::{able, asked, with_able};
use crate::drivers::{component, hostile};
use crate::support::plugin::{Socket, request};
use crate::support::wasmvol::Wasmvol;
use crate::support::{Outcome, SOON, open_to_all, until};

/// Options of a volume of the driver that comes in versions.
pub(crate) const PLAIN: &[(&str, &str)] = &[("driver", "version")];

/// Loads a version.
pub(crate) fn load(wasmvol: &Wasmvol, version: &str, more: &str) -> Outcome {
    let file = component(&format!("guests/{version}.wasm"));
    wasmvol.cli(&format!("driver load {} {more}", file.display()))
}

/// A wasmvol with the first version.
fn with_the_first() -> Wasmvol {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "").ok();
    wasmvol
}

/// The version that is loaded.
pub(crate) fn version(wasmvol: &Wasmvol) -> String {
    wasmvol.json("driver inspect version")["version"].as_str().unwrap().to_owned()
}

/// What the catalog holds of each volume, by name.
fn records(wasmvol: &Wasmvol) -> BTreeMap<String, Value> {
    let export = wasmvol.cli("catalog export").ok();
    let lines = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let volume = |line: Value| line.get("volume").cloned();
    let named = |record: Value| (record["name"].as_str().unwrap().to_owned(), record);
    lines.filter_map(volume).map(named).collect()
}

/// What the driver has written of a volume.
fn state(record: &Value) -> String {
    let hex = record["state"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    String::from_utf8((0..hex.len()).step_by(2).map(byte).collect()).unwrap()
}

pub(crate) fn states(wasmvol: &Wasmvol) -> Vec<String> {
    records(wasmvol).values().map(state).collect()
}

#[test]
fn five_versions_and_a_rollback_under_load_fail_no_call_and_touch_no_mount() {
    const MOUNTED: usize = 64;
    const CLIENTS: usize = 8;
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    let mounted: Vec<String> = (0..MOUNTED).map(|i| format!("mounted-{i}")).collect();
    for name in &mounted {
        plugin.create(name, PLAIN).unwrap();
        let place = plugin.mount(name, "id").unwrap();
        fs::write(place.join("canary"), name).unwrap();
    }
    let before = wasmvol.volume_mounts();
    let is_over = AtomicBool::new(false);
    let rounds: Vec<AtomicUsize> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for (client, done) in rounds.iter().enumerate() {
            let (plugin, is_over, mounted) = (&plugin, &is_over, &mounted);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let round = done.load(Ordering::Relaxed);
                    let name = format!("client-{client}-{round}");
                    plugin.create(&name, PLAIN).unwrap();
                    let place = plugin.mount(&name, "id").unwrap();
                    assert_eq!(plugin.path(&name).unwrap(), place);
                    plugin.unmount(&name, "id").unwrap();
                    plugin.remove(&name).unwrap();
                    let one_of_all = &mounted[(client + round * CLIENTS) % MOUNTED];
                    plugin.get(one_of_all).unwrap();
                    plugin.mount(one_of_all, &name).unwrap();
                    plugin.unmount(one_of_all, &name).unwrap();
                    assert!(plugin.list().len() >= MOUNTED);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Whoever panics must not leave the others running.
        let ends = Ends(&is_over);
        let each_goes_on = || {
            let seen: Vec<_> = rounds.iter().map(|done| done.load(Ordering::Relaxed)).collect();
            let goes_on =
                || rounds.iter().zip(&seen).all(|(r, s)| r.load(Ordering::Relaxed) > s + 1);
            until("every client has done two rounds", SOON, || goes_on().then_some(()));
        };
        each_goes_on();
        for (next, more, shown) in [
            ("version1greedy", "--grant suid --grant http=https://api.example", "1.1.0"),
            ("version1", "", "1.0.0"),
            ("version2", "", "2.0.0"),
            ("version2later", "", "2.1.0"),
            ("version2", "--setting colour=red", "2.0.0"),
        ] {
            assert_eq!(load(&wasmvol, next, more).ok(), format!("version {shown}"));
            each_goes_on();
        }
        assert_eq!(wasmvol.cli("driver rollback version").ok(), "version 2.1.0");
        each_goes_on();
        drop(ends);
    });
    let of_the_mounted = |mounts: Vec<crate::support::mounts::Mount>| -> Vec<_> {
        let is_there = |path: &str| before.iter().any(|mount| mount.path == path);
        mounts.into_iter().filter(|mount| is_there(&mount.path)).collect()
    };
    assert_eq!(of_the_mounted(wasmvol.volume_mounts()), before, "the mounts of before");
    for (name, record) in records(&wasmvol) {
        assert_eq!(state(&record), "2:made", "{name}");
    }
    for name in &mounted {
        let canary = plugin.path(name).unwrap().join("canary");
        assert_eq!(fs::read_to_string(canary).unwrap(), *name);
        plugin.unmount(name, "id").unwrap();
        plugin.mount(name, "id").unwrap();
        plugin.unmount(name, "id").unwrap();
        plugin.remove(name).unwrap();
    }
}

/// Tells the clients that it is over, however the test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_version_that_cannot_read_what_the_old_one_wrote_is_refused() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    plugin.create("kept", PLAIN).unwrap();
    let (before, kept) = (records(&wasmvol), wasmvol.entries("drivers"));
    let error = load(&wasmvol, "version3", "").refused();
    let why = "volume `kept` could not be mounted with version 3.0.0, so what is loaded stays: version 3.0.0 cannot read `1:made`";
    assert!(error.contains(why), "{error}");
    assert_eq!((version(&wasmvol), records(&wasmvol)), ("1.0.0".to_owned(), before));
    assert_eq!(wasmvol.entries("drivers"), kept, "what was refused is not kept");
    plugin.mount("kept", "id").unwrap();
    plugin.unmount("kept", "id").unwrap();
    // Without a volume there is nothing to read.
    plugin.remove("kept").unwrap();
    load(&wasmvol, "version3", "").ok();
    plugin.create("new", PLAIN).unwrap();
    assert_eq!(states(&wasmvol), ["3:made"]);
}

#[test]
fn a_version_whose_plans_fail_the_grants_is_refused_until_they_are_given() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    plugin.create("kept", PLAIN).unwrap();
    let error = load(&wasmvol, "version4", "").refused();
    let why = "volume `kept` could not be mounted with version 4.0.0, so what is loaded stays: ";
    let cure = "`wasmvol driver grant version 'host-directory=/srv/versions'`";
    assert!(error.contains(why) && error.contains(cure), "{error}");
    assert_eq!(version(&wasmvol), "1.0.0");
    plugin.mount("kept", "id").unwrap();
    plugin.unmount("kept", "id").unwrap();
    load(&wasmvol, "version4", "--grant host-directory=/srv/versions").ok();
    assert_eq!(version(&wasmvol), "4.0.0");
}

#[test]
fn where_one_volume_cannot_be_migrated_none_is() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    for name in ["a", "c"] {
        plugin.create(name, PLAIN).unwrap();
    }
    plugin.create("b", &[PLAIN, &[("stubborn", "true")]].concat()).unwrap();
    let before = records(&wasmvol);
    let error = load(&wasmvol, "version2", "").refused();
    let why = "volume `b` cannot be taken over by version 2.0.0, so what is loaded stays: its `migrate` failed: what version 1.0.0 wrote";
    assert!(error.contains(why), "{error}");
    assert_eq!((version(&wasmvol), records(&wasmvol)), ("1.0.0".to_owned(), before));
    plugin.remove("b").unwrap();
    load(&wasmvol, "version2", "").ok();
    assert_eq!(states(&wasmvol), ["2:made", "2:made"]);
}

#[test]
fn a_rollback_brings_back_the_version_its_settings_and_its_states_once() {
    let mut wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "--setting colour=red").ok();
    let plugin = wasmvol.plugin();
    plugin.create("idle", PLAIN).unwrap();
    plugin.create("busy", PLAIN).unwrap();
    plugin.mount("busy", "id").unwrap();
    let (before, mounts) = (records(&wasmvol), wasmvol.volume_mounts());
    load(&wasmvol, "version2", "--setting colour=blue").ok();
    assert_eq!(states(&wasmvol), ["2:made", "2:made"]);
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(shown["previous"]["version"], "1.0.0");
    assert_eq!(shown["previous"]["settings"], json!({ "colour": "red" }));

    // What a rollback needs outlives a restart, and a load that is refused.
    assert!(wasmvol.stop().success());
    wasmvol.run();
    load(&wasmvol, "version3", "").refused();
    let rolled_back = wasmvol.json("driver rollback version");
    assert_eq!(
        (&rolled_back["version"], &rolled_back["previous"]),
        (&json!("1.0.0"), &json!(null))
    );
    assert_eq!(rolled_back["settings"], json!({ "colour": "red" }));
    assert_eq!((records(&wasmvol), wasmvol.volume_mounts()), (before, mounts));
    for name in ["idle", "busy"] {
        plugin.mount(name, "another").unwrap();
        plugin.unmount(name, "another").unwrap();
    }
    let error = wasmvol.cli("driver rollback version").refused();
    assert!(error.contains("driver `version`: there is nothing to go back to"), "{error}");
    let error = wasmvol.cli("driver rollback local").refused();
    assert!(error.contains("there is nothing to go back to"), "{error}");
    let error = wasmvol.cli("driver rollback nosuch").refused();
    assert!(error.contains("no driver `nosuch` is loaded"), "{error}");
}

#[test]
fn what_a_rollback_needs_is_kept_until_the_next_load_and_no_longer() {
    let mut wasmvol = with_the_first();
    let digest = |name: &str| {
        let file = component(&format!("guests/{name}.wasm"));
        let shown = wasmvol.json(&format!("driver inspect {}", file.display()));
        format!("{}.wasm", shown["digest"].as_str().unwrap())
    };
    let [one, two, later] = ["version1", "version2", "version2later"].map(digest);
    let kept = |wasmvol: &Wasmvol| {
        let on_the_shelf = wasmvol.entries("drivers");
        [&one, &two, &later].map(|digest| on_the_shelf.contains(digest))
    };
    load(&wasmvol, "version2", "").ok();
    assert_eq!(kept(&wasmvol), [true, true, false]);
    // The same again, for a grant perhaps, is no other version.
    load(&wasmvol, "version2", "--grant suid").ok();
    assert_eq!(kept(&wasmvol), [true, true, false]);
    load(&wasmvol, "version2later", "").ok();
    assert_eq!(kept(&wasmvol), [false, true, true]);
    wasmvol.cli("driver rollback version").ok();
    assert_eq!(kept(&wasmvol), [false, true, false]);
    load(&wasmvol, "version2later", "").ok();
    assert_eq!(kept(&wasmvol), [false, true, true]);
    wasmvol.cli("driver rollback version").ok();
    // What a crash has left behind goes at the next start.
    let left = wasmvol.state().join("drivers").join(&one);
    fs::copy(component("guests/version1.wasm"), &left).unwrap();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert_eq!(kept(&wasmvol), [false, true, false]);
    // A driver that is unloaded takes what it was with it.
    load(&wasmvol, "version2later", "").ok();
    wasmvol.cli("driver unload version").ok();
    assert_eq!(kept(&wasmvol), [false, false, false]);
    let error = wasmvol.cli("driver rollback version").refused();
    assert!(error.contains("no driver `version` is loaded"), "{error}");
}

#[test]
fn a_volume_made_since_that_the_old_version_cannot_mount_holds_the_rollback_up() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    plugin.create("old", PLAIN).unwrap();
    load(&wasmvol, "version2", "").ok();
    plugin.create("new", PLAIN).unwrap();
    let before = records(&wasmvol);
    let error = wasmvol.cli("driver rollback version").refused();
    let why = "volume `new` could not be mounted with version 1.0.0, so what is loaded stays: its state is of version 2.0.0: version 1.0.0 cannot read `2:made`";
    assert!(error.contains(why), "{error}");
    assert_eq!((version(&wasmvol), records(&wasmvol)), ("2.0.0".to_owned(), before));
    plugin.remove("new").unwrap();
    wasmvol.cli("driver rollback version").ok();
    assert_eq!(states(&wasmvol), ["1:made"]);
    plugin.mount("old", "id").unwrap();
    plugin.unmount("old", "id").unwrap();
}

#[test]
fn a_state_that_was_written_since_is_rolled_back_to_nothing_older() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    let sized = [PLAIN, &[("size", "1m")]].concat();
    plugin.create("sized", &sized).unwrap();
    load(&wasmvol, "version2", "").ok();
    wasmvol.cli("volume resize sized 2m").ok();
    let error = wasmvol.cli("driver rollback version").refused();
    assert!(error.contains("version 1.0.0 cannot read `2:resized`"), "{error}");
    plugin.remove("sized").unwrap();
    wasmvol.cli("driver rollback version").ok();
    // Where the old version reads what the new one has written, that stays.
    plugin.create("sized", &sized).unwrap();
    load(&wasmvol, "version1greedy", "--grant suid --grant http=https://api.example").ok();
    wasmvol.cli("volume resize sized 2m").ok();
    assert_eq!(records(&wasmvol)["sized"]["driver_version"], "1.1.0");
    wasmvol.cli("driver rollback version").ok();
    assert_eq!(
        (version(&wasmvol), states(&wasmvol)),
        ("1.0.0".to_owned(), vec!["1:resized".into()])
    );
    plugin.mount("sized", "id").unwrap();
    plugin.unmount("sized", "id").unwrap();
}

#[test]
fn a_create_in_flight_ends_on_the_old_version_with_what_the_new_one_can_read() {
    let wasmvol = with_the_first();
    let mut socket = Socket::connect(&wasmvol.plugin().socket).unwrap();
    let body = json!({ "Name": "slow", "Opts": { "driver": "version", "slow": "true" } });
    socket.send(request("VolumeDriver.Create", &body.to_string())).unwrap();
    until("the create has begun", SOON, || {
        records(&wasmvol).get("slow").filter(|r| r["phase"] == "creating").map(drop)
    });
    load(&wasmvol, "version2", "").ok();
    socket.read().unwrap().result().unwrap();
    let record = records(&wasmvol).remove("slow").unwrap();
    assert_eq!(
        record["former"]["driver_version"], "1.0.0",
        "it was made with the old one: {record}"
    );
    assert_eq!((state(&record).as_str(), &record["driver_version"]), ("2:made", &json!("2.0.0")));
    wasmvol.plugin().mount("slow", "id").unwrap();
    wasmvol.plugin().unmount("slow", "id").unwrap();
}

#[test]
fn a_swap_that_waits_for_a_call_holds_up_no_other_driver() {
    let mut wasmvol = with_able("");
    load(&wasmvol, "version1", "").ok();
    let plugin = wasmvol.plugin();
    let mut filling = Socket::connect(&plugin.socket).unwrap();
    let body = json!({ "Name": "filled", "Opts": { "driver": "able", "wait": "80s" } });
    filling.send(request("VolumeDriver.Create", &body.to_string())).unwrap();
    let is_filled =
        |wasmvol: &Wasmvol| asked(wasmvol, "filled").iter().any(|c| c.starts_with("populate"));
    until("it is being filled", SOON, || is_filled(&wasmvol).then_some(()));
    let line = format!("exec wasmvol driver load {} --setting colour=red", able().display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).envs(wasmvol.variables()).stderr(Stdio::null());
    let mut loading = shell.spawn().unwrap();
    let waits = "a change of driver able waits for 1 volume: `filled`";
    until("it waits for the call", SOON, || wasmvol.log().contains(waits).then_some(()));
    // Another driver is loaded, used and granted things meanwhile.
    plugin.create("other", PLAIN).unwrap();
    load(&wasmvol, "version2", "").ok();
    plugin.mount("other", "id").unwrap();
    plugin.unmount("other", "id").unwrap();
    wasmvol.cli("driver grant version dev").ok();
    wasmvol.cli("driver rollback version").ok();
    assert_eq!(state(&records(&wasmvol)["other"]), "1:made");
    assert!(loading.try_wait().unwrap().is_none(), "it has not waited for the call");
    wasmvol.kill_mountd();
    assert!(!loading.wait().unwrap().success());
}

#[test]
fn an_option_that_was_left_out_stays_as_it_was_made_after_a_migration() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    plugin.create("made", PLAIN).unwrap();
    load(&wasmvol, "version2", "").ok();
    plugin.create("made", PLAIN).unwrap();
    let error = plugin.create("made", &[PLAIN, &[("size", "1m")]].concat()).unwrap_err();
    assert!(error.contains("already exists with other options"), "{error}");
    let record = records(&wasmvol).remove("made").unwrap();
    assert_eq!(
        (&record["driver_version"], &record["options_version"]),
        (&json!("2.0.0"), &json!("1.0.0"))
    );
}

#[test]
fn an_option_that_was_left_out_stays_as_it_was_made_with_other_settings_and_after_a_resize() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version2", "").ok();
    let plugin = wasmvol.plugin();
    let of =
        |name: &str, size: &'static str| plugin.create(name, &[PLAIN, &[("size", size)]].concat());
    plugin.create("made", PLAIN).unwrap();
    of("given", "64k").unwrap();
    wasmvol.cli("driver set version default-size=1m").ok();
    plugin.create("made", PLAIN).unwrap();
    of("made", "64k").unwrap();
    let error = of("made", "1m").unwrap_err();
    assert!(error.contains("`size` is 65536 there, 1048576 here"), "{error}");
    // Who leaves out what was named before asks for the default of now.
    let error = plugin.create("given", PLAIN).unwrap_err();
    assert!(error.contains("`size` is 65536 there, 1048576 here"), "{error}");
    wasmvol.cli("volume resize made 2m").ok();
    plugin.create("made", PLAIN).unwrap();
    of("made", "2m").unwrap();
}

#[test]
fn a_volume_gets_the_options_that_a_later_version_brings_and_keeps_their_defaults() {
    let wasmvol = with_the_first();
    let plugin = wasmvol.plugin();
    let named = |name: &str, value: &'static str| {
        let options = [PLAIN, &[("colour", value)]].concat();
        plugin.create(name, &options)
    };
    plugin.create("old", PLAIN).unwrap();
    let options = || records(&wasmvol).remove("old").unwrap()["options"].clone();
    load(&wasmvol, "version2", "").ok();
    let colour = |version: &str| json!({ "colour": { "text": version } });
    // Its size was left out when that had no default.
    assert_eq!(options(), colour("2.0.0"));
    plugin.mount("old", "id").unwrap();
    plugin.unmount("old", "id").unwrap();
    plugin.create("old", PLAIN).unwrap();
    named("old", "2.0.0").unwrap();
    let error = named("old", "red").unwrap_err();
    assert!(error.contains("`colour` is `2.0.0` there, `red` here"), "{error}");
    // A later default is for later volumes.
    load(&wasmvol, "version2later", "").ok();
    assert_eq!(options(), colour("2.0.0"));
    plugin.create("new", PLAIN).unwrap();
    let new = records(&wasmvol).remove("new").unwrap()["options"].clone();
    assert_eq!(new, json!({ "colour": { "text": "2.1.0" }, "size": { "size": 65536 } }));
}

#[test]
fn an_earlier_version_that_is_loaded_again_never_hears_of_what_later_ones_added() {
    let wasmvol = with_the_first();
    wasmvol.plugin().create("old", PLAIN).unwrap();
    let before = records(&wasmvol)["old"]["options"].clone();
    load(&wasmvol, "version4", "--grant host-directory=/srv/versions").ok();
    assert_eq!(records(&wasmvol)["old"]["options"], json!({ "colour": { "text": "4.0.0" } }));
    load(&wasmvol, "version1", "").ok();
    assert_eq!(records(&wasmvol)["old"]["options"], before);
    wasmvol.plugin().create("old", PLAIN).unwrap();
}

#[test]
fn an_option_that_a_user_gave_and_an_earlier_version_does_not_know_is_told() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "").ok();
    load(&wasmvol, "version4", "").ok();
    wasmvol.plugin().create("asked", &[PLAIN, &[("colour", "red")]].concat()).unwrap();
    let rolled_back = wasmvol.cli("driver rollback version");
    let says = "wasmvol: version 1.0.0 does not know `colour`, and ignores it in 1 volume: `asked`";
    assert!(rolled_back.stderr.contains(says), "{}", rolled_back.stderr);
    assert_eq!(wasmvol.json("driver inspect version")["ignored"], json!({ "colour": ["asked"] }));
    load(&wasmvol, "version4", "--grant host-directory=/srv/versions").ok();
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(shown["ignored"], json!({}));
    let options = records(&wasmvol).remove("asked").unwrap()["options"].clone();
    assert_eq!(options["colour"], json!({ "text": "red" }), "it was kept");
}

#[test]
fn a_rollback_takes_back_the_options_that_a_version_brought() {
    let wasmvol = with_the_first();
    wasmvol.plugin().create("old", PLAIN).unwrap();
    let before = records(&wasmvol);
    load(&wasmvol, "version2", "").ok();
    assert_ne!(records(&wasmvol)["old"]["options"], before["old"]["options"]);
    wasmvol.cli("driver rollback version").ok();
    assert_eq!(records(&wasmvol), before);
}

#[test]
fn a_load_keeps_the_settings_of_a_driver_as_its_grants_unless_it_is_another_kind() {
    let wasmvol = Wasmvol::start();
    let settings = || wasmvol.json("driver inspect version")["settings"].clone();
    load(&wasmvol, "version1", "--setting colour=red --setting size=1").ok();
    let loaded = load(&wasmvol, "version2", "--setting size=2");
    assert_eq!(settings(), json!({ "colour": "red", "size": "2" }));
    let says = "`version` keeps its settings: `colour=red`; `driver set version --unset KEY` takes";
    assert!(loaded.stderr.contains(says), "{}", loaded.stderr);
    let error = load(&wasmvol, "version2", "--unset color").refused();
    let why = "driver `version` has no setting `color`: see `wasmvol driver inspect version`";
    assert!(error.contains(why), "{error}");
    load(&wasmvol, "version2", "--unset size").ok();
    assert_eq!(settings(), json!({ "colour": "red" }));
    let another = format!("driver load {} --name version", hostile().display());
    let loaded = wasmvol.cli(&another);
    assert_eq!((settings(), loaded.stderr.as_str()), (json!({}), ""));
}

#[test]
fn a_setting_is_changed_without_the_component_and_a_rollback_goes_where_it_went_before() {
    let mut wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "--setting colour=red").ok();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    let before = records(&wasmvol);
    load(&wasmvol, "version2", "").ok();
    assert_eq!(wasmvol.cli("driver set version size=1 colour=blue").ok(), "colour=blue\nsize=1");
    assert_eq!(wasmvol.cli("driver set version --unset size").ok(), "colour=blue");
    let error = wasmvol.cli("driver set version --unset size").refused();
    assert!(error.contains("driver `version` has no setting `size`"), "{error}");
    wasmvol.cli("driver set nosuch size=1").refused();
    // Nor does a load that brings the same component.
    load(&wasmvol, "version2", "--setting size=2").ok();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(shown["settings"], json!({ "colour": "blue", "size": "2" }));
    assert_eq!(
        (&shown["version"], &shown["previous"]["version"]),
        (&json!("2.0.0"), &json!("1.0.0"))
    );
    let rolled_back = wasmvol.cli("driver rollback version");
    let says = "wasmvol: `version` has its settings of then again: `colour=red`";
    assert!(rolled_back.stderr.contains(says), "{}", rolled_back.stderr);
    assert_eq!((version(&wasmvol), records(&wasmvol)), ("1.0.0".to_owned(), before));
    let unset = wasmvol.cli("driver set version --unset colour");
    assert_eq!(unset.stderr, "wasmvol: `version` has no settings any more\n");
}

#[test]
fn a_driver_of_another_kind_does_not_get_the_volumes_of_a_name() {
    let wasmvol = with_the_first();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    let line = format!("driver load {} --name version", hostile().display());
    let error = wasmvol.cli(&line).refused();
    assert!(error.contains("it calls itself `hostile`, and the volumes of `version`"), "{error}");
    wasmvol.plugin().remove("kept").unwrap();
    wasmvol.cli(&line).ok();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    let error = wasmvol.cli("driver rollback version").refused();
    assert!(error.contains("it calls itself `version`, and the volumes of `version`"), "{error}");
}

#[test]
fn a_setting_with_which_a_volume_could_not_be_mounted_is_refused_and_changes_nothing() {
    let wasmvol = with_the_first();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    let error = wasmvol.cli("driver set version shut=yes").refused();
    let why = "volume `kept` could not be mounted with these settings, so what is loaded stays: ";
    assert!(error.contains(why) && error.contains("all is shut"), "{error}");
    assert_eq!(wasmvol.json("driver inspect version")["settings"], json!({}));
    wasmvol.plugin().mount("kept", "id").unwrap();
    wasmvol.plugin().unmount("kept", "id").unwrap();
    let error = load(&wasmvol, "version1", "--setting shut=yes").refused();
    assert!(error.contains("with these settings"), "{error}");
    // Nobody needs it any more.
    wasmvol.plugin().remove("kept").unwrap();
    wasmvol.cli("driver set version shut=yes").ok();
}

#[test]
fn what_came_with_wasmvol_stays_what_it_is_with_settings_of_the_operators() {
    let mut wasmvol = Wasmvol::start();
    wasmvol.cli("driver set tmpfs colour=red").ok();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    let shown = wasmvol.json("driver inspect tmpfs");
    assert_eq!(
        (&shown["first_party"], &shown["settings"]["colour"]),
        (&json!(true), &json!("red"))
    );
}

/// A wasmvol of the first version, with a volume that is mounted and one that is not.
struct Subject {
    wasmvol: Wasmvol,
    flag: std::path::PathBuf,
}

impl Subject {
    fn new(name: &str) -> Self {
        let wasmvol = with_the_first();
        for name in ["idle", "busy"] {
            wasmvol.plugin().create(name, PLAIN).unwrap();
        }
        wasmvol.plugin().mount("busy", "id").unwrap();
        Self { wasmvol, flag: open_to_all(name) }
    }

    /// Has the daemon die at a step of what this line does.
    fn dies(&mut self, step: &str, line: &str) {
        self.wasmvol.kill_mountd();
        let armed = format!("{step}@{}", self.flag.display());
        self.wasmvol.set_variables(&[(steps::KILL_AT, &armed)]);
        self.wasmvol.run();
        fs::write(&self.flag, "").unwrap();
        self.wasmvol.cli(line).refused();
        assert!(!self.flag.exists(), "`{line}` did not come to the step `{step}`");
        self.wasmvol.wait_ready();
    }

    /// Which of two versions is there: whole.
    fn stands(&self) -> String {
        let version = version(&self.wasmvol);
        let form = version.split('.').next().unwrap();
        assert_eq!(states(&self.wasmvol), vec![format!("{form}:made"); 2], "version {version}");
        for name in ["idle", "busy"] {
            self.wasmvol.plugin().mount(name, "again").unwrap();
            self.wasmvol.plugin().unmount(name, "again").unwrap();
        }
        version
    }
}

#[test]
fn killed_while_one_version_takes_the_place_of_another() {
    let mut subject = Subject::new("swap");
    let load = format!("driver load {}", component("guests/version2.wasm").display());
    for step in steps::SWAP {
        subject.dies(step, &format!("{load} --grant dev"));
        let is_new = *step == "swap.committed";
        assert_eq!(subject.stands(), if is_new { "2.0.0" } else { "1.0.0" }, "{step}");
        let granted = &subject.wasmvol.json("driver inspect version")["granted"];
        assert_eq!(*granted, if is_new { json!(["dev"]) } else { json!([]) }, "{step}");
        // And it can be done, and taken back.
        subject.wasmvol.cli(&load).ok();
        assert_eq!(subject.stands(), "2.0.0");
        subject.wasmvol.cli("driver rollback version").ok();
        assert_eq!(subject.stands(), "1.0.0");
    }
}

#[test]
fn killed_while_a_setting_is_changed() {
    let mut subject = Subject::new("set");
    let settings =
        |subject: &Subject| subject.wasmvol.json("driver inspect version")["settings"].clone();
    for step in steps::SWAP {
        subject.dies(step, "driver set version colour=red");
        let is_set = *step == "swap.committed";
        let expected = if is_set { json!({ "colour": "red" }) } else { json!({}) };
        assert_eq!((settings(&subject), subject.stands().as_str()), (expected, "1.0.0"), "{step}");
    }
}

#[test]
fn killed_in_a_rollback() {
    let mut subject = Subject::new("rollback");
    let load = format!("driver load {}", component("guests/version2.wasm").display());
    for step in steps::SWAP {
        subject.wasmvol.cli(&load).ok();
        subject.dies(step, "driver rollback version");
        if *step == "swap.committed" {
            assert_eq!(subject.stands(), "1.0.0");
            continue;
        }
        assert_eq!(subject.stands(), "2.0.0", "{step}");
        subject.wasmvol.cli("driver rollback version").ok();
        assert_eq!(subject.stands(), "1.0.0");
    }
}

#[test]
fn what_came_with_wasmvol_comes_back_by_a_rollback_as_what_it_was() {
    let mut wasmvol = Wasmvol::start();
    let plugin = wasmvol.plugin();
    let shipped = wasmvol.json("driver inspect tmpfs");
    assert_eq!(shipped["first_party"], true);
    // The operator's own in its place, and back again.
    let scratch = component("guests/scratch.wasm");
    wasmvol.cli(&format!("driver load {} --name tmpfs", scratch.display())).ok();
    assert_eq!(wasmvol.json("driver inspect tmpfs")["first_party"], false);
    let back = wasmvol.json("driver rollback tmpfs");
    assert_eq!((&back["digest"], &back["first_party"]), (&shipped["digest"], &json!(true)));
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert_eq!(wasmvol.json("driver inspect tmpfs")["digest"], shipped["digest"]);
    plugin.create("memory", &[("driver", "tmpfs")]).unwrap();
    assert!(Path::new(&plugin.mount("memory", "id").unwrap()).is_dir());
    plugin.unmount("memory", "id").unwrap();
}
