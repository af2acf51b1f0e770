//! Mount and Unmount: a volume is mounted while it has holders.
//!
//! The kernel's mount comes first and the holder's row second: a mount without a holder was never acknowledged, and is taken away
//! by recovery. At the last Unmount the row goes first and the mount second, if the kernel shows that nobody has it; until then it
//! is *draining*, and the next Mount takes it back as it is.

use wasmvol_plan::{Evidence, Facts, Plan, Release, Storage, VolumeName};

use super::gate::Entered;
use super::holders::{Caller, HOLDER_ID_MAX, HOLDERS_MAX, Holders};
use super::world::{Drivers, MountRequest, Mounter, Table, World};
use super::{Entry, VolumeError, Volumes};
use crate::catalog::record::Phase;
use crate::catalog::{MountRow, TableChange};

impl<W: World> Volumes<W> {
    /// Mounts a volume for a holder and answers its mountpoint.
    pub(crate) async fn mount(
        &self,
        name: &str,
        holder: &str,
        caller: Caller,
    ) -> Result<String, VolumeError> {
        let name = VolumeName::parse(name)?;
        check_holder(holder)?;
        self.until_recovered().await?;
        let asks = |entry: &Entry| entry.mounted().is_none() || entry.is_attached();
        let mut entered = self.enter(&name, None, asks).await?;
        let found = self.read(&name, |entry| {
            (entry.record.phase, entry.mountpoint.clone(), entry.holders.clone())
        });
        let Some((phase, mountpoint, mut holders)) = found else {
            return Err(VolumeError::NotFound);
        };
        match phase {
            Phase::Ready => {}
            Phase::Removing => return Err(VolumeError::Unfinished("is being removed".into())),
            Phase::Creating | Phase::Retained | Phase::Purging => {
                return Err(VolumeError::NotFound);
            }
        }
        if !holders.add(holder, caller, self.now_and_uptime(), self.is_running()) {
            let why = format!("it has {HOLDERS_MAX} holders already");
            return Err(VolumeError::InUse(why));
        }
        self.step("mount.begin").await;
        let held = async {
            self.attach(&name, caller.pid(), &mut entered).await?;
            self.step("mount.attached").await;
            self.hold(&name, holders).await
        };
        if let Err(error) = held.await {
            // A mount that was made all the same, whatever was heard of it, has no holder: it goes.
            if self.read(&name, |entry| entry.holders.is_empty()) == Some(true) {
                self.drain(&name).await;
            }
            return Err(error);
        }
        self.write(&name, |entry| entry.waiting = None);
        self.step("mount.held").await;
        Ok(mountpoint)
    }

