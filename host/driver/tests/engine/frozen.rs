//! The contract 0.1.0 is frozen: its words stay what they were, and the driver that was made with them runs for ever.
//!
//! Nothing in `tests/frozen/since_v0.1.0` is ever changed. Where one of these fails it is the host that is wrong, or `wit/since_v0.1.0`:
//! `tests/frozen/README.md` says what to do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmvol_driver::types::Options;
use wasmvol_driver::{
    Abilities, CallError, Condition, Driver, ErrorCode, Marked, Progress, Reclaim, Root, Roots,
    Scope, Store, Value, ValueType, Volume,
};
use wasmvol_plan::kinds::http::HttpGrant;
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{
    Below, Compression, Device, Directory, Filesystem, HostDirectory, Id, IdMap, IdRange, Image,
    MountOption, MountValue, NamedDirectory, Overlay, Owner, Plan, Program, Share, Source, Storage,
    Subvolume, Tmpfs, VolumeName,
};

use crate::backend::{self, Backend};
use crate::stage::{ENGINE, logged, name};

const OWNER: Owner = Owner { uid: 1, gid: 2, mode: 0o750 };

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn frozen() -> Driver {
    let component = project("tests/frozen/since_v0.1.0/driver.wasm");
    let component = fs::read(component).expect("the frozen driver");
    let settings = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    ENGINE
        .load(&name("frozen"), &component, settings)
        .expect("a frozen driver loads: see tests/frozen/README.md")
}

/// A volume with these options, which are text.
fn volume(options: &[(&str, &str)]) -> Volume {
    let option = |(key, text): &(&str, &str)| ((*key).to_owned(), Value::Text((*text).to_owned()));
    let (id, name) = (Id::from_bits(7), VolumeName::parse("data").expect("volume name"));
    Volume { id, name, options: options.iter().map(option).collect(), state: Vec::new() }
}

/// The storage that it asks for.
fn storage(kind: &str) -> Result<Storage, CallError> {
    let Volume { id, name, options, .. } = volume(&[("storage", kind)]);
    frozen().create(id, &name, &options, Scope::default()).map(|answer| answer.value.storage)
}

/// The plan that it answers.
fn plan(source: &str) -> Result<Plan, CallError> {
    frozen().path(&volume(&[("source", source)]))
}

/// The words of a file of the contract, without its comments: those may still be mended.
fn words(wit: &str) -> String {
    let lines = wit.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn not_a_word_of_the_contract_and_not_a_byte_of_its_driver_has_changed() {
    let files = fs::read_dir(project("wit/since_v0.1.0")).expect("the contract");
    let files = files.map(|entry| entry.expect("entry").path());
    let mut digests: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "wit"))
        .map(|path| {
            let wit = fs::read_to_string(&path).expect("text");
            let file = path.file_name().expect("name").to_string_lossy();
            format!("{}  {file}", digest(words(&wit).as_bytes()))
        })
        .collect();
    let driver = fs::read(project("tests/frozen/since_v0.1.0/driver.wasm")).expect("driver");
    digests.push(format!("{}  driver.wasm", digest(&driver)));
    // How the texts of options are read: what a driver gets of them.
    let values = fs::read(project("wit/since_v0.1.0/values.tsv")).expect("values");
    digests.push(format!("{}  values.tsv", digest(&values)));
    digests.sort();
    let frozen = fs::read_to_string(project("tests/frozen/since_v0.1.0/digests"));
    let frozen = frozen.expect("digests");
    let mut frozen: Vec<&str> = frozen.lines().collect();
    frozen.sort_unstable();
    assert_eq!(
        digests, frozen,
        "wit/since_v0.1.0 is not what was frozen: tests/frozen/README.md says what to do"
    );
}

#[test]
fn comments_of_the_contract_are_no_words_of_it() {
    let wit = "/// Says it.\nlist: func() -> u8; // the end\n\n  record r { a: u8,   b: u8 }\n";
    assert_eq!(words(wit), "list: func() -> u8; record r { a: u8, b: u8 }");
}

