//! `wasmvol driver check`: the conformance suite of the contract for one component, without a daemon and, but for `--mount`, without root.
//!
//! It gathers what an operator and a user would give, has [`conformance`] ask, and prints what came of it: a table
//! for people, JSON for CI. The component runs in an engine of this process, unless root typed it: then in one of a process that has no
//! privileges, [`apart`]. What was compiled goes with the command.

mod apart;
mod real;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wasmvol_driver::{Driver, Engine, EngineOptions, Meter, OptionSpec};
use wasmvol_plan::secret::{BYTES_MAX, Bytes};
use wasmvol_plan::{DriverName, Grants, Peer, Secret, SecretName};

pub(super) use apart::{Apart, run_apart};

use super::component::{Component, Fetching, Trust, announce};
use super::output::{Output, say, size};
use super::volume::option;
use super::{CliError, log_to_stderr, sandbox};
use crate::conformance::{self, Finding, Loaded, Setup, Stop, Subject, Told, Verdict};
use crate::volumes::options::{self, Asked};

/// Calls at once: the suite makes one after the other, and a driver may have one in four.
const CALLS_MAX: u32 = 4;
/// What the first check is called: all others need it.
const LOADED: &str = "a host loads it";
/// Whose secrets they are until the driver's name is known.
const UNNAMED: &str = "unnamed";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    fetching: Fetching,
    /// The component: a file, or a registry's HOST/NAME:TAG or HOST/NAME@sha256:…
    #[arg(value_name = "FILE|REF")]
    component: PathBuf,
    #[command(flatten)]
    given: Given,
    /// Also make, mount, use and remove a volume for real, in a mount namespace and directories of its own; needs root
    #[arg(long)]
    mount: bool,
}

/// What its user and its operator would give.
#[derive(Debug, clap::Args)]
struct Given {
    /// An option as a user would give it; may be repeated
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, String)>,
    /// A setting of the driver's; may be repeated
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = option)]
    settings: Vec<(String, String)>,
    /// Something that the driver may ask for, as `driver load` takes it; may be repeated
    #[arg(long = "grant", value_name = "GRANT")]
    grants: Vec<String>,
    /// A secret that is kept under a name meanwhile, from a file; may be repeated
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = named_file)]
    secrets: Vec<(SecretName, PathBuf)>,
    /// A server that may get the secrets, as `secret set` takes it; may be repeated
    #[arg(long = "peer", value_name = "HOST", requires = "secrets")]
    peers: Vec<Peer>,
}

fn named_file(text: &str) -> Result<(SecretName, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("it has the form NAME=FILE")?;
    Ok((SecretName::parse(name).map_err(|error| error.to_string())?, file.into()))
}

/// All that came of it.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// None of what could not be loaded.
    driver: Option<String>,
    version: Option<String>,
    /// sha256 of the component.
    digest: Option<String>,
    /// Its bytes.
    size: usize,
    passed: bool,
    checks: Vec<Finding>,
    calls: BTreeMap<String, Told>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<ExitCode, CliError> {
    // The driver's own lines, if somebody asks for them.
    log_to_stderr("off");
    let place = match (arguments.mount, real::place()) {
        (true, None) => return real::enter(),
        (true, Some(place)) => Place::Given(place),
        (false, _) => Place::new()?,
    };
    // Nothing is let in by it: whose signature it has is asked where it is loaded.
    let component = Component::open(&arguments.component, &arguments.fetching, Trust::ToBeSeen)?;
    let given = &arguments.given;
    let asked = given.asked()?;
    if let Some(driver) = &asked.driver {
        let why = format!("it is {} that is checked", component.shown);
        return Err(CliError::Refused(format!("leave `-o driver={driver}` out: {why}")));
    }
    let mut secrets = given.secrets()?;
    announce(&component.bytes, output);
    let report = if sandbox::is_root() {
        let mut report = apart::report(given, &secrets, &component.bytes, &place)?;
        if let (true, Some(driver)) = (arguments.mount, &report.driver) {
            let driver = DriverName::parse(driver)?;
            for secret in secrets.values_mut() {
                secret.drivers = vec![driver.clone()];
            }
            let what = real::What { driver, component: &component, given, asked, secrets, output };
            report.checks.extend(real::run(&what, place.path(), &report.checks));
            report.judge();
        }
        report
    } else {
        report(given, secrets, &component.bytes, &place)?
    };
    print(&report, output)?;
    if report.passed {
        return Ok(ExitCode::SUCCESS);
    }
    let failed = report.checks.iter().filter(|found| found.result == Verdict::Fail).count();
    let (shown, all) = (&component.shown, report.checks.len());
    say(&format!("wasmvol: {shown} fails {failed} of {all} checks"));
    Ok(ExitCode::FAILURE)
}

