//! What may be loaded, and what is said of the rest.

use std::collections::BTreeMap;

use wasmvol_driver::{Interfaces, LoadError, check_interfaces};

use crate::stage::{ENGINE, compiler, engine, guest, hostile, logged, name, volume, well_behaved};

fn refused(component: &[u8]) -> String {
    let refused = ENGINE.load(&name("odd"), component, BTreeMap::new());
    refused.err().expect("refused").to_string()
}

/// A component of custom sections and imports, made by hand: the header, then what is given.
fn component(sections: &[u8]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0", sections].concat()
}

#[test]
fn a_driver_tells_what_it_is() {
    let driver = well_behaved();
    assert_eq!(driver.name().as_str(), "hostile");
    assert_eq!(driver.description().version, "0.1.0");
    assert_eq!(driver.size(), guest("hostile").len());
    assert_eq!(driver.digest().len(), 64);
    assert!(driver.exports().contains(&"wasmvol:driver/volumes@0.1.0".to_owned()));
    assert!(driver.imports().contains(&"wasmvol:driver/settings@0.1.0".to_owned()));
}

#[test]
fn what_is_read_off_a_components_bytes_is_what_its_driver_has() {
    let driver = well_behaved();
    let read = Interfaces::read(&guest("hostile")).expect("a component");
    let (imports, exports) = (driver.imports().to_vec(), driver.exports().to_vec());
    assert_eq!(read, Interfaces { imports, exports });
    check_interfaces(&read.imports, &read.exports).expect("a driver");
}

#[test]
fn a_component_that_is_cut_short_has_no_interfaces() {
    let whole = guest("hostile");
    let error = Interfaces::read(&whole[..whole.len() / 2]).expect_err("a half");
    assert_eq!(error.to_string(), "is damaged: it ends or goes on where it must not");
}

#[test]
fn drivers_run_where_no_pool_can_be_reserved() {
    let cache = tempfile::tempdir().expect("cache");
    // More address space than the processor has.
    let (engine, log) = logged(|| engine(cache.path(), compiler(), 4_000_000));
    assert!(log.contains("no memory can be reserved for drivers"), "{log}");
    let driver = engine.load(&name("slow"), &guest("hostile"), BTreeMap::new()).expect("loads");
    driver.path(&volume("nothing")).expect("answers");
    let error = driver.path(&volume("grow")).expect_err("too much");
    assert_eq!(error.to_string(), "driver asked for more than its limit of 64 MiB of memory");
}

#[test]
fn one_component_may_be_loaded_by_many_at_once() {
    let cache = tempfile::tempdir().expect("cache");
    let engine = engine(cache.path(), compiler(), 4);
    let component = guest("hostile");
    std::thread::scope(|scope| {
        let load = || engine.load(&name("same"), &component, BTreeMap::new()).is_ok();
        let loads = [(); 4].map(|()| scope.spawn(load));
        assert!(loads.into_iter().all(|load| load.join().expect("thread")));
    });
    assert_eq!(std::fs::read_dir(cache.path()).expect("cache").count(), 1);
}

#[test]
fn settings_reach_the_driver() {
    let error = hostile("panic").err().expect("told to panic");
    assert_eq!(error.to_string(), "`describe` failed: driver crashed: out of cheese");
}

#[test]
fn what_is_no_component_is_refused_before_it_is_compiled() {
    assert_eq!(refused(b""), "is no WebAssembly component");
    assert_eq!(refused(b"#!/bin/sh\necho hello\n"), "is no WebAssembly component");
    let module = b"\0asm\x01\0\0\0";
    assert_eq!(refused(module), "is a core module, not a component: build it for `wasm32-wasip2`");
    let large = vec![0; (64 << 20) + 1];
    assert_eq!(refused(&large), "component has 67108865 bytes: at most 67108864 are allowed");
}

#[test]
fn garbage_behind_a_components_header_is_refused_with_one_line() {
    let error = refused(&component(b"garbage garbage garbage"));
    assert!(error.starts_with("component cannot be compiled: "), "{error}");
    assert_eq!(error.lines().count(), 1);
    let mut torn = guest("hostile");
    torn.truncate(torn.len() / 2);
    let error = refused(&torn);
    assert!(error.starts_with("component cannot be compiled: "), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn a_component_that_exports_no_contract_is_no_driver() {
    assert_eq!(
        refused(&component(b"")),
        "does not export `wasmvol:driver/volumes`: it is no wasmvol driver"
    );
}

#[test]
fn another_version_of_the_contract_is_named() {
    // The name stands in the component as text of one length: 0.1.0 becomes 0.9.0 everywhere.
    let error = refused(&renamed("@0.1.0", "@0.9.0"));
    assert_eq!(error, "speaks version 0.9.0 of the contract: this host speaks 0.1.x");
}

#[test]
fn a_later_version_of_the_same_line_is_a_driver() {
    let driver = ENGINE.load(&name("later"), &renamed("@0.1.0", "@0.1.9"), BTreeMap::new());
    assert!(driver.is_ok(), "{:?}", driver.err());
}

#[test]
fn an_import_that_is_not_on_offer_is_named() {
    let error = refused(&renamed("wasi:filesystem/preopens@", "wasi:nilesystem/preopens@"));
    assert!(error.starts_with("imports `wasi:nilesystem/preopens@0.2."), "{error}");
    assert!(error.ends_with("which is not on offer to drivers"), "{error}");
}

#[test]
fn an_interface_that_the_host_does_not_have_is_named() {
    let refused = ENGINE.load(
        &name("odd"),
        &renamed("wasmvol:driver/settings@", "wasmvol:driver/sittings@"),
        BTreeMap::new(),
    );
    let error = refused.err().expect("refused");
    assert!(matches!(error, LoadError::Import(_)), "{error:?}");
    assert!(error.to_string().contains("`wasmvol:driver/sittings@0.1.0`"), "{error}");
}

#[test]
fn an_ability_of_another_shape_refuses_the_driver() {
    // Two of one length change their names, so that each has the functions of the other.
    let [attachment, between, population] = ["attachment@", "atpopument@", "population@"];
    let swapped = replaced(guest("rogue"), attachment, between);
    let swapped = replaced(swapped, population, attachment);
    let error = refused(&replaced(swapped, between, population));
    assert!(error.contains("attach") || error.contains("populat"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// The hostile driver with one text in its names replaced by another of the same length.
fn renamed(from: &str, to: &str) -> Vec<u8> {
    replaced(guest("hostile"), from, to)
}

fn replaced(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter_map(|(at, window)| (window == from.as_bytes()).then_some(at))
        .collect();
    assert!(!places.is_empty(), "`{from}` is in the component");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}
