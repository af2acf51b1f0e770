//! THE module: the verbs, read top to bottom; holders; recovery.
//!
//! Called by `plugin/` and the admin API; calls drivers, mountd and the stores through [`world`]. It knows no HTTP, no wasm and no
//! syscall. All of it runs on one thread: a volume's lock is held across a verb, the `RefCell` never across an await.

pub(crate) mod attachment;
mod create;
pub(crate) mod discover;
mod gate;
mod health;
pub(crate) mod holders;
pub(crate) mod layers;
mod lock;
mod marker;
#[cfg(test)]
pub(crate) mod model;
mod mount;
pub(crate) mod options;
mod purge;
mod recover;
mod remove;
pub(crate) mod resize;
mod secrets;
mod stores;
pub(crate) mod swap;
mod troubles;
mod view;
pub(crate) mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use wasmvol_driver::{CallError, Volume};
use wasmvol_plan::frame::Attached;
use wasmvol_plan::{DriverName, Facts, Fault, FaultKind, Id, NameError, Plan, Usage, VolumeName};

use crate::catalog::durable::Contents;
use crate::catalog::record::Record;
use crate::catalog::{Change, MountRow, StoreError};
use gate::Gates;
use holders::Holders;
use lock::Locks;
pub(crate) use remove::Insist;
pub(crate) use troubles::Trouble;
pub(crate) use view::{Status, Time, View};
use world::{Catalog, World};

/// Most volumes of one daemon: the kernel's own limit of mounts in a namespace (fs.mount-max).
const VOLUMES_MAX: usize = 100_000;
/// How long a verb waits for recovery or for another verb on the same volume: dockerd gives up on the shorter verbs after 60 s.
const WAIT: Duration = Duration::from_secs(50);

/// What the operator decided for all volumes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The directory that holds the mountpoints, as engines see it: `/run/wasmvol/mnt`.
    pub(crate) mountpoints: String,
    /// The directory that holds `volumes/` and `trash/`, as the operator knows it: for what a person is to type.
    pub(crate) state_dir: String,
    /// The driver of a volume that names none.
    pub(crate) default_driver: DriverName,
    /// The plugin's name.
    pub(crate) plugin: String,
}

/// All volumes of this daemon. One thread; shared as `Rc`.
pub(crate) struct Volumes<W: World> {
    world: W,
    settings: Settings,
    state: RefCell<State>,
    locks: Locks,
    gates: Gates,
    recovered: watch::Sender<bool>,
}

/// What is held in memory: everything that Get, List and Path answer from.
#[derive(Default)]
struct State {
    volumes: BTreeMap<VolumeName, Entry>,
    /// Names of volumes that lie over others, or did.
    layers: BTreeSet<VolumeName>,
    /// Creates that have chosen their driver and have no record yet: it must not go meanwhile.
    intended: BTreeMap<VolumeName, DriverName>,
    /// What drivers keep for themselves.
    stores: BTreeMap<DriverName, Rc<stores::OwnStore>>,
    /// Records of volumes that were removed while their data was kept.
    retained: BTreeMap<Id, Record>,
    /// Since when those of them are gone from their backends that were found there.
    gone: BTreeMap<Id, Instant>,
    /// Which names of a driver's were told last that are none of Docker's.
    refused: BTreeMap<DriverName, String>,
    /// Purges that could not be finished.
    purges: BTreeMap<Id, Waiting>,
    /// Mounts under the anchor that belong to no volume and are held.
    stray_mounts: BTreeMap<Id, Waiting>,
    /// Things in our directories that we do not know: reported, never touched.
    strangers: Vec<Trouble>,
}

/// One volume in memory. Changed only by who holds its lock.
struct Entry {
    record: Record,
    mountpoint: String,
    /// The mount at the mountpoint, as far as we know. Without holders it is draining.
    facts: Option<Facts>,
    /// The mount that the table remembers of this boot, while there is none at the mountpoint.
    last: Option<Facts>,
    /// The plan of that mount, where it is known.
    plan: Option<Plan>,
    holders: Holders,
    /// Something is to be tried again.
    waiting: Option<Waiting>,
    /// What is wrong with its backing, if anything.
    missing: Option<&'static str>,
    /// The program that served its mount has ended: what containers have of it answers no more.
    ended: Option<String>,
    /// Size and use, and when that was (seconds since 1970).
    usage: Option<(Usage, u64)>,
    /// What its backend is not well of, if its driver can tell.
    ailing: Option<String>,
}

