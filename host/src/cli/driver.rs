//! `wasmvol driver …`: load, list, replace and unload drivers while the daemon runs, and let them ask for things.
//!
//! Grants are written from here, by root, and never by the daemon: what a driver may ask for is the operator's word alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, stderr, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use wasmvol_driver::Description;
use wasmvol_plan::DriverName;
use wasmvol_registry::Reference;

use super::check;
use super::component::{Component, Fetching, PlainHttp, Trust, announce};
use super::grants::GrantsDir;
use super::output::{Output, ask, say};
use super::{CliError, ConfigFile, inspect, new, serve, transfer};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Changed, Checked, Driver, Load, NotLoaded};
use crate::asked;
use crate::volumes::swap::some_of;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List loaded drivers
    Ls,
    /// Load a driver, or replace the one of that name; volumes in use stay as they are
    Load {
        #[command(flatten)]
        fetching: Fetching,
        /// The component: a file, or a registry's HOST/NAME:TAG or HOST/NAME@sha256:…
        #[arg(value_name = "FILE|REF")]
        component: PathBuf,
        /// Load it although it is not signed, where signatures are required
        #[arg(long)]
        unsigned: bool,
        /// Load it under this name [default: what it calls itself]
        #[arg(long, value_parser = name)]
        name: Option<DriverName>,
        /// A setting of the driver's, beside those that it has; may be repeated
        #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<(String, String)>,
        /// A setting that it has, and shall have no more; may be repeated
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Something more that the driver may ask for; may be repeated
        #[arg(long, value_name = "GRANT")]
        grant: Vec<String>,
        /// Something that it says it needs, and shall do without; may be repeated
        #[arg(long, value_name = "GRANT")]
        without: Vec<String>,
    },
    /// Change settings of a loaded driver; volumes in use stay as they are
    Set {
        #[arg(value_parser = name)]
        name: DriverName,
        /// Settings, beside those that it has
        #[arg(value_name = "KEY=VALUE", value_parser = setting, required_unless_present = "unset")]
        settings: Vec<(String, String)>,
        /// A setting that it has, and shall have no more; may be repeated
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Bring back the component that the last other one replaced, with its settings and what it knew of each volume
    Rollback {
        #[arg(value_parser = name)]
        name: DriverName,
    },
    /// Let a driver ask for something more
    Grant {
        #[command(flatten)]
        config: ConfigFile,
        #[arg(value_parser = name)]
        name: DriverName,
        /// As in `share=nfs4:10.0.0.0/8`
        #[arg(required = true)]
        grants: Vec<String>,
    },
    /// Let a driver not ask any more for something that it was granted
    Revoke {
        #[command(flatten)]
        config: ConfigFile,
        #[arg(value_parser = name)]
        name: DriverName,
        /// As it was granted
        #[arg(required = true)]
        grants: Vec<String>,
    },
    /// Unload a driver that has no volumes
    Unload {
        #[command(flatten)]
        config: ConfigFile,
        #[arg(value_parser = name)]
        name: DriverName,
    },
    /// Put a component through what a host may ask of it, without a daemon: exit status 1 if it breaks the contract
    Check(check::Arguments),
    /// Show what a driver is, what it takes and what it was given; of a file or of what a registry has, what it would be
    Inspect {
        #[command(flatten)]
        fetching: Fetching,
        /// A loaded driver's name, or a component
        #[arg(value_name = "NAME|FILE|REF")]
        driver: PathBuf,
    },
    /// Download a component from a registry, verify it, and write it to a file
    Pull {
        #[command(flatten)]
        fetching: Fetching,
        /// HOST/NAME:TAG or HOST/NAME@sha256:…
        #[arg(value_name = "REF")]
        reference: Reference,
        /// Where to [default: NAME.wasm]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Pull it although it is not signed, where signatures are required
        #[arg(long)]
        unsigned: bool,
    },
    /// Upload a component to a registry
    Push {
        #[command(flatten)]
        plain_http: PlainHttp,
        /// The component
        file: PathBuf,
        /// HOST/NAME:TAG
        #[arg(value_name = "REF")]
        reference: Reference,
        /// Sign it with the private key in this file, as cosign would
        #[arg(long, value_name = "KEYFILE")]
        sign: Option<PathBuf>,
    },
    /// Write the project of a driver that builds, tests and checks as it stands
    New(new::Arguments),
}

