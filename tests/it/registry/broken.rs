//! Does a component arrive whole where downloads and uploads break off, disks are full, and what a registry says is not true?

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;

use serde_json::Value;

use super::{MANIFEST, Person, layer_of, pushed, scratch};
use crate::support::registry::{Cutter, Registry};
use crate::support::{own_address, shell};

#[test]
fn a_download_that_breaks_off_goes_on_from_where_it_was() {
    const CUT: usize = 20_000;
    let (person, registry) = (Person::new(), Registry::open());
    pushed(&person, &registry, "scratch", "");
    let layer = layer_of(&registry, "scratch");
    let cutter = Cutter::before(&registry, CUT);
    let reference = format!("{}/drivers/scratch:1.0", cutter.host());
    person.types(&format!("wasmvol driver pull {reference}")).ok();
    let component = fs::read(scratch()).unwrap();
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), component);
    let asked = cutter.take_asked();
    let tries = asked.matches(&format!("/blobs/{layer} ")).count();
    let ranges: Vec<usize> = asked
        .lines()
        .filter_map(|line| {
            line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok()
        })
        .collect();
    assert!(
        tries > component.len() / CUT && ranges.len() == tries - 1,
        "{tries} tries: {ranges:?}"
    );
    assert!(ranges.is_sorted_by(|a, b| a < b), "{ranges:?}");
    assert_eq!(person.partials(), Vec::<PathBuf>::new());
}

#[test]
fn a_download_that_was_given_up_is_gone_on_with_by_the_next_command() {
    const CUT: usize = 20_000;
    let (person, registry) = (Person::new(), Registry::open());
    pushed(&person, &registry, "scratch", "");
    let cutter = Cutter::before(&registry, CUT);
    cutter.leave(1);
    let line = format!("wasmvol driver pull {}/drivers/scratch:1.0", cutter.host());
    let error = person.refused(&line);
    assert!(
        error.contains("the download broke off after ") && error.contains("goes on from there"),
        "{error}"
    );
    assert!(!person.file("scratch.wasm").exists());
    let [partial] = &person.partials()[..] else { panic!("{:?}", person.partials()) };
    let done = fs::metadata(partial).unwrap().len();
    assert!(error.contains(&format!("after {done} of ")), "{error}");
    cutter.take_asked();
    cutter.leave(usize::MAX);
    person.types(&line).ok();
    let asked = cutter.take_asked().to_lowercase();
    let range = asked.lines().find(|line| line.starts_with("range: ")).unwrap();
    assert_eq!(range, format!("range: bytes={done}-"));
    assert_eq!(fs::read(person.file("scratch.wasm")).unwrap(), fs::read(scratch()).unwrap());
}

#[test]
fn an_upload_that_breaks_off_is_begun_anew_and_given_up_after_three() {
    let (person, registry) = (Person::new(), Registry::open());
    let cutter = Cutter::before(&registry, usize::MAX);
    let line = format!("wasmvol driver push {} {}/drivers/scratch:1.0", scratch(), cutter.host());
    let size = fs::metadata(scratch()).unwrap().len();
    cutter.cut_uploads(3);
    let error = person.refused(&line);
    assert!(error.contains(&format!("the upload of {size} bytes broke off 3 times (")), "{error}");
    let uploads = || cutter.take_asked().matches("PUT /v2/drivers/scratch/blobs/").count();
    assert_eq!(uploads(), 3);
    cutter.cut_uploads(2);
    person.types(&line).ok();
    assert_eq!(uploads(), 4, "the component three times, and its config");
    let layer = layer_of(&registry, "scratch");
    assert_eq!(fs::read(registry.blob(&layer)).unwrap(), fs::read(scratch()).unwrap());
}

#[test]
fn a_partial_download_that_was_changed_is_fetched_anew() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let layer = layer_of(&registry, "scratch");
    let cache = person.home.dir(".cache/wasmvol");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    let size = fs::metadata(scratch()).unwrap().len();
    for junk in [1_usize, 5000, usize::try_from(size).unwrap(), usize::try_from(size).unwrap() + 1]
    {
        let hex = layer.strip_prefix("sha256:").unwrap();
        fs::write(cache.join(format!("{hex}.part")), vec![7; junk]).unwrap();
        person.types(&format!("wasmvol driver pull {reference}")).ok();
        assert_eq!(
            fs::read(person.file("scratch.wasm")).unwrap(),
            fs::read(scratch()).unwrap(),
            "{junk}"
        );
        assert_eq!(person.partials(), Vec::<PathBuf>::new());
    }
}

#[test]
fn bytes_that_were_changed_on_the_registrys_disk_are_refused() {
    let (person, registry) = (Person::with_daemon(), Registry::open());
    let (reference, digest) = pushed(&person, &registry, "scratch", "");
    let manifest = registry.manifest("drivers/scratch", "1.0");
    let blob = |what: &Value| registry.blob(what["digest"].as_str().unwrap());
    let pinned = format!("{}/drivers/scratch@{digest}", registry.host());
    for (file, what, reference) in [
        (blob(&manifest["layers"][0]), "component", &reference),
        (blob(&manifest["config"]), "config", &reference),
        (registry.blob(&digest), "manifest", &pinned),
    ] {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        let at = bad.iter().rposition(|byte| *byte == b'a').unwrap();
        bad[at] = b'b';
        fs::write(&file, bad).unwrap();
        for verb in ["load", "pull"] {
            let outcome = person.types(&format!("wasmvol driver {verb} {reference}"));
            let error = outcome.refused();
            // docker-registry looks at a manifest itself.
            let refused = error.contains(&format!(
                "`{reference}`: the registry's {what} is not what its digest says"
            ));
            assert!(refused || what == "manifest", "{what}: {error}");
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(person.partials(), Vec::<PathBuf>::new());
    assert!(!person.types("wasmvol driver ls").ok().contains("scratch"));
    person.types(&format!("wasmvol driver load {reference}")).ok();
}

/// A server that answers every request with the head of a manifest and bytes without an end: what no registry does.
fn endless() -> String {
    let address = own_address();
    let listener = TcpListener::bind((address, 5000)).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nConnection: close\r\n\r\n");
            let mut sent = client.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = client.write_all(&[b' '; 4096]);
            }
        }
    });
    format!("{address}:5000")
}

#[test]
fn an_answer_without_an_end_is_cut_at_its_limit() {
    let person = Person::new();
    let error = person.refused(&format!("wasmvol driver pull {}/a:1", endless()));
    assert!(error.contains("its manifest is longer than 1048576 bytes"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_leaves_no_half_of_a_file() {
    let (person, registry) = (Person::new(), Registry::open());
    let (reference, _) = pushed(&person, &registry, "scratch", "");
    let small = person.home.dir("small");
    shell(&format!("mount -t tmpfs -o size=32k,mode=700 tmpfs {}", small.display()), &[]).ok();
    let error =
        person.refused(&format!("XDG_CACHE_HOME=$HOME/small wasmvol driver pull {reference}"));
    assert!(
        error.contains("No space left")
            && error.contains("make room, or name another place by XDG_CACHE_HOME"),
        "{error}"
    );
    fs::remove_dir_all(small.join("wasmvol")).unwrap();
    let outcome = person.types(&format!("wasmvol driver pull {reference} --output small/it"));
    assert!(outcome.refused().contains("`small/it`: No space left"));
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
}
