//! `wasmvol driver …`: load, list, replace and unload drivers while the daemon runs, and let them ask for things.
//!
//! Grants are written from here, by root, and never by the daemon: what a driver may ask for is the operator's word alone.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use wasmvol_driver::Description;
use wasmvol_plan::DriverName;
use wasmvol_registry::Reference;

use super::check;
use super::component::{Component, Fetching, PlainHttp, Trust};
use super::grants::GrantsDir;
use super::output::{Output, ask, say};
use super::volume::option;
use super::{CliError, ConfigFile, inspect, new, serve, transfer};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Checked, Driver, Load};
use crate::asked;

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
        /// A setting of the driver's; may be repeated
        #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = option)]
        settings: Vec<(String, String)>,
        /// Something more that the driver may ask for; may be repeated
        #[arg(long, value_name = "GRANT")]
        grant: Vec<String>,
        /// Something that it was granted, and may not ask for any more; may be repeated
        #[arg(long, value_name = "GRANT")]
        revoke: Vec<String>,
        /// Something that it says it needs, and shall do without; may be repeated
        #[arg(long, value_name = "GRANT")]
        without: Vec<String>,
    },
    /// Bring back what the last load of a driver replaced, with its settings and what it knew of each volume
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

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Ls => list(client, output)?,
        Command::Load { fetching, component, unsigned, name, settings, grant, revoke, without } => {
            let granted = GrantsDir::of(&fetching.config, client)?;
            let component = Component::open(&component, &fetching, trust(unsigned))?;
            let settings = settings.into_iter().collect();
            let wanted = Wanted { name, settings, grant, revoke, without };
            load(component, wanted, &granted, client, output)?;
        }
        Command::Rollback { name } => {
            let answer = client.post(&format!("/drivers/{name}/rollback"), "")?;
            output.answer(&answer, |driver| loaded(&driver, output))?;
        }
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
            driver.component.description.help.clone(),
        ]
    };
    Ok(output.answer(&client.get("/drivers")?, |drivers: Vec<Driver>| {
        let rows: Vec<_> = drivers.iter().map(row).collect();
        let heads = ["NAME", "VERSION", "FROM", "VOLUMES", "WHAT IT IS"];
        output.table(heads, &rows, "no drivers: load one with `wasmvol driver load FILE`");
    })?)
}

fn trust(unsigned: bool) -> Trust {
    if unsigned { Trust::Unsigned } else { Trust::Configured }
}

/// How a component shall be loaded.
struct Wanted {
    name: Option<DriverName>,
    settings: BTreeMap<String, String>,
    grant: Vec<String>,
    revoke: Vec<String>,
    without: Vec<String>,
}

