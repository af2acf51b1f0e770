//! `wasmvol driver …`: load, list and unload drivers while the daemon runs.
//!
//! Grants are written from here, by root, and never by the daemon: what a driver may ask for is the operator's word alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use wasmvol_driver::{Description, OptionSpec, ValueType};
use wasmvol_plan::DriverName;
use wasmvol_plan::grants::grant_of;
use wasmvol_registry::Reference;

use super::check;
use super::component::{Component, Fetching, PlainHttp, Trust};
use super::grants::GrantsDir;
use super::output::{Output, say};
use super::volume::option;
use super::{CliError, ConfigFile, new, serve, transfer};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Checked, Driver, Load};
use crate::catalog::SignedBy;

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
    /// Show what a driver takes and what it was given; of a file or of what a registry has, what it says of itself
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
        Command::Load { fetching, component, unsigned, name, settings, grant, revoke } => {
            let granted = GrantsDir::of(&fetching.config, client)?;
            let component = Component::open(&component, &fetching, trust(unsigned))?;
            let wanted = Wanted { name, settings: settings.into_iter().collect(), grant, revoke };
            load(component, wanted, &granted, client, output)?;
        }
        Command::Unload { config, name } => unload(&name, &config, client, output)?,
        Command::Check(arguments) => return check::run(&arguments, output),
        Command::Inspect { fetching, driver } => inspect(&driver, &fetching, client, output)?,
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
            driver.description.help.clone(),
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
}

fn load(
    component: Component,
    wanted: Wanted,
    granted: &GrantsDir,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let Component { shown, bytes, pulled } = component;
    let Wanted { name, settings, grant, revoke } = wanted;
    let name = match name {
        Some(name) => name,
        None => DriverName::parse(&described(client, &shown, bytes.clone())?.name)?,
    };
    let before = granted.read(&name)?;
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
            if changes {
                granted.put_back(&name, before.as_deref())?;
            }
            return Err(CliError::about(shown)(e));
        }
    };
    let driver: Driver = parse(&answer)?;
    let text = granted.read(&name)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let has: Vec<_> = text.lines().map(grant_of).filter(|grant| !grant.is_empty()).collect();
    // Grants belong to a name, and this may be another's component.
    if !changes && !has.is_empty() {
        say(&format!(
            "wasmvol: `{name}` keeps what it was granted: `{}`; `--revoke` takes one away, `driver unload` all",
            has.join("`, `")
        ));
    }
    let needs = driver.description.grants.iter().map(String::as_str);
    let lacks: Vec<_> = needs.filter(|need| !has.iter().any(|has| meets(has, need))).collect();
    if !lacks.is_empty() {
        let lacks = lacks.join("`, `--grant ");
        say(&format!("wasmvol: it may ask for what it was not granted: `--grant {lacks}`"));
    }
    let line = |driver: Driver| output.line(&format!("{} {}", driver.name, driver.version));
    Ok(output.answer(&answer, line)?)
}

/// Whether a grant is one that a driver says it asks for: capitals at the end of that stand for what the operator writes there.
fn meets(granted: &str, asked: &str) -> bool {
    let fixed = asked.trim_end_matches(|c: char| c.is_ascii_uppercase());
    if fixed.len() == asked.len() { granted == asked } else { granted.starts_with(fixed) }
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

/// What the daemon says of a component names no file: it was given bytes.
fn described(client: &Client, shown: &str, component: Vec<u8>) -> Result<Description, CliError> {
    let answer = client.post("/components", component).map_err(CliError::about(shown))?;
    Ok(parse::<Checked>(&answer)?.description)
}

fn inspect(
    driver: &Path,
    fetching: &Fetching,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let shown = driver.display().to_string();
    if shown.contains(['/', '.']) {
        let Component { shown, bytes, pulled } =
            Component::open(driver, fetching, Trust::ToBeSeen)?;
        let answer = client.post("/components", bytes).map_err(CliError::about(shown))?;
        return Ok(output.answer(&answer, |component: Checked| {
            let of_registry = pulled
                .map(|pulled| [("pulled from", pulled.pinned), ("signature", pulled.signature)]);
            describe(&component.description, of_registry.as_slice().as_flattened(), output);
        })?);
    }
    let answer = client.get(&format!("/drivers/{}", DriverName::parse(&shown)?))?;
    Ok(output.answer(&answer, |driver: Driver| {
        let settings: Vec<_> = driver.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let loaded = [
            ("loaded as", driver.name.to_string()),
            ("digest", driver.digest),
            ("settings", listed(&settings)),
            ("volumes", driver.volumes.to_string()),
        ];
        let origin = driver.origin.map(|origin| {
            let key = |by: SignedBy| format!("{} ({})", by.key, by.fingerprint);
            [
                ("pulled from", origin.reference),
                ("manifest", origin.digest),
                ("signed by", origin.signed_by.map_or_else(|| "nobody known".to_owned(), key)),
            ]
        });
        describe(
            &driver.description,
            &[&loaded, origin.as_slice().as_flattened()].concat(),
            output,
        );
    })?)
}

/// Prints what a component says of itself, and what is known of it since it was loaded.
fn describe(description: &Description, loaded: &[(&str, String)], output: &Output) {
    let own = [
        ("name", description.name.clone()),
        ("version", description.version.clone()),
        ("what it is", description.help.clone()),
        ("grants needed", listed(&description.grants)),
    ];
    output.fields(&[&own, loaded].concat());
    output.line("");
    let rows: Vec<_> = description.options.iter().map(option_row).collect();
    output.table(["OPTION", "TYPE", "DEFAULT", "WHAT IT DOES"], &rows, "it takes no options");
}

/// A list in a line; `none` where nothing is in it.
fn listed(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn option_row(option: &OptionSpec) -> [String; 4] {
    let kind = match option.value_type {
        ValueType::Text => "text",
        ValueType::Size => "size",
        ValueType::Number => "number",
        ValueType::Boolean => "boolean",
        ValueType::Duration => "duration",
        ValueType::Secret => "secret",
    };
    let default = match (&option.default, option.required) {
        (Some(default), _) => default.clone(),
        (None, true) => "(required)".to_owned(),
        (None, false) => "-".to_owned(),
    };
    [option.key.clone(), kind.to_owned(), default, option.help.clone()]
}
