//! What is left to an operator, and to the volumes, of a driver whose component could not be loaded at a start?

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::drivers::{component, hostile};
use crate::support::wasmvol::{PROGRAMS, Wasmvol};
use crate::support::{copy_program, mortal, open_to_all};
use crate::swap::{PLAIN, load, states, version};

/// A daemon whose driver could not be loaded at its start, since its component is gone. A volume was made by the first version.
fn with_a_lost_component(first: &str, last: &str) -> Wasmvol {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, first, "").ok();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    load(&wasmvol, last, "").ok();
    without_its_component(wasmvol)
}

/// The same wasmvol after a start at which the component that was loaded was not there.
fn without_its_component(mut wasmvol: Wasmvol) -> Wasmvol {
    let digest = wasmvol.json("driver inspect version")["digest"].as_str().unwrap().to_owned();
    assert!(wasmvol.stop().success());
    fs::remove_file(wasmvol.state().join("drivers").join(format!("{digest}.wasm"))).unwrap();
    wasmvol.run();
    wasmvol
}

/// Puts a component back to where it was lost.
fn put_back(wasmvol: &Wasmvol, version: &str) {
    let file = component(&format!("guests/{version}.wasm"));
    let shown = wasmvol.json(&format!("driver inspect {}", file.display()));
    let name = format!("{}.wasm", shown["digest"].as_str().unwrap());
    fs::copy(file, wasmvol.state().join("drivers").join(name)).unwrap();
}

#[test]
fn a_driver_that_could_not_be_loaded_at_the_start_is_told_and_keeps_its_volumes_for_its_kind() {
    let wasmvol = with_a_lost_component("version1", "version1");
    let troubles = wasmvol.json("status")["troubles"].to_string();
    let why = "is not loaded, and its volumes wait: its component cannot be read: No such file";
    assert!(troubles.contains("driver version") && troubles.contains(why), "{troubles}");
    let cure = "wasmvol driver load FILE --name version  # the same component, or a later one";
    assert!(troubles.contains(cure), "{troubles}");
    let error = wasmvol.plugin().mount("kept", "id").unwrap_err();
    assert!(error.contains("driver `version` is not loaded"), "{error}");
    let error = wasmvol.cli("driver grant version suid").refused();
    assert!(error.contains("driver `version` is not loaded: its component cannot"), "{error}");
    let another = format!("driver load {} --name version", hostile().display());
    let error = wasmvol.cli(&another).refused();
    assert!(error.contains("it calls itself `hostile`, and the volumes of `version`"), "{error}");
    let error = wasmvol.cli("driver unload version").refused();
    assert!(error.contains("1 volume: `kept`"), "{error}");
    load(&wasmvol, "version3", "").refused();
    load(&wasmvol, "version2", "").ok();
    assert_eq!(states(&wasmvol), ["2:made"]);
    assert_eq!(wasmvol.json("status")["troubles"], json!([]));
}

#[test]
fn the_same_component_comes_back_though_a_volume_of_it_waits_for_a_grant() {
    let wasmvol = with_a_lost_component("version4", "version4");
    load(&wasmvol, "version4", "").ok();
    assert_eq!(version(&wasmvol), "4.0.0");
    let error = wasmvol.plugin().mount("kept", "id").unwrap_err();
    assert!(error.contains("driver grant version"), "{error}");
}

#[test]
fn a_rollback_takes_the_place_of_what_could_not_be_loaded() {
    let wasmvol = with_a_lost_component("version1", "version2");
    let troubles = wasmvol.json("status")["troubles"].to_string();
    assert!(troubles.contains("or `wasmvol driver rollback version` to 1.0.0"), "{troubles}");
    wasmvol.cli("driver rollback version").ok();
    assert_eq!((version(&wasmvol), states(&wasmvol)), ("1.0.0".to_owned(), vec!["1:made".into()]));
    wasmvol.plugin().mount("kept", "id").unwrap();
    wasmvol.plugin().unmount("kept", "id").unwrap();
}

#[test]
fn what_waits_for_a_grant_holds_up_no_rollback_of_what_could_not_be_loaded() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version4", "").ok();
    wasmvol.plugin().create("waits", PLAIN).unwrap();
    load(&wasmvol, "version1", "").ok();
    let wasmvol = without_its_component(wasmvol);
    wasmvol.cli("driver rollback version").ok();
    let error = wasmvol.plugin().mount("waits", "id").unwrap_err();
    assert!(error.contains("driver grant version"), "{error}");
}

#[test]
fn a_driver_that_could_not_be_loaded_and_has_no_volumes_is_unloaded() {
    let mut wasmvol = with_a_lost_component("version1", "version1");
    wasmvol.cli("volume rm --force kept").ok();
    wasmvol.cli("driver unload version").ok();
    assert!(wasmvol.stop().success());
    wasmvol.run();
    assert_eq!(wasmvol.json("status")["troubles"], json!([]));
}

