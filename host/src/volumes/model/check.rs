//! The invariants, looked at after every step.
//!
//! [`always`] holds at any moment, also in the middle of a verb, in a recovery and while the daemon is away: it compares what
//! outlives the daemon. [`at_rest`] holds for each volume that no verb is busy with, once recovery has ended: it compares that with
//! memory. [`promised`] compares both with what was acknowledged.

use std::collections::BTreeMap;

use wasmvol_driver::Reclaim;
use wasmvol_plan::{Id, Storage, VolumeName};

use super::drivers::reads;
use super::engines::NAMES;
use super::kernel::Fill;
use super::ledger::{Counts, Ledger};
use super::world::Sim;
use crate::catalog::record::{Phase, Record};
use crate::volumes::{Entry, Volumes};

/// At any moment: records, rows, mounts, storage and backends fit together.
pub(super) fn always(sim: &Sim) {
    let (records, rows, kernel) = (sim.records.borrow(), sim.rows.borrow(), sim.kernel.borrow());
    let phase = |id: &Id| records.get(id).map(|record| record.phase);
    for (id, stack) in &kernel.anchor {
        assert_eq!(stack.len(), 1, "I2: {id} is mounted twice");
        let is_named = matches!(phase(id), Some(Phase::Ready | Phase::Removing));
        assert!(
            is_named || kernel.stray_mounts.contains(id),
            "I1: {id} is mounted without a volume"
        );
    }
    for id in rows.keys() {
        assert_eq!(phase(id), Some(Phase::Ready), "I4: {id} has holders and is no volume");
    }
    for copy in &kernel.copies {
        let id = copy.id;
        assert_eq!(phase(&id), Some(Phase::Ready), "I11: a container has {id}, which is gone");
        let is_same = kernel.mount_of(id).is_none_or(|facts| facts.device == copy.device);
        assert!(is_same, "I15: two superblocks of {id}");
        let row = rows.get(&id).map(|row| &row.holders);
        let is_held = row.is_some_and(|holders| holders.iter().any(|h| h.id == copy.holder));
        assert!(is_held || !copy.is_promised, "I5: the holder of a running container is dropped");
    }
    for record in records.values() {
        storage_and_backend(sim, record);
    }
    for record in records.values().filter(|record| record.phase == Phase::Ready) {
        let Record { name, driver, state, .. } = record;
        let version = &sim.drivers.borrow()[driver].version;
        assert!(reads(version, state), "{driver} {version} has got {name} with a foreign state");
    }
    for id in &kernel.storage {
        assert!(phase(id).is_some() || kernel.strangers.contains(id), "I14: {id} lies about");
    }
    assert!(kernel.strangers.is_subset(&kernel.storage), "I11: a stranger's directory is gone");
    for id in &sim.backend.borrow().attached {
        let is_known = records.get(id).is_some_and(|record| record.attached);
        assert!(is_known || kernel.forced.contains(id), "{id} is attached, and no record says so");
    }
    for (id, record) in &*records {
        let is_mounted = kernel.anchor.contains_key(id) && !kernel.stray_mounts.contains(id);
        let must_be = is_mounted && record.driver.as_str() == "tmpfs";
        assert!(!must_be || record.attached, "{id} is mounted and not attached");
    }
    for id in &sim.backend.borrow().made {
        assert!(phase(id).is_some() || kernel.forced.contains(id), "I8: the backend keeps {id}");
    }
}

fn storage_and_backend(sim: &Sim, record: &Record) {
    let Record { id, phase, storage, .. } = record;
    let kernel = sim.kernel.borrow();
    let is_meant = matches!(phase, Phase::Ready | Phase::Retained);
    if is_meant && *storage != Storage::None {
        assert!(kernel.storage.contains(id), "I11: the data of {id} is gone");
        let is_said = record.state.ends_with(b"/filled");
        assert!(is_said, "what the driver of {id} said last is lost");
    }
    if is_meant && *storage != Storage::None {
        assert_eq!(kernel.fills.get(id), Some(&Fill::Settled), "{id} is there before it is full");
    }
    let is_trash = kernel.trash.contains(id);
    assert!(!(is_meant && is_trash), "I14: the data of {id} lies in the trash");
    if is_found(record) {
        assert_eq!(record.reclaim, Some(Reclaim::Retain), "I11: {id} was found, and not retained");
    } else if *phase == Phase::Ready {
        assert!(sim.backend.borrow().made.contains(id), "I7: the backend does not know {id}");
    }
}

fn is_found(record: &Record) -> bool {
    record.extra.contains_key("found")
}

