//! The simulated world: catalog, mount table, mountd with its kernel, two drivers and a machine, all in memory and all random.
//!
//! Every call yields at a few random places, may fail before or after its effect, and may be the last: a killed world never answers
//! again, and what it had made durable stays.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use wasmvol_driver::types::Options;
use wasmvol_driver::{
    CallError, Created, Description, ErrorCode, Found, OptionSpec, Reclaim, ValueType, Volume,
};
use wasmvol_plan::frame::Inventory;
use wasmvol_plan::{
    Directory, DriverName, Evidence, Facts, Fault, FaultKind, Grants, Id, Owner, Plan, Release,
    Sighting, Source, Storage, Tmpfs, Usage, VolumeName,
};

use crate::catalog::record::Record;
use crate::catalog::{Change, MountRow, StoreError, TableChange};
use crate::volumes::holders::Process;
use crate::volumes::world::{Catalog, Drivers, Machine, MountRequest, Mounter, Table, World};

/// How often things go wrong, in a thousand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Odds {
    /// A call or a step is the last thing that happens.
    kill: u32,
    /// mountd or a store fails.
    fail: u32,
    /// A driver fails.
    driver: u32,
    /// Engines misbehave.
    pub(super) rude: bool,
}

impl Odds {
    pub(super) const ROUGH: Self = Self { kill: 6, fail: 25, driver: 40, rude: true };
    pub(super) const SMOOTH: Self = Self { kill: 0, fail: 0, driver: 0, rude: false };
}

/// A container's own copy of a volume's mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) container: u64,
    pub(super) id: Id,
    pub(super) device: (u32, u32),
}

/// What a reboot clears, and what it does not.
#[derive(Default)]
pub(super) struct Kernel {
    /// Mounts at the anchor; more than one for an id would be a stack.
    pub(super) anchor: BTreeMap<Id, Vec<Facts>>,
    pub(super) copies: Vec<Copy>,
    pub(super) storage: BTreeSet<Id>,
    pub(super) trash: BTreeSet<Id>,
    /// Directories that somebody else put into `volumes/`.
    pub(super) strangers: BTreeSet<Id>,
    running: BTreeSet<(u32, u64)>,
    devices: u32,
    /// Volumes for which a changing request is under way (I26).
    busy: BTreeSet<Id>,
}

pub(super) struct Inner {
    odds: Odds,
    is_told: bool,
    rng: RefCell<fastrand::Rng>,
    dead: Cell<bool>,
    /// Nothing fails for a while.
    calm: Cell<bool>,
    died: Notify,
    begin: Instant,
    pub(super) records: RefCell<BTreeMap<Id, Record>>,
    pub(super) rows: RefCell<BTreeMap<Id, MountRow>>,
    pub(super) kernel: RefCell<Kernel>,
    /// Ids that the backends were asked to create and not yet to remove.
    pub(super) backend: RefCell<BTreeSet<Id>>,
    /// Names of volumes that the backend of `tmpfs` knows without us.
    pub(super) exports: RefCell<BTreeSet<String>>,
    minted: RefCell<BTreeSet<Id>>,
}

#[derive(Clone)]
pub(super) struct Sim(Rc<Inner>);

impl std::ops::Deref for Sim {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Sim {
    pub(super) fn new(seed: u64, odds: Odds) -> Self {
        Self(Rc::new(Inner {
            odds,
            is_told: std::env::var_os("MODEL_SEED").is_some(),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            dead: Cell::new(false),
            calm: Cell::new(false),
            died: Notify::new(),
            begin: Instant::now(),
            records: RefCell::default(),
            rows: RefCell::default(),
            kernel: RefCell::default(),
            backend: RefCell::default(),
            exports: RefCell::default(),
            minted: RefCell::default(),
        }))
    }

