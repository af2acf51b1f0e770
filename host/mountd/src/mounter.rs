//! The requests: every frame of a round is answered here, by the one thread that mounts, unmounts and renames.
//!
//! What has to be durable is synced once a round.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Signal, getpid, kill_process};
use wasmvol_plan::frame::{Attached, Frame, Inventory};
use wasmvol_plan::mountinfo::{Entry, is_beneath};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::steps::KILL_AT;
use wasmvol_plan::{
    DriverName, Evidence, Facts, Fault, FaultKind, Id, Release, Reply, Request, Storage,
};

use crate::anchor::{Anchor, Device, NONE, identity};
use crate::fault::{Context, fault};
use crate::kinds::job::Jobs;
use crate::kinds::{self, OwnSource};
use crate::places::{Places, path_of};
use crate::scan::{Processes, Target, names, parse};
use crate::storage::{page, sync};
use crate::sys::{Propagation, mount_setattr};

/// Everything that a request needs.
pub(crate) struct Mounter {
    pub(crate) places: Places,
    pub(crate) anchor: Anchor,
    pub(crate) processes: Processes,
    /// Where `volumes/` lies.
    pub(crate) store: Place,
    pub(crate) kill: KillAt,
    /// Whether something was moved into the trash since this was last asked.
    pub(crate) discarded: Cell<bool>,
    pub(crate) jobs: RefCell<Jobs>,
}

/// Where a directory lies, as mountinfo shows a mount of it.
pub(crate) struct Place {
    pub(crate) device: Device,
    /// The device that its files show: some file systems have another one for them.
    pub(crate) shown: Device,
    pub(crate) filesystem: String,
    pub(crate) root: String,
}

impl Place {
    pub(crate) fn of(directory: &OwnedFd, lines: &[Entry<'_>]) -> Result<Self, Fault> {
        let path = path_of(directory)?;
        let what = format_args!("look at `{path}`");
        let (mount_id, shown) = identity(directory, "").trying(what)?;
        let place = lines.iter().find(|line| line.mount_id == mount_id).and_then(|line| {
            let inside = path.strip_prefix(line.mount_point.trim_end_matches('/'))?;
            let root = match (line.root.trim_end_matches('/'), inside) {
                ("", "") => "/".to_owned(),
                (root, inside) => format!("{root}{inside}"),
            };
            Some(Self { device: line.device, shown, filesystem: line.filesystem.to_string(), root })
        });
        place.ok_or(Errno::XDEV).trying(format_args!("find `{path}` among this process's mounts"))
    }

    /// The same file system, at another root.
    pub(crate) fn at(&self, root: String) -> Self {
        Self { root, filesystem: self.filesystem.clone(), ..*self }
    }

    /// Root of a mount of a volume's directory, or of one inside it, where this is `volumes/`.
    pub(crate) fn data(&self, id: Id, subpath: Option<&str>) -> String {
        let inside = subpath.map(|path| format!("/{path}")).unwrap_or_default();
        format!("{}/{id}/data{inside}", self.root.trim_end_matches('/'))
    }
}

/// The step at which a crash test kills this process, once, and the file that arms it.
pub(crate) struct KillAt(Option<(String, String)>);

impl KillAt {
    fn from_environment() -> Self {
        let armed = std::env::var(KILL_AT).ok();
        let parts = armed.as_deref().and_then(|armed| armed.split_once('@'));
        Self(parts.map(|(step, flag)| (step.to_owned(), flag.to_owned())))
    }

    /// A named step was reached.
    pub(crate) fn at(&self, step: &'static str) {
        if let Some((armed, flag)) = &self.0
            && armed == step
            && rustix::fs::unlink(flag).is_ok()
        {
            let _never_returns = kill_process(getpid(), Signal::KILL);
        }
    }
}

/// The facts of a line.
pub(crate) fn facts_of(line: &Entry<'_>) -> Facts {
    Facts {
        device: line.device,
        root: line.root.to_string(),
        filesystem: line.filesystem.to_string(),
        mount_id: line.mount_id,
    }
}

impl Mounter {
    /// Adopts what is there: the anchor, and every mount that a killed start left half done.
    pub(crate) fn open(places: Places) -> Result<Self, Fault> {
        let processes = Processes::open()?;
        let text = processes.own_mounts()?;
        let lines = parse(&text)?;
        let store = Place::of(&places.volumes, &lines)?;
        let anchor = Anchor::open(format!("{}/mnt", places.runtime), &lines)?;
        for name in names(&anchor.writable).trying("list the anchor")? {
            let Ok(id) = Id::parse(&name) else { continue };
            if anchor.mounted(id)?.is_none() {
                anchor.remove(id)?;
            } else {
                let root = anchor.open_volume(id)?;
                mount_setattr(&root, NONE, NONE, Propagation::PRIVATE).trying("adopt a mount")?;
            }
        }
        let kill = KillAt::from_environment();
        let (discarded, jobs) = (Cell::new(false), RefCell::default());
        Ok(Self { places, anchor, processes, store, kill, discarded, jobs })
    }

