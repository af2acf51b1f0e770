//! The invariants of one quiet moment: no call is under way, recovery has ended.

use std::collections::BTreeSet;
use std::rc::Rc;

use wasmvol_plan::{Id, Storage};

use super::engines::Engines;
use super::sim::Sim;
use crate::catalog::record::Phase;
use crate::volumes::Volumes;

pub(super) fn invariants(sim: &Sim, volumes: &Rc<Volumes<Sim>>, engines: &mut Engines) {
    engines.look_again(volumes);
    mounts_and_rows_agree(sim, volumes);
    containers_keep_their_data(sim, volumes);
    records_agree(sim, volumes);
    storage_agrees(sim, volumes);
    acknowledged_is_acknowledged(volumes, engines);
}

fn mounts_and_rows_agree(sim: &Sim, volumes: &Volumes<Sim>) {
    let state = volumes.state.borrow();
    let kernel = sim.kernel.borrow();
    for (id, stack) in &kernel.anchor {
        assert_eq!(stack.len(), 1, "I2: {id} is mounted twice");
        let entry = state.volumes.values().find(|entry| entry.record.id == *id);
        match entry {
            Some(entry) => assert_eq!(entry.facts.as_ref(), stack.last(), "I2: facts of {id}"),
            None => assert!(state.stray_mounts.contains_key(id), "I1: a mount without a volume"),
        }
    }
    for entry in state.volumes.values() {
        let id = entry.record.id;
        let is_mounted = kernel.anchor.contains_key(&id);
        assert_eq!(is_mounted, entry.facts.is_some(), "I2: {} is mounted", entry.record.name);
        if entry.is_draining() {
            assert!(entry.waiting.is_some(), "I4: {} drains and nobody comes back to it", id);
        }
        if !entry.holders.is_empty() && !is_mounted {
            assert!(entry.waiting.is_some(), "I4: {id} has holders, no mount and no reason");
        }
        assert!(entry.holders.iter().all(|h| h.count > 0), "I25: a holder without a count");
        let rows = sim.rows.borrow();
        let row = rows.get(&id).map(|row| row.holders.clone()).unwrap_or_default();
        assert_eq!(row, entry.holders, "I4: the table and memory differ about {id}");
    }
}

fn containers_keep_their_data(sim: &Sim, volumes: &Volumes<Sim>) {
    let kernel = sim.kernel.borrow();
    for copy in &kernel.copies {
        let stack = kernel.anchor.get(&copy.id);
        let facts = stack.and_then(|stack| stack.last());
        let is_waiting = || {
            let state = volumes.state.borrow();
            state.volumes.values().any(|e| e.record.id == copy.id && e.waiting.is_some())
        };
        match facts {
            Some(facts) => assert_eq!(facts.device, copy.device, "I15: two superblocks"),
            None => assert!(is_waiting(), "I5: a container's volume is not mounted"),
        }
    }
}

fn records_agree(sim: &Sim, volumes: &Volumes<Sim>) {
    let state = volumes.state.borrow();
    let records = sim.records.borrow();
    assert_eq!(records.len(), state.volumes.len() + state.retained.len(), "I7: a record is lost");
    for entry in state.volumes.values() {
        let record = &entry.record;
        assert_eq!(records.get(&record.id), Some(record), "I7: catalog and memory differ");
        if record.phase != Phase::Ready {
            assert!(entry.waiting.is_some(), "I9: {} is {:?} for ever", record.name, record.phase);
        }
        if record.phase == Phase::Ready {
            assert!(sim.backend.borrow().contains(&record.id), "I7: the backend forgot a volume");
        }
    }
    let known: BTreeSet<Id> = records.keys().copied().collect();
    let backend = sim.backend.borrow();
    let left: Vec<_> = backend.difference(&known).collect();
    assert!(left.is_empty(), "I8: the backend keeps {left:?}");
}

fn storage_agrees(sim: &Sim, volumes: &Volumes<Sim>) {
    let state = volumes.state.borrow();
    let kernel = sim.kernel.borrow();
    for entry in state.volumes.values().filter(|e| e.record.phase == Phase::Ready) {
        if entry.record.storage != Storage::None {
            assert!(kernel.storage.contains(&entry.record.id), "I11: data of a volume is gone");
        }
    }
    let named: BTreeSet<Id> = state.volumes.values().map(|entry| entry.record.id).collect();
    for id in &kernel.storage {
        assert!(named.contains(id) || kernel.strangers.contains(id), "I14: {id} lies about");
    }
    assert!(kernel.strangers.is_subset(&kernel.storage), "I11: a stranger's directory is gone");
    let is_ready = |id: &Id| sim.records.borrow().get(id).is_some_and(|r| r.phase == Phase::Ready);
    assert!(!kernel.trash.iter().any(is_ready), "I14: a volume's data lies in the trash");
}

fn acknowledged_is_acknowledged(volumes: &Volumes<Sim>, engines: &Engines) {
    for (name, id) in &engines.known {
        let shown = volumes.get(name, |view| view.status.id);
        assert_eq!(shown.ok(), Some(*id), "I7: {name} is gone, or another");
    }
    volumes.list(|name, _| assert!(engines.known.contains_key(name), "I7: {name} came back"));
    let state = volumes.state.borrow();
    for (name, counts) in &engines.counts {
        if engines.tainted.contains(name) {
            continue;
        }
        let Some(entry) = state.volumes.get(*name) else { continue };
        let there = entry.holders.iter().map(|h| (h.id.clone(), h.count)).collect();
        assert_eq!(*counts, there, "I25: holders of {name}");
    }
}