/// Something that could not be finished and is tried again by [`Volumes::tick`].
struct Waiting {
    why: String,
    next: Instant,
    delay: Duration,
}

impl Waiting {
    /// What is put off, `before` too if it was: each time for twice as long, up to a minute.
    fn again(before: Option<&Self>, why: String) -> Self {
        const FIRST: Duration = Duration::from_secs(2);
        const LONGEST: Duration = Duration::from_secs(60);
        let delay = before.map_or(FIRST, |before| (before.delay * 2).min(LONGEST));
        Self { why, next: Instant::now() + delay, delay }
    }

    /// Whether its time has come.
    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }
}

/// Why a verb was refused. `Display` is the one line that the user sees: it repeats neither the verb nor the volume, since Docker
/// prints both before it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Unknown here. For Remove and Unmount that means done.
    #[error("no such volume")]
    NotFound,
    /// Nothing to purge.
    #[error("nothing is kept under that id: `wasmvol volume ls --retained` shows what is")]
    NotKept,
    /// An option or the mount ID is wrong.
    #[error("{0}")]
    Option(String),
    /// A volume of that name is there, and differs.
    #[error("already exists with other options: {0}")]
    Exists(String),
    /// Somebody uses it.
    #[error("is in use: {0}")]
    InUse(String),
    /// Found, not made here.
    #[error("its data is not this host's: remove it where it was made")]
    Elsewhere,
    /// An earlier verb is not finished.
    #[error("{0}")]
    Unfinished(String),
    /// The driver gave no answer that can be used.
    #[error("{}", of_driver(driver, error))]
    Driver {
        /// Its name.
        driver: DriverName,
        /// Its error.
        error: CallError,
    },
    /// mountd or a grant refused.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// What a driver answered is not granted, or no host can serve it.
    #[error("driver `{driver}`: {fault}")]
    Refused {
        /// Whose answer.
        driver: DriverName,
        /// Why.
        fault: Fault,
    },
    /// A store could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Both went wrong.
    #[error("{first}; and undoing it failed, which will be tried again: {undo}")]
    Undo {
        /// What failed.
        first: Box<Self>,
        /// Why it could not be undone.
        undo: Box<Self>,
    },
    /// Too many volumes.
    #[error("there are {VOLUMES_MAX} volumes already: remove some first")]
    TooMany,
    /// Waited too long.
    #[error("gave up after {} s: {}", WAIT.as_secs(), .0)]
    TimedOut(&'static str),
}

impl VolumeError {
    /// Why mountd has not done what a driver asked for. What it must not do is the driver's fault, what it could not do is not.
    fn of(driver: &DriverName, fault: Fault) -> Self {
        match fault.kind {
            FaultKind::Denied | FaultKind::Invalid => {
                Self::Refused { driver: driver.clone(), fault }
            }
            _ => fault.into(),
        }
    }
}

/// What a driver said, behind its name, which an error that says it by itself repeats no second time.
fn of_driver(driver: &DriverName, error: &CallError) -> String {
    match error {
        CallError::NotLoaded(_) => error.to_string(),
        _ => format!("driver `{driver}`: {error}"),
    }
}

impl<W: World> Volumes<W> {
    /// Takes over what the stores hold. Get, List and Path answer at once; changing verbs wait for [`Volumes::recover`].
    pub(crate) fn new(
        world: W,
        settings: Settings,
        contents: Contents,
        rows: Vec<MountRow>,
    ) -> Rc<Self> {
        let mut rows: BTreeMap<Id, MountRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let stores = stores::OwnStore::all(contents.stores);
        let mut state = State { stores, ..State::default() };
        for record in contents.records {
            if record.phase.is_kept() {
                state.retained.insert(record.id, record);
                continue;
            }
            if record.storage.below().is_some() {
                state.layers.insert(record.name.clone());
            }
            let mut entry = Entry::new(record, &settings.mountpoints);
            if let Some(row) = rows.remove(&entry.record.id) {
                // Until recovery has looked: it is what was so.
                entry.facts = Some(row.facts);
                entry.plan = Some(row.plan);
                entry.holders = row.holders;
            }
            state.volumes.insert(entry.record.name.clone(), entry);
        }
        Rc::new(Self {
            world,
            settings,
            state: RefCell::new(state),
            locks: Locks::default(),
            gates: Gates::default(),
            recovered: watch::Sender::new(false),
        })
    }