    /// Takes one count off a holder; the last one unmounts. An unknown holder or volume is done already. Also the undo of a Mount
    /// whose client has gone.
    pub(crate) async fn unmount(&self, name: &str, holder: &str) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        check_holder(holder)?;
        self.until_recovered().await?;
        let _entered = self.enter(&name, None, Entry::is_attached).await?;
        let found = self.read(&name, |entry| entry.holders.clone());
        let Some(mut holders) = found else { return Ok(()) };
        if holders.release(holder) {
            self.step("unmount.begin").await;
            self.hold(&name, holders).await?;
            self.step("unmount.released").await;
        }
        if self.read(&name, Entry::is_draining) == Some(true) {
            self.drain(&name).await;
            self.step("unmount.gone").await;
        }
        Ok(())
    }

    /// Makes a volume's holders durable: no holders, no row.
    pub(super) async fn hold(
        &self,
        name: &VolumeName,
        holders: Holders,
    ) -> Result<(), VolumeError> {
        let found = self.read(name, |entry| {
            let facts = entry.facts.clone().or_else(|| entry.last.clone());
            (entry.record.id, facts, entry.plan.clone())
        });
        let Some((id, facts, plan)) = found else { return Ok(()) };
        let change = match (facts, plan) {
            (Some(facts), Some(plan)) if !holders.is_empty() => {
                TableChange::Put(Box::new(MountRow { id, facts, plan, holders: holders.clone() }))
            }
            _ => TableChange::Delete(id),
        };
        self.world.table().commit(change).await?;
        self.write(name, |entry| entry.holders = holders);
        Ok(())
    }

    /// Sees to it that a volume is mounted at its mountpoint, and is there for the process `peer`. A mount that is there already is
    /// found by mountd, never doubled.
    pub(super) async fn attach(
        &self,
        name: &VolumeName,
        peer: Option<u32>,
        entered: &mut Entered<'_>,
    ) -> Result<Facts, VolumeError> {
        let found = self.read(name, |entry| {
            let record = &entry.record;
            let last = entry.facts.clone().or_else(|| entry.last.clone());
            let plan = entry.mounted().map(|(_, plan)| plan.clone());
            (record.id, record.driver.clone(), record.storage.clone(), plan, last)
        });
        let Some((id, driver, storage, plan, last)) = found else {
            return Err(VolumeError::NotFound);
        };
        let drivers = self.world.drivers();
        let plan: Plan = match plan {
            Some(plan) => plan,
            None => {
                self.reach(name).await?;
                let found = self.read(name, Entry::volume);
                let volume = found.ok_or(VolumeError::NotFound)?;
                let plan = drivers.path(&driver, &volume).await;
                plan.map_err(|error| VolumeError::Driver { driver: driver.clone(), error })?
            }
        };
        let checked = plan.check(&storage, &drivers.grants(&driver)?);
        checked.map_err(|fault| VolumeError::Refused { driver: driver.clone(), fault })?;
        self.step("mount.planned").await;
        if self.read(name, Entry::is_attached) != Some(true) {
            // A server that hangs keeps no other version of the driver from being loaded.
            entered.leave();
        }
        let request = MountRequest {
            id,
            driver: &driver,
            storage: &storage,
            plan: &plan,
            peer,
            last: last.as_ref(),
        };
        let mounted = self.world.mounter().mount(request).await;
        let facts = mounted.map_err(|fault| VolumeError::of(&driver, fault))?;
        self.write(name, |entry| {
            entry.facts = Some(facts.clone());
            entry.last = None;
            entry.ended = None;
            entry.plan = Some(plan);
            // A mount shows that the storage is there. Whether a backend still knows the volume, only its driver says.
            if storage != Storage::None {
                entry.missing = None;
            }
        });
        Ok(facts)
    }

    /// Unmounts a volume that has no holders, unless the kernel shows that somebody has it: then later.
    pub(super) async fn drain(&self, name: &VolumeName) {
        let found = self.read(name, |entry| (entry.record.id, entry.attached()));
        let Some((id, attached)) = found else { return };
        let held = match self.world.mounter().unmount(id, attached).await {
            Ok(Release::Gone) => None,
            Ok(Release::Held(evidence)) => Some(describe(&evidence)),
            Err(fault) => Some(fault.to_string()),
        };
        if held.is_none() {
            self.write(name, Entry::unmounted);
        }
        let why = match held {
            None => self.let_go(name).await.err().map(|error| error.to_string()),
            held => held,
        };
        self.write(name, |entry| match why {
            None => entry.waiting = None,
            Some(why) => entry.put_off(why),
        });
    }
}

impl Entry {
    /// There is no mount any more, and nothing to remember of it.
    pub(super) fn unmounted(&mut self) {
        self.facts = None;
        self.last = None;
        self.plan = None;
        self.ended = None;
        self.usage = None;
        self.ailing = None;
    }
}

/// Who has a volume mounted, in one line.
pub(super) fn describe(evidence: &Evidence) -> String {
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = evidence
        .holders
        .iter()
        .take(SHOWN)
        .map(|sighting| format!("process {} has it at `{}`", sighting.pid, sighting.path))
        .collect();
    if let more @ 1.. = evidence.holders.len().saturating_sub(SHOWN) {
        parts.push(format!("{more} more"));
    }
    if evidence.unknown > 0 {
        parts.push(format!("{} processes cannot be looked into", evidence.unknown));
    }
    parts.join(", ")
}

fn check_holder(holder: &str) -> Result<(), VolumeError> {
    let fits = !holder.is_empty()
        && holder.len() <= HOLDER_ID_MAX
        && holder.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    let line = format!("a mount needs an ID of 1 to {HOLDER_ID_MAX} letters, digits or signs");
    Err(VolumeError::Option(line))
}
