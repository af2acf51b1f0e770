//! Where engines ask: each verb is noted in the ledger before it is asked and when it is answered. And where operators tinker.

use std::cell::RefCell;
use std::rc::Rc;

use wasmvol_plan::Id;

use super::kernel::Copy;
use super::ledger::{Asked, Ledger, Verb};
use super::world::Sim;
use crate::volumes::holders::Caller;
use crate::volumes::{Insist, VolumeError, Volumes};

/// The names that a backend may know, too.
const EXPORTED: [&str; 2] = ["dd", "ee"];

/// One daemon, as engines reach it.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) sim: Sim,
    pub(super) volumes: Rc<Volumes<Sim>>,
    pub(super) ledger: Rc<RefCell<Ledger>>,
}

impl Desk {
    pub(super) async fn create(
        &self,
        name: &'static str,
        driver: &'static str,
        size: &'static str,
        is_kept: bool,
    ) -> Result<(), VolumeError> {
        let asked: Asked = Some((driver, size, is_kept));
        let reclaim = if is_kept { "retain" } else { "delete" };
        let options = [("driver", driver), ("size", size), ("reclaim", reclaim)];
        let options = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        self.note(Verb::Create { name, asked }, self.volumes.create(name, options)).await
    }

    /// Who insists needs no driver: what it would have said does not count any more.
    pub(super) async fn remove(
        &self,
        name: &'static str,
        caller: Caller,
        insist: Insist,
    ) -> Result<(), VolumeError> {
        if insist == Insist::Yes {
            let records = self.sim.records.borrow();
            let ids = records.values().filter(|r| r.name.as_str() == name).map(|r| r.id);
            self.sim.kernel.borrow_mut().forced.extend(ids);
        }
        self.note(Verb::Remove { name }, self.volumes.remove(name, caller, insist)).await
    }

    pub(super) async fn mount(
        &self,
        name: &'static str,
        holder: &str,
        caller: Caller,
    ) -> Result<(), VolumeError> {
        let verb = Verb::Mount { name, holder: holder.to_owned() };
        let mount = async { self.volumes.mount(name, holder, caller).await.map(drop) };
        self.note(verb, mount).await
    }

    pub(super) async fn unmount(
        &self,
        name: &'static str,
        holder: &str,
    ) -> Result<(), VolumeError> {
        let verb = Verb::Unmount { name, holder: holder.to_owned() };
        self.note(verb, self.volumes.unmount(name, holder)).await
    }

    async fn note(
        &self,
        verb: Verb,
        asked: impl Future<Output = Result<(), VolumeError>>,
    ) -> Result<(), VolumeError> {
        let name = verb.name();
        let number = self.ledger.borrow_mut().begin(verb);
        let result = asked.await;
        let shown = self.volumes.get(name, |view| view.status.id).ok();
        self.ledger.borrow_mut().end(number, result.as_ref().err(), shown);
        self.sim.look();
        result
    }

    /// The engine binds what is at the mountpoint into a container. False if there is nothing.
    pub(super) fn start(&self, name: &'static str, container: u64, holder: &str) -> bool {
        let Ok(mountpoint) = self.volumes.path(name) else { return false };
        let id = mountpoint.rsplit('/').next().and_then(|id| Id::parse(id).ok()).expect("an id");
        let is_hidden = self.sim.is_rude() && self.sim.chance(50);
        let mut kernel = self.sim.kernel.borrow_mut();
        let Some(facts) = kernel.mount_of(id) else { return false };
        let (device, holder) = (facts.device, holder.to_owned());
        kernel.copies.push(Copy { container, id, device, holder, is_promised: true, is_hidden });
        true
    }

    /// Mount and Unmount with the container's own ID. After live-restore that gives back what the container had: from then on only
    /// the kernel knows of it.
    pub(super) async fn docker_cp(
        &self,
        name: &'static str,
        container: u64,
        holder: &str,
        caller: Caller,
    ) -> Result<(), VolumeError> {
        let is_of_this_epoch = {
            let state = self.volumes.state.borrow();
            let holders = state.volumes.get(name).map(|entry| entry.holders.iter());
            holders.into_iter().flatten().any(|h| h.id == holder && h.caller == caller)
        };
        if !is_of_this_epoch && let Some(copy) = self.sim.kernel.borrow_mut().copy_of(container) {
            copy.is_promised = false;
        }
        self.mount(name, holder, caller).await?;
        self.unmount(name, holder).await
    }

    /// An operator ends what is kept.
    pub(super) async fn purge(&self) -> Result<(), VolumeError> {
        let kept: Vec<Id> = self.volumes.get_kept(|record, _, _| record.id);
        if kept.is_empty() {
            return Ok(());
        }
        self.volumes.purge(kept[self.sim.pick(kept.len())], Insist::No).await.map(drop)
    }

    /// What operators and other programs do while the daemon runs.
    pub(super) fn tinker(&self) {
        match self.sim.pick(4) {
            0 => self.sim.turn_opaque(),
            1 => self.sim.unload_driver(&self.volumes),
            _ => {
                let name = EXPORTED[self.sim.pick(EXPORTED.len())];
                self.sim.change_exports(name);
                self.ledger.borrow_mut().may_be_found(name);
            }
        }
    }
}
