//! Compiled once, noticed when damaged, never half there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wasmvol_driver::{Compiler, Driver, LoadError};

use crate::stage::{compiler, engine, guest, logged, name, no_compiler, program, volume};

fn load(cache: &Path, compiler: Compiler) -> Result<Driver, LoadError> {
    engine(cache, compiler, 4).load(&name("cached"), &guest("hostile"), BTreeMap::new())
}

fn files(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).expect("cache");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

/// A cache with the hostile driver in it, and the file.
fn filled() -> (TempDir, PathBuf) {
    let cache = tempfile::tempdir().expect("cache");
    load(cache.path(), compiler()).expect("compiles");
    let [file] = files(cache.path()).try_into().expect("one file");
    (cache, file)
}

#[test]
fn the_second_load_compiles_nothing() {
    let (cache, _) = filled();
    let driver = load(cache.path(), no_compiler()).expect("from the cache");
    driver.path(&volume("nothing")).expect("and it works");
}

#[test]
fn a_flipped_byte_anywhere_is_noticed_and_compiled_again() {
    let (cache, file) = filled();
    let whole = std::fs::read(&file).expect("machine code");
    for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 33, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&file, &flipped).expect("flip");
        let (refused, log) = logged(|| load(cache.path(), no_compiler()));
        assert!(refused.is_err(), "byte {at} was believed");
        assert!(log.contains("is damaged: compiling it again"), "{log}");
    }
    load(cache.path(), compiler()).expect("compiled again");
    assert_eq!(std::fs::read(&file).expect("machine code").len(), whole.len());
    load(cache.path(), no_compiler()).expect("and kept");
}

#[test]
fn a_file_cut_short_is_compiled_again() {
    let (cache, file) = filled();
    let whole = std::fs::read(&file).expect("machine code");
    for length in [0, 1, 32, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).expect("cut");
        assert!(load(cache.path(), no_compiler()).is_err(), "{length} bytes were believed");
    }
    load(cache.path(), compiler()).expect("compiled again");
}

#[test]
fn a_failed_compile_leaves_nothing() {
    let cache = tempfile::tempdir().expect("cache");
    let half = program("/bin/sh", &["-c", "echo half of it; exit 3"]);
    load(cache.path(), half).err().expect("failed");
    assert!(files(cache.path()).is_empty());
}

#[test]
fn what_a_kill_in_the_middle_left_is_gone_after_the_next_start() {
    let (cache, file) = filled();
    let half = cache.path().join("00ff.77.0.half");
    std::fs::write(&half, "half").expect("half");
    // Code of another engine: an upgrade of wasmvol leaves it, and nobody would ever read it again.
    let other = cache.path().join("00ff-0123456789abcdef.cwasm");
    std::fs::write(&other, "other").expect("other");
    let stranger = cache.path().join("README");
    std::fs::write(&stranger, "mine").expect("stranger");
    engine(cache.path(), no_compiler(), 4);
    let mut left = files(cache.path());
    left.sort();
    let mut expected = [file, stranger];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn machine_code_that_is_none_is_not_run() {
    let cache = tempfile::tempdir().expect("cache");
    let liar = program("/bin/echo", &["done"]);
    let (refused, log) = logged(|| load(cache.path(), liar));
    let error = refused.err().expect("no machine code").to_string();
    assert_eq!(
        error,
        "wasm engine cannot be set up: what was compiled cannot be loaded: see the log"
    );
    assert!(log.contains("compiled driver is of no use"), "{log}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let options = wasmvol_driver::EngineOptions {
        cache: "/nowhere/at/all".into(),
        compiler: compiler(),
        calls_max: 4,
    };
    let error = wasmvol_driver::Engine::new(options).err().expect("no cache").to_string();
    assert!(error.starts_with("compiled drivers cannot be kept: "), "{error}");
}