    /// Answers a round of requests. Those that need no sync go first; durable ones share theirs.
    pub(crate) fn serve(&self, round: Vec<Frame<Request>>) -> Vec<Frame<Reply>> {
        let is_later = |Frame { number, body }: &Frame<Request>| {
            let is_later = self.jobs.borrow().is_busy(body) || self.may_wait(body);
            if is_later {
                self.jobs.borrow_mut().queue(*number, body.clone());
            }
            is_later
        };
        self.answer(round.into_iter().filter(|frame| !is_later(frame)))
    }

    /// Answers those that are not for a child.
    pub(crate) fn answer(&self, round: impl Iterator<Item = Frame<Request>>) -> Vec<Frame<Reply>> {
        let mut answers = Vec::new();
        let (mut makes, mut trashes) = (Vec::new(), Vec::new());
        for Frame { number, body } in round {
            let reply = match body {
                Request::Survey { kind, after } => self.survey(kind, after),
                Request::Usage(id) => self.usage(id).map(Reply::Used),
                Request::Scan { id, attached } => {
                    self.scan(id, attached.as_ref()).map(Reply::Scanned)
                }
                Request::Secret { driver, name } => {
                    self.places.find_secret(&name, &driver).map(|()| Reply::Kept)
                }
                Request::Reveal { driver, name } => self
                    .grants(&driver)
                    .and_then(|grants| self.places.reveal(&name, &driver, &grants))
                    .map(Reply::Revealed),
                Request::Unmount { id, attached } => {
                    self.unmount(id, attached.as_ref()).map(Reply::Unmounted)
                }
                Request::Ended => self.places.ended_programs().map(Reply::Ended),
                Request::Measure(id) => self.measure(id).map(Reply::Measured),
                Request::Mount(wanted) => self.mount(&wanted).map(Reply::Mounted),
                Request::Marks(wanted) => self.marks(&wanted),
                Request::Grow { id, driver, storage, .. } => {
                    self.grow_storage(id, &driver, &storage).map(|()| Reply::Grown)
                }
                Request::Fill { .. } | Request::Settle { .. } => {
                    fault(FaultKind::Invalid, "this request needs a child")
                }
                Request::Make { id, driver, storage, .. } => {
                    makes.push((number, id, driver, storage));
                    continue;
                }
                Request::Trash { id, .. } => {
                    trashes.push((number, id));
                    continue;
                }
            };
            answers.push(answer(number, reply));
        }
        if !makes.is_empty() {
            self.make(&makes, &mut answers);
        }
        if !trashes.is_empty() {
            self.trash(&trashes, &mut answers);
        }
        answers
    }

    fn make(&self, wanted: &[(u64, Id, DriverName, Storage)], answers: &mut Vec<Frame<Reply>>) {
        self.kill.at("make.begin");
        let make = |(_, id, driver, storage): &(u64, Id, DriverName, Storage)| {
            storage.check(&self.grants(driver)?)?;
            self.make_storage(*id, driver, storage)
        };
        let made: Vec<_> = wanted.iter().map(make).collect();
        self.kill.at("make.made");
        let parent = sync(&self.places.volumes, "volumes");
        let synced = |made: Result<Vec<OwnedFd>, Fault>| {
            made?.iter().try_for_each(|directory| sync(directory, "a new volume"))?;
            parent.clone().map(|()| Reply::Made)
        };
        let synced: Vec<_> = made.into_iter().map(synced).collect();
        self.kill.at("make.synced");
        answers
            .extend(wanted.iter().zip(synced).map(|((number, ..), reply)| answer(*number, reply)));
    }

    fn trash(&self, wanted: &[(u64, Id)], answers: &mut Vec<Frame<Reply>>) {
        self.kill.at("trash.begin");
        let discard = |(_, id): &(u64, Id)| match self.anchor.mounted(*id)? {
            None if matches!(self.own_source(*id)?, OwnSource::Perhaps(_))
                && !self.places.is_worked_in(*id) =>
            {
                self.places.discard(*id)
            }
            _ => fault(FaultKind::Busy, format!("volume `{id}` is in use: unmount it")),
        };
        let moved: Vec<_> = wanted.iter().map(discard).collect();
        self.kill.at("trash.renamed");
        // Also where nothing was there: an earlier start may have been killed before its sync.
        let synced =
            sync(&self.places.trash, "trash").and_then(|()| sync(&self.places.volumes, "volumes"));
        self.kill.at("trash.synced");
        self.discarded.set(true);
        answers.extend(wanted.iter().zip(moved).map(|((number, _), moved)| {
            answer(*number, synced.clone().and(moved).map(|()| Reply::Trashed))
        }));
    }

