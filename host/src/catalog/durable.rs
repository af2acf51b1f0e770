//! The catalog over redb: every volume's record and every loaded driver's row, fsynced before a commit returns.
//!
//! Opened by the daemon at start, which then holds all records in memory and only writes here; opened by `wasmvol catalog` when no
//! daemon runs. Values are JSON, so that a person can read an export and a later version can keep what it does not know.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use wasmvol_plan::{DriverName, Id};

use crate::catalog::file::StoreFile;
use crate::catalog::record::{RECORD_VERSION, Record};
use crate::catalog::store::{self, Counts, Layout, Store};
use crate::catalog::writer::Writer;
use crate::catalog::{Change, DriverRow, StoreError, Stores};
use crate::volumes::world;

const STORE: &str = "catalog";
const FILE: StoreFile = StoreFile { store: STORE, name: "catalog.redb", cache: 4 << 20 };
/// The form of the tables below. A file of a later form is refused; there is no earlier one.
const SCHEMA: u64 = 1;

const VOLUMES: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("volumes");
const NAMES: TableDefinition<'_, &str, u128> = TableDefinition::new("names");
const DRIVERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("drivers");
/// Under the driver and the key.
const STORES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("stores");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";

/// The durable records.
#[derive(Debug)]
pub(crate) struct Catalog {
    writer: Writer<Durable>,
}

/// Everything that a catalog holds: records by id, drivers by name.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Contents {
    pub(crate) records: Vec<Record>,
    pub(crate) drivers: Vec<DriverRow>,
    pub(crate) stores: Stores,
}

impl Catalog {
    /// Opens or makes the catalog in `dir` and reads it whole.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Contents), StoreError> {
        let database = open(dir)?;
        let contents = read(&database)?;
        let dir = dir.to_owned();
        let writer = Writer::start(Store::new(database, move || FILE.open_again(&dir)))?;
        Ok((Self { writer }, contents))
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

/// Fills a catalog in one transaction. It may hold the drivers that came with wasmvol, as a first start leaves it: their rows are
/// replaced. One that holds what a person made is left as it is.
pub(super) fn fill(dir: &Path, contents: Contents) -> Result<(), StoreError> {
    let database = open(dir)?;
    let (volumes, (replaced, loaded)) = {
        let Contents { records, drivers, .. } = read(&database)?;
        (records.len(), drivers.into_iter().partition::<Vec<_>, _>(|row| row.first_party))
    };
    if volumes > 0 || !loaded.is_empty() {
        return Err(write_error(format!(
            "it holds {volumes} volumes and {} drivers that you loaded: import fills the catalog of a wasmvol that is new",
            loaded.len()
        )));
    }
    let Contents { records, drivers, stores } = contents;
    let gone = replaced.into_iter().map(|row| Change::DeleteDriver(row.name));
    let drivers = drivers.into_iter().map(|row| Change::PutDriver(Box::new(row)));
    let records = records.into_iter().map(|record| Change::Put(Box::new(record)));
    let all = |store: wasmvol_driver::Store| store.into_iter().map(|(k, v)| (k, Some(v))).collect();
    let stores = stores.into_iter().map(|(name, store)| Change::Write(name, all(store)));
    let changes: Vec<_> = gone.chain(drivers).chain(records).chain(stores).collect();
    store::write::<Durable>(&database, &changes.iter().collect::<Vec<_>>())
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
    match schema().map_err(|e| read_error(store::words(&e)))? {
        Some(SCHEMA) => Ok(database),
        Some(other) => Err(read_error(format!(
            "it has form {other}, and this wasmvol knows form {SCHEMA}: use the version that wrote it"
        ))),
        None => Err(read_error("it names no form".to_owned())),
    }
}

fn read(database: &Database) -> Result<Contents, StoreError> {
    let Contents { mut records, mut drivers, mut stores } = Contents::default();
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
        // Catalogs of before there were any have none.
        let Ok(rows) = tx.open_table(STORES) else { return Ok(()) };
        for row in rows.iter()? {
            let (key, value) = row?;
            let (driver, key) = key.value();
            match DriverName::parse(driver) {
                Ok(name) => {
                    let store: &mut wasmvol_driver::Store = stores.entry(name).or_default();
                    store.insert(key.to_owned(), value.value().into());
                }
                Err(e) => wrong = Some(format!("store of driver `{driver}`: {e}")),
            }
        }
        Ok(())
    };
    walk().map_err(|e| read_error(store::words(&e)))?;
    match wrong {
        None => Ok(Contents { records, drivers, stores }),
        Some(why) => Err(read_error(why)),
    }
}