#[test]
fn it_is_described_with_every_type_of_option() {
    let driver = frozen();
    let described = driver.description();
    assert_eq!((described.name.as_str(), described.version.as_str()), ("frozen", "0.1.0"));
    assert_eq!(described.grants, ["image", "http=https://api.example"]);
    let options: Vec<_> = described
        .options
        .iter()
        .map(|spec| (spec.key.as_str(), spec.value_type, spec.default.as_deref(), spec.required))
        .collect();
    assert_eq!(
        options,
        [
            ("storage", ValueType::Text, Some("directory"), false),
            ("source", ValueType::Text, Some("storage"), false),
            ("fail", ValueType::Text, None, false),
            ("url", ValueType::Text, None, false),
            ("size", ValueType::Size, Some("1m"), false),
            ("number", ValueType::Number, Some("-7"), false),
            ("flag", ValueType::Boolean, Some("true"), false),
            ("time", ValueType::Duration, Some("1500ms"), false),
            ("key", ValueType::Secret, None, false),
            ("must", ValueType::Text, None, true),
        ]
    );
    let all = Abilities {
        attachment: true,
        resizing: true,
        population: true,
        health: true,
        migration: true,
    };
    assert_eq!(driver.abilities(), all);
    assert!(driver.sees_roots() && driver.reveals() && driver.speaks_http());
}

