//! The catalog over redb: every volume's record and every loaded driver's row, fsynced before a commit returns.
//!
//! Opened by the daemon at start, which then holds all records in memory and only writes here; opened by `wasmvol catalog` when no
//! daemon runs. Values are JSON, so that a person can read an export and a later version can keep what it does not know.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use wasmvol_plan::Id;

use crate::catalog::file::StoreFile;
use crate::catalog::record::{Phase, RECORD_VERSION, Record};
use crate::catalog::writer::{self, Counts, Layout, Writer};
use crate::catalog::{Change, DriverRow, StoreError};
use crate::volumes::world;

const STORE: &str = "catalog";
const FILE: StoreFile = StoreFile { store: STORE, name: "catalog.redb", cache: 4 << 20 };
/// The form of the tables below. A file of a later form is refused; there is no earlier one.
const SCHEMA: u64 = 1;

const VOLUMES: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("volumes");
const NAMES: TableDefinition<'_, &str, u128> = TableDefinition::new("names");
const DRIVERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("drivers");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";

/// The durable records.
#[derive(Debug)]
pub(crate) struct Catalog {
    writer: Writer<Durable>,
}

/// Everything that a catalog holds.
pub(crate) type Contents = (Vec<Record>, Vec<DriverRow>);

impl Catalog {
    /// Opens or makes the catalog in `dir` and reads it whole: records by id, drivers by name.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Vec<Record>, Vec<DriverRow>), StoreError> {
        let database = open(dir)?;
        let (records, drivers) = read(&database)?;
        let dir = dir.to_owned();
        let writer = Writer::start(database, move || open(&dir))?;
        Ok((Self { writer }, records, drivers))
    }

    /// What it holds now: after every commit that was asked for before.
    pub(crate) async fn contents(&self) -> Result<Contents, StoreError> {
        self.writer.read(read).await
    }

    /// How often it committed.
    pub(crate) fn counts(&self) -> Counts {
        self.writer.counts()
    }
}

impl world::Catalog for Catalog {
    async fn commit(&self, change: Change) -> Result<(), StoreError> {
        self.writer.commit(change).await
    }
}

/// Fills an empty catalog in one transaction; one that holds anything is left as it is.
pub(super) fn fill(dir: &Path, contents: Contents) -> Result<(), StoreError> {
    let database = open(dir)?;
    let (records, drivers) = read(&database)?;
    if !records.is_empty() || !drivers.is_empty() {
        return Err(write_error(format!(
            "it holds {} volumes and {} drivers: import fills an empty one only",
            records.len(),
            drivers.len()
        )));
    }
    let (records, drivers) = contents;
    let changes: Vec<_> = records
        .into_iter()
        .map(|r| Change::Put(Box::new(r)))
        .chain(drivers.into_iter().map(|d| Change::PutDriver(Box::new(d))))
        .collect();
    writer::write::<Durable>(&database, changes.iter())
}

fn open(dir: &Path) -> Result<Database, StoreError> {
    let database = FILE.open(dir, |database| {
        let tx = database.begin_write()?;
        tx.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
        tx.open_table(VOLUMES)?;
        tx.open_table(NAMES)?;
        tx.open_table(DRIVERS)?;
        Ok(tx.commit()?)
    })?;
    let schema = || -> Result<Option<u64>, redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(meta.get(SCHEMA_KEY)?.map(|v| v.value()))
    };
    match schema().map_err(|e| read_error(writer::words(&e)))? {
        Some(SCHEMA) => Ok(database),
        Some(other) => Err(read_error(format!(
            "it has form {other}, and this wasmvol knows form {SCHEMA}: use the version that wrote it"
        ))),
        None => Err(read_error("it names no form".to_owned())),
    }
}

fn read(database: &Database) -> Result<Contents, StoreError> {
    let (mut records, mut drivers) = Contents::default();
    let mut wrong = None;
    let mut walk = || -> Result<(), redb::Error> {
        let tx = database.begin_read()?;
        for row in tx.open_table(VOLUMES)?.iter()? {
            let (id, value) = row?;
            match parse_record(value.value()) {
                Ok(record) => records.push(record),
                Err(why) => wrong = Some(format!("record {}: {why}", Id::from_bits(id.value()))),
            }
        }
        for row in tx.open_table(DRIVERS)?.iter()? {
            let (name, value) = row?;
            match serde_json::from_slice(value.value()) {
                Ok(Versioned { row, .. }) => drivers.push(row),
                Err(e) => wrong = Some(format!("driver `{}`: {e}", name.value())),
            }
        }
        Ok(())
    };
    walk().map_err(|e| read_error(writer::words(&e)))?;
    match wrong {
        None => Ok((records, drivers)),
        Some(why) => Err(read_error(why)),
    }
}

/// Reads one record; one of a later form is refused, because its meaning may be another.
pub(super) fn parse_record(bytes: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Form {
        v: u32,
    }
    let form: Form = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if form.v > RECORD_VERSION {
        return Err(format!(
            "has form {}, and this wasmvol knows form {RECORD_VERSION}: use the version that wrote it",
            form.v
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// A row that carries no form of its own.
#[derive(Serialize, Deserialize)]
pub(super) struct Versioned<T> {
    pub(super) v: u32,
    #[serde(flatten)]
    pub(super) row: T,
}

impl<T> Versioned<T> {
    /// A row in the form that this program writes.
    pub(super) const fn new(row: T) -> Self {
        Self { v: RECORD_VERSION, row }
    }
}

/// JSON of a value whose keys are all text: it cannot fail, but says so if it does.
pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))
}

struct Durable;

impl Layout for Durable {
    type Change = Change;
    const STORE: &'static str = STORE;
    const OUTLIVES_POWER: bool = true;

    fn apply(tx: &WriteTransaction, changes: &[&Change]) -> Result<(), redb::Error> {
        let mut volumes = tx.open_table(VOLUMES)?;
        let mut names = tx.open_table(NAMES)?;
        let mut drivers = tx.open_table(DRIVERS)?;
        for change in changes {
            match change {
                Change::Put(record) => {
                    let id = record.id.bits();
                    volumes.insert(id, json(record)?.as_slice())?;
                    if record.phase == Phase::Retained {
                        forget_name(&mut names, record.name.as_str(), id)?;
                    } else {
                        names.insert(record.name.as_str(), id)?;
                    }
                }
                Change::Delete(id) => {
                    let gone = volumes.remove(id.bits())?.map(|v| v.value().to_vec());
                    if let Some(record) = gone.and_then(|bytes| parse_record(&bytes).ok()) {
                        forget_name(&mut names, record.name.as_str(), id.bits())?;
                    }
                }
                Change::PutDriver(row) => {
                    let value = json(&Versioned::new(row.as_ref()))?;
                    drivers.insert(row.name.as_str(), value.as_slice())?;
                }
                Change::DeleteDriver(name) => {
                    drivers.remove(name.as_str())?;
                }
            }
        }
        Ok(())
    }
}

/// Deletes a name's row if it still names `id`: the name may have been given to a later volume.
fn forget_name(
    names: &mut redb::Table<'_, &'static str, u128>,
    name: &str,
    id: u128,
) -> Result<(), redb::Error> {
    if names.get(name)?.is_some_and(|found| found.value() == id) {
        names.remove(name)?;
    }
    Ok(())
}

fn read_error(why: String) -> StoreError {
    StoreError::Read { store: STORE, why }
}

fn write_error(why: String) -> StoreError {
    StoreError::Write { store: STORE, why }
}