/// Where this process may write: a directory of its own, which goes with it.
enum Place {
    Own(real::Directory),
    Given(PathBuf),
}

impl Place {
    fn new() -> Result<Self, CliError> {
        let what = format!("a directory in `{}`", std::env::temp_dir().display());
        real::Directory::new().map(Self::Own).map_err(CliError::io(what))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(directory) => directory.path(),
            Self::Given(path) => path,
        }
    }

    /// Makes a directory in it.
    fn make(&self, name: &str) -> Result<PathBuf, CliError> {
        let path = self.path().join(name);
        std::fs::create_dir(&path).map_err(CliError::io(format!("`{}`", path.display())))?;
        Ok(path)
    }
}

/// Secrets before they have their driver.
type Secrets = BTreeMap<SecretName, Secret>;

impl Given {
    fn asked(&self) -> Result<Asked, CliError> {
        let asked = Asked::split(self.options.iter().cloned().collect());
        asked.map_err(|error| CliError::Refused(error.to_string()))
    }

    fn settings(&self) -> BTreeMap<String, String> {
        self.settings.iter().cloned().collect()
    }

    fn secrets(&self) -> Result<Secrets, CliError> {
        let mut secrets = Secrets::new();
        for (name, file) in &self.secrets {
            let what = || CliError::io(format!("`{}`", file.display()));
            // A buffer that had to grow would leave a copy behind.
            let mut bytes = Vec::with_capacity(BYTES_MAX + 1);
            let read = File::open(file).map_err(what())?.take(BYTES_MAX as u64 + 1);
            { read }.read_to_end(&mut bytes).map_err(what())?;
            let drivers = vec![DriverName::parse(UNNAMED)?];
            let secret = Secret::new(drivers, self.peers.clone(), Bytes::new(bytes));
            let secret = secret.map_err(|fault| {
                CliError::Refused(format!("`{}`: {}", file.display(), fault.message))
            })?;
            secrets.insert(name.clone(), secret);
        }
        Ok(secrets)
    }
}

/// Has everything asked that needs no mount, by an engine of this process.
fn report(
    given: &Given,
    secrets: Secrets,
    component: &[u8],
    place: &Place,
) -> Result<Report, CliError> {
    let (settings, asked) = (given.settings(), given.asked()?);
    let meter = Meter::default();
    let engine = engine(place, meter.clone())?;
    let begin = Instant::now();
    let loaded = match Loaded::load(&engine, meter, component, &settings) {
        Ok(loaded) => loaded,
        Err(error) => {
            let stop = Stop::Broken(error.to_string());
            let checks = vec![Finding::new(LOADED, Err(stop), begin.elapsed())];
            return Ok(Report::new(None, component.len(), checks, BTreeMap::new()));
        }
    };
    let took = begin.elapsed();
    let driver = loaded.driver().clone();
    let grants = Grants::parse(driver.name(), &given.grants.join("\n"));
    let grants = grants.map_err(|fault| CliError::Refused(fault.message))?;
    let options = parsed(&driver, &asked.given)?;
    let of_driver = |(name, mut secret): (SecretName, Secret)| {
        secret.drivers = vec![driver.name().clone()];
        (name, Arc::new(secret))
    };
    let secrets = secrets.into_iter().map(of_driver).collect();
    let setup = Setup { grants, secrets, given: asked.given, scratch: place.make("scratch")? };
    let mut subject =
        Subject::new(loaded, setup, options).map_err(CliError::io("the kernel's entropy"))?;
    let mut checks = vec![Finding::new(LOADED, Ok(size(component.len() as u64)), took)];
    checks.extend(conformance::run(&mut subject));
    let told = subject.told().iter().map(|(verb, told)| ((*verb).to_owned(), told.clone()));
    Ok(Report::new(Some(&driver), component.len(), checks, told.collect()))
}

