//! The simulated kernel and the mountd above it: mounts at the anchor, the copies that containers have, storage and trash; and what
//! people do to them behind our back.
//!
//! A request may be refused, or be done without an answer. What mountd itself promises is asserted here.

use std::collections::{BTreeMap, BTreeSet};

use wasmvol_driver::Reclaim;
use wasmvol_plan::frame::{Attached, Inventory};
use wasmvol_plan::kinds::named_directory::Mark;
use wasmvol_plan::{
    DriverName, Evidence, Facts, Fault, FaultKind, Id, Measure, Release, SecretName, Sighting,
    Source, Storage, Usage,
};

use super::world::Sim;
use crate::catalog::record::Phase;
use crate::volumes::holders::Process;
use crate::volumes::world::{MountRequest, Mounter};

/// A container's own copy of a volume's mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) container: u64,
    pub(super) id: Id,
    pub(super) device: (u32, u32),
    /// The mount ID that was acknowledged to its engine.
    pub(super) holder: String,
    /// Whether its engine still counts on that ID: `docker cp` after live-restore gives it back early.
    pub(super) is_promised: bool,
    /// Its process cannot be looked into.
    pub(super) is_hidden: bool,
}

/// How far the filling of a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// There is nothing in it.
    Empty,
    /// Its driver has written something, and not said that this is all.
    Begun,
    Filled,
    Settled,
}

/// The root of storage, open until it is dropped.
pub(super) struct Root(Sim, pub(super) Id);

impl Drop for Root {
    fn drop(&mut self) {
        self.0.kernel.borrow_mut().open.remove(&self.1);
    }
}

/// What a reboot clears, and what it does not.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// Mounts at the anchor; more than one for an id would be a stack.
    pub(super) anchor: BTreeMap<Id, Vec<Facts>>,
    pub(super) copies: Vec<Copy>,
    pub(super) storage: BTreeSet<Id>,
    pub(super) trash: BTreeSet<Id>,
    /// How far storage is that its driver fills.
    pub(super) fills: BTreeMap<Id, Fill>,
    /// Roots of such storage that the daemon has open.
    open: BTreeSet<Id>,
    /// Directories that somebody else put into `volumes/`.
    pub(super) strangers: BTreeSet<Id>,
    /// Mounts under the anchor that no record names.
    pub(super) stray_mounts: BTreeSet<Id>,
    /// Ids whose removal somebody insisted on: what their drivers say does not count.
    pub(super) forced: BTreeSet<Id>,
    pub(super) running: BTreeSet<(u32, u64)>,
    /// A process that has nothing to do with us cannot be looked into.
    is_opaque: bool,
    devices: u32,
    /// Volumes for which a changing request is under way (I26).
    busy: BTreeSet<Id>,
}

impl Kernel {
    pub(super) fn mount_of(&self, id: Id) -> Option<&Facts> {
        self.anchor.get(&id).and_then(|stack| stack.last())
    }

    pub(super) fn copy_of(&mut self, container: u64) -> Option<&mut Copy> {
        self.copies.iter_mut().find(|copy| copy.container == container)
    }

    pub(super) fn forget_copy(&mut self, container: u64) {
        self.copies.retain(|copy| copy.container != container);
    }

    pub(super) fn forget_requests(&mut self) {
        self.busy.clear();
    }

    pub(super) fn reboot(&mut self) {
        self.anchor.clear();
        self.copies.clear();
        self.running.clear();
        self.stray_mounts.clear();
        self.is_opaque = false;
    }

    /// What a scan of /proc finds: a process that cannot be read may have any volume.
    fn evidence(&self, id: Id) -> Evidence {
        let (hidden, seen): (Vec<_>, Vec<_>) = self.copies.iter().partition(|c| c.is_hidden);
        let holders = seen.iter().filter(|copy| copy.id == id).map(|copy| Sighting {
            pid: u32::try_from(copy.container).unwrap_or(0),
            path: "/data".into(),
        });
        let unknown = hidden.len() + usize::from(self.is_opaque);
        Evidence { holders: holders.collect(), unknown: u32::try_from(unknown).unwrap_or(1) }
    }

