//! A driver with every ability: the subject of the tests of what a driver may be able to do.
//!
//! Its backend is its own store: what it has made, what it has attached, a counter. What it does is named by the options of a volume, and
//! each call says in the log what it was asked and with which state. It uses the generated bindings, as a driver in another language does.

use std::ffi::CString;
use std::fmt::Display;
use std::fs;
use std::time::Duration;

mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/since_v0.1.0",
        inline: "
            package test:able;
            world able {
                include wasmvol:driver/driver@0.1.0;
                include wasmvol:driver/with-attachment@0.1.0;
                include wasmvol:driver/with-resizing@0.1.0;
                include wasmvol:driver/with-population@0.1.0;
                include wasmvol:driver/with-health@0.1.0;
                include wasmvol:driver/with-migration@0.1.0;
            }
        ",
        world: "test:able/able",
        generate_all,
    });
    use super::Able;
    export!(Able);
}

use bindings::exports::wasmvol::driver::attachment::{Again, Guest as Attachment, Progress};
use bindings::exports::wasmvol::driver::health::{Condition, Guest as Health, Report};
use bindings::exports::wasmvol::driver::migration::Guest as Migration;
use bindings::exports::wasmvol::driver::population::{Guest as Population, Populated};
use bindings::exports::wasmvol::driver::resizing::{Guest as Resizing, Resized};
use bindings::exports::wasmvol::driver::volumes::{Created, Found, Guest};
use bindings::wasmvol::driver::types::{
    Description, Directory, Error, ErrorCode, Filesystem, Image, NamedDirectory, OptionSpec,
    OptionValue, Owner, Plan, Reclaim, Source, Storage, Value, ValueType, Volume,
};
use bindings::wasmvol::driver::{log, secrets, store};

/// The one directory that a call to fill a volume has.
const ROOT: &str = "/volume";

unsafe extern "C" {
    // std has no stable form of it here.
    fn symlink(target: *const std::ffi::c_char, link: *const std::ffi::c_char) -> i32;
}

struct Able;

impl Guest for Able {
    fn describe() -> Description {
        let spec = |key: &str, value_type, default: Option<&str>| OptionSpec {
            key: key.to_owned(),
            value_type,
            required: false,
            default: default.map(str::to_owned),
            help: "see its source".to_owned(),
        };
        Description {
            name: "able".to_owned(),
            version: "0.1.0".to_owned(),
            help: "does all that a driver can".to_owned(),
            options: vec![
                spec("do", ValueType::Text, None),
                spec("key", ValueType::Secret, None),
                spec("size", ValueType::Size, None),
                spec("steps", ValueType::Number, Some("1")),
                spec("uid", ValueType::Number, Some("0")),
                spec("wait", ValueType::Duration, Some("0ms")),
            ],
            grants: Vec::new(),
        }
    }

    fn create(id: String, name: String, options: Vec<OptionValue>) -> Result<Created, Error> {
        said("create", &name, &[]);
        store::set(&format!("made/{name}"), id.as_bytes())?;
        match act(&options) {
            "tell" => return fail(all_that_is_stored()),
            "fail" => return fail("told to fail"),
            "count" => count(wait(&options))?,
            "reveal" => reveal(secret(&options))?,
            "blab" => blab(secret(&options))?,
            "blab-directory" => return blab_directory(secret(&options)),
            "ail" => store::set("ailing", b"a disk of it is slow")?,
            _ => {}
        }
        Ok(Created { storage: storage(&options), state: b"made".to_vec() })
    }

    fn remove(volume: Volume) -> Result<Reclaim, Error> {
        said("remove", &volume.name, &volume.state);
        store::delete(&format!("made/{}", volume.name))?;
        if act(&volume.options) == "ail" {
            store::delete("ailing")?;
        }
        Ok(Reclaim::Delete)
    }

    fn path(volume: Volume) -> Result<Plan, Error> {
        said("path", &volume.name, &volume.state);
        let source = Source::Storage;
        Ok(Plan { source, read_only: false, no_exec: false, subpath: None, id_map: None })
    }

    fn list() -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }
}

impl Attachment for Able {
    fn attach(volume: Volume) -> Result<Progress, Error> {
        said("attach", &volume.name, &volume.state);
        if act(&volume.options) == "stay-away" {
            return fail("no such disk in this zone");
        }
        let steps = number(&volume.options, "steps");
        let done = volume.state.iter().filter(|byte| **byte == b'+').count() as i64 + 1;
        let mut state = volume.state;
        state.push(b'+');
        if done < steps {
            return Ok(Progress::Again(Again { state, after: 10 }));
        }
        store::set(&format!("attached/{}", volume.name), b"here")?;
        Ok(Progress::Done(state))
    }

