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
use std::time::Duration;

use wasmvol_sdk::contract::{Filesystem, Image};
use wasmvol_sdk::{
    Attachment, Created, Description, Driver, Error, ErrorCode, Found, Health, Migration,
    OptionSpec, Owner, Plan, Populated, Population, Progress, Reclaim, Report, Resized, Resizing,
    Result, Storage, Volume, export_driver, http, log, secrets, settings, store,
};

struct Able;

/// What its state begins with.
const MARK: &str = "able 1 ";

impl Driver for Able {
    fn describe() -> Description {
        let version = if has("version") { "1" } else { env!("CARGO_PKG_VERSION") };
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
            "log" => (0..15).for_each(|line| log::info!("{line} {}", "x".repeat(900))),
            "memory" => drop(black_box(vec![1_u8; 56 << 20])),
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
        store::set(&key, &volume.name)?;
        Ok(Created::from(image(volume.size("size")?)).state(format!("{MARK}made")))
    }

    fn remove(volume: &Volume) -> Result<Reclaim> {
        if has("remove") && volume.state.is_empty() {
            return Err(Error::new(ErrorCode::Internal, "never heard of it"));
        }
        if has("remove once") && store::get(&format!("volume/{}", volume.id)).is_none() {
            return Err(Error::new(ErrorCode::Internal, "it is gone"));
        }
        store::delete(&format!("volume/{}", volume.id))?;
        Ok(Reclaim::Delete)
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let state = match read(volume) {
            Ok(state) => state,
            Err(_) if has("state") => panic!("no state of ours"),
            Err(error) => return Err(error),
        };
        if state != "attached" {
            return Err(Error::new(ErrorCode::Unavailable, "it is not attached"));
        }
        Ok(match fault().as_str() {
            "restless path" => Plan::storage().subpath(restless()),
            _ => Plan::storage(),
        })
    }

    fn list() -> Result<Vec<Found>> {
        let mut names: Vec<_> =
            store::keys("volume/").iter().filter_map(|key| store::text(key)).collect();
        if has("list") {
            names = vec!["one".to_owned(), "one".to_owned()];
        }
        let found =
            |name| Found { name, id: None, options: Vec::new(), state: Vec::new(), owned: true };
        Ok(names.into_iter().map(found).collect())
    }
}

impl Attachment for Able {
    fn attach(volume: &Volume) -> Result<Progress> {
        let state = read(volume)?;
        match (fault().as_str(), state) {
            ("attach", "attached") => Err(Error::new(ErrorCode::InUse, "it is attached")),
            ("attach late", _) => {
                Ok(Progress::again(format!("{MARK}made"), Duration::from_secs(31)))
            }
            (_, "made") => {
                Ok(Progress::again(format!("{MARK}attaching"), Duration::from_millis(1)))
            }
            _ => Ok(Progress::Done(format!("{MARK}attached").into())),
        }
    }

    fn detach(volume: &Volume) -> Result<Progress> {
        match (fault().as_str(), read(volume)?) {
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
        let storage = if has("resize") { Storage::None } else { image(size) };
        Ok(Resized { storage, state: volume.state.clone() })
    }
}

impl Population for Able {
    fn populate(volume: &Volume, directory: &Path) -> Result<Populated> {
        fs::create_dir(directory.join("bin"))?;
        fs::write(directory.join("bin/run"), "#!/bin/sh\n")?;
        fs::write(directory.join("hello"), "hello\n")?;
        let program = if has("populate") { "bin/walk" } else { "bin/run" };
        Ok(Populated { state: volume.state.clone(), executables: vec![program.to_owned()] })
    }
}

impl Health for Able {
    fn check(_: &Volume) -> Result<Report> {
        Ok(Report::degraded(if has("health") { "" } else { "one of two disks answers" }))
    }
}

impl Migration for Able {
    fn migrate(volume: &Volume, from: &str) -> Result<Vec<u8>> {
        read(volume)?;
        Ok(if has("migrate") { from.into() } else { volume.state.clone() })
    }
}

fn image(size: u64) -> Storage {
    let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
    Storage::Image(Image { size, thin: true, filesystem: Filesystem::Ext4, encrypt: None, owner })
}

/// What its state says, behind the mark.
fn read(volume: &Volume) -> Result<&str> {
    let text = std::str::from_utf8(&volume.state).ok().and_then(|text| text.strip_prefix(MARK));
    let known = ["made", "attaching", "attached", "detaching"];
    text.filter(|state| known.contains(state))
        .ok_or_else(|| Error::new(ErrorCode::Internal, "its state is not this driver's"))
}

fn fault() -> String {
    settings::get("fault").unwrap_or_default()
}

fn has(one: &str) -> bool {
    fault() == one
}

/// Never the same twice.
fn restless() -> String {
    format!("at {}", RandomState::new().hash_one(()))
}

export_driver!(Able: attachment, resizing, population, health, migration);