    /// Prints a line of the story where one seed is replayed.
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>8} s  {}", self.begin.elapsed().as_secs(), line());
        }
    }

    /// True `n` times in a thousand.
    pub(super) fn chance(&self, n: u32) -> bool {
        self.rng.borrow_mut().u32(0..1000) < n && !self.calm.get()
    }

    pub(super) fn pick(&self, below: usize) -> usize {
        self.rng.borrow_mut().usize(0..below)
    }

    pub(super) fn is_rude(&self) -> bool {
        self.odds.rude
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    pub(super) fn revive(&self) {
        self.dead.set(false);
        self.kernel.borrow_mut().busy.clear();
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.records.borrow().values().cloned().collect()
    }

    pub(super) fn rows(&self) -> Vec<MountRow> {
        self.rows.borrow().values().cloned().collect()
    }

    /// Runs a future of the daemon's until it ends or the daemon dies: then it is dropped where it stands.
    pub(super) async fn until_death<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let death = async {
            while !self.is_dead() {
                self.died.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = death => None,
            value = future => Some(value),
        }
    }

    pub(super) fn calm(&self, is_calm: bool) {
        self.calm.set(is_calm);
    }

    /// Everything that outlives the daemon, to be compared.
    pub(super) fn snapshot(&self) -> String {
        let kernel = self.kernel.borrow();
        let durable = (&*self.records.borrow(), &*self.rows.borrow(), &*self.backend.borrow());
        let kept = (&kernel.anchor, &kernel.copies, &kernel.storage, &kernel.trash);
        format!("{durable:?} {kept:?}")
    }

    /// Somebody makes a directory in `volumes/`.
    pub(super) fn drop_stranger(&self) {
        let id = Id::from_bits(self.rng.borrow_mut().u128(..));
        let mut kernel = self.kernel.borrow_mut();
        kernel.strangers.insert(id);
        kernel.storage.insert(id);
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

    pub(super) fn begin_process(&self, process: Process) {
        self.kernel.borrow_mut().running.insert((process.pid, process.start));
    }

    pub(super) fn end_process(&self, process: Process) {
        self.kernel.borrow_mut().running.remove(&(process.pid, process.start));
    }

    /// Everything that lives in memory goes; disks stay.
    pub(super) fn reboot(&self) {
        self.tell(|| "reboot".into());
        self.rows.borrow_mut().clear();
        let mut kernel = self.kernel.borrow_mut();
        kernel.anchor.clear();
        kernel.copies.clear();
        kernel.running.clear();
    }

    /// A place where time passes and the daemon may die.
    async fn point(&self) {
        let pause = self.rng.borrow_mut().u64(0..4);
        if pause == 3 {
            let pause_ms = self.rng.borrow_mut().u64(1..300);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        } else {
            for _ in 0..pause {
                tokio::task::yield_now().await;
            }
        }
        if self.chance(self.odds.kill) {
            self.dead.set(true);
            self.died.notify_waiters();
        }
        if self.dead.get() {
            std::future::pending::<()>().await;
        }
    }

    fn fails(&self) -> bool {
        self.chance(self.odds.fail)
    }

    fn fault() -> Fault {
        Fault::new(FaultKind::Failed, "the simulated kernel refuses")
    }

    /// One changing request of a volume at a time: I26.
    fn enter(&self, id: Id) -> Busy<'_> {
        assert!(self.kernel.borrow_mut().busy.insert(id), "I26: two requests at once for {id}");
        Busy(self, id)
    }

    fn evidence(&self, id: Id) -> Evidence {
        let kernel = self.kernel.borrow();
        let holders = kernel.copies.iter().filter(|copy| copy.id == id).map(|copy| Sighting {
            pid: u32::try_from(copy.container).unwrap_or(0),
            path: "/data".into(),
        });
        Evidence { holders: holders.collect(), unknown: 0 }
    }
}

struct Busy<'a>(&'a Sim, Id);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.kernel.borrow_mut().busy.remove(&self.1);
    }
}

impl World for Sim {
    type Catalog = Self;
    type Table = Self;
    type Mounter = Self;
    type Drivers = Self;
    type Machine = Self;
    fn catalog(&self) -> &Self {
        self
    }
    fn table(&self) -> &Self {
        self
    }
    fn mounter(&self) -> &Self {
        self
    }
    fn drivers(&self) -> &Self {
        self
    }
    fn machine(&self) -> &Self {
        self
    }
}

impl Catalog for Sim {
    async fn commit(&self, change: Change) -> Result<(), StoreError> {
        self.point().await;
        if self.fails() {
            return Err(StoreError::Write { store: "catalog", why: "no space left".into() });
        }
        {
            let mut records = self.records.borrow_mut();
            match change {
                Change::Put(record) => {
                    let shown = |r: &Record| !r.phase.is_kept();
                    let twin = records.values().find(|r| {
                        r.name == record.name && r.id != record.id && shown(r) && shown(&record)
                    });
                    assert!(twin.is_none(), "I1: two records named {}", record.name);
                    drop(records.insert(record.id, *record));
                }
                Change::Delete(id) => drop(records.remove(&id)),
                Change::PutDriver(_) | Change::DeleteDriver(_) => {}
            }
        }
        self.point().await;
        Ok(())
    }
}