pub(super) fn name(text: &str) -> Result<DriverName, wasmvol_plan::NameError> {
    DriverName::parse(text)
}

/// One that is there, and what it is: a setting is no flag.
fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it has the form KEY=VALUE".to_owned()),
    }
}

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Ls => list(client, output)?,
        Command::Load { fetching, component, unsigned, name, settings, unset, grant, without } => {
            let granted = GrantsDir::of(&fetching.config, client)?;
            let component = Component::open(&component, &fetching, trust(unsigned))?;
            let changed = Changed { settings: settings.into_iter().collect(), unset };
            let wanted = Wanted { name, changed, grant, without };
            load(component, wanted, &granted, client, output)?;
        }
        Command::Set { name, settings, unset } => {
            let changed = Changed { settings: settings.into_iter().collect(), unset };
            set(&name, &changed, client, output)?;
        }
        Command::Rollback { name } => rollback(&name, client, output)?,
        Command::Grant { config, name, grants } => {
            regrant(&name, &grants, &[], &config, client, output)?;
        }
        Command::Revoke { config, name, grants } => {
            regrant(&name, &[], &grants, &config, client, output)?;
        }
        Command::Unload { config, name } => unload(&name, &config, client, output)?,
        Command::Check(arguments) => return check::run(&arguments, output),
        Command::Inspect { fetching, driver } => inspect::run(&driver, &fetching, client, output)?,
        Command::Pull { fetching, reference, output: file, unsigned } => {
            let component = Component::pull(&reference, &fetching, trust(unsigned))?;
            let file = file.unwrap_or_else(|| format!("{}.wasm", reference.name()).into());
            transfer::pulled(component, &file, output)?;
        }
        Command::Push { plain_http, file, reference, sign } => {
            transfer::push(&file, &reference, &plain_http, sign.as_deref(), output)?;
        }
        Command::New(arguments) => new::run(&arguments, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, output: &Output) -> Result<(), CliError> {
    let row = |driver: &Driver| {
        let from = if driver.first_party { "wasmvol" } else { "operator" };
        [
            driver.name.to_string(),
            driver.version.clone(),
            from.to_owned(),
            driver.volumes.to_string(),
            what_it_is(driver),
        ]
    };
    Ok(output.answer(&client.get("/drivers")?, |drivers: Vec<Driver>| {
        let rows: Vec<_> = drivers.iter().map(row).collect();
        let heads = ["NAME", "VERSION", "FROM", "VOLUMES", "WHAT IT IS"];
        output.table(heads, &rows, "no drivers: load one with `wasmvol driver load FILE`");
    })?)
}

fn what_it_is(driver: &Driver) -> String {
    let help = |component: &Checked| component.description.help.clone();
    let failed = |NotLoaded { why, .. }: &NotLoaded| format!("not loaded: {why}");
    let failed = || driver.failed.as_ref().map(failed).unwrap_or_default();
    driver.component.as_ref().map_or_else(failed, help)
}

fn trust(unsigned: bool) -> Trust {
    if unsigned { Trust::Unsigned } else { Trust::Configured }
}

/// How a component shall be loaded.
struct Wanted {
    name: Option<DriverName>,
    changed: Changed,
    grant: Vec<String>,
    without: Vec<String>,
}