#[test]
fn create_has_every_import() {
    let backend = Backend::start(backend::good);
    let driver = frozen();
    let url = backend.url("/");
    let Volume { id, name, mut options, .. } = volume(&[("storage", "directory"), ("url", &url)]);
    let more = [
        ("flag", Value::Boolean(true)),
        ("key", Value::Secret("vault".to_owned())),
        ("number", Value::Number(-7)),
        ("size", Value::Size(1 << 20)),
        ("time", Value::Duration(1500)),
    ];
    options.extend(more.map(|(key, value)| (key.to_owned(), value)));
    let root = Root { path: "/srv".to_owned(), marked: Vec::new() };
    let store: Store = [("two".to_owned(), Arc::from(*b"2"))].into();
    let scope = Scope {
        roots: Roots(vec![root]),
        store: Arc::new(store),
        http: [HttpGrant::parse(&backend.origin()).expect("grant")].into(),
        secrets: Some(Arc::new(|_, _| Ok(Bytes::new(b"open sesame".to_vec())))),
        ..Scope::default()
    };
    let (answer, log) = logged(|| driver.create(id, &name, &options, scope));
    let answer = answer.expect("creates");
    let said = String::from_utf8(answer.value.state).expect("text");
    let expected = [
        "id 00000000000000000000000000000007, name data".to_owned(),
        format!(
            "flag=boolean true key=secret vault number=number -7 size=size 1048576 storage=text directory \
             time=duration 1500 url=text {url}"
        ),
        "settings Some(\"red\") [(\"colour\", \"red\")]".to_owned(),
        "roots [\"/srv\"]".to_owned(),
        "store Some([49]) None [\"one\"] Some(\"ErrorCode::InvalidOption\")".to_owned(),
        "secret of 11 bytes".to_owned(),
        "answered 200".to_owned(),
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    let written: Vec<_> = answer.uses.writes().iter().collect();
    let (one, two) = ("one".to_owned(), "two".to_owned());
    assert_eq!(written, [(&one, &Some(Arc::from(*b"1"))), (&two, &None)]);
    for (level, said) in [
        ("ERROR", "makes data at Level::Error"),
        ("WARN", "makes data at Level::Warn"),
        ("INFO", "makes data at Level::Info"),
        ("WARN", "says it to stderr"),
    ] {
        let line = format!("{level} driver: {said} driver=frozen");
        assert!(log.contains(&line), "no `{line}` in {log}");
    }
}

#[test]
fn every_storage_is_understood() {
    assert_eq!(storage("none"), Ok(Storage::None));
    let directory = Directory { owner: OWNER, limit: None, over: None };
    assert_eq!(storage("directory"), Ok(Storage::Directory(directory)));
    let over = Some(Below { name: "below".to_owned(), id: None });
    let layer = Directory { owner: OWNER, limit: Some(1 << 20), over };
    assert_eq!(storage("layer"), Ok(Storage::Directory(layer)));
    let named = NamedDirectory {
        root: "/srv".to_owned(),
        name: VolumeName::parse("data").expect("volume name"),
        directory: "chosen".to_owned(),
        owner: OWNER,
        adopt: true,
        limit: None,
    };
    assert_eq!(storage("named-directory"), Ok(Storage::NamedDirectory(named)));
    let image = Image {
        size: 1 << 30,
        thin: true,
        filesystem: Filesystem::Xfs,
        encrypt: Some("vault".to_owned()),
        owner: OWNER,
    };
    assert_eq!(storage("image"), Ok(Storage::Image(image)));
    let subvolume = Subvolume {
        owner: OWNER,
        limit: Some(1 << 30),
        compress: Some(Compression::Zstd),
        copy_on_write: false,
    };
    assert_eq!(storage("subvolume"), Ok(Storage::Subvolume(subvolume)));
    assert_eq!(storage("other"), Err(CallError::Unsupported("storage `of-later`".to_owned())));
}

#[test]
fn every_source_is_understood() {
    let plain =
        |source| Plan { source, read_only: false, no_exec: false, subpath: None, id_map: None };
    let option = |key: &str, value| MountOption { key: key.to_owned(), value };
    let options = vec![
        option("present", MountValue::Present),
        option("text", MountValue::Text("hello".to_owned())),
        option("number", MountValue::Number(7)),
        option("secret", MountValue::Secret("key".to_owned())),
    ];
    let range = |disk| vec![IdRange { disk, shown: 0, count: 65_536 }];
    let tmpfs = Tmpfs { size: Some(1 << 20), inodes: Some(100), owner: OWNER };
    let whole = Plan {
        source: Source::Tmpfs(tmpfs),
        read_only: true,
        no_exec: true,
        subpath: Some("a/b".to_owned()),
        id_map: Some(IdMap { users: range(10), groups: range(20) }),
    };
    assert_eq!(plan("tmpfs"), Ok(whole));
    assert_eq!(plan("storage"), Ok(plain(Source::Storage)));
    let directory = HostDirectory { path: "/srv/x".to_owned(), make: Some(OWNER) };
    assert_eq!(plan("host-directory"), Ok(plain(Source::HostDirectory(directory))));
    let share = Share {
        kind: "nfs4".to_owned(),
        server: "nas.example".to_owned(),
        path: "/export".to_owned(),
        options: options.clone(),
        make: Some(OWNER),
    };
    assert_eq!(plan("share"), Ok(plain(Source::Share(share))));
    let overlay = Overlay { lower: vec!["/srv/golden".to_owned()], volatile: true, reset: true };
    assert_eq!(plan("overlay"), Ok(plain(Source::Overlay(overlay))));
    let device = Device {
        path: "/dev/sdz".to_owned(),
        filesystem: "ext4".to_owned(),
        options: Vec::new(),
        make: Some(OWNER),
    };
    assert_eq!(plan("device"), Ok(plain(Source::Device(device))));
    let (name, source) = ("sshfs".to_owned(), "me@there:/srv".to_owned());
    let program = Program { name, source, options };
    assert_eq!(plan("program"), Ok(plain(Source::Program(program))));
    assert_eq!(plan("served"), Err(CallError::Unsupported("source `served`".to_owned())));
    assert_eq!(plan("other"), Err(CallError::Unsupported("source `of-later`".to_owned())));
}

#[test]
fn every_error_is_understood_in_every_verb() {
    let driver = frozen();
    for (told, code) in [
        ("not-found", ErrorCode::NotFound),
        ("already-exists", ErrorCode::AlreadyExists),
        ("invalid-option", ErrorCode::InvalidOption),
        ("in-use", ErrorCode::InUse),
        ("unavailable", ErrorCode::Unavailable),
        ("exhausted", ErrorCode::Exhausted),
        ("denied", ErrorCode::Denied),
        ("unsupported", ErrorCode::Unsupported),
        ("internal", ErrorCode::Internal),
    ] {
        let volume = volume(&[("fail", told)]);
        let Volume { id, name, options, .. } = &volume;
        let none = Scope::default;
        let place = tempfile::tempdir().expect("place");
        let root = File::open(place.path()).expect("directory").into();
        let errors = [
            driver.create(*id, name, options, none()).err(),
            driver.path(&volume).err(),
            driver.attach(&volume, none()).err(),
            driver.detach(&volume, none()).err(),
            driver.resize(&volume, 1, none()).err(),
            driver.populate(&volume, root, none()).err(),
            driver.check(&volume, none()).err(),
            driver.migrate(&volume, "0.0.9", none()).err(),
        ];
        let message = "it was told to fail".to_owned();
        let expected = Some(CallError::Failed { code, message });
        assert!(errors.iter().all(|error| *error == expected), "{told}: {errors:?}");
        // To remove what is not there is done.
        let removed = driver.remove(&volume, none());
        let is_done = removed.as_ref().is_ok_and(|answer| answer.value == Reclaim::Delete);
        assert!(if code == ErrorCode::NotFound { is_done } else { removed.err() == expected });
    }
}

#[test]
fn remove_proposes_both() {
    let driver = frozen();
    let mut volume = volume(&[]);
    let removed = |volume: &Volume| driver.remove(volume, Scope::default()).map(|a| a.value);
    assert_eq!(removed(&volume), Ok(Reclaim::Retain));
    volume.state = vec![1];
    assert_eq!(removed(&volume), Ok(Reclaim::Delete));
}

#[test]
fn list_tells_of_roots_and_of_the_store() {
    let options = Options::from([("size".to_owned(), Value::Size(7))]);
    let marked = Marked {
        name: VolumeName::parse("a").expect("volume name"),
        id: Id::from_bits(1),
        directory: "here".to_owned(),
        options: options.clone(),
    };
    let store = Store::from([("kept".to_owned(), Arc::from(*b"v"))]);
    let scope = Scope {
        roots: Roots(vec![Root { path: "/srv".to_owned(), marked: vec![marked] }]),
        store: Arc::new(store),
        ..Scope::default()
    };
    let found = frozen().list(scope, Duration::MAX).expect("lists");
    let [a, kept] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (a.name.as_str(), a.id, &a.options, a.owned),
        ("a", Some(Id::from_bits(1)), &options, true)
    );
    assert_eq!(a.state, b"/srv/here");
    assert_eq!((kept.name.as_str(), kept.id, kept.owned), ("kept", None, false));
    assert_eq!(kept.state, b"v");
}

