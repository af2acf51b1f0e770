//! `wasmvol status`: the daemon at a glance, and what holds what.

use std::process::ExitCode;

use serde_json::Value;

use super::CliError;
use super::output::Output;
use super::volume::text;
use crate::admin::client::Client;
use crate::admin::types::{Status, Volume};

pub(super) fn run(client: &Client, output: &Output) -> Result<ExitCode, CliError> {
    output.answer(&client.get("/status")?, |status| show(status, output))?;
    Ok(ExitCode::SUCCESS)
}

fn show(status: Status, output: &Output) {
    let drivers: Vec<_> = status.drivers.iter().map(|(n, v)| format!("{n} {v}")).collect();
    let commits: Vec<_> = status
        .commits
        .iter()
        .map(|(store, c)| format!("{store} {} with {} changes", c.transactions, c.changes))
        .collect();
    let troubles = match status.troubles.len() {
        0 => "none".to_owned(),
        n => format!("{n}: see `wasmvol doctor`"),
    };
    output.fields(&[
        ("daemon", format!("wasmvol {}, process {}", status.version, status.pid)),
        ("plugin", status.places.plugin),
        ("state", status.places.state_dir.display().to_string()),
        ("drivers", drivers.join(", ")),
        ("volumes", format!("{}, {} mounted", status.volumes, status.mounted.len())),
        ("commits", commits.join(", ")),
        ("troubles", troubles),
    ]);
    if !status.mounted.is_empty() {
        output.line("");
        let rows: Vec<_> = status.mounted.iter().flat_map(holders).collect();
        output.table(["MOUNTED", "DRIVER", "HOLDER", "COUNT", "SINCE"], &rows, "");
    }
}

/// A row for each holder; a mount that waits for its last user to go has none.
fn holders(volume: &Volume) -> Vec<[String; 5]> {
    let row = |holder: String, count: String, since: String| {
        [volume.name.clone(), text(volume, "driver"), holder, count, since]
    };
    let rows: Vec<_> = volume
        .status
        .get("holders")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|holder| {
            let field = |key: &str| match holder.get(key) {
                // Mount IDs have 64 digits: as many as Docker shows of one tell them apart.
                Some(Value::String(text)) if key == "id" && text.len() == 64 => {
                    text.chars().take(12).collect()
                }
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            row(field("id"), field("count"), field("since"))
        })
        .collect();
    if rows.is_empty() { vec![row("-".into(), "0".into(), text(volume, "health"))] } else { rows }
}