/// Of each volume that no verb is busy with: memory shows what is there, and whatever is unfinished will be tried again.
pub(super) fn at_rest(sim: &Sim, volumes: &Volumes<Sim>) {
    let records = sim.records.borrow();
    let state = volumes.state.borrow();
    for record in records.values().filter(|record| is_free(volumes, record)) {
        let is_there = match record.phase.is_kept() {
            true => state.retained.contains_key(&record.id),
            false => state.volumes.get(&record.name).is_some_and(|e| e.record.id == record.id),
        };
        assert!(is_there, "I7: {} is in the catalog and not in memory", record.name);
    }
    for entry in state.volumes.values().filter(|entry| is_free(volumes, &entry.record)) {
        let name = &entry.record.name;
        assert_eq!(records.get(&entry.record.id), Some(&entry.record), "I7: record of {name}");
        let is_waiting = entry.waiting.is_some();
        assert!(
            is_waiting || entry.record.phase == Phase::Ready,
            "I9: {name} is half done for ever"
        );
        mounted_while_held(sim, entry);
        missing_where_not_listed(sim, entry);
    }
    drop(state);
    let kernel = sim.kernel.borrow();
    for id in &kernel.stray_mounts {
        let is_told = volumes.state.borrow().stray_mounts.contains_key(id);
        assert!(is_told || !kernel.anchor.contains_key(id), "I1: nobody is told of {id}");
    }
}

fn is_free(volumes: &Volumes<Sim>, record: &Record) -> bool {
    volumes.try_enter(&record.name, |_| true).is_some()
}

fn mounted_while_held(sim: &Sim, entry: &Entry) {
    let Record { id, name, .. } = &entry.record;
    let (kernel, rows) = (sim.kernel.borrow(), sim.rows.borrow());
    let is_waiting = entry.waiting.is_some();
    let mount = kernel.mount_of(*id);
    assert!(is_waiting || mount == entry.facts.as_ref(), "I2: the mount of {name} is another");
    let is_held = !entry.holders.is_empty();
    assert!(
        is_waiting || mount.is_some() == is_held,
        "I4: {name} has holders or a mount, not both"
    );
    assert!(entry.holders.iter().all(|h| h.count > 0), "I25: a holder without a count");
    let row = rows.get(id).map(|row| row.holders.clone()).unwrap_or_default();
    assert_eq!(row, entry.holders, "I4: the table and memory differ about {name}");
    let is_in_use = kernel.copies.iter().any(|copy| copy.id == *id);
    assert!(is_waiting || mount.is_some() || !is_in_use, "I5: a container's {name} is not mounted");
}

fn missing_where_not_listed(sim: &Sim, entry: &Entry) {
    let backend = sim.backend.borrow();
    let is_asked = is_found(&entry.record) && entry.record.phase == Phase::Ready;
    let Some(listed) = backend.taken_in.as_ref().filter(|_| is_asked) else { return };
    let name = entry.record.name.as_str();
    assert_eq!(entry.missing.is_some(), !listed.contains(name), "{name} is missing, or is not");
}

/// What was acknowledged has happened, and nothing else: of each volume that no engine's verb is busy with. Without `volumes` the
/// daemon is away, or is recovering.
pub(super) fn promised(sim: &Sim, volumes: Option<&Volumes<Sim>>, ledger: &mut Ledger) {
    let ids: BTreeMap<String, Id> = {
        let records = sim.records.borrow();
        let shown = records.values().filter(|r| !r.phase.is_kept());
        shown.map(|record| (record.name.to_string(), record.id)).collect()
    };
    let is_busy = NAMES.map(|name| ledger.is_busy(name));
    for (name, _) in NAMES.into_iter().zip(is_busy).filter(|(_, is_busy)| !is_busy) {
        let id = ids.get(name);
        if let Some(promised) = ledger.promised(name) {
            assert_eq!(id, Some(&promised), "I7: {name} was acknowledged");
        }
        let rows = sim.rows.borrow();
        let row = id.and_then(|id| rows.get(id)).map(|row| row.holders.iter());
        let there: Counts = row.into_iter().flatten().map(|h| (h.id.clone(), h.count)).collect();
        ledger.settle_counts(name, &there);
        if let Some(volumes) = volumes
            && volumes.locks.try_hold(&VolumeName::parse(name).expect("a name")).is_some()
        {
            let shown = volumes.get(name, |view| view.status.id).ok();
            let state = volumes.state.borrow();
            let entry = state.volumes.get(name);
            let is_going = entry.is_some_and(|entry| entry.record.phase == Phase::Removing);
            ledger.settle(name, shown, is_going);
        }
    }
}
