//! One sandboxed call: a fresh instance of a Rust driver, `path`, its answer checked, everything dropped. What the daemon does at a
//! Mount, without the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use wasmvol_driver::{
    Compiler, Driver, Engine, EngineOptions, OptionSpec, Scope, Value, ValueType, Volume,
};
use wasmvol_plan::{DriverName, Id, VolumeName};

use crate::report::{Figure, Goal, Report, time};
use crate::{Places, Result, instance, machine};

/// Calls at once that the daemon allows.
const CALLS_MAX: u32 = 64;
/// Calls before measuring: the pool's slots are warm then.
const WARM_UP: usize = 2_000;
/// Calls that are measured.
const CALLS: usize = 50_000;

pub(crate) fn measure(places: &Places, report: &mut Report) -> Result<()> {
    let cache = places.state.join("calls");
    fs::create_dir(&cache)?;
    let args = vec!["compile-driver".into()];
    let compiler = Compiler { program: std::env::current_exe()?, args };
    let engine = Engine::new(EngineOptions { cache, compiler, calls_max: CALLS_MAX })?;
    let component = fs::read(instance::driver("local")?)?;
    let driver = engine.load(&DriverName::parse("local")?, &component, BTreeMap::new())?;
    let (id, name) = (Id::from_bits(1), VolumeName::parse("measured")?);
    let options = driver.description().options.iter().filter_map(default).collect();
    let state = driver.create(id, &name, &options, Scope::default())?.value.state;
    let times = run(&driver, &Volume { id, name, options, state })?;
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    report.figure(Figure {
        name: "sandboxed call of a Rust driver, fresh instance, `path`, p50".to_owned(),
        goal: Goal::AtMost(15.0),
        measured: at(50),
        unit: "us",
        raw: format!("p10 {}, p99 {}", time(at(10)), time(at(99))),
    });
    Ok(())
}

/// The times of many calls in microseconds, the shortest first.
fn run(driver: &Driver, volume: &Volume) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        driver.path(volume)?;
    }
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begin = Instant::now();
        driver.path(volume)?;
        times.push(machine::micros(begin.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// A default as the daemon would fill it in; `local` has numbers and text only.
fn default(spec: &OptionSpec) -> Option<(String, Value)> {
    let default = spec.default.clone()?;
    let value = match spec.value_type {
        ValueType::Number => Value::Number(default.parse().ok()?),
        _ => Value::Text(default),
    };
    Some((spec.key.clone(), value))
}
