//! `wasmvol driver …`: load, list and unload drivers while the daemon runs.
//!
//! Grants are written here, by root, and never by the daemon: what a driver may ask for is the operator's word alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use wasmvol_driver::{Description, OptionSpec, ValueType};
use wasmvol_plan::{DriverName, Grants};

use super::CliError;
use super::output::{Output, say};
use super::serve;
use super::volume::option;
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Checked, Driver, Load, Status};
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List loaded drivers
    Ls,
    /// Load a driver, or replace the one of that name; volumes in use stay as they are
    Load {
        /// The component
        file: PathBuf,
        /// Load it under this name [default: what it calls itself]
        #[arg(long, value_parser = name)]
        name: Option<DriverName>,
        /// A setting of the driver's; may be repeated
        #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = option)]
        settings: Vec<(String, String)>,
        /// Something the driver may ask for; may be repeated, and replaces what was granted before
        #[arg(long = "grant", value_name = "GRANT")]
        grants: Vec<String>,
    },
    /// Unload a driver that has no volumes
    Unload {
        #[arg(value_parser = name)]
        name: DriverName,
    },
    /// Show what a driver takes and what it was given; of a file, what it says of itself
    Inspect {
        /// A loaded driver's name, or a component's file
        driver: PathBuf,
    },
}

fn name(text: &str) -> Result<DriverName, wasmvol_plan::NameError> {
    DriverName::parse(text)
}

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Ls => list(client, output)?,
        Command::Load { file, name, settings, grants } => {
            load(&file, name, settings.into_iter().collect(), &grants, client, output)?;
        }
        Command::Unload { name } => unload(&name, client, output)?,
        Command::Inspect { driver } => inspect(&driver, client, output)?,
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

fn load(
    file: &Path,
    name: Option<DriverName>,
    settings: BTreeMap<String, String>,
    grants: &[String],
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let component = read(file)?;
    let status: Status = parse(&client.get("/status")?)?;
    let name = match name {
        Some(name) => name,
        None => DriverName::parse(&check(client, file, component.clone())?.name)?,
    };
    let granted = status.places.config_dir.join(config::GRANTS).join(name.as_str());
    let before = if grants.is_empty() { None } else { Some(grant(&granted, grants)?) };
    let load = Load { name: Some(name), settings };
    let mut body = serde_json::to_vec(&load).map_err(ClientError::Answer)?;
    body.push(b'\n');
    body.extend(component);
    let answer = match client.post("/drivers", body) {
        Ok(answer) => answer,
        Err(e) => {
            if let Some(before) = before {
                put_back(&granted, before.as_deref())?;
            }
            return Err(of_file(file)(e));
        }
    };
    let driver: Driver = parse(&answer)?;
    let granted = std::fs::read_to_string(&granted).unwrap_or_default();
    let needs = &driver.description.grants;
    for needed in needs.iter().filter(|n| !granted.lines().any(|line| line.trim() == **n)) {
        say(&format!("wasmvol: it says that it needs `--grant {needed}`"));
    }
    let line = |driver: Driver| output.line(&format!("{} {}", driver.name, driver.version));
    Ok(output.answer(&answer, line)?)
}

/// Its grants go with it: the next component of that name is another, and starts with none.
fn unload(name: &DriverName, client: &Client, output: &Output) -> Result<(), CliError> {
    let status: Status = parse(&client.get("/status")?)?;
    client.delete(&format!("/drivers/{name}"))?;
    let granted = status.places.config_dir.join(config::GRANTS).join(name.as_str());
    match std::fs::remove_file(&granted) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(CliError::Io(format!("`{}` stays", granted.display()), e));
        }
        _ => {}
    }
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

/// Writes a driver's grants, whole or not at all, and returns what was there before.
fn grant(file: &Path, grants: &[String]) -> Result<Option<Vec<u8>>, CliError> {
    let text: String = grants.iter().map(|grant| format!("{grant}\n")).collect();
    Grants::parse(&text).map_err(|fault| CliError::Refused(fault.message))?;
    let before = match std::fs::read(file) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(CliError::Io(file.display().to_string(), e)),
    };
    write(file, text.as_bytes())
        .map_err(CliError::io(format!("grants in `{}`", file.display())))?;
    Ok(before)
}

fn put_back(file: &Path, before: Option<&[u8]>) -> Result<(), CliError> {
    let done = match before {
        Some(bytes) => write(file, bytes),
        None => std::fs::remove_file(file),
    };
    done.map_err(CliError::io(format!("grants in `{}` could not be put back", file.display())))
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    // The name of a driver has no dot, so this one is nobody's grants.
    let draft = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut draft_file =
        options.write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
    // Whatever the caller's umask is: the daemon reads it, too.
    draft_file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    draft_file.write_all(bytes)?;
    draft_file.sync_all()?;
    std::fs::rename(&draft, file)
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(CliError::io(format!("`{}`", file.display())))
}

/// What the daemon says of a component names no file: it was given bytes.
fn of_file(file: &Path) -> impl FnOnce(ClientError) -> CliError {
    CliError::about(format!("`{}`", file.display()))
}

fn check(client: &Client, file: &Path, component: Vec<u8>) -> Result<Description, CliError> {
    let answer = client.post("/components", component).map_err(of_file(file))?;
    Ok(parse::<Checked>(&answer)?.description)
}

fn inspect(driver: &Path, client: &Client, output: &Output) -> Result<(), CliError> {
    let shown = driver.display().to_string();
    if shown.contains(['/', '.']) {
        let answer = client.post("/components", read(driver)?).map_err(of_file(driver))?;
        return Ok(output.answer(&answer, |component: Checked| {
            describe(&component.description, &[], output);
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
        describe(&driver.description, &loaded, output);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_replaced_whole_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grants.d/nfs");
        assert_eq!(grant(&file, &["suid".to_owned()]).unwrap(), None);
        let before = grant(&file, &["dev".to_owned(), "suid".to_owned()]).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "dev\nsuid\n");
        put_back(&file, before.as_deref()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "suid\n");
        put_back(&file, None).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_grant_that_is_none_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grants.d/nfs");
        assert!(grant(&file, &["everything".to_owned()]).is_err());
        assert!(!file.exists());
    }
}
