//! A driver that has every ability and uses all that a host offers: the subject of the tests of `driver check`.
//!
//! It keeps every promise of the contract but the one that its setting `fault` names. It is built through the SDK, as drivers are; what
//! the SDK does not let a driver do wrong the hostile driver does.
#![expect(clippy::panic, reason = "one of its faults")]

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use wasmvol_sdk::contract::{Filesystem, Image};
use wasmvol_sdk::{
    Attachment, Created, Description, Driver, Error, ErrorCode, Found, Health, Migration,
    OptionSpec, OptionValue, Owner, Plan, Populated, Population, Progress, Reclaim, Report,
    Resized, Resizing, Result, Storage, Value, Volume, export_driver, http, log, secrets, settings,
    store,
};

struct Able;

/// What its state begins with.
const MARK: &str = "able 1 ";

impl Driver for Able {
    fn describe() -> Description {
        let version = match fault().as_str() {
            "version" => "1",
            "long version" => "1.2.3.4",
            _ => env!("CARGO_PKG_VERSION"),
        };
        let help = match fault().as_str() {
            "help" => String::new(),
            "restless describe" => restless(),
            _ => "has every ability".to_owned(),
        };
        let described = Description::new(env!("CARGO_PKG_NAME"), version, &help)
            .option(OptionSpec::size("size", "bytes of the image").default("16m"))
            .option(OptionSpec::secret("key", "what signs requests"));
        match fault().as_str() {
            "default" => {
                described.option(OptionSpec::duration("wait", "how long").default("a while"))
            }
            "grant" => described.grant("everything"),
            _ => described.grant("image").grant("http=https://HOST"),
        }
    }

    fn create(volume: &Volume) -> Result<Created> {
        let key = format!("volume/{}", volume.id);
        match fault().as_str() {
            "create" if store::get(&key).is_some() => {
                return Err(Error::new(ErrorCode::AlreadyExists, "it is there"));
            }
            "message" => return Err(Error::new(ErrorCode::Internal, "two\nlines")),
            "share" => return Err(Error::new(ErrorCode::Unavailable, r"`\\nas\team` is away")),
            "log" => (0..15).for_each(|line| log::info!("{line} {}", "x".repeat(900))),
            "memory" => drop(black_box(Vec::<u8>::with_capacity(56 << 20))),
            "http" => {
                http::get("https://backend.test/volumes").send()?;
            }
            "reveal" => {
                secrets::reveal(volume.secret("key")?)?;
            }
            "name" => assert!(volume.name.len() < 128, "too long a name"),
            _ => {}
        }
        if volume.size("size")? == 0 {
            assert!(!has("value"), "nothing has no size");
            return Err(Error::invalid_option("size", "must be at least 1 byte"));
        }
        let signs = volume.if_given("key", Volume::secret)?.unwrap_or_default();
        store::set(&key, format!("{}\n{}\n{signs}", volume.name, volume.size("size")?))?;
        if has("one of a name") {
            store::set(&format!("name/{}", volume.name), &volume.id)?;
        }
        let noted = if has("large state") { "@".repeat(56 << 10) } else { String::new() };
        Ok(Created::from(image(volume.size("size")?)).state(format!("{MARK}made{noted}")))
    }

    fn remove(volume: &Volume) -> Result<Reclaim> {
        if has("remove") && volume.state.is_empty() {
            return Err(Error::new(ErrorCode::Internal, "never heard of it"));
        }
        if has("remove once") && store::get(&format!("volume/{}", volume.id)).is_none() {
            return Err(Error::new(ErrorCode::Internal, "it is gone"));
        }
        if has("stubborn") && volume.name == "0" {
            return Err(Error::new(ErrorCode::InUse, "it is in use"));
        }
        if has("strict remove") && has_unknown(volume) {
            return Err(Error::new(ErrorCode::InvalidOption, "what is that?"));
        }
        store::delete(&format!("volume/{}", volume.id))?;
        if has("remove all") {
            store::keys("volume/").iter().try_for_each(|key| store::delete(key))?;
        }
        Ok(Reclaim::Delete)
    }

    fn path(volume: &Volume) -> Result<Plan> {
        if has("strict path") && has_unknown(volume) {
            return Err(Error::new(ErrorCode::InvalidOption, "what is that?"));
        }
        if read_or_crash(volume, "state")? != "attached" {
            return Err(Error::new(ErrorCode::Unavailable, "it is not attached"));
        }
        let noted = String::from_utf8_lossy(&volume.state);
        let noted = noted.split_once('@').map_or("", |(_, noted)| noted);
        Ok(match fault().as_str() {
            "restless path" => Plan::storage().subpath(restless()),
            "restless attach" => Plan::storage().subpath(noted),
            "late path" if now() > noted.parse().unwrap_or(u128::MAX).saturating_add(1000) => {
                Plan::storage().subpath("late")
            }
            _ => Plan::storage(),
        })
    }

    fn list() -> Result<Vec<Found>> {
        let mut all: Vec<_> = store::keys("volume/").iter().filter_map(|key| found(key)).collect();
        if has("list") {
            let name = "one".to_owned();
            let one = Found { name, id: None, options: Vec::new(), state: Vec::new(), owned: true };
            all = vec![one.clone(), one];
        }
        if has("large list") {
            // Of 16 MiB, each with less state than is too much.
            all.extend((0..350).map(|number| Found {
                name: format!("large-{number}"),
                id: None,
                options: Vec::new(),
                state: vec![0; 40 << 10],
                owned: true,
            }));
        }
        for found in &mut all {
            match fault().as_str() {
                "list id" => found.id = None,
                "list options" => found.options = Vec::new(),
                "list state" => found.state = Vec::new(),
                _ => {}
            }
        }
        Ok(all)
    }
}

