//! `wasmvol volume …`: the verbs without Docker.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;
use wasmvol_plan::{DriverName, Id, Measure, VolumeName};

use super::CliError;
use super::output::{Output, age, say, size};
use crate::admin::client::{Client, ClientError, parse};
use crate::admin::types::{Create, Failed, Kept, Purged, Resize, Scanned, Sighting, Volume};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List volumes
    Ls {
        /// Those that were removed, and their data kept
        #[arg(long)]
        retained: bool,
    },
    /// Ask drivers which volumes their backends know: what is found and free becomes a volume
    Scan {
        /// Only this one
        #[arg(value_parser = |text: &str| DriverName::parse(text))]
        driver: Option<DriverName>,
    },
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
    /// Give a volume more room, also while containers use it
    Resize {
        #[arg(value_parser = name)]
        name: VolumeName,
        /// In all, such as `20g`
        size: String,
    },
    /// Delete what was kept of a removed volume: `ls --retained` shows it. Nothing else has such an id
    Purge {
        /// Also where the driver fails or is gone: what its backend keeps is yours to clear up
        #[arg(short, long)]
        force: bool,
        #[arg(value_parser = Id::parse)]
        id: Id,
    },
    /// Count what the files of volumes take, one by one: `ls` shows what their file systems tell
    Du {
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

fn of_volume(name: &VolumeName) -> impl FnOnce(ClientError) -> CliError {
    CliError::about(format!("volume `{name}`"))
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
        Command::Ls { retained: false } => list(client, output)?,
        Command::Ls { retained: true } => list_kept(client, output)?,
        Command::Scan { driver } => return scan(driver, client, output),
        Command::Create { name, driver, options } => {
            let mut options: BTreeMap<_, _> = options.into_iter().collect();
            options.extend(driver.map(|driver| ("driver".to_owned(), driver)));
            let create = Create { name: name.to_string(), options };
            let body = serde_json::to_vec(&create).map_err(ClientError::Answer)?;
            let answer = client.post("/volumes", body).map_err(of_volume(&name))?;
            output.answer(&answer, |volume: Volume| output.line(&volume.name))?;
        }
        Command::Inspect { name } => inspect(&name, client, output)?,
        Command::Rm { force, names } => remove(&names, force, client, output)?,
        Command::Resize { name, size } => {
            let body = serde_json::to_vec(&Resize { size }).map_err(ClientError::Answer)?;
            let answer = client.post(&format!("/volumes/{name}/resize"), body);
            let answer = answer.map_err(of_volume(&name))?;
            output.answer(&answer, |volume: Volume| output.line(&volume.name))?;
        }
        Command::Purge { force, id } => {
            let how = if force { "/force" } else { "" };
            let of_id = CliError::about(format!("id `{id}`"));
            let answer = client.delete(&format!("/kept/{id}{how}")).map_err(of_id)?;
            output.answer(&answer, |Purged { purged, .. }| output.line(&purged.to_string()))?;
        }
        Command::Du { names } => count(&names, client, output)?,
        Command::Mount { name } => {
            let answer = client.post(&format!("/volumes/{name}/mount"), "");
            let answer = answer.map_err(of_volume(&name))?;
            output.answer(&answer, |volume: Volume| output.line(&volume.mountpoint))?;
        }
        Command::Unmount { name } => {
            let answer = client.post(&format!("/volumes/{name}/unmount"), "");
            let answer = answer.map_err(of_volume(&name))?;
            output.answer(&answer, |_: Volume| ())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, output: &Output) -> Result<(), CliError> {
    Ok(output.answer(&client.get("/volumes")?, |volumes: Vec<Volume>| {
        let rows: Vec<_> = volumes.iter().map(row).collect();
        let heads =
            ["NAME", "DRIVER", "STORAGE", "SIZE", "USED", "INODES", "AGE", "HOLDERS", "HEALTH"];
        output.table(heads, &rows, "no volumes: make one with `wasmvol volume create NAME`");
    })?)
}

fn list_kept(client: &Client, output: &Output) -> Result<(), CliError> {
    let row = |kept: Kept| {
        let Kept { id, name, driver, created_at, data } = kept;
        let data = data.map_or_else(|| "-".to_owned(), |data| data.display().to_string());
        [id.to_string(), name.to_string(), driver.to_string(), created_at, data]
    };
    Ok(output.answer(&client.get("/kept")?, |kept: Vec<Kept>| {
        let rows: Vec<_> = kept.into_iter().map(row).collect();
        output.table(["ID", "NAME", "DRIVER", "CREATED", "DATA"], &rows, "nothing is kept");
    })?)
}

/// What gave no answer fails the command; what the others said is shown all the same.
fn scan(
    driver: Option<DriverName>,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let path = driver.map_or_else(|| "/scan".to_owned(), |driver| format!("/scan/{driver}"));
    let answer = client.post(&path, "")?;
    let scanned: Scanned = parse(&answer)?;
    output.own(&scanned, |scanned| {
        let row = |s: &Sighting| [s.driver.to_string(), s.name.clone(), s.state.to_string()];
        let rows: Vec<_> = scanned.volumes.iter().map(row).collect();
        output.table(["DRIVER", "NAME", "STATE"], &rows, "no driver knows of any volume");
    })?;
    for Failed { driver, error } in &scanned.failed {
        say(&format!("driver `{driver}` cannot list its volumes: {error}"));
    }
    Ok(if scanned.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One after the other; what was removed is told also where the next one is refused.
fn remove(
    names: &[VolumeName],
    force: bool,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let how = if force { "/force" } else { "" };
    let mut removed = Vec::new();
    let mut refused = Ok(());
    for name in names {
        match client.delete(&format!("/volumes/{name}{how}")) {
            Ok(_) => removed.push(name.as_str()),
            Err(e) => {
                refused = Err(of_volume(name)(e));
                break;
            }
        }
    }
    if !removed.is_empty() {
        let done = BTreeMap::from([("removed", &removed)]);
        output.own(&done, |_| removed.iter().for_each(|name| output.line(name)))?;
    }
    refused
}

fn count(names: &[VolumeName], client: &Client, output: &Output) -> Result<(), CliError> {
    let mut rows = Vec::new();
    let mut all = BTreeMap::new();
    for name in names {
        let answer = client.get(&format!("/volumes/{name}/measure")).map_err(of_volume(name))?;
        let measured: Measure = serde_json::from_slice(&answer).map_err(ClientError::Answer)?;
        let Measure { bytes, files, unread } = measured;
        rows.push([name.to_string(), size(bytes), files.to_string(), unread.to_string()]);
        all.insert(name.as_str(), measured);
    }
    let heads = ["NAME", "USED", "FILES", "UNREAD"];
    Ok(output.own(&all, |_| output.table(heads, &rows, "no volumes"))?)
}

fn row(volume: &Volume) -> [String; 9] {
    let number = |key: &str| volume.status.get(key).and_then(Value::as_u64);
    let shown = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let bytes = |key: &str| number(key).map_or("-".into(), size);
    let inodes = match (number("inodes-used"), number("inodes")) {
        (None, None) => "-".to_owned(),
        (used, all) => format!("{}/{}", shown(used), shown(all)),
    };
    let asked = number("used").and_then(|_| volume.status.get("used-at")?.as_str());
    let holders = volume.status.get("holders").and_then(Value::as_array).map_or(0, Vec::len);
    [
        volume.name.clone(),
        text(volume, "driver"),
        text(volume, "storage"),
        bytes("size"),
        bytes("used"),
        inodes,
        asked.and_then(age).unwrap_or_else(|| "-".to_owned()),
        holders.to_string(),
        text(volume, "health"),
    ]
}

/// A field of the status as text; empty if it is not there.
pub(super) fn text(volume: &Volume, key: &str) -> String {
    volume.status.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn inspect(name: &VolumeName, client: &Client, output: &Output) -> Result<(), CliError> {
    let answer = client.get(&format!("/volumes/{name}")).map_err(of_volume(name))?;
    Ok(output.answer(&answer, |volume| output.fields(&fields(&volume)))?)
}

fn fields(volume: &Volume) -> Vec<(&str, String)> {
    let mut fields = vec![
        ("name", volume.name.clone()),
        ("mountpoint", volume.mountpoint.clone()),
        ("created", volume.created_at.clone()),
    ];
    for (key, value) in &volume.status {
        let shown = match (key.as_str(), value) {
            ("size" | "used" | "file-system-size" | "file-system-used", Value::Number(n)) => {
                size(n.as_u64().unwrap_or(0))
            }
            (_, Value::String(text)) => text.clone(),
            (_, other) => other.to_string(),
        };
        fields.push((key, shown));
    }
    fields
}
