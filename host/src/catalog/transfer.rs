//! A catalog as lines of JSON: the way between stores, and a backup that a person can read.
//!
//! `wasmvol catalog export` writes them, from the daemon if one runs; `catalog import` reads them into a new wasmvol's catalog while
//! none runs. Data is not in them: it lies in `volumes/` under the ids that the records name.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use wasmvol_plan::DriverName;

use crate::catalog::durable::{self, Contents, parse_record};
use crate::catalog::record::{RECORD_VERSION, Record};
use crate::catalog::{DriverRow, StoreError};

/// The first line names the form of those that follow.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Head {
    wasmvol_catalog: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Line<'a> {
    Driver(&'a DriverRow),
    Volume(&'a Record),
    Store(Stored),
}

/// One key of a driver's store. What is text is written as text, what is not as hex digits.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Stored {
    driver: DriverName,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl Stored {
    fn new(driver: &DriverName, key: &str, value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).ok().map(str::to_owned);
        let hex = text.is_none().then(|| value.iter().map(|byte| format!("{byte:02x}")).collect());
        Self { driver: driver.clone(), key: key.to_owned(), text, hex }
    }

    fn value(&self) -> Option<Vec<u8>> {
        let byte = |at| u8::from_str_radix(self.hex.as_ref()?.get(at..at + 2)?, 16).ok();
        match (&self.text, &self.hex) {
            (Some(text), None) => Some(text.as_bytes().to_vec()),
            (None, Some(hex)) => (0..hex.len()).step_by(2).map(byte).collect(),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Parsed {
    Driver(DriverRow),
    Volume(Box<serde_json::value::RawValue>),
    Store(Stored),
}

/// Why lines are no catalog.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("line 1 is no head of an export: {0}")]
    Head(String),
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        why: String,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes everything that a catalog holds.
pub(crate) fn export(contents: &Contents) -> Result<Vec<u8>, serde_json::Error> {
    let Contents { records, drivers, stores } = contents;
    let mut bytes = Vec::new();
    let mut line = |value: serde_json::Result<Vec<u8>>| -> serde_json::Result<()> {
        bytes.extend(value?);
        bytes.push(b'\n');
        Ok(())
    };
    line(serde_json::to_vec(&Head { wasmvol_catalog: RECORD_VERSION }))?;
    for driver in drivers {
        line(serde_json::to_vec(&Line::Driver(driver)))?;
    }
    for record in records {
        line(serde_json::to_vec(&Line::Volume(record)))?;
    }
    for (driver, store) in stores {
        for (key, value) in store {
            line(serde_json::to_vec(&Line::Store(Stored::new(driver, key, value))))?;
        }
    }
    Ok(bytes)
}

/// Reads an export and fills the catalog in `dir` with it, where it is that of a new wasmvol: all of it, or nothing. Returns the numbers of volumes and drivers.
pub(crate) fn import(dir: &Path, text: &str) -> Result<(usize, usize), ImportError> {
    let contents = parse(text)?;
    let counts = (contents.records.len(), contents.drivers.len());
    durable::fill(dir, contents)?;
    Ok(counts)
}

fn parse(text: &str) -> Result<Contents, ImportError> {
    let mut lines = text.lines();
    let head: Head = serde_json::from_str(lines.next().unwrap_or_default())
        .map_err(|e| ImportError::Head(e.to_string()))?;
    if head.wasmvol_catalog > RECORD_VERSION {
        return Err(ImportError::Head(format!(
            "it has form {}, and this wasmvol knows form {RECORD_VERSION}",
            head.wasmvol_catalog
        )));
    }
    let Contents { mut records, mut drivers, mut stores } = Contents::default();
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut driver_names = BTreeSet::new();
    for (number, line) in lines.enumerate() {
        let wrong = |why: String| ImportError::Line { line: number + 2, why };
        let twice = |what: &str, which: String| {
            wrong(format!("{what} `{which}` is there twice: leave one of them out"))
        };
        match serde_json::from_str(line).map_err(|e| wrong(e.to_string()))? {
            Parsed::Driver(row) => {
                if !driver_names.insert(row.name.clone()) {
                    return Err(twice("driver", row.name.to_string()));
                }
                drivers.push(row);
            }
            Parsed::Volume(raw) => {
                let record = parse_record(raw.get().as_bytes()).map_err(wrong)?;
                if !ids.insert(record.id) {
                    return Err(twice("id", record.id.to_string()));
                }
                // What is kept has given its name back.
                if !record.phase.is_kept() && !names.insert(record.name.clone()) {
                    return Err(twice("volume", record.name.to_string()));
                }
                records.push(record);
            }
            Parsed::Store(stored) => {
                let value = stored.value().ok_or_else(|| wrong("its value is none".into()))?;
                let store: &mut wasmvol_driver::Store = stores.entry(stored.driver).or_default();
                store.insert(stored.key, value.into());
            }
        }
    }
    Ok(Contents { records, drivers, stores })
}