impl Attachment for Able {
    fn attach(volume: &Volume) -> Result<Progress> {
        let state = read_or_crash(volume, "state in attach")?;
        let key = format!("volume/{}", volume.id);
        let of_name = || store::text(&format!("name/{}", volume.name));
        match (fault().as_str(), state) {
            ("attach", "attached") => Err(Error::new(ErrorCode::InUse, "it is attached")),
            ("remove all", _) if store::get(&key).is_none() => {
                Err(Error::new(ErrorCode::NotFound, "it went with another"))
            }
            ("one of a name", _) if of_name().as_deref() != Some(&*volume.id) => {
                Err(Error::new(ErrorCode::NotFound, "another has its name"))
            }
            (_, "attached") => Ok(Progress::Done(volume.state.clone())),
            ("attach late", _) => {
                Ok(Progress::again(format!("{MARK}made"), Duration::from_secs(31)))
            }
            (_, "made" | "filled") => {
                Ok(Progress::again(format!("{MARK}attaching"), Duration::from_millis(1)))
            }
            ("restless attach", _) => {
                Ok(Progress::Done(format!("{MARK}attached@{}", restless()).into()))
            }
            ("late path", _) => Ok(Progress::Done(format!("{MARK}attached@{}", now()).into())),
            _ => Ok(Progress::Done(format!("{MARK}attached").into())),
        }
    }

    fn detach(volume: &Volume) -> Result<Progress> {
        match (fault().as_str(), read_or_crash(volume, "state in detach")?) {
            ("detach", "made") => Err(Error::new(ErrorCode::NotFound, "it is not attached")),
            (_, "attached") => {
                Ok(Progress::again(format!("{MARK}detaching"), Duration::from_millis(1)))
            }
            _ => Ok(Progress::Done(format!("{MARK}made").into())),
        }
    }
}

impl Resizing for Able {
    fn resize(volume: &Volume, size: u64) -> Result<Resized> {
        read_or_crash(volume, "state in resize")?;
        let storage = if has("resize") { Storage::None } else { image(size) };
        Ok(Resized { storage, state: volume.state.clone() })
    }
}

impl Population for Able {
    fn populate(volume: &Volume, directory: &Path) -> Result<Populated> {
        // A volume is filled once; before that is recorded nobody has filled it.
        if read_or_crash(volume, "state in populate")? != "made" {
            return Err(Error::new(ErrorCode::AlreadyExists, "it is filled"));
        }
        fs::create_dir(directory.join("bin"))?;
        fs::write(directory.join("bin/run"), "#!/bin/sh\n")?;
        fs::write(directory.join("hello"), "hello\n")?;
        let program = if has("populate") { "bin/walk" } else { "bin/run" };
        let state = format!("{MARK}filled").into();
        Ok(Populated { state, executables: vec![program.to_owned()] })
    }
}

impl Health for Able {
    fn check(volume: &Volume) -> Result<Report> {
        if has("state in check") {
            read_or_crash(volume, "state in check")?;
        }
        Ok(Report::degraded(if has("health") { "" } else { "one of two disks answers" }))
    }
}

impl Migration for Able {
    fn migrate(volume: &Volume, from: &str) -> Result<Vec<u8>> {
        read_or_crash(volume, "state in migrate")?;
        Ok(if has("migrate") { from.into() } else { volume.state.clone() })
    }
}

fn image(size: u64) -> Storage {
    let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
    Storage::Image(Image { size, thin: true, filesystem: Filesystem::Ext4, encrypt: None, owner })
}

/// A volume as it was made, by its key in the store.
fn found(key: &str) -> Option<Found> {
    let (id, text) = (key.strip_prefix("volume/")?.to_owned(), store::text(key)?);
    let mut lines = text.split('\n');
    let (name, size) = (lines.next()?.to_owned(), lines.next()?.parse().ok()?);
    let value = |key: &str, value| OptionValue { key: key.to_owned(), value };
    let signs = lines.next().filter(|name| !name.is_empty());
    let signs = signs.map(|name| value("key", Value::Secret(name.to_owned())));
    let options = signs.into_iter().chain([value("size", Value::Size(size))]).collect();
    Some(Found { name, id: Some(id), options, state: format!("{MARK}made").into(), owned: true })
}

/// What its state says, behind the mark and before what was noted.
fn read(volume: &Volume) -> Result<&str> {
    let text = std::str::from_utf8(&volume.state).ok().and_then(|text| text.strip_prefix(MARK));
    let text = text.map(|text| text.split_once('@').map_or(text, |(state, _)| state));
    let known = ["made", "filled", "attaching", "attached", "detaching"];
    text.filter(|state| known.contains(state))
        .ok_or_else(|| Error::new(ErrorCode::Internal, "its state is not this driver's"))
}

fn has_unknown(volume: &Volume) -> bool {
    volume.options.iter().any(|option| !["key", "size"].contains(&option.key.as_str()))
}

/// The same, with that fault where it is another's.
fn read_or_crash<'a>(volume: &'a Volume, fault: &str) -> Result<&'a str> {
    match read(volume) {
        Err(_) if has(fault) => panic!("no state of ours"),
        Err(_) if has("long state") && volume.state.len() > 1 << 10 => panic!("a long state"),
        state => state,
    }
}

fn fault() -> String {
    settings::get("fault").unwrap_or_default()
}

fn has(one: &str) -> bool {
    fault() == one
}

/// Milliseconds.
fn now() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()
}

/// Never the same twice.
fn restless() -> String {
    format!("at {}", RandomState::new().hash_one(()))
}

export_driver!(Able: attachment, resizing, population, health, migration);