    /// Mounts what the plan says, or takes back the superblock that a container still has.
    fn attach(&mut self, request: MountRequest<'_>) -> Result<Facts, Fault> {
        let MountRequest { id, plan, last, .. } = request;
        if let Some(facts) = self.mount_of(id) {
            return Ok(facts.clone());
        }
        self.devices += 1;
        let mount_id = u64::from(self.devices);
        let facts = match &plan.source {
            Source::Storage if !self.storage.contains(&id) => {
                return Err(Fault::new(FaultKind::Missing, "its directory is gone"));
            }
            Source::Storage if self.fills.get(&id) != Some(&Fill::Settled) => {
                panic!("{id} is mounted, and was not filled")
            }
            Source::Storage => Facts {
                device: (254, 0),
                root: format!("/volumes/{id}/data"),
                filesystem: "ext4".into(),
                mount_id,
            },
            Source::HostDirectory(directory) => Facts {
                device: (254, 0),
                root: directory.path.clone(),
                filesystem: "ext4".into(),
                mount_id,
            },
            // No driver of the model asks for these.
            Source::Share(_) | Source::Overlay(_) | Source::Device(_) | Source::Program(_) => {
                return Err(Fault::new(FaultKind::Invalid, "the model has no such kind"));
            }
            Source::Tmpfs(_) => {
                let is_held = |d: &(u32, u32)| {
                    self.copies.iter().any(|copy| copy.id == id && copy.device == *d)
                };
                let device = last.map(|facts| facts.device).filter(is_held);
                let device = device.unwrap_or((0, self.devices));
                Facts { device, root: "/".into(), filesystem: "tmpfs".into(), mount_id }
            }
        };
        self.anchor.entry(id).or_default().push(facts.clone());
        Ok(facts)
    }

    fn discard(&mut self, id: Id) -> Result<(), Fault> {
        assert!(!self.strangers.contains(&id), "I11: a stranger's directory was trashed");
        if self.anchor.contains_key(&id) {
            return Err(Fault::new(FaultKind::Busy, "is mounted"));
        }
        assert!(self.copies.iter().all(|c| c.id != id), "I11: held data was trashed: {id}");
        assert!(!self.open.contains(&id), "{id} goes to the trash, and its root is open");
        if self.storage.remove(&id) {
            self.trash.insert(id);
        }
        self.fills.remove(&id);
        Ok(())
    }
}

/// What people and processes do while nobody looks.
impl Sim {
    /// Somebody makes a directory in `volumes/`.
    pub(super) fn drop_stranger(&self) {
        let id = self.random_id();
        let mut kernel = self.kernel.borrow_mut();
        kernel.strangers.insert(id);
        kernel.storage.insert(id);
    }

    /// A mount under the anchor without a record: a catalog was imported, or somebody mounted there.
    pub(super) fn drop_stray_mount(&self) {
        let id = self.random_id();
        let mut kernel = self.kernel.borrow_mut();
        kernel.devices += 1;
        let (device, mount_id) = ((0, kernel.devices), u64::from(kernel.devices));
        let facts = Facts { device, root: "/".into(), filesystem: "tmpfs".into(), mount_id };
        kernel.anchor.insert(id, vec![facts]);
        kernel.stray_mounts.insert(id);
    }

    /// Somebody unmounts a volume that has holders: containers keep their copies.
    pub(super) fn lose_mount(&self) {
        let held: Vec<Id> = self.rows.borrow().keys().copied().collect();
        if !held.is_empty() {
            let id = held[self.pick(held.len())];
            self.tell(|| format!("the mount of {id} is lost"));
            self.kernel.borrow_mut().anchor.remove(&id);
        }
    }

    /// A process that cannot be looked into begins, or ends.
    pub(super) fn turn_opaque(&self) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.is_opaque = !kernel.is_opaque;
        self.tell(|| format!("a process cannot be looked into: {}", kernel.is_opaque));
    }

    pub(super) fn begin_process(&self, process: Process) {
        self.kernel.borrow_mut().running.insert((process.pid, process.start));
    }

    pub(super) fn end_process(&self, process: Process) {
        self.kernel.borrow_mut().running.remove(&(process.pid, process.start));
    }

    /// One changing request of a volume at a time: I26.
    fn enter(&self, id: Id) -> Busy<'_> {
        assert!(self.kernel.borrow_mut().busy.insert(id), "I26: two requests at once for {id}");
        Busy(self, id)
    }

    /// Does what was asked between two points: refused, or done; and half of what fails was done, and the answer is lost.
    async fn request<T>(
        &self,
        effect: impl FnOnce(&mut Kernel) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.point().await;
        let fails = self.fails();
        if fails && self.chance(500) {
            return Err(Fault::new(FaultKind::Failed, "the simulated kernel refuses"));
        }
        let answer = effect(&mut self.kernel.borrow_mut());
        self.point().await;
        if fails {
            return Err(Fault::new(FaultKind::Failed, "mountd did not answer within 40 s"));
        }
        answer
    }

    /// Whether a volume that is being removed must keep its data.
    fn must_be_kept(&self, id: Id) -> bool {
        let records = self.records.borrow();
        let Some(record) = records.get(&id).filter(|r| r.phase == Phase::Removing) else {
            return false;
        };
        let is_forced = self.kernel.borrow().forced.contains(&id);
        record.reclaim == Some(Reclaim::Retain) || Self::retains(id) && !is_forced
    }
}

