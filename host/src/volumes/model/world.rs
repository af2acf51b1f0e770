//! The simulated world: a catalog, a mount table and a machine, all in memory and all random; what beats beside them is in `kernel`
//! and `drivers`.
//!
//! Every call passes a few points at which time passes, the invariants are looked at, and the daemon may die: a killed world never
//! answers again, and what it had made durable stays.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use wasmvol_plan::{DriverName, Id};

use super::drivers::{Backend, first_drivers};
use super::kernel::Kernel;
use crate::catalog::durable::Contents;
use crate::catalog::record::{Phase, Record};
use crate::catalog::{Change, DriverRow, MountRow, StoreError, TableChange};
use crate::volumes::holders::Process;
use crate::volumes::world::{Catalog, Machine, Table, World};

/// How often things go wrong, in a thousand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Odds {
    /// A call or a step is the last thing that happens.
    kill: u32,
    /// mountd or a store fails.
    pub(super) fail: u32,
    /// A driver fails.
    pub(super) driver: u32,
    /// Engines and operators misbehave.
    pub(super) rude: bool,
    /// Drivers are replaced while they are in use.
    pub(super) swaps: bool,
}

impl Odds {
    pub(super) const ROUGH: Self = Self { kill: 6, fail: 25, driver: 40, rude: true, swaps: true };
    pub(super) const SMOOTH: Self = Self { kill: 0, fail: 0, driver: 0, rude: false, swaps: false };
    pub(super) const SWAPPED: Self = Self { swaps: true, ..Self::SMOOTH };
}

pub(super) struct Inner {
    pub(super) odds: Odds,
    is_told: bool,
    rng: RefCell<fastrand::Rng>,
    dead: Cell<bool>,
    /// Nothing fails for a while.
    calm: Cell<bool>,
    died: Notify,
    begin: Instant,
    /// Recovery has ended.
    has_recovered: Cell<bool>,
    /// Looks whether all is well.
    watch: RefCell<Option<Rc<dyn Fn()>>>,
    pub(super) records: RefCell<BTreeMap<Id, Record>>,
    pub(super) rows: RefCell<BTreeMap<Id, MountRow>>,
    pub(super) drivers: RefCell<BTreeMap<DriverName, DriverRow>>,
    pub(super) kernel: RefCell<Kernel>,
    pub(super) backend: RefCell<Backend>,
    /// Held for one change of the drivers.
    pub(super) turn: tokio::sync::Mutex<()>,
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
            has_recovered: Cell::new(false),
            watch: RefCell::default(),
            records: RefCell::default(),
            rows: RefCell::default(),
            drivers: RefCell::new(first_drivers()),
            kernel: RefCell::default(),
            backend: RefCell::default(),
            turn: tokio::sync::Mutex::default(),
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

    pub(super) fn random_id(&self) -> Id {
        Id::from_bits(self.rng.borrow_mut().u128(..))
    }

    pub(super) fn is_rude(&self) -> bool {
        self.odds.rude
    }

    /// A daemon begins: drivers are taken up anew.
    pub(super) fn revive(&self) {
        self.dead.set(false);
        self.has_recovered.set(false);
        self.kernel.borrow_mut().forget_requests();
        self.take_up_drivers();
    }

    pub(super) fn contents(&self) -> Contents {
        let records = self.records.borrow().values().cloned().collect();
        Contents { records, ..Contents::default() }
    }

    pub(super) fn rows(&self) -> Vec<MountRow> {
        self.rows.borrow().values().cloned().collect()
    }

    /// Runs a future of the daemon's until it ends or the daemon dies: then it is dropped where it stands.
    pub(super) async fn until_death<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let death = async {
            while !self.dead.get() {
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

    pub(super) fn recovery_has_ended(&self) {
        self.has_recovered.set(true);
    }

    pub(super) fn has_recovered(&self) -> bool {
        self.has_recovered.get()
    }

    /// From now on this is called at every step.
    pub(super) fn watch(&self, watch: impl Fn() + 'static) {
        *self.watch.borrow_mut() = Some(Rc::new(watch));
    }

    /// One step of the schedule is done: is all well?
    pub(super) fn look(&self) {
        let watch = self.watch.borrow().clone();
        if let Some(watch) = watch {
            watch();
        }
    }

    pub(super) fn end_watch(&self) {
        *self.watch.borrow_mut() = None;
    }

    /// Everything that outlives the daemon, to be compared.
    pub(super) fn snapshot(&self) -> String {
        let durable = (&*self.records.borrow(), &*self.rows.borrow(), &*self.drivers.borrow());
        format!("{durable:?} {:?} {:?}", self.backend.borrow().made, self.kernel.borrow())
    }

    /// Everything that lives in memory goes; disks stay.
    pub(super) fn reboot(&self) {
        self.tell(|| "reboot".into());
        self.rows.borrow_mut().clear();
        self.kernel.borrow_mut().reboot();
    }

    /// A place where time passes and the daemon may die.
    pub(super) async fn point(&self) {
        let pause = self.rng.borrow_mut().u64(0..4);
        if pause == 3 {
            let pause_ms = self.rng.borrow_mut().u64(1..300);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        } else {
            for _ in 0..pause {
                tokio::task::yield_now().await;
            }
        }
        self.look();
        if self.chance(self.odds.kill) {
            self.dead.set(true);
            self.died.notify_waiters();
        }
        if self.dead.get() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn fails(&self) -> bool {
        self.chance(self.odds.fail)
    }
}

impl World for Sim {
    type Catalog = Self;
    type Table = Self;
    type Mounter = Self;
    type Drivers = Self;
    type Machine = Self;
    type Root = super::kernel::Root;
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
            let changes = match change {
                Change::Together(changes) => changes,
                change => vec![change],
            };
            changes.into_iter().for_each(|change| match change {
                Change::Put(record) => {
                    let shown = |r: &Record| !r.phase.is_kept();
                    let twin = records.values().find(|r| {
                        r.name == record.name && r.id != record.id && shown(r) && shown(&record)
                    });
                    assert!(twin.is_none(), "I1: two records named {}", record.name);
                    let is_orphan =
                        record.phase == Phase::Creating && !self.is_loaded(&record.driver);
                    assert!(!is_orphan, "{} was begun when its driver had gone", record.name);
                    drop(records.insert(record.id, *record));
                }
                Change::Delete(id) => drop(records.remove(&id)),
                Change::PutDriver(row) => {
                    drop(self.drivers.borrow_mut().insert(row.name.clone(), *row));
                }
                Change::DeleteDriver(_) | Change::Write(..) | Change::Together(_) => {}
            });
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

impl Machine for Sim {
    fn now(&self) -> u64 {
        1_700_000_000 + self.begin.elapsed().as_secs()
    }

    fn uptime(&self) -> u64 {
        self.begin.elapsed().as_secs()
    }

    fn mint(&self) -> Id {
        let id = self.random_id();
        assert!(self.minted.borrow_mut().insert(id), "I24: an id was minted twice");
        id
    }

    fn is_running(&self, process: Process) -> bool {
        self.kernel.borrow().running.contains(&(process.pid, process.start))
    }

    async fn step(&self, name: &'static str) {
        self.tell(|| format!("  {name}"));
        self.point().await;
    }
}
