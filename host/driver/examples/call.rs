//! How long one sandboxed call takes: `cargo run --release -p wasmvol-driver --example call -- target/drivers/local.wasm`.
//!
//! Each call is what the daemon does at a mount: a fresh instance, `path`, its answer checked, everything dropped. Prints one line
//! for each number of threads. `call compile-driver` is the compiling child of this program and of the tests; `call create COMPONENT
//! KEY=VALUE…` calls that verb once, where `http=HOST` is a grant, and prints the state: the authorities that a process trusts are its own.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use wasmvol_driver::{
    Compiler, Driver, Engine, EngineOptions, OptionSpec, Scope, Value, ValueType, Volume,
};
use wasmvol_plan::kinds::http::HttpGrant;
use wasmvol_plan::{DriverName, Id, VolumeName};

/// Calls of one thread before measuring: the pool's slots are warm then.
const WARM_UP: usize = 2_000;
/// Calls of one thread that are measured.
const CALLS: usize = 50_000;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(arg) if arg == "compile-driver" => wasmvol_driver::compile_stdin_to_stdout(),
        Some(arg) if arg == "create" => {
            report(create(args.next().unwrap_or_default().into(), args))
        }
        Some(component) => report(measure(component.into())),
        None => report(Err("usage: call COMPONENT".into())),
    }
}

/// Calls `create` once, with options that are text.
fn create(component: PathBuf, words: impl Iterator<Item = OsString>) -> Result<(), Box<dyn Error>> {
    let cache = tempfile::tempdir()?;
    let driver = Engine::new(options(cache.path())?)?.load(
        &DriverName::parse("called")?,
        &std::fs::read(component)?,
        BTreeMap::new(),
    )?;
    let (mut options, mut http) = (BTreeMap::new(), Vec::new());
    for word in words {
        let word = word.into_string().map_err(|_| "an option is text")?;
        match word.split_once('=').ok_or("an option is KEY=VALUE")? {
            ("http", host) => http.push(HttpGrant::parse(host)?),
            (key, value) => _ = options.insert(key.to_owned(), Value::Text(value.to_owned())),
        }
    }
    let scope = Scope { http: http.into(), ..Scope::default() };
    let name = VolumeName::parse("called")?;
    let created = driver.create(Id::from_bits(1), &name, &options, scope)?.value;
    Ok(writeln!(std::io::stdout(), "{}", String::from_utf8_lossy(&created.state))?)
}

fn options(cache: &Path) -> std::io::Result<EngineOptions> {
    let compiler =
        Compiler { program: std::env::current_exe()?, args: vec!["compile-driver".into()] };
    Ok(EngineOptions { cache: cache.to_owned(), compiler, calls_max: 64 })
}

fn report(result: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    // Nothing is left to do if stderr is gone.
    let _ = writeln!(std::io::stderr(), "{error}");
    ExitCode::FAILURE
}

fn measure(component: PathBuf) -> Result<(), Box<dyn Error>> {
    let cache = tempfile::tempdir()?;
    let options = options(cache.path())?;
    let component = std::fs::read(component)?;
    let name = DriverName::parse("measured")?;

    let mut out = std::io::stdout().lock();
    for what in ["load, compiled in a child:", "load, from the cache:    "] {
        let begin = Instant::now();
        let engine = Engine::new(options.clone())?;
        let set_up = begin.elapsed();
        engine.load(&name, &component, BTreeMap::new())?;
        writeln!(out, "{what} {:?} (engine {set_up:?})", begin.elapsed())?;
    }

    let driver = Engine::new(options)?.load(&name, &component, BTreeMap::new())?;
    let mut volume = Volume {
        id: Id::from_bits(1),
        name: VolumeName::parse("measured")?,
        options: driver.description().options.iter().filter_map(default).collect(),
        state: Vec::new(),
    };
    let created = driver.create(volume.id, &volume.name, &volume.options, Scope::default())?.value;
    volume.state = created.state;
    for threads in [1, 2] {
        let mut times = std::thread::scope(|scope| {
            let runs: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| run(&driver, &volume))).collect();
            let joined = runs.into_iter().filter_map(|run| run.join().ok());
            joined.collect::<Result<Vec<_>, _>>().map(|times| times.concat())
        })?;
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        writeln!(
            out,
            "path, {threads} threads: p50 {:?} min {:?} p99 {:?}",
            at(50),
            at(0),
            at(99)
        )?;
    }
    Ok(())
}

/// A default as the daemon would fill it in; the drivers of this project have none of another type.
fn default(spec: &OptionSpec) -> Option<(String, Value)> {
    let default = spec.default.clone()?;
    let value = match spec.value_type {
        ValueType::Number => Value::Number(default.parse().ok()?),
        ValueType::Boolean => Value::Boolean(default.parse().ok()?),
        _ => Value::Text(default),
    };
    Some((spec.key.clone(), value))
}

fn run(driver: &Driver, volume: &Volume) -> Result<Vec<Duration>, wasmvol_driver::CallError> {
    for _ in 0..WARM_UP {
        driver.path(volume)?;
    }
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begin = Instant::now();
        driver.path(volume)?;
        times.push(begin.elapsed());
    }
    Ok(times)
}