struct Busy<'a>(&'a Sim, Id);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.kernel.borrow_mut().busy.remove(&self.1);
    }
}

impl Mounter for Sim {
    type Root = Root;

    async fn survey(
        &self,
        kind: Inventory,
    ) -> Result<(Vec<(Id, Option<Facts>)>, Vec<String>), Fault> {
        let list = |kernel: &mut Kernel| match kind {
            Inventory::Mounts => {
                kernel.anchor.iter().map(|(id, stack)| (*id, stack.last().cloned())).collect()
            }
            Inventory::Volumes => kernel.storage.iter().map(|id| (*id, None)).collect(),
            Inventory::Trash => kernel.trash.iter().map(|id| (*id, None)).collect(),
        };
        Ok((self.request(|kernel| Ok(list(kernel))).await?, Vec::new()))
    }

    async fn make(
        &self,
        id: Id,
        _: &DriverName,
        storage: &Storage,
        _: Vec<u8>,
    ) -> Result<(), Fault> {
        let _busy = self.enter(id);
        let is_directory = matches!(storage, Storage::Directory(_));
        let make = |kernel: &mut Kernel| {
            if is_directory {
                kernel.storage.insert(id);
            }
            Ok(())
        };
        self.request(make).await
    }

    async fn fill(&self, id: Id, _: &DriverName, _: &Storage) -> Result<Root, Fault> {
        let _busy = self.enter(id);
        let open = |kernel: &mut Kernel| {
            assert!(kernel.storage.contains(&id), "{id} is filled, and was not made");
            assert!(kernel.open.insert(id), "{id} is filled twice at once");
            kernel.fills.insert(id, Fill::Empty);
            Ok(Root(self.clone(), id))
        };
        self.request(open).await
    }

    async fn settle(&self, id: Id, _: &DriverName, _: &Storage) -> Result<(), Fault> {
        let _busy = self.enter(id);
        let settle = |kernel: &mut Kernel| {
            let before = kernel.fills.insert(id, Fill::Settled);
            assert_eq!(before, Some(Fill::Filled), "{id} is taken over, and was not filled");
            Ok(())
        };
        self.request(settle).await
    }

    async fn grow(&self, _: Id, _: &DriverName, _: &Storage, _: Vec<u8>) -> Result<(), Fault> {
        Err(Fault::new(FaultKind::Invalid, "the model has no storage with a size"))
    }

    async fn mount(&self, request: MountRequest<'_>) -> Result<Facts, Fault> {
        let _busy = self.enter(request.id);
        self.request(|kernel| kernel.attach(request)).await
    }

    async fn unmount(&self, id: Id, _: Option<Attached>) -> Result<Release, Fault> {
        let _busy = self.enter(id);
        let detach = |kernel: &mut Kernel| {
            let evidence = kernel.evidence(id);
            if !evidence.is_free() {
                return Ok(Release::Held(evidence));
            }
            kernel.anchor.remove(&id);
            kernel.stray_mounts.remove(&id);
            Ok(Release::Gone)
        };
        self.request(detach).await
    }

    async fn scan(&self, id: Id, _: Option<Attached>) -> Result<Evidence, Fault> {
        self.request(|kernel| Ok(kernel.evidence(id))).await
    }

    async fn marks(&self, _: &DriverName) -> Result<Vec<Mark>, Fault> {
        self.request(|_| Ok(Vec::new())).await
    }

    async fn trash(&self, id: Id, _: &DriverName, _: &Storage) -> Result<(), Fault> {
        let _busy = self.enter(id);
        let discard = |kernel: &mut Kernel| kernel.discard(id);
        let is_there = self.kernel.borrow().storage.contains(&id);
        assert!(!is_there || !self.must_be_kept(id), "I11: data that is kept goes to the trash");
        self.request(discard).await
    }

    async fn ended(&self) -> Result<Vec<Id>, Fault> {
        self.request(|_| Ok(Vec::new())).await
    }

    async fn measure(&self, _: Id) -> Result<Measure, Fault> {
        self.request(|_| Ok(Measure::default())).await
    }

    async fn usage(&self, _: Id) -> Result<Usage, Fault> {
        self.request(|_| Ok(Usage { size: 1, used: 0, inodes: 1, inodes_used: 0 })).await
    }

    async fn find_secret(&self, _: &SecretName, _: &DriverName) -> Result<(), Fault> {
        self.request(|_| Ok(())).await
    }
}