#[test]
fn a_driver_that_could_not_be_loaded_is_listed_with_its_volumes_and_the_reason() {
    let wasmvol = with_a_lost_component("version1", "version2");
    let listed = wasmvol.cli("driver ls").ok();
    let line = listed.lines().find(|line| line.starts_with("version")).unwrap();
    let words: Vec<_> = line.split_whitespace().take(4).collect();
    assert_eq!(words, ["version", "2.0.0", "operator", "1"]);
    assert!(line.contains("not loaded: its component cannot be read"), "{line}");
    let shown = wasmvol.json("driver inspect version");
    assert_eq!(shown["previous"]["version"], "1.0.0");
    assert!(shown["failed"]["why"].as_str().unwrap().contains("cannot be read"), "{shown}");
    let shown = wasmvol.cli("driver inspect version").ok();
    let fields: Vec<_> = shown.lines().filter_map(|line| line.split_once("  ")).collect();
    let field = |name| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.trim());
    assert_eq!((field("was loaded as"), field("version")), (Some("version"), Some("2.0.0")));
    assert!(field("is not loaded").unwrap().starts_with("its component cannot be read"), "{shown}");
    assert_eq!((field("loaded as"), field("grants missing")), (None, None), "nobody knows");
}

#[test]
fn a_setting_brings_a_driver_back_whose_component_is_there_again() {
    let wasmvol = with_a_lost_component("version1", "version1");
    let error = wasmvol.cli("driver set version colour=red").refused();
    assert!(error.contains("its component cannot be read"), "{error}");
    put_back(&wasmvol, "version1");
    let error = wasmvol.cli("driver set version shut=yes").refused();
    assert!(error.contains("volume `kept` could not be mounted with these settings"), "{error}");
    // Why it is not loaded is what it was: nothing has changed.
    let troubles = wasmvol.json("status")["troubles"].to_string();
    assert!(troubles.contains("its component cannot be read"), "{troubles}");
    assert_eq!(wasmvol.cli("driver set version colour=red").ok(), "colour=red");
    wasmvol.plugin().mount("kept", "id").unwrap();
    wasmvol.plugin().unmount("kept", "id").unwrap();
}

#[test]
fn the_command_that_doctor_names_loads_what_was_decided_on_before() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1greedy", "--without suid --without http=https://api.example").ok();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    let wasmvol = without_its_component(wasmvol);
    let file = component("guests/version1greedy.wasm");
    let troubles = wasmvol.json("status")["troubles"].clone();
    let cure = troubles[0]["cure"].as_str().unwrap().replace("FILE", file.to_str().unwrap());
    wasmvol.shell(&cure).ok();
    assert_eq!(version(&wasmvol), "1.1.0");
    assert_eq!(wasmvol.json("driver inspect version")["granted"], json!([]));
}

#[test]
fn a_load_over_what_was_lost_keeps_what_came_before_that_for_a_rollback() {
    let wasmvol = Wasmvol::start();
    load(&wasmvol, "version1", "").ok();
    wasmvol.plugin().create("kept", PLAIN).unwrap();
    load(&wasmvol, "version2", "").ok();
    let wasmvol = without_its_component(wasmvol);
    load(&wasmvol, "version2later", "").ok();
    assert_eq!(wasmvol.json("driver inspect version")["previous"]["version"], "1.0.0");
    assert_eq!(states(&wasmvol), ["2:made"]);
    wasmvol.cli("driver rollback version").ok();
    assert_eq!((version(&wasmvol), states(&wasmvol)), ("1.0.0".to_owned(), vec!["1:made".into()]));
}

/// The programs and two drivers in a tree of their own, of which one is not what it should be.
fn damaged_tree() -> (PathBuf, PathBuf) {
    let tree = open_to_all("damaged");
    for directory in ["bin", "drivers"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for program in ["wasmvol", "wasmvol-mountd"] {
        copy_program(&PROGRAMS.join(program), &tree.join("bin").join(program));
    }
    fs::copy(component("drivers/local.wasm"), tree.join("drivers/local.wasm")).unwrap();
    let tmpfs = tree.join("drivers/tmpfs.wasm");
    fs::write(&tmpfs, "cut short").unwrap();
    (tree.join("bin/wasmvol"), tmpfs)
}

#[test]
fn what_came_with_wasmvol_and_cannot_be_loaded_is_told_whatever_stays_in_its_place() {
    let (program, tmpfs) = damaged_tree();
    let mut wasmvol = Wasmvol::install();
    let mut starts = |expected: Option<&str>, line: &str| {
        let mut command = mortal(&program);
        command.arg("serve").args(wasmvol.flags());
        wasmvol.launch_as(command);
        wasmvol.wait_ready();
        let troubles = wasmvol.json("status")["troubles"].clone();
        match expected {
            None => assert_eq!(troubles, json!([])),
            Some(why) => {
                let trouble = &troubles[0];
                assert_eq!(trouble["what"], "driver tmpfs", "{troubles}");
                assert!(trouble["why"].as_str().unwrap().starts_with(why), "{troubles}");
            }
        }
        let listed = wasmvol.json("driver ls").as_array().unwrap().len();
        wasmvol.cli(line).ok();
        let troubles = wasmvol.json("status")["troubles"].as_array().unwrap().len();
        assert!(wasmvol.stop().success());
        (listed, troubles)
    };
    assert_eq!(starts(Some("came with this wasmvol and is not loaded: "), "driver ls"), (1, 1));
    let good = fs::read(component("drivers/tmpfs.wasm")).unwrap();
    fs::write(&tmpfs, good).unwrap();
    assert_eq!(starts(None, "driver ls"), (2, 0));
    fs::write(&tmpfs, "cut short").unwrap();
    let stays = "stays 0.1.0, and what came with this wasmvol is not loaded: ";
    // Settings of what stays do not mend it; who unloads it does not want it.
    assert_eq!(starts(Some(stays), "driver set tmpfs colour=red"), (2, 1));
    assert_eq!(starts(Some(stays), "driver unload tmpfs"), (2, 0));
    assert_eq!(starts(None, "driver ls"), (1, 0));
}