    fn detach(volume: Volume) -> Result<Progress, Error> {
        said("detach", &volume.name, &volume.state);
        store::delete(&format!("attached/{}", volume.name))?;
        let mut state = volume.state;
        state.retain(|byte| *byte != b'+');
        Ok(Progress::Done(state))
    }
}

impl Resizing for Able {
    fn resize(volume: Volume, size: u64) -> Result<Resized, Error> {
        said("resize", &volume.name, &volume.state);
        let mut storage = storage(&volume.options);
        if let Storage::Image(image) = &mut storage {
            image.size = size;
        }
        Ok(Resized { storage, state: [&volume.state, &b" resized"[..]].concat() })
    }
}

impl Population for Able {
    fn populate(volume: Volume) -> Result<Populated, Error> {
        said("populate", &volume.name, &volume.state);
        let path = |name: &str| format!("{ROOT}/{name}");
        let write = |name: &str, text: &str| fs::write(path(name), text).map_err(failed);
        if fs::read_dir(ROOT).map_err(failed)?.count() > 0 {
            return fail("it is not empty");
        }
        std::thread::sleep(wait(&volume.options));
        let mut executables = Vec::new();
        match act(&volume.options) {
            "nothing" => {}
            "panic" => panic!("out of cheese"),
            "half" => {
                write("half", "of it")?;
                return fail("the backend is away");
            }
            "flood" | "limit-flood" => flood(usize::MAX)?,
            "limit-some" => flood(3)?,
            "second-name" => {
                fs::create_dir(path("d")).map_err(failed)?;
                write("d/one", "")?;
                fs::hard_link(path("d/one"), path("d/two")).map_err(failed)?;
            }
            "blab-program" => executables.push(text_of(secret(&volume.options))?),
            "no-program" => executables.push("../../etc/passwd".to_owned()),
            "look-around" => look_around()?,
            "once" => once(&volume.name)?,
            _ => {
                fs::create_dir_all(path("bin")).map_err(failed)?;
                write("bin/run", "#!/bin/sh\necho ran\n")?;
                write("text", &format!("of {}", volume.name))?;
                link("bin/run", "run")?;
                executables.push("bin/run".to_owned());
            }
        }
        Ok(Populated { state: [&volume.state, &b" filled"[..]].concat(), executables })
    }
}

impl Health for Able {
    fn check(_: Volume) -> Result<Report, Error> {
        let ailing = store::get("ailing").map(|why| String::from_utf8_lossy(&why).into_owned());
        Ok(Report {
            condition: if ailing.is_some() { Condition::Degraded } else { Condition::Healthy },
            message: ailing.unwrap_or_default(),
        })
    }
}

impl Migration for Able {
    fn migrate(volume: Volume, from: String) -> Result<Vec<u8>, Error> {
        said("migrate", &volume.name, &volume.state);
        Ok([&volume.state, &b" from "[..], from.as_bytes()].concat())
    }
}

/// Says in the log what was asked.
fn said(verb: &str, name: &str, state: &[u8]) {
    let state = String::from_utf8_lossy(state);
    log::write(log::Level::Info, &format!("asked: {verb} {name} [{state}]"));
}

fn fail<T>(message: impl Into<String>) -> Result<T, Error> {
    Err(Error { code: ErrorCode::Unavailable, message: message.into() })
}

fn failed(error: impl Display) -> Error {
    Error { code: ErrorCode::Internal, message: format!("cannot fill it: {error}") }
}

fn option<'a>(options: &'a [OptionValue], key: &str) -> Option<&'a Value> {
    options.iter().find(|option| option.key == key).map(|option| &option.value)
}

fn act(options: &[OptionValue]) -> &str {
    if let Some(Value::Text(act)) = option(options, "do") { act } else { "" }
}

fn secret(options: &[OptionValue]) -> &str {
    if let Some(Value::Secret(name)) = option(options, "key") { name } else { "none" }
}

fn number(options: &[OptionValue], key: &str) -> i64 {
    if let Some(Value::Number(number)) = option(options, key) { *number } else { 0 }
}

fn wait(options: &[OptionValue]) -> Duration {
    let Some(Value::Duration(ms)) = option(options, "wait") else { return Duration::ZERO };
    Duration::from_millis(*ms)
}

