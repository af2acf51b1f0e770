//! The mount table over redb on a tmpfs: which volumes have holders, in this boot.
//!
//! Opened by the daemon at start. It outlives the daemon and dies with the machine: rows of another boot are dropped when it opens,
//! wherever the file lies, because after a reboot nothing is mounted and nobody holds anything. A commit is made by the thread that asks,
//! which is the daemon's only one: it takes some 30 us, and a thread of its own would cost as much again to wake.

use std::cell::RefCell;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use wasmvol_plan::Id;

use crate::catalog::durable::{Versioned, check_form, json};
use crate::catalog::file::StoreFile;
use crate::catalog::store::{self, Counts, Layout, Store};
use crate::catalog::{MountRow, StoreError, TableChange};
use crate::volumes::world;

const STORE: &str = "mount table";
const FILE: StoreFile = StoreFile { store: STORE, name: "mounts.redb", cache: 1 << 20 };

const MOUNTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("mounts");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const BOOT_KEY: &str = "boot";

/// The holders of this boot.
#[derive(Debug)]
pub(crate) struct Table {
    store: RefCell<Store<Boot>>,
}

impl Table {
    /// Opens or makes the table in `dir` and reads it whole. Rows of a boot other than `boot_id` are dropped first.
    pub(crate) fn open(dir: &Path, boot_id: &str) -> Result<(Self, Vec<MountRow>), StoreError> {
        Self::read(dir, boot_id).map_err(|error| with_cure(error, dir))
    }

    fn read(dir: &Path, boot_id: &str) -> Result<(Self, Vec<MountRow>), StoreError> {
        let database = FILE.open(dir, |database| begin_boot(database, boot_id))?;
        let same_boot = || -> Result<bool, redb::Error> {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get(BOOT_KEY)?.is_some_and(|boot| boot.value() == boot_id))
        };
        if !same_boot().map_err(|e| read_error(store::words(&e)))? {
            begin_boot(&database, boot_id).map_err(|e| read_error(store::words(&e)))?;
        }
        let rows = read(&database)?;
        let dir = dir.to_owned();
        let store = Store::new(database, move || FILE.open_again(&dir));
        Ok((Self { store: store.into() }, rows))
    }

    /// How often it committed.
    pub(crate) fn counts(&self) -> Counts {
        self.store.borrow().counters().read()
    }
}

impl world::Table for Table {
    async fn commit(&self, change: TableChange) -> Result<(), StoreError> {
        self.store.borrow_mut().commit(&[&change])
    }
}

fn begin_boot(database: &Database, boot_id: &str) -> Result<(), redb::Error> {
    let tx = database.begin_write()?;
    tx.delete_table(MOUNTS)?;
    tx.open_table(MOUNTS)?;
    tx.open_table(META)?.insert(BOOT_KEY, boot_id)?;
    Ok(tx.commit()?)
}