impl Report {
    fn new(
        driver: Option<&Driver>,
        size: usize,
        checks: Vec<Finding>,
        calls: BTreeMap<String, Told>,
    ) -> Self {
        let mut report = Self {
            driver: driver.map(|driver| driver.name().to_string()),
            version: driver.map(|driver| driver.description().version.clone()),
            digest: driver.map(|driver| driver.digest().to_owned()),
            size,
            passed: true,
            checks,
            calls,
        };
        report.judge();
        report
    }

    fn judge(&mut self) {
        self.passed = self.checks.iter().all(|found| found.result != Verdict::Fail);
    }
}

fn engine(place: &Place, meter: Meter) -> Result<Engine, CliError> {
    let (cache, compiler) = (place.make("cache")?, sandbox::compiler());
    let options = EngineOptions { cache, compiler, calls_max: CALLS_MAX };
    Engine::metered(options, meter).map_err(|error| CliError::Refused(error.to_string()))
}

/// What the driver would be given of it. All that is missing is said at once.
fn parsed(
    driver: &Driver,
    given: &BTreeMap<String, String>,
) -> Result<wasmvol_driver::types::Options, CliError> {
    let lacks = |spec: &&OptionSpec| spec.required && !given.contains_key(&spec.key);
    let missing: Vec<_> = driver.description().options.iter().filter(lacks).collect();
    if !missing.is_empty() {
        let each = |spec: &&OptionSpec| format!("`-o {}=…` ({})", spec.key, spec.help);
        let all: Vec<_> = missing.iter().map(each).collect();
        let why = format!("volumes of `{}` need options: give {}", driver.name(), all.join(", "));
        return Err(CliError::Refused(why));
    }
    // A default that is wrong is a finding: a volume can be made without it.
    let mut description = driver.description().clone();
    for spec in &mut description.options {
        let is_right =
            |text: &String| options::value(driver.name(), &OptionSpec::clone(spec), text).is_ok();
        spec.default = spec.default.clone().filter(is_right);
    }
    let parsed = options::parse(driver.name(), &description, given);
    parsed.map_err(|error| CliError::Refused(error.to_string()))
}

fn print(report: &Report, output: &Output) -> Result<(), CliError> {
    let row = |found: &Finding| {
        let result = match found.result {
            Verdict::Ok => "ok",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skipped",
        };
        [found.check.clone(), result.to_owned(), took(found.time), found.detail.clone()]
    };
    let told = |(verb, told): (&String, &Told)| {
        [
            verb.clone(),
            told.calls.to_string(),
            took(told.slowest),
            size(told.memory as u64),
            size(told.answer as u64),
        ]
    };
    Ok(output.own(report, |report| {
        let rows: Vec<_> = report.checks.iter().map(row).collect();
        output.table(["CHECK", "RESULT", "TIME", "DETAIL"], &rows, "nothing was checked");
        let rows: Vec<_> = report.calls.iter().map(told).collect();
        if !rows.is_empty() {
            output.line("");
            output.table(["VERB", "CALLS", "SLOWEST", "MEMORY", "ANSWER"], &rows, "");
        }
    })?)
}

fn took(time: Duration) -> String {
    match time.as_micros() {
        micros @ ..1000 => format!("{micros} us"),
        micros @ ..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        micros @ ..10_000_000 => format!("{} ms", micros / 1000),
        micros => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_one_unit() {
        let cases = [(999, "999 us"), (1234, "1.2 ms"), (42_000, "42 ms"), (31_400_000, "31 s")];
        for (micros, text) in cases {
            assert_eq!(took(Duration::from_micros(micros)), text);
        }
    }
}