    /// Waits for the first recovery.
    async fn until_recovered(&self) -> Result<(), VolumeError> {
        let mut recovered = self.recovered.subscribe();
        if *recovered.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(WAIT, recovered.wait_for(|done| *done)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(VolumeError::TimedOut("recovery after the start has not ended")),
        }
    }

    /// Reads one volume's entry.
    fn read<T>(&self, name: &VolumeName, f: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.state.borrow().volumes.get(name).map(f)
    }

    /// Changes one volume's entry; does nothing if it is gone.
    fn write(&self, name: &VolumeName, f: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state.borrow_mut().volumes.get_mut(name) {
            f(entry);
        }
    }

    /// Makes a record durable, then shows it.
    async fn put(&self, record: Record) -> Result<(), VolumeError> {
        self.world.catalog().commit(Change::Put(Box::new(record.clone()))).await?;
        let mut state = self.state.borrow_mut();
        match state.volumes.get_mut(&record.name) {
            Some(entry) => entry.record = record,
            None => {
                let entry = Entry::new(record, &self.settings.mountpoints);
                state.volumes.insert(entry.record.name.clone(), entry);
            }
        }
        Ok(())
    }

    /// Forgets a record, durably.
    async fn forget(&self, name: &VolumeName, id: Id) -> Result<(), VolumeError> {
        self.world.catalog().commit(Change::Delete(id)).await?;
        self.state.borrow_mut().volumes.remove(name);
        Ok(())
    }

    fn is_running(&self) -> impl Fn(holders::Process) -> bool + '_ {
        use world::Machine;
        |process| self.world.machine().is_running(process)
    }

    fn now(&self) -> u64 {
        use world::Machine;
        self.world.machine().now()
    }

    /// The time for holders.
    fn now_and_uptime(&self) -> holders::Now {
        use world::Machine;
        holders::Now { date: self.now(), uptime: self.world.machine().uptime() }
    }

    async fn step(&self, name: &'static str) {
        use world::Machine;
        self.world.machine().step(name).await;
    }
}

impl Entry {
    fn new(record: Record, mountpoints: &str) -> Self {
        let mountpoint = format!("{mountpoints}/{}", record.id);
        Self {
            record,
            mountpoint,
            facts: None,
            last: None,
            plan: None,
            holders: Holders::default(),
            waiting: None,
            missing: None,
            ended: None,
            usage: None,
            ailing: None,
        }
    }

    /// The volume as its driver sees it.
    fn volume(&self) -> Volume {
        self.record.volume()
    }

    /// Puts something off.
    fn put_off(&mut self, why: String) {
        self.waiting = Some(Waiting::again(self.waiting.as_ref(), why));
    }

    /// Nobody has it as far as the engines say, and it is mounted or attached, or its containers still have what somebody unmounted.
    fn is_draining(&self) -> bool {
        let is_there = self.facts.is_some() || self.last.is_some() || self.record.attached;
        is_there && self.holders.is_empty()
    }

    /// What was put off may be a request of which nothing was heard.
    fn may_be_mounted(&self) -> bool {
        let is_there = self.facts.is_some() || self.last.is_some() || self.record.attached;
        is_there || self.waiting.is_some()
    }

    /// The mount that is there, or was a moment ago: it is taken back as it is, without a question to the driver.
    fn mounted(&self) -> Option<(&Facts, &Plan)> {
        self.facts.as_ref().or(self.last.as_ref()).zip(self.plan.as_ref())
    }

    /// Whether the end of its mount is told to its driver.
    fn is_attached(&self) -> bool {
        self.record.attached
    }

    /// The same for mountd.
    fn attached(&self) -> Option<Attached> {
        let last = self.facts.as_ref().or(self.last.as_ref());
        self.is_attached().then(|| Attached { last: last.cloned() })
    }

    /// Held, and not mounted.
    fn is_lost(&self) -> bool {
        self.facts.is_none() && !self.holders.is_empty()
    }
}