fn read(database: &Database) -> Result<Vec<MountRow>, StoreError> {
    let rows = || -> Result<Vec<(u128, Vec<u8>)>, redb::Error> {
        let mut rows = Vec::new();
        for row in database.begin_read()?.open_table(MOUNTS)?.iter()? {
            let (id, value) = row?;
            rows.push((id.value(), value.value().to_vec()));
        }
        Ok(rows)
    };
    let parse = |(id, bytes): (u128, Vec<u8>)| {
        let row = check_form(&bytes)
            .and_then(|()| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
        row.map(|Versioned { row, .. }| row)
            .map_err(|why| read_error(format!("row {}: {why}", Id::from_bits(id))))
    };
    rows().map_err(|e| read_error(store::words(&e)))?.into_iter().map(parse).collect()
}

struct Boot;

impl Layout for Boot {
    type Change = TableChange;
    const STORE: &'static str = STORE;
    const OUTLIVES_POWER: bool = false;

    fn apply(tx: &WriteTransaction, changes: &[&TableChange]) -> Result<(), redb::Error> {
        let mut mounts = tx.open_table(MOUNTS)?;
        for change in changes {
            match change {
                TableChange::Put(row) => {
                    let value = json(&Versioned::new(row.as_ref()))?;
                    mounts.insert(row.id.bits(), value.as_slice())?;
                }
                TableChange::Delete(id) => {
                    mounts.remove(id.bits())?;
                }
            }
        }
        Ok(())
    }
}

/// What a person does about a table that cannot be read. It holds nothing that the kernel does not show again: recovery unmounts
/// what nobody has, and leaves what somebody has.
fn with_cure(error: StoreError, dir: &Path) -> StoreError {
    let StoreError::Read { store, why } = error else { return error };
    // The daemon has its directories by descriptors.
    let file = std::fs::read_link(dir).unwrap_or_else(|_| dir.to_owned()).join(FILE.name);
    let cure = format!(
        "it holds only who uses volumes in this boot: stop the containers that use them, remove `{}`, start wasmvol again",
        file.display()
    );
    StoreError::Read { store, why: format!("{why}; {cure}") }
}

fn read_error(why: String) -> StoreError {
    StoreError::Read { store: STORE, why }
}

#[cfg(test)]
mod tests {
    use wasmvol_plan::{Facts, Plan, Source};

    use super::*;
    use crate::volumes::world::Table as _;

    fn row(id: u128) -> MountRow {
        let facts =
            Facts { device: (0, 63), root: "/".into(), filesystem: "tmpfs".into(), mount_id: 7 };
        let holders = r#"[{"id":"a","count":2,"caller":{"engine":{"pid":7,"start":9}},"since":1}]"#;
        let source = Source::Storage;
        let plan = Plan { source, read_only: false, no_exec: false, subpath: None, id_map: None };
        let holders = serde_json::from_str(holders).unwrap();
        MountRow { id: Id::from_bits(id), facts, plan, holders }
    }

    fn commit(dir: &Path, boot: &str, changes: Vec<TableChange>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (table, _) = Table::open(dir, boot).unwrap();
        for change in changes {
            runtime.block_on(table.commit(change)).unwrap();
        }
    }

    fn rows(dir: &Path, boot: &str) -> Vec<MountRow> {
        Table::open(dir, boot).unwrap().1
    }

    #[test]
    fn holders_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let put = |id| TableChange::Put(Box::new(row(id)));
        commit(dir.path(), "boot-1", vec![put(1), put(2), TableChange::Delete(Id::from_bits(1))]);
        assert_eq!(rows(dir.path(), "boot-1"), [row(2)]);
    }

    fn write(dir: &Path, value: &[u8]) {
        let (table, _) = Table::open(dir, "boot-1").unwrap();
        drop(table);
        let database = FILE.open_again(dir).unwrap();
        let tx = database.begin_write().unwrap();
        tx.open_table(MOUNTS).unwrap().insert(7, value).unwrap();
        tx.commit().unwrap();
    }

    #[test]
    fn a_row_that_cannot_be_read_is_named_with_the_cure_which_works() {
        let mut later = serde_json::to_value(Versioned::new(row(7))).unwrap();
        later["v"] = 2.into();
        for (value, why) in [
            (later.to_string(), "has form 2, and this wasmvol knows form 1"),
            ("{}".to_owned(), "missing field `v`"),
            (r#"{"v":1}"#.to_owned(), "missing field `id`"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), value.as_bytes());
            let error = Table::open(dir.path(), "boot-1").unwrap_err().to_string();
            let path = dir.path().join(FILE.name);
            let (row, cure) =
                (Id::from_bits(7).to_string(), format!("remove `{}`", path.display()));
            assert!(
                error.contains(&row) && error.contains(why) && error.contains(&cure),
                "{error}"
            );
            std::fs::remove_file(path).unwrap();
            assert_eq!(rows(dir.path(), "boot-1"), []);
        }
    }

    #[test]
    fn what_a_later_wasmvol_adds_to_a_row_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut later = serde_json::to_value(Versioned::new(row(7))).unwrap();
        later["new"] = true.into();
        later["holders"][0]["new"] = true.into();
        later["facts"]["new"] = true.into();
        write(dir.path(), later.to_string().as_bytes());
        assert_eq!(rows(dir.path(), "boot-1"), [row(7)]);
    }

    #[test]
    fn holders_of_another_boot_are_dropped_for_good() {
        let dir = tempfile::tempdir().unwrap();
        commit(dir.path(), "boot-1", vec![TableChange::Put(Box::new(row(1)))]);
        assert_eq!(rows(dir.path(), "boot-2"), []);
        assert_eq!(rows(dir.path(), "boot-1"), []);
    }
}