fn load(
    component: Component,
    wanted: Wanted,
    granted: &GrantsDir,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    announce(&component.bytes, output);
    let Component { shown, bytes, pulled } = component;
    // What the daemon says of a component names no file: it was given bytes.
    let said = client.post("/components", bytes.clone()).map_err(CliError::about(&shown))?;
    let Checked { description, digest, .. } = parse(&said)?;
    let Wanted { name, changed, mut grant, without } = wanted;
    let name = match name {
        Some(name) => name,
        None => DriverName::parse(&description.name)?,
    };
    let before = granted.read(&name)?;
    let had = asked::lines(&String::from_utf8_lossy(before.as_deref().unwrap_or_default()));
    let drivers: Vec<Driver> = parse(&client.get("/drivers")?)?;
    let replaced = drivers.into_iter().find(|driver| driver.name == name);
    let is_there =
        |driver: &Driver| driver.component.as_ref().is_some_and(|is| is.digest == digest);
    let replaced_at = replaced.as_ref().filter(|driver| is_there(driver)).map(|it| it.loaded_at);
    if !is_shipped(&name, &bytes) {
        let has: Vec<_> = had.iter().chain(&grant).chain(&without).cloned().collect();
        let missing = asked::missing(&description.grants, &has);
        // What could not be loaded at a start was decided on when it could.
        let failed = replaced.as_ref().and_then(|driver| driver.failed.as_ref());
        if failed.is_none_or(|failed| failed.digest != digest) {
            grant.extend(given(&name, &description, missing, replaced)?);
        }
    }
    refuse_open(&grant, &description.grants)?;
    let before = before.as_deref();
    let change = || {
        let text = granted.changed(&name, before, &grant, &[])?;
        granted.write(&name, before, &text)?;
        Ok::<_, CliError>(text)
    };
    let written = (!grant.is_empty()).then(change).transpose()?;
    if let Some(pulled) = &pulled {
        output.note(&format!("wasmvol: {shown} is `{}`, {}", pulled.pinned, pulled.signature));
    }
    let origin = pulled.map(|pulled| pulled.origin);
    let given: BTreeSet<_> = changed.settings.keys().cloned().collect();
    let load = Load { name: Some(name.clone()), changed, origin };
    let mut body = serde_json::to_vec(&load).map_err(ClientError::Answer)?;
    body.push(b'\n');
    body.extend(bytes);
    let answer = match client.post("/drivers", body) {
        Ok(answer) => answer,
        Err(e) => {
            if let Some(written) = written
                && !is_loaded_though(&e, &name, &digest, replaced_at, client)
            {
                granted.put_back(&name, before, &written)?;
            }
            return Err(CliError::about(shown)(e));
        }
    };
    let driver: Driver = parse(&answer)?;
    // Grants belong to a name, and this may be another's component.
    if grant.is_empty() && !had.is_empty() {
        say(&format!(
            "wasmvol: `{name}` keeps what it was granted: `{}`; `driver revoke` takes one away, `driver unload` all",
            had.join("`, `")
        ));
    }
    tell_kept(&driver, &given, &without);
    Ok(output.answer(&answer, |driver| loaded(&driver, output))?)
}

/// Says which settings stayed beside those that were given, and what it lacks beside what it was to go without.
fn tell_kept(driver: &Driver, given: &BTreeSet<String>, without: &[String]) {
    let name = &driver.name;
    let is_given =
        |setting: &String| setting.split_once('=').is_some_and(|(key, _)| given.contains(key));
    let kept: Vec<_> = settings(driver).into_iter().filter(|kept| !is_given(kept)).collect();
    if !kept.is_empty() {
        say(&format!(
            "wasmvol: `{name}` keeps its settings: `{}`; `driver set {name} --unset KEY` takes one away",
            kept.join("`, `")
        ));
    }
    let lacks = driver.missing.iter().filter(|missing| !without.contains(missing));
    let lacks: Vec<_> = lacks.map(|lack| asked::word(lack)).collect();
    if !lacks.is_empty() {
        say(&format!(
            "wasmvol: it may ask for what it was not granted: `wasmvol driver grant {name} {}`",
            lacks.join(" ")
        ));
    }
}

