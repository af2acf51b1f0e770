//! `wasmvol driver inspect`: what a component is before anybody trusts it, or what became of it since it was loaded.
//!
//! A file, or what a registry has, is looked into here, without a daemon; of what is loaded the daemon tells.

use std::path::Path;

use serde::Serialize;
use wasmvol_driver::{Abilities, OptionSpec, ValueType};
use wasmvol_plan::DriverName;

use super::component::{Component, Fetching, Trust};
use super::output::{Output, size};
use super::{CliError, sandbox};
use crate::admin::client::Client;
use crate::admin::types::{Checked, Driver, Previous};
use crate::catalog::SignedBy;

/// What a component would be that is not loaded.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    component: Checked,
    /// Of one that a registry has: the reference by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pulled_from: Option<String>,
    /// Whose signature it has, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

pub(super) fn run(
    driver: &Path,
    fetching: &Fetching,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let shown = driver.display().to_string();
    if shown.contains(['/', '.']) {
        let Component { shown, bytes, pulled } =
            Component::open(driver, fetching, Trust::ToBeSeen)?;
        let component = sandbox::describe(&bytes).map_err(|error| match error {
            CliError::Refused(why) => CliError::Refused(format!("{shown}: {why}")),
            other => other,
        })?;
        let (pulled_from, signature) = pulled.map(|it| (it.pinned, it.signature)).unzip();
        let inspected = Inspected { component, pulled_from, signature };
        return Ok(output.own(&inspected, |Inspected { component, pulled_from, signature }| {
            let of_registry = [("pulled from", pulled_from), ("signature", signature)];
            let known = of_registry.into_iter().filter_map(|(key, v)| Some((key, v.clone()?)));
            print(component, &known.collect::<Vec<_>>(), output);
        })?);
    }
    let answer = client.get(&format!("/drivers/{}", DriverName::parse(&shown)?))?;
    Ok(output.answer(&answer, |driver: Driver| {
        let from = if driver.first_party { "wasmvol" } else { "operator" };
        let settings: Vec<_> = driver.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let previous = |Previous { version, digest, .. }| format!("{version} ({digest})");
        let loaded = [
            ("loaded as", driver.name.to_string()),
            ("from", from.to_owned()),
            ("granted", listed(&driver.granted)),
            ("grants missing", listed(&driver.missing)),
            ("settings", listed(&settings)),
            ("volumes", driver.volumes.to_string()),
            ("rollback to", driver.previous.map_or_else(|| "nothing".to_owned(), previous)),
        ];
        let origin = driver.origin.map(|origin| {
            let key = |by: SignedBy| format!("{} ({})", by.key, by.fingerprint);
            [
                ("pulled from", origin.reference),
                ("manifest", origin.digest),
                ("signed by", origin.signed_by.map_or_else(|| "nobody known".to_owned(), key)),
            ]
        });
        let known = [&loaded, origin.as_slice().as_flattened()].concat();
        print(&driver.component, &known, output);
    })?)
}

/// Prints what a component is, and what is known of it since it was loaded.
fn print(component: &Checked, loaded: &[(&str, String)], output: &Output) {
    let Checked { contract, imports, abilities, size: bytes, digest, description } = component;
    let own = [
        ("name", description.name.clone()),
        ("version", description.version.clone()),
        ("what it is", description.help.clone()),
        ("contract", contract.clone()),
        ("imports", listed(imports)),
        ("abilities", listed(&named(*abilities))),
        ("grants needed", listed(&description.grants)),
        ("size", size(u64::try_from(*bytes).unwrap_or(u64::MAX))),
        ("digest", digest.clone()),
    ];
    output.fields(&[&own, loaded].concat());
    output.line("");
    let rows: Vec<_> = description.options.iter().map(option_row).collect();
    output.table(["OPTION", "TYPE", "DEFAULT", "WHAT IT DOES"], &rows, "it takes no options");
}

/// The abilities that are there, by name.
fn named(abilities: Abilities) -> Vec<String> {
    let Abilities { attachment, resizing, population, health, migration } = abilities;
    let all = [
        ("attachment", attachment),
        ("resizing", resizing),
        ("population", population),
        ("health", health),
        ("migration", migration),
    ];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name.to_owned()).collect()
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
