//! `wasmvol volume …`: the verbs without Docker.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;
use wasmvol_plan::VolumeName;

use super::CliError;
use super::output::{Output, size};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Create, Mounted, Volume};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List volumes
    Ls,
    /// Create a volume
    Create {
        /// Its name
        #[arg(value_parser = name)]
        name: VolumeName,
        /// The driver [default: as configured]
        #[arg(short, long)]
        driver: Option<String>,
        /// An option of the driver's; may be repeated
        #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE", value_parser = option)]
        options: Vec<(String, String)>,
    },
    /// Show all that is known of a volume
    Inspect {
        #[arg(value_parser = name)]
        name: VolumeName,
    },
    /// Remove volumes and their data
    Rm {
        /// Also where the driver fails or is gone: what its backend keeps is yours to clear up
        #[arg(short, long)]
        force: bool,
        #[arg(value_parser = name, required = true)]
        names: Vec<VolumeName>,
    },
    /// Mount a volume and print where; it stays mounted until `unmount`
    Mount {
        #[arg(value_parser = name)]
        name: VolumeName,
    },
    /// Take one `mount` back
    Unmount {
        #[arg(value_parser = name)]
        name: VolumeName,
    },
}

fn name(text: &str) -> Result<VolumeName, wasmvol_plan::NameError> {
    VolumeName::parse(text)
}

/// `KEY=VALUE`, or a key alone, as Docker's `-o`.
pub(super) fn option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("it has the form KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    match command {
        Command::Ls => list(client, output)?,
        Command::Create { name, driver, options } => {
            let mut options: BTreeMap<_, _> = options.into_iter().collect();
            options.extend(driver.map(|driver| ("driver".to_owned(), driver)));
            let create = Create { name: name.to_string(), options };
            let body = serde_json::to_vec(&create).map_err(ClientError::Answer)?;
            let answer = client.post("/volumes", body)?;
            if output.is_json() {
                output.raw(&answer);
            } else {
                output.line(name.as_str());
            }
        }
        Command::Inspect { name } => inspect(&name, client, output)?,
        Command::Rm { force, names } => {
            let how = if force { "/force" } else { "" };
            for name in names {
                client.delete(&format!("/volumes/{name}{how}"))?;
                if !output.is_json() {
                    output.line(name.as_str());
                }
            }
        }
        Command::Mount { name } => {
            let answer = client.post(&format!("/volumes/{name}/mount"), "")?;
            if output.is_json() {
                output.raw(&answer);
            } else {
                output.line(&parse::<Mounted>(&answer)?.mountpoint);
            }
        }
        Command::Unmount { name } => {
            client.post(&format!("/volumes/{name}/unmount"), "")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, output: &Output) -> Result<(), CliError> {
    let answer = client.get("/volumes")?;
    if output.is_json() {
        output.raw(&answer);
        return Ok(());
    }
    let rows: Vec<_> = parse::<Vec<Volume>>(&answer)?.iter().map(row).collect();
    let heads = ["NAME", "DRIVER", "STORAGE", "SIZE", "USED", "HOLDERS", "HEALTH"];
    output.table(heads, &rows, "no volumes: make one with `wasmvol volume create NAME`");
    Ok(())
}

fn row(volume: &Volume) -> [String; 7] {
    let bytes = |key: &str| volume.status.get(key).and_then(Value::as_u64).map_or("-".into(), size);
    let holders = volume.status.get("holders").and_then(Value::as_array).map_or(0, Vec::len);
    [
        volume.name.clone(),
        text(volume, "driver"),
        text(volume, "storage"),
        bytes("size"),
        bytes("used"),
        holders.to_string(),
        text(volume, "health"),
    ]
}

/// A field of the status as text; empty if it is not there.
pub(super) fn text(volume: &Volume, key: &str) -> String {
    volume.status.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn inspect(name: &VolumeName, client: &Client, output: &Output) -> Result<(), CliError> {
    let answer = client.get(&format!("/volumes/{name}"))?;
    if output.is_json() {
        output.raw(&answer);
        return Ok(());
    }
    let volume: Volume = parse(&answer)?;
    let mut fields = vec![
        ("name", volume.name.clone()),
        ("mountpoint", volume.mountpoint.clone()),
        ("created", volume.created_at.clone()),
    ];
    for (key, value) in &volume.status {
        let shown = match (key.as_str(), value) {
            ("size" | "used", Value::Number(n)) => size(n.as_u64().unwrap_or(0)),
            (_, Value::String(text)) => text.clone(),
            (_, other) => other.to_string(),
        };
        fields.push((key, shown));
    }
    output.fields(&fields);
    Ok(())
}