/// A directory; with a size an image, and whatever cannot be filled where that is asked for.
fn storage(options: &[OptionValue]) -> Storage {
    let uid = u32::try_from(number(options, "uid")).unwrap_or(0);
    let owner = Owner { uid, gid: uid, mode: 0o750 };
    if act(options) == "no-storage" {
        return Storage::None;
    }
    let limit = option(options, "size").and_then(|size| match size {
        Value::Size(size) => Some(*size),
        _ => None,
    });
    match limit {
        Some(size) if !act(options).starts_with("limit") => {
            // Some hosts let ext4 grow for nobody.
            let is_large = size >= 300 << 20;
            let filesystem = if is_large { Filesystem::Xfs } else { Filesystem::Ext4 };
            Storage::Image(Image { size, thin: true, filesystem, encrypt: None, owner })
        }
        limit => Storage::Directory(Directory { owner, limit, over: None }),
    }
}

/// Every key of the store with its value, in a line.
fn all_that_is_stored() -> String {
    let pairs = store::keys("").into_iter().map(|key| {
        let value = store::get(&key).unwrap_or_default();
        // An id is another one each time.
        let value =
            if key.starts_with("made/") { "".into() } else { String::from_utf8_lossy(&value) };
        format!("{key}={value}")
    });
    format!("stored: {}", pairs.collect::<Vec<_>>().join(" "))
}

/// Reads a counter, lets others do the same, and counts.
fn count(wait: Duration) -> Result<(), Error> {
    let count = store::get("count").and_then(|text| String::from_utf8(text).ok()?.parse().ok());
    std::thread::sleep(wait);
    store::set("count", (count.unwrap_or(0_u32) + 1).to_string().as_bytes())
}

/// Tells of a secret no more than its length and a sum.
fn reveal(name: &str) -> Result<(), Error> {
    let bytes = secrets::reveal(name)?;
    let sum =
        bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    log::write(log::Level::Info, &format!("revealed: {} bytes, sum {sum}", bytes.len()));
    Ok(())
}

/// Tells a secret to everybody.
fn blab(name: &str) -> Result<(), Error> {
    let text = text_of(name)?;
    log::write(log::Level::Info, &format!("logged: {text}"));
    eprintln!("printed: {text}");
    fail(format!("it does not open with {text}"))
}

/// Asks for a directory that is called after a secret, as no directory can be.
fn blab_directory(name: &str) -> Result<Created, Error> {
    let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
    let (root, directory) = ("/srv".to_owned(), Some(format!("{}\n", text_of(name)?)));
    let storage = Storage::NamedDirectory(NamedDirectory { root, directory, owner, limit: None });
    Ok(Created { storage, state: Vec::new() })
}

fn text_of(name: &str) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&secrets::reveal(name)?).into_owned())
}

/// Fills a volume at its second try only: the first one reads what another call changes before it ends.
fn once(name: &str) -> Result<(), Error> {
    let seen = store::get("count");
    fs::write(format!("{ROOT}/{name}"), "first or second").map_err(failed)?;
    log::write(log::Level::Info, &format!("filled once with {}", seen.is_some()));
    store::set(&format!("filled/{name}"), b"")
}

/// Writes files of a megabyte.
fn flood(count: usize) -> Result<(), Error> {
    let text = vec![7_u8; 1 << 20];
    (0..count).try_for_each(|n| fs::write(format!("{ROOT}/{n}"), &text)).map_err(failed)
}

/// Looks for a way out of the volume.
fn look_around() -> Result<(), Error> {
    let reached = |path: &str| fs::read_dir(path).is_ok() || fs::read(path).is_ok();
    link("..", "up")?;
    link("../../../../etc", "etc")?;
    for path in ["/", "/etc/passwd", "/volume/..", "/volume/up", "/volume/../etc", "/volume/etc"] {
        assert!(!reached(path), "`{path}` was there");
    }
    assert!(fs::write("/volume/../out", "").is_err(), "a file was made beside the volume");
    assert!(fs::hard_link("/volume/etc/passwd", "/volume/in").is_err(), "a link led in");
    Ok(())
}

fn link(target: &str, name: &str) -> Result<(), Error> {
    let [target, link] = [target.to_owned(), format!("{ROOT}/{name}")]
        .map(|text| CString::new(text).expect("a name without a zero"));
    // SAFETY: both are C strings, and outlive the call.
    match unsafe { symlink(target.as_ptr(), link.as_ptr()) } {
        0 => Ok(()),
        _ => Err(failed(std::io::Error::last_os_error())),
    }
}