/// Reads one record; one of a later form is refused.
pub(super) fn parse_record(bytes: &[u8]) -> Result<Record, String> {
    check_form(bytes)?;
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Refuses a row of a later form, because its meaning may be another.
pub(super) fn check_form(bytes: &[u8]) -> Result<(), String> {
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
    Ok(())
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
        let mut tables = Tables {
            volumes: tx.open_table(VOLUMES)?,
            names: tx.open_table(NAMES)?,
            drivers: tx.open_table(DRIVERS)?,
            stores: tx.open_table(STORES)?,
        };
        changes.iter().try_for_each(|change| tables.apply(change))
    }
}

/// The tables, open in one transaction.
struct Tables<'tx> {
    volumes: redb::Table<'tx, u128, &'static [u8]>,
    names: redb::Table<'tx, &'static str, u128>,
    drivers: redb::Table<'tx, &'static str, &'static [u8]>,
    stores: redb::Table<'tx, (&'static str, &'static str), &'static [u8]>,
}

impl Tables<'_> {
    fn apply(&mut self, change: &Change) -> Result<(), redb::Error> {
        match change {
            Change::Put(record) => {
                let id = record.id.bits();
                self.volumes.insert(id, json(record)?.as_slice())?;
                if record.phase.is_kept() {
                    forget_name(&mut self.names, record.name.as_str(), id)?;
                } else {
                    self.names.insert(record.name.as_str(), id)?;
                }
            }
            Change::Delete(id) => {
                let gone = self.volumes.remove(id.bits())?.map(|v| v.value().to_vec());
                if let Some(record) = gone.and_then(|bytes| parse_record(&bytes).ok()) {
                    forget_name(&mut self.names, record.name.as_str(), id.bits())?;
                }
            }
            Change::PutDriver(row) => {
                let value = json(&Versioned::new(row.as_ref()))?;
                self.drivers.insert(row.name.as_str(), value.as_slice())?;
            }
            Change::DeleteDriver(name) => {
                self.drivers.remove(name.as_str())?;
                self.stores.retain(|(driver, _), _| driver != name.as_str())?;
            }
            Change::Write(driver, writes) => {
                for (key, value) in writes {
                    let key = (driver.as_str(), key.as_str());
                    match value {
                        Some(value) => drop(self.stores.insert(key, &**value)?),
                        None => drop(self.stores.remove(key)?),
                    }
                }
            }
            Change::Together(changes) => {
                changes.iter().try_for_each(|change| self.apply(change))?;
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;
    use wasmvol_plan::{DriverName, Storage, VolumeName};

    use super::*;
    use crate::catalog::record::Phase;
    use crate::catalog::transfer;
    use crate::volumes::world::Catalog as _;

    fn record(id: u128, name: &str) -> Record {
        Record {
            v: RECORD_VERSION,
            id: Id::from_bits(id),
            name: VolumeName::parse(name).unwrap(),
            driver: DriverName::parse("local").unwrap(),
            driver_version: "1.2.3".into(),
            options: BTreeMap::new(),
            options_version: None,
            left_out: BTreeSet::new(),
            added: BTreeSet::new(),
            reclaim: None,
            created_at: 1_700_000_000,
            phase: Phase::Ready,
            storage: Storage::None,
            state: vec![0, 255],
            former: None,
            plugin: "wasmvol".into(),
            attached: false,
            extra: serde_json::Map::new(),
        }
    }

    fn driver(name: &str) -> DriverRow {
        DriverRow {
            name: DriverName::parse(name).unwrap(),
            digest: "d".repeat(64),
            version: "1.2.3".into(),
            own_name: None,
            settings: BTreeMap::from([("root".to_owned(), "/srv".to_owned())]),
            loaded_at: 1_700_000_000,
            first_party: true,
            unloaded: false,
            origin: None,
            previous: None,
        }
    }

    fn commit(dir: &Path, changes: Vec<Change>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (catalog, _) = Catalog::open(dir).unwrap();
        for change in changes {
            runtime.block_on(catalog.commit(change)).unwrap();
        }
    }

    fn put(record: Record) -> Change {
        Change::Put(Box::new(record))
    }

    fn contents(dir: &Path) -> Contents {
        Catalog::open(dir).unwrap().1
    }

    fn holds(records: Vec<Record>, drivers: Vec<DriverRow>) -> Contents {
        Contents { records, drivers, stores: Stores::new() }
    }

    fn write(driver: &str, writes: &[(&str, Option<&str>)]) -> Change {
        let write = |(key, value): &(&str, Option<&str>)| {
            ((*key).to_owned(), value.map(|value| value.as_bytes().into()))
        };
        let driver = DriverName::parse(driver).unwrap();
        Change::Write(driver, writes.iter().map(write).collect())
    }

    #[test]
    fn what_a_driver_stores_is_committed_with_the_record_and_goes_with_the_driver() {
        let dir = tempfile::tempdir().unwrap();
        let first = write("one", &[("a", Some("1")), ("b", Some("2"))]);
        let change = Change::Together(vec![put(record(1, "data")), first]);
        commit(dir.path(), vec![change, write("two", &[("a", Some("3"))])]);
        commit(dir.path(), vec![write("one", &[("a", None), ("b", Some("4"))])]);
        let held = contents(dir.path());
        assert_eq!(held.records, [record(1, "data")]);
        let shown = held.stores.iter().flat_map(|(d, store)| {
            store.iter().map(move |(k, v)| format!("{d}/{k}={}", String::from_utf8_lossy(v)))
        });
        assert_eq!(shown.collect::<Vec<_>>(), ["one/b=4", "two/a=3"]);
        commit(dir.path(), vec![Change::DeleteDriver(DriverName::parse("one").unwrap())]);
        assert_eq!(
            contents(dir.path()).stores.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["two"]
        );
    }

    fn names(dir: &Path) -> Vec<(String, u128)> {
        let database = open(dir).unwrap();
        let names = database.begin_read().unwrap().open_table(NAMES).unwrap();
        let rows = names.iter().unwrap().map(Result::unwrap);
        rows.map(|(name, id)| (name.value().to_owned(), id.value())).collect()
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        commit(
            dir.path(),
            vec![put(record(1, "one")), Change::PutDriver(Box::new(driver("local")))],
        );
        assert_eq!(contents(dir.path()), holds(vec![record(1, "one")], vec![driver("local")]));
    }

    #[test]
    fn a_commit_that_has_returned_is_in_the_file_while_the_catalog_is_open() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (catalog, _) = Catalog::open(dir.path()).unwrap();
        runtime.block_on(catalog.commit(put(record(1, "one")))).unwrap();
        // As a kill would leave it: nothing was closed.
        std::fs::copy(dir.path().join(FILE.name), copy.path().join(FILE.name)).unwrap();
        assert_eq!(contents(copy.path()).records, [record(1, "one")]);
    }

    #[test]
    fn a_catalog_is_made_and_read_through_a_descriptor_of_its_directory() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        commit(Path::new(&path), vec![put(record(1, "one"))]);
        assert_eq!(contents(dir.path()).records.len(), 1);
    }

    #[test]
    fn a_name_is_free_after_its_volume_is_deleted_or_retained() {
        let dir = tempfile::tempdir().unwrap();
        let retained = Record { phase: Phase::Retained, ..record(2, "two") };
        let changes = vec![
            put(record(1, "one")),
            put(record(2, "two")),
            Change::Delete(Id::from_bits(1)),
            put(retained.clone()),
        ];
        commit(dir.path(), changes);
        assert_eq!(names(dir.path()), []);
        assert_eq!(contents(dir.path()).records, [retained]);
    }

    #[test]
    fn a_kept_volume_that_is_purged_leaves_the_name_to_its_next_volume() {
        let dir = tempfile::tempdir().unwrap();
        let kept = |phase| Record { phase, ..record(1, "one") };
        let changes =
            vec![put(kept(Phase::Retained)), put(record(2, "one")), put(kept(Phase::Purging))];
        commit(dir.path(), changes);
        assert_eq!(names(dir.path()), [("one".to_owned(), 2)]);
    }

    #[test]
    fn deleting_an_old_record_leaves_the_name_to_its_next_volume() {
        let dir = tempfile::tempdir().unwrap();
        let retained = Record { phase: Phase::Retained, ..record(1, "one") };
        let changes = vec![put(retained), put(record(2, "one")), Change::Delete(Id::from_bits(1))];
        commit(dir.path(), changes);
        assert_eq!(names(dir.path()), [("one".to_owned(), 2)]);
    }

    #[test]
    fn a_driver_of_before_there_were_registries_has_no_origin() {
        let mut row = serde_json::to_value(driver("local")).unwrap();
        assert!(row.as_object_mut().unwrap().remove("origin").is_none(), "it is not written");
        assert_eq!(serde_json::from_value::<DriverRow>(row).unwrap(), driver("local"));
    }

    #[test]
    fn fields_of_a_later_version_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut later = record(1, "one");
        later.extra.insert("colour".into(), json!({"name": "red"}));
        commit(dir.path(), vec![put(later.clone())]);
        assert_eq!(contents(dir.path()).records, [later]);
    }

    #[test]
    fn a_record_of_a_later_form_is_refused_with_its_id() {
        let dir = tempfile::tempdir().unwrap();
        commit(dir.path(), vec![put(Record { v: RECORD_VERSION + 1, ..record(1, "one") })]);
        let error = Catalog::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&Id::from_bits(1).to_string()), "{error}");
        assert!(error.contains("use the version that wrote it"), "{error}");
    }

    #[test]
    fn a_catalog_of_a_later_form_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        {
            let database = open(dir.path()).unwrap();
            let tx = database.begin_write().unwrap();
            tx.open_table(META).unwrap().insert(SCHEMA_KEY, SCHEMA + 1).unwrap();
            tx.commit().unwrap();
        }
        let error = Catalog::open(dir.path()).unwrap_err().to_string();
        assert_eq!(
            error,
            "catalog cannot be read: it has form 2, and this wasmvol knows form 1: use the version that wrote it"
        );
    }

    #[test]
    fn a_file_that_is_no_catalog_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE.name);
        std::fs::write(&path, "something else").unwrap();
        assert!(Catalog::open(dir.path()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }

    #[test]
    fn half_a_catalog_that_a_crash_left_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("catalog.redb.new"), "half").unwrap();
        assert_eq!(contents(dir.path()), Contents::default());
    }

    #[test]
    fn an_export_fills_an_empty_catalog_with_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let retained = Record { phase: Phase::Retained, ..record(2, "one") };
        let changes = vec![
            put(record(1, "one")),
            put(retained),
            Change::PutDriver(Box::new(driver("local"))),
            write("local", &[("next", Some("7"))]),
        ];
        commit(from.path(), changes);
        let text = String::from_utf8(transfer::export(&contents(from.path())).unwrap()).unwrap();
        assert_eq!(transfer::import(to.path(), &text).unwrap(), (2, 1));
        assert_eq!(contents(to.path()), contents(from.path()));
        assert_eq!(names(to.path()), [("one".to_owned(), 1)]);
    }

    /// What an export of these would be.
    fn lines(records: Vec<Record>, drivers: Vec<DriverRow>) -> String {
        String::from_utf8(transfer::export(&holds(records, drivers)).unwrap()).unwrap()
    }

    #[test]
    fn an_import_replaces_the_drivers_that_came_with_wasmvol() {
        let dir = tempfile::tempdir().unwrap();
        let came = ["local", "tmpfs"].map(|name| Change::PutDriver(Box::new(driver(name))));
        commit(dir.path(), came.into());
        let theirs = DriverRow { first_party: false, ..driver("local") };
        let text = lines(vec![record(1, "one")], vec![theirs.clone()]);
        transfer::import(dir.path(), &text).unwrap();
        assert_eq!(contents(dir.path()), holds(vec![record(1, "one")], vec![theirs]));
    }

    #[test]
    fn an_import_into_a_catalog_that_holds_what_a_person_made_changes_nothing() {
        let text = lines(vec![record(7, "other")], vec![driver("local")]);
        let loaded = DriverRow { first_party: false, ..driver("mine") };
        for (there, what) in [
            (put(record(1, "one")), "1 volumes and 0 drivers"),
            (Change::PutDriver(Box::new(loaded)), "0 volumes and 1 drivers"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            commit(dir.path(), vec![there]);
            let before = contents(dir.path());
            let error = transfer::import(dir.path(), &text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(contents(dir.path()), before);
        }
    }

    #[test]
    fn an_import_with_two_of_one_name_is_refused_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let retained = |id| Record { phase: Phase::Retained, ..record(id, "one") };
        let volumes = lines(vec![record(1, "one"), retained(2), record(3, "one")], vec![]);
        let drivers = lines(vec![], vec![driver("local"), driver("local")]);
        for (text, why) in [
            (volumes, "line 4: volume `one` is there twice"),
            (drivers, "line 3: driver `local` is there twice"),
        ] {
            let error = transfer::import(dir.path(), &text).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
        let kept = vec![record(1, "one"), retained(2), retained(3)];
        transfer::import(dir.path(), &lines(kept.clone(), vec![])).unwrap();
        assert_eq!(contents(dir.path()).records, kept);
    }

    #[test]
    fn lines_that_are_no_export_are_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let head = "{\"wasmvol-catalog\":1}\n";
        for (text, line) in [
            (String::new(), "line 1"),
            ("{\"wasmvol-catalog\":2}\n".to_owned(), "line 1"),
            (format!("{head}{{}}\n"), "line 2"),
            (format!("{head}{{\"volume\":{{\"v\":1}}}}\n"), "line 2"),
        ] {
            let error = transfer::import(dir.path(), &text).unwrap_err().to_string();
            assert!(error.starts_with(line), "{error}");
        }
        assert_eq!(contents(dir.path()), Contents::default());
    }
}