fn set(
    name: &DriverName,
    changed: &Changed,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let body = serde_json::to_vec(changed).map_err(ClientError::Answer)?;
    let answer = client.post(&format!("/drivers/{name}/settings"), body)?;
    Ok(output.answer(&answer, |driver: Driver| {
        settings(&driver).iter().for_each(|setting| output.line(setting));
        if driver.settings.is_empty() {
            output.note(&format!("wasmvol: `{name}` has no settings any more"));
        }
    })?)
}

fn rollback(name: &DriverName, client: &Client, output: &Output) -> Result<(), CliError> {
    let before: Driver = parse(&client.get(&format!("/drivers/{name}"))?)?;
    let answer = client.post(&format!("/drivers/{name}/rollback"), "")?;
    let driver: Driver = parse(&answer)?;
    if driver.settings != before.settings {
        let settings = settings(&driver);
        let has = match settings.as_slice() {
            [] => "none".to_owned(),
            some => format!("`{}`", some.join("`, `")),
        };
        output.note(&format!("wasmvol: `{name}` has its settings of then again: {has}"));
    }
    Ok(output.answer(&answer, |driver| loaded(&driver, output))?)
}

/// As they are written.
pub(super) fn settings(driver: &Driver) -> Vec<String> {
    driver.settings.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn loaded(driver: &Driver, output: &Output) {
    for (key, volumes) in &driver.ignored {
        let (name, version) = (&driver.name, &driver.version);
        let volumes = some_of(volumes);
        say(&format!(
            "wasmvol: {name} {version} does not know `{key}`, and ignores it in {volumes}"
        ));
    }
    output.line(&format!("{} {}", driver.name, driver.version));
}

/// What of the missing grants the operator gives, who is asked where somebody can answer. A version that wants no more than the one that
/// is loaded has been decided on before.
fn given(
    name: &DriverName,
    description: &Description,
    mut missing: Vec<String>,
    replaced: Option<Driver>,
) -> Result<Vec<String>, CliError> {
    let before = replaced.and_then(|driver| driver.component).map(|before| before.description);
    let before = before.filter(|before| before.name == description.name);
    if let Some(before) = &before {
        missing.retain(|missing| !before.grants.contains(missing));
    }
    let shown = missing.iter().map(|missing| format!("`{missing}`")).collect::<Vec<_>>().join(", ");
    let is_open = missing.iter().any(|missing| asked::is_open(missing));
    let asks = stdin().is_terminal() && stderr().is_terminal();
    match &before {
        _ if missing.is_empty() => return Ok(missing),
        None if asks && !is_open && agrees(&format!("grant {shown} to `{name}`?"))? => {
            return Ok(missing);
        }
        _ => {}
    }
    let wants = match before {
        Some(before) => format!("needs more than {}, which stays loaded", before.version),
        None => "needs what it was not granted".to_owned(),
    };
    let fill = if is_open { "; capitals stand for what you fill in" } else { "" };
    Err(CliError::Refused(format!(
        "`{name}` {} {wants}: {shown}: `{}`{fill}; `--without` instead of `--grant` where it shall do without",
        description.version,
        typed(&missing)
    )))
}

/// Refuses what a driver asks for as it stands, where its operator has something to fill in.
fn refuse_open(grant: &[String], asked: &[String]) -> Result<(), CliError> {
    match grant.iter().find(|grant| asked::is_open(grant) && asked.contains(grant)) {
        None => Ok(()),
        Some(open) => Err(CliError::Refused(format!(
            "`{open}` is not granted as it stands: fill in what is written in capitals"
        ))),
    }
}

/// Asks a person at a terminal; what is not a yes is a no.
fn agrees(question: &str) -> Result<bool, CliError> {
    let answer = ask(&format!("wasmvol: {question} [y/N] ")).map_err(CliError::io("the answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The command as it was typed, with these grants.
fn typed(grants: &[String]) -> String {
    let words = std::env::args_os().map(|word| asked::word(&word.to_string_lossy()));
    let grants = grants.iter().flat_map(|grant| ["--grant".to_owned(), asked::word(grant)]);
    words.chain(grants).collect::<Vec<_>>().join(" ")
}

/// Changes what a driver that is loaded may ask for. A volume that could be mounted before, and could not be any more, refuses it.
fn regrant(
    name: &DriverName,
    grant: &[String],
    revoke: &[String],
    config: &ConfigFile,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let granted = GrantsDir::of(config, client)?;
    let driver: Driver = parse(&client.get(&format!("/drivers/{name}"))?)?;
    refuse_open(grant, &driver.component.map(|is| is.description.grants).unwrap_or_default())?;
    let before = granted.read(name)?;
    let written = granted.changed(name, before.as_deref(), grant, revoke)?;
    // Before it is written: what is refused has then never been so.
    client.post(&format!("/drivers/{name}/grants/check"), written.clone())?;
    granted.write(name, before.as_deref(), &written)?;
    match client.post(&format!("/drivers/{name}/grants"), "") {
        Ok(answer) => Ok(output.answer(&answer, |driver: Driver| {
            driver.granted.iter().for_each(|granted| output.line(granted));
            if driver.granted.is_empty() {
                output.note(&format!("wasmvol: nothing is granted to `{name}` any more"));
            }
        })?),
        Err(e) => {
            granted.put_back(name, before.as_deref(), &written)?;
            Err(e.into())
        }
    }
}

/// Its grants go with it: the next component of that name is another, and starts with none. Those of one that has gone before, when they
/// could not be taken away or the daemon was killed, go as well.
fn unload(
    name: &DriverName,
    config: &ConfigFile,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let granted = GrantsDir::of(config, client)?;
    if let Err(error) = client.delete(&format!("/drivers/{name}")) {
        let drivers: Vec<Driver> = parse(&client.get("/drivers")?)?;
        if drivers.iter().any(|driver| driver.name == *name) {
            return Err(error.into());
        }
        // A daemon that was killed may have done all of it.
        if !has_lost_the_answer(&error) {
            if granted.read(name)?.is_some() {
                granted.remove(name)?;
                say(&format!("wasmvol: what `{name}` was granted is taken away"));
            }
            return Err(error.into());
        }
    }
    granted.remove(name)?;
    if let Some(component) = shipped(name) {
        say(&format!(
            "wasmvol: it came with wasmvol, and stays unloaded until `wasmvol driver load {}`",
            component.display()
        ));
    }
    Ok(output.own(&BTreeMap::from([("unloaded", name)]), |_| output.line(name.as_str()))?)
}

/// The component of that name that came with this program.
fn shipped(name: &DriverName) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let component = serve::first_party(program.parent()?)?.join(format!("{name}.wasm"));
    component.is_file().then_some(component)
}

/// Whether a component is the one of that name that came with this program: that one is loaded at each start without a grant.
fn is_shipped(name: &DriverName, component: &[u8]) -> bool {
    shipped(name).and_then(|file| std::fs::read(file).ok()).is_some_and(|bytes| bytes == component)
}

/// Whether a component was loaded although no answer has come: a daemon that was killed may have done all of it. It is up again in a moment.
/// `replaced_at` is when the same one was loaded before.
fn is_loaded_though(
    error: &ClientError,
    name: &DriverName,
    digest: &str,
    replaced_at: Option<u64>,
    client: &Client,
) -> bool {
    let answer = has_lost_the_answer(error).then(|| client.get(&format!("/drivers/{name}")));
    let driver = answer.and_then(|answer| parse::<Driver>(&answer.ok()?).ok());
    driver.is_some_and(|driver| {
        let is_it = driver.component.is_some_and(|component| component.digest == digest);
        is_it && Some(driver.loaded_at) != replaced_at
    })
}

/// Whether the daemon may have done what it was asked to.
fn has_lost_the_answer(error: &ClientError) -> bool {
    matches!(error, ClientError::Broken(_) | ClientError::TimedOut)
}