impl Table for Sim {
    async fn commit(&self, change: TableChange) -> Result<(), StoreError> {
        self.point().await;
        if self.fails() {
            return Err(StoreError::Write { store: "mount table", why: "no space left".into() });
        }
        match change {
            TableChange::Put(row) => {
                assert!(!row.holders.is_empty(), "I4: a row without holders");
                drop(self.rows.borrow_mut().insert(row.id, *row));
            }
            TableChange::Delete(id) => drop(self.rows.borrow_mut().remove(&id)),
        }
        self.point().await;
        Ok(())
    }
}

impl Mounter for Sim {
    async fn survey(
        &self,
        kind: Inventory,
    ) -> Result<(Vec<(Id, Option<Facts>)>, Vec<String>), Fault> {
        self.point().await;
        if self.fails() {
            return Err(Self::fault());
        }
        let kernel = self.kernel.borrow();
        let listed = match kind {
            Inventory::Mounts => {
                kernel.anchor.iter().map(|(id, stack)| (*id, stack.last().cloned())).collect()
            }
            Inventory::Volumes => kernel.storage.iter().map(|id| (*id, None)).collect(),
            Inventory::Trash => kernel.trash.iter().map(|id| (*id, None)).collect(),
        };
        Ok((listed, Vec::new()))
    }

    async fn make(&self, id: Id, _: &DriverName, storage: &Storage) -> Result<(), Fault> {
        let _busy = self.enter(id);
        self.point().await;
        let fails = self.fails();
        if let Storage::Directory(_) = storage
            && (!fails || self.chance(500))
        {
            self.kernel.borrow_mut().storage.insert(id);
        }
        self.point().await;
        if fails { Err(Self::fault()) } else { Ok(()) }
    }

    async fn mount(&self, request: MountRequest<'_>) -> Result<Facts, Fault> {
        let MountRequest { id, plan, last, .. } = request;
        let _busy = self.enter(id);
        self.point().await;
        if self.fails() {
            return Err(Self::fault());
        }
        let facts = {
            let mut kernel = self.kernel.borrow_mut();
            let there = kernel.anchor.get(&id).and_then(|stack| stack.last()).cloned();
            if let Some(facts) = there {
                facts
            } else {
                kernel.devices += 1;
                let mount_id = u64::from(kernel.devices);
                let facts = match &plan.source {
                    Source::Storage if !kernel.storage.contains(&id) => {
                        return Err(Fault::new(FaultKind::Missing, "its directory is gone"));
                    }
                    Source::Storage => Facts {
                        device: (254, 0),
                        root: format!("/volumes/{id}/data"),
                        filesystem: "ext4".into(),
                        mount_id,
                    },
                    Source::Tmpfs(_) => {
                        let held = last
                            .map(|facts| facts.device)
                            .filter(|d| kernel.copies.iter().any(|c| c.id == id && c.device == *d));
                        let device = held.unwrap_or((0, kernel.devices));
                        Facts { device, root: "/".into(), filesystem: "tmpfs".into(), mount_id }
                    }
                };
                kernel.anchor.entry(id).or_default().push(facts.clone());
                facts
            }
        };
        self.point().await;
        Ok(facts)
    }

    async fn unmount(&self, id: Id) -> Result<Release, Fault> {
        let _busy = self.enter(id);
        self.point().await;
        if self.fails() {
            return Err(Self::fault());
        }
        let evidence = self.evidence(id);
        if !evidence.is_free() {
            return Ok(Release::Held(evidence));
        }
        self.kernel.borrow_mut().anchor.remove(&id);
        self.point().await;
        Ok(Release::Gone)
    }

    async fn scan(&self, id: Id) -> Result<Evidence, Fault> {
        self.point().await;
        if self.fails() { Err(Self::fault()) } else { Ok(self.evidence(id)) }
    }