#[test]
fn every_ability_is_asked() {
    let driver = frozen();
    let mut volume = volume(&[("source", "tmpfs")]);
    let none = Scope::default;
    let again = Progress::Again { state: b"once".to_vec(), after: Duration::from_secs(1) };
    let answer = driver.attach(&volume, none()).expect("attaches");
    assert_eq!((&answer.value, answer.uses.writes().len()), (&again, 1));
    assert_eq!(driver.detach(&volume, none()).expect("detaches").value, again);
    volume.state = b"once".to_vec();
    let done = |state: &[u8]| Progress::Done(state.to_vec());
    assert_eq!(driver.attach(&volume, none()).expect("attaches").value, done(b"attached"));
    assert_eq!(driver.detach(&volume, none()).expect("detaches").value, done(b"detached"));

    let resized = driver.resize(&volume, 1 << 30, none()).expect("resizes").value;
    let directory = Directory { owner: OWNER, limit: Some(1 << 30), over: None };
    assert_eq!(resized.storage, Storage::Directory(directory));
    assert_eq!(resized.state, b"1073741824");

    let place = tempfile::tempdir().expect("place");
    let root = File::open(place.path()).expect("directory").into();
    assert_eq!(driver.populate(&volume, root, none()).expect("fills").value.state, b"filled");
    let run = place.path().join("bin/run");
    assert_eq!(fs::read_to_string(&run).expect("file"), "#!/bin/sh\n");
    assert_eq!(fs::metadata(&run).expect("file").permissions().mode() & 0o111, 0o111);

    for (source, condition, message) in [
        ("storage", Condition::Healthy, ""),
        ("tmpfs", Condition::Degraded, "one disk of two is gone"),
        ("share", Condition::Unreachable, "nobody answers"),
    ] {
        volume.options.insert("source".to_owned(), Value::Text(source.to_owned()));
        let report = driver.check(&volume, none()).expect("checks");
        assert_eq!((report.condition, report.message.as_str()), (condition, message));
    }
    assert_eq!(driver.migrate(&volume, "0.0.9", none()), Ok(b"0.0.9: once".to_vec()));
}