    /// Who holds a volume: who shows its own superblock, or else its directory. What others use too is held by nobody, unless it goes
    /// from this machine once it is unmounted.
    pub(crate) fn scan(&self, id: Id, attached: Option<&Attached>) -> Result<Evidence, Fault> {
        let there = self.anchor.mounted(id)?;
        let stored = || (self.store.device, Some(self.store.data(id, None)));
        let last = attached.and_then(|attached| attached.last.as_ref());
        let last = last.filter(|_| there.is_none());
        let (device, root) = match there {
            Some((mount_id, shown)) if shown != self.store.shown => {
                let text = self.processes.own_mounts()?;
                let place = format!("{}/{id}", self.anchor.path);
                let here: Vec<_> =
                    parse(&text)?.into_iter().filter(|line| line.mount_point == place).collect();
                match here.as_slice() {
                    [line] if line.mount_id != mount_id => return Ok(Evidence::hidden()),
                    [line] if kinds::is_own(id, line) => (line.device, None),
                    // A subvolume shows its files another device than its directory does.
                    [line]
                        if is_beneath(&line.root, &self.store.data(id, None))
                            && line.device == self.store.device =>
                    {
                        stored()
                    }
                    // The same superblock may show other volumes, too.
                    [line] if attached.is_some() => (line.device, Some(line.root.to_string())),
                    [_] => return Ok(Evidence::default()),
                    // Somebody mounted over it, or is doing so.
                    _ => return Ok(Evidence::hidden()),
                }
            }
            // It may have been one of those.
            _ => match last {
                Some(last) => (last.device, Some(last.root.clone())),
                None => stored(),
            },
        };
        let anchor = self.anchor.device;
        let scan = |lost| self.processes.scan(&Target { device, root, lost, anchor });
        if there.is_some() {
            return scan(None);
        }
        match self.own_source(id)? {
            OwnSource::Perhaps(source) => scan(Some(source)),
            // Its file system is there: who has it, if no namespace shows it, is not known.
            OwnSource::Held(source) => scan(Some(source))
                .map(|found| if found.is_free() { Evidence::hidden() } else { found }),
        }
    }

    pub(crate) fn unmount(&self, id: Id, attached: Option<&Attached>) -> Result<Release, Fault> {
        let evidence = self.scan(id, attached)?;
        if evidence.is_free() { self.take_away(id) } else { Ok(Release::Held(evidence)) }
    }

    /// Unmounts a volume that nobody holds, and removes its mountpoint. Nothing there is done already.
    pub(crate) fn take_away(&self, id: Id) -> Result<Release, Fault> {
        self.kill.at("detach.begin");
        if self.anchor.mounted(id)?.is_some() && !self.anchor.detach(id, UnmountFlags::empty())? {
            // A process in our own namespace works in it; the kernel does not say which.
            return Ok(Release::Held(Evidence::hidden()));
        }
        self.places.forget_program(id);
        self.kill.at("detach.unmounted");
        self.anchor.remove(id)?;
        self.kill.at("detach.removed");
        Ok(Release::Gone)
    }

    fn survey(&self, kind: Inventory, after: Option<Id>) -> Result<Reply, Fault> {
        let place = match kind {
            Inventory::Volumes => &self.places.volumes,
            Inventory::Trash => &self.places.trash,
            Inventory::Mounts => &self.anchor.writable,
        };
        let (mut found, mut strangers) = (BTreeMap::new(), BTreeSet::new());
        for name in names(place).trying("list a directory of volumes")? {
            match Id::parse(&name) {
                Ok(id) => _ = found.insert(id, None),
                Err(_) => _ = strangers.insert(Quoted::new(&name).to_string()),
            }
        }
        if kind == Inventory::Mounts {
            let text = self.processes.own_mounts()?;
            for line in &parse(&text)? {
                let name = line.mount_point.strip_prefix(&self.anchor.path);
                let id = name.and_then(|name| Id::parse(name.strip_prefix('/')?).ok());
                if let Some(facts @ None) = id.and_then(|id| found.get_mut(&id)) {
                    // Of several on each other the first, lowest one is the volume.
                    *facts = Some(facts_of(line));
                }
            }
            found.retain(|_, facts| facts.is_some());
        }
        Ok(page(&found, strangers, after))
    }
}

fn answer(number: u64, reply: Result<Reply, Fault>) -> Frame<Reply> {
    Frame { number, body: reply.unwrap_or_else(Reply::Failed) }
}
