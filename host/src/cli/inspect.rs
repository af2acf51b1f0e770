//! `wasmvol driver inspect`: what a component is before anybody trusts it, or what became of it since it was loaded.
//!
//! A file, or what a registry has, is looked into here, without a daemon; of what is loaded the daemon tells.

use std::path::Path;

use serde::Serialize;
use wasmvol_driver::{Abilities, OptionSpec, ValueType};
use wasmvol_plan::DriverName;

use super::component::{Component, Fetching, Trust, announce};
use super::driver::settings;
use super::output::{Output, size};
use super::{CliError, sandbox};
use crate::admin::client::Client;
use crate::admin::types::{Checked, Driver, NotLoaded, Previous};
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
        announce(&bytes, output);
        let component = sandbox::describe(&shown, &bytes)?;
        let (pulled_from, signature) = pulled.map(|it| (it.pinned, it.signature)).unzip();
        let inspected = Inspected { component, pulled_from, signature };
        return Ok(output.own(&inspected, |Inspected { component, pulled_from, signature }| {
            let from = pulled_from.iter().map(|from| ("pulled from", from.clone()));
            let signature = signature.as_deref().unwrap_or("a file has none");
            let signature = [("signature", signature.to_owned())];
            print(component, &from.chain(signature).collect::<Vec<_>>(), output);
        })?);
    }
    let answer = client.get(&format!("/drivers/{}", DriverName::parse(&shown)?))?;
    Ok(output.answer(&answer, |driver: Driver| {
        let own = [
            ("granted", listed(&driver.granted)),
            ("settings", listed(&settings(&driver))),
            ("volumes", driver.volumes.to_string()),
        ];
        let from = ("from", if driver.first_party { "wasmvol" } else { "operator" }.to_owned());
        let previous = |Previous { version, digest, .. }| format!("{version} ({digest})");
        let previous = driver.previous.map_or_else(|| "nothing".to_owned(), previous);
        let origin = driver.origin.map(|origin| {
            let key = |by: SignedBy| format!("{} ({})", by.key, by.fingerprint);
            [
                ("pulled from", origin.reference),
                ("manifest", origin.digest),
                (
                    "signed by",
                    origin.signed_by.map_or_else(|| "nobody: not verified".to_owned(), key),
                ),
            ]
        });
        let origin = [("rollback to", previous)].into_iter().chain(origin.into_iter().flatten());
        let own = own.into_iter().chain(origin);
        if let Some(component) = driver.component {
            let loaded = [
                ("loaded as", driver.name.to_string()),
                from,
                ("grants missing", listed(&driver.missing)),
            ];
            print(&component, &loaded.into_iter().chain(own).collect::<Vec<_>>(), output);
        } else if let Some(NotLoaded { why, digest }) = driver.failed {
            let failed = [
                ("was loaded as", driver.name.to_string()),
                ("version", driver.version),
                ("is not loaded", why),
                ("digest", digest),
                from,
            ];
            output.fields(&failed.into_iter().chain(own).collect::<Vec<_>>());
        }
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
        ("abilities", listed(&named(*abilities))),
        ("grants needed", listed(&description.grants)),
        ("size", size(u64::try_from(*bytes).unwrap_or(u64::MAX))),
        ("digest", digest.clone()),
    ];
    // A long line.
    let imports = [("imports", listed(imports))];
    output.fields(&[&own, loaded, &imports].concat());
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