    async fn trash(&self, id: Id) -> Result<(), Fault> {
        let _busy = self.enter(id);
        self.point().await;
        if self.fails() {
            return Err(Self::fault());
        }
        {
            let mut kernel = self.kernel.borrow_mut();
            assert!(!kernel.strangers.contains(&id), "I11: a stranger's directory was trashed");
            if kernel.anchor.contains_key(&id) {
                return Err(Fault::new(FaultKind::Busy, "is mounted"));
            }
            assert!(kernel.copies.iter().all(|c| c.id != id), "I11: held data was trashed: {id}");
            if kernel.storage.remove(&id) {
                kernel.trash.insert(id);
            }
        }
        self.point().await;
        Ok(())
    }

    async fn usage(&self, _: Id) -> Result<Usage, Fault> {
        self.point().await;
        Ok(Usage { size: 1, used: 0, inodes: 1, inodes_used: 0 })
    }
}

impl Sim {
    fn driver_error(&self) -> Option<CallError> {
        let answers = self.chance(500);
        self.chance(self.odds.driver).then(|| {
            if answers {
                let message = "the backend is away".into();
                CallError::Failed { code: ErrorCode::Unavailable, message }
            } else {
                CallError::TimedOut(Duration::from_secs(2))
            }
        })
    }
}

impl Drivers for Sim {
    fn names(&self) -> Vec<DriverName> {
        ["local", "tmpfs"].iter().map(|name| DriverName::parse(name).expect("a name")).collect()
    }

    fn description(&self, driver: &DriverName) -> Option<Rc<Description>> {
        let size = OptionSpec {
            key: "size".into(),
            value_type: ValueType::Size,
            required: false,
            default: None,
            help: String::new(),
        };
        Some(Rc::new(Description {
            name: driver.to_string(),
            version: "1.0.0".into(),
            help: String::new(),
            options: vec![size],
            grants: Vec::new(),
        }))
    }

    async fn until_loaded(&self, _: &DriverName) {}

    fn grants(&self, _: &DriverName) -> Result<Grants, Fault> {
        Ok(Grants::default())
    }

    async fn create(
        &self,
        driver: &DriverName,
        id: Id,
        _: &VolumeName,
        _: &Options,
    ) -> Result<Created, CallError> {
        self.point().await;
        let error = self.driver_error();
        if error.is_none() || self.chance(500) {
            self.backend.borrow_mut().insert(id);
        }
        self.point().await;
        if let Some(error) = error {
            return Err(error);
        }
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let storage = match driver.as_str() {
            "tmpfs" => Storage::None,
            _ => Storage::Directory(Directory { owner, limit: None }),
        };
        Ok(Created { storage, state: Vec::new() })
    }

    async fn remove(&self, _: &DriverName, volume: &Volume) -> Result<Reclaim, CallError> {
        self.point().await;
        if let Some(error) = self.driver_error() {
            if matches!(error, CallError::TimedOut(_)) && self.chance(500) {
                self.backend.borrow_mut().remove(&volume.id);
            }
            return Err(error);
        }
        self.backend.borrow_mut().remove(&volume.id);
        self.point().await;
        Ok(Reclaim::Delete)
    }

    async fn path(&self, driver: &DriverName, _: &Volume) -> Result<Plan, CallError> {
        self.point().await;
        if let Some(error) = self.driver_error() {
            return Err(error);
        }
        let owner = Owner { uid: 0, gid: 0, mode: 0o1777 };
        let source = match driver.as_str() {
            "tmpfs" => Source::Tmpfs(Tmpfs { size: None, inodes: None, owner }),
            _ => Source::Storage,
        };
        Ok(Plan { source, read_only: false, no_exec: false, subpath: None })
    }

    async fn list(&self, driver: &DriverName) -> Result<Vec<Found>, CallError> {
        if driver.as_str() != "tmpfs" {
            return Ok(Vec::new());
        }
        let exports = self.exports.borrow();
        let found = exports.iter().map(|name| Found {
            name: name.clone(),
            options: Options::default(),
            state: Vec::new(),
            owned: false,
        });
        Ok(found.collect())
    }
}

impl Machine for Sim {
    fn now(&self) -> u64 {
        1_700_000_000 + self.begin.elapsed().as_secs()
    }

    fn mint(&self) -> Id {
        let id = Id::from_bits(self.rng.borrow_mut().u128(..));
        assert!(self.minted.borrow_mut().insert(id), "I24: an id was minted twice");
        id
    }

    fn is_running(&self, process: Process) -> bool {
        self.kernel.borrow().running.contains(&(process.pid, process.start))
    }

    async fn step(&self, _: &'static str) {
        self.point().await;
    }
}