fn load(
    component: Component,
    wanted: Wanted,
    granted: &GrantsDir,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let Component { shown, bytes, pulled } = component;
    // What the daemon says of a component names no file: it was given bytes.
    let said = client.post("/components", bytes.clone()).map_err(CliError::about(&shown))?;
    let Checked { description, digest, .. } = parse(&said)?;
    let Wanted { name, settings, mut grant, revoke, without } = wanted;
    let name = match name {
        Some(name) => name,
        None => DriverName::parse(&description.name)?,
    };
    let before = granted.read(&name)?;
    let had = asked::lines(&String::from_utf8_lossy(before.as_deref().unwrap_or_default()));
    if !is_shipped(&name, &bytes) {
        let mut has: Vec<_> = had.iter().filter(|had| !revoke.contains(had)).cloned().collect();
        has.extend(grant.iter().chain(&without).cloned());
        let missing = asked::missing(&description.grants, &has);
        grant.extend(given(&name, &description, missing, client)?);
    }
    let changes = !grant.is_empty() || !revoke.is_empty();
    if changes {
        granted.change(&name, before.as_deref(), &grant, &revoke)?;
    }
    if let Some(pulled) = &pulled {
        output.note(&format!("wasmvol: {shown} is `{}`, {}", pulled.pinned, pulled.signature));
    }
    let origin = pulled.map(|pulled| pulled.origin);
    let load = Load { name: Some(name.clone()), settings, origin };
    let mut body = serde_json::to_vec(&load).map_err(ClientError::Answer)?;
    body.push(b'\n');
    body.extend(bytes);
    let answer = match client.post("/drivers", body) {
        Ok(answer) => answer,
        Err(e) => {
            if changes && !is_loaded_though(&e, &name, &digest, client) {
                granted.put_back(&name, before.as_deref())?;
            }
            return Err(CliError::about(shown)(e));
        }
    };
    let driver: Driver = parse(&answer)?;
    // Grants belong to a name, and this may be another's component.
    if !changes && !had.is_empty() {
        say(&format!(
            "wasmvol: `{name}` keeps what it was granted: `{}`; `driver revoke` takes one away, `driver unload` all",
            had.join("`, `")
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
    Ok(output.answer(&answer, |driver| loaded(&driver, output))?)
}

fn loaded(driver: &Driver, output: &Output) {
    output.line(&format!("{} {}", driver.name, driver.version));
}

/// What of the missing grants the operator gives, who is asked where somebody can answer. A version that wants no more than the one that
/// is loaded has been decided on before.
fn given(
    name: &DriverName,
    description: &Description,
    mut missing: Vec<String>,
    client: &Client,
) -> Result<Vec<String>, CliError> {
    let drivers: Vec<Driver> = parse(&client.get("/drivers")?)?;
    let is_before = |driver: &Driver| {
        driver.name == *name && driver.component.description.name == description.name
    };
    let before = drivers.into_iter().find(is_before);
    if let Some(before) = &before {
        missing.retain(|missing| !before.component.description.grants.contains(missing));
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
        Some(before) => format!("wants more than version {} did, so that stays", before.version),
        None => "needs what it was not granted".to_owned(),
    };
    let fill = if is_open { "; capitals stand for what you fill in" } else { "" };
    Err(CliError::Refused(format!(
        "`{name}` {}, {wants}: {shown}: `{}`{fill}; `--without` instead of `--grant` where it shall do without",
        description.version,
        typed(&missing)
    )))
}

/// Asks a person at a terminal; what is not a yes is a no.
fn agrees(question: &str) -> Result<bool, CliError> {
    let answer = ask(&format!("wasmvol: {question} [y/N] ")).map_err(CliError::io("the answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The command as it was typed, with these grants.
fn typed(grants: &[String]) -> String {
    let words = std::env::args().map(|word| asked::word(&word));
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
    client.get(&format!("/drivers/{name}"))?;
    let before = granted.read(name)?;
    granted.change(name, before.as_deref(), grant, revoke)?;
    match client.post(&format!("/drivers/{name}/grants"), "") {
        Ok(answer) => Ok(output.answer(&answer, |driver: Driver| {
            driver.granted.iter().for_each(|granted| output.line(granted));
        })?),
        Err(e) => {
            granted.put_back(name, before.as_deref())?;
            Err(e.into())
        }
    }
}

/// Its grants go with it: the next component of that name is another, and starts with none.
fn unload(
    name: &DriverName,
    config: &ConfigFile,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let granted = GrantsDir::of(config, client)?;
    client.delete(&format!("/drivers/{name}"))?;
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

/// Whether a component is loaded although no answer has come: a daemon that was killed may have done all of it. It is up again in a moment.
fn is_loaded_though(error: &ClientError, name: &DriverName, digest: &str, client: &Client) -> bool {
    if !matches!(error, ClientError::Broken(_) | ClientError::TimedOut) {
        return false;
    }
    let answer = client.get(&format!("/drivers/{name}"));
    let driver = answer.and_then(|answer| parse::<Driver>(&answer));
    driver.is_ok_and(|driver| driver.component.digest == digest)
}
