//! The requests: every frame of a round is answered here, by the one thread that mounts, unmounts and renames.
//!
//! What has to be durable is synced once a round, and one walk over the processes serves every Unmount of it.

use std::cell::Cell;
use std::collections::HashMap;

use rustix::fs::AtFlags;
use wasmvol_plan::frame::{Frame, Inventory};
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::steps::{KILL_AT, MOUNTD};
use wasmvol_plan::{Evidence, Facts, Fault, FaultKind, Id, Release, Reply, Request, Usage};

use crate::anchor::{Anchor, identity};
use crate::attach::{Wanted, facts_of};
use crate::fault::{Context, fault};
use crate::places::Places;
use crate::scan::{Processes, Target, parse};
use crate::{reaper, storage};

/// Everything that a request needs.
pub(crate) struct Mounter {
    pub(crate) places: Places,
    pub(crate) anchor: Anchor,
    pub(crate) processes: Processes,
    pub(crate) store: Store,
    pub(crate) kill: KillAt,
    /// Whether something was moved into the trash since this was last asked.
    pub(crate) discarded: Cell<bool>,
}

/// The file system that `volumes/` is in, as mountinfo shows it.
pub(crate) struct Store {
    pub(crate) device: (u32, u32),
    pub(crate) filesystem: String,
    root: String,
}

impl Store {
    /// Root of a mount of a volume's directory, or of one inside it.
    pub(crate) fn data(&self, id: Id, subpath: Option<&str>) -> String {
        let data = format!("{}/{id}/data", self.root);
        subpath.map_or(data.clone(), |inside| format!("{data}/{inside}"))
    }

    fn find(places: &Places, lines: &[Entry<'_>]) -> Result<Self, Fault> {
        let what = || "find the file system of `volumes`".to_owned();
        let (mount_id, _) = identity(&places.volumes, "", AtFlags::EMPTY_PATH).trying(what)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&places.volumes);
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).trying(what)?;
        let line = lines.iter().find(|line| line.mount_id == mount_id);
        let inside = line.and_then(|line| path.strip_prefix(&*line.mount_point).ok());
        let (Some(line), Some(inside)) = (line, inside.and_then(|inside| inside.to_str())) else {
            return fault(
                FaultKind::Failed,
                "the state directory lies outside of this process's root",
            );
        };
        let top = line.root.trim_end_matches('/');
        let root = format!("{top}/{inside}").trim_end_matches('/').to_owned();
        Ok(Self { device: line.device, filesystem: line.filesystem.to_string(), root })
    }
}

/// The step at which a crash test kills this process, once.
pub(crate) struct KillAt(Option<(&'static str, String)>);

impl KillAt {
    fn from_environment() -> Self {
        let armed = std::env::var(KILL_AT).ok();
        let parts = armed.as_deref().and_then(|armed| armed.split_once('@'));
        Self(parts.and_then(|(name, flag)| {
            MOUNTD.iter().find(|step| **step == name).map(|step| (*step, flag.to_owned()))
        }))
    }

    /// A named step was reached.
    pub(crate) fn at(&self, step: &'static str) {
        if let Some((armed, flag)) = &self.0
            && *armed == step
            && rustix::fs::unlink(flag).is_ok()
        {
            let _never_returns = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

type Answers = Vec<Frame<Reply>>;

impl Mounter {
    /// Adopts what is there: the anchor, and every mount that a killed start left half done.
    pub(crate) fn open(places: Places) -> Result<Self, Fault> {
        let processes = Processes::open()?;
        let text = processes.own_mounts()?;
        let lines = parse(&text)?;
        let store = Store::find(&places, &lines)?;
        let anchor = Anchor::open(format!("{}/mnt", places.runtime), &lines)?;
        let kill = KillAt::from_environment();
        let mounter = Self { places, anchor, processes, store, kill, discarded: Cell::new(false) };
        mounter.adopt()?;
        Ok(mounter)
    }

    /// Makes mounts private that were not yet, and removes mountpoints without a mount.
    fn adopt(&self) -> Result<(), Fault> {
        let text = self.processes.own_mounts()?;
        let lines = parse(&text)?;
        let mounts = self.mounts(&lines);
        for name in
            crate::scan::names(self.anchor.entries()).trying(|| "list the anchor".to_owned())?
        {
            let Ok(id) = Id::parse(&name) else { continue };
            match mounts.get(&id) {
                Some(_) => self.anchor.make_private(id)?,
                None => self.anchor.remove(id)?,
            }
        }
        Ok(())
    }

    /// Answers a round of requests. Those that need no sync go first; durable ones share theirs.
    pub(crate) fn serve(&self, round: Vec<Frame<Request>>) -> Answers {
        let mut answers = Vec::with_capacity(round.len());
        let (mut releases, mut makes, mut trashes) = (Vec::new(), Vec::new(), Vec::new());
        for Frame { number, body } in round {
            let reply = match body {
                Request::Survey { kind, after } => self.survey(kind, after),
                Request::Usage { id } => self.usage(id).map(Reply::Used),
                Request::Mount { id, driver, storage, plan, peer, last } => {
                    let wanted = Wanted { driver, storage, plan, peer, last };
                    self.mount(id, &wanted).map(Reply::Mounted)
                }
                Request::Unmount { id } => {
                    releases.push((number, id, true));
                    continue;
                }
                Request::Scan { id } => {
                    releases.push((number, id, false));
                    continue;
                }
                Request::Make { id, driver, storage } => {
                    makes.push((number, id, driver, storage));
                    continue;
                }
                Request::Trash { id } => {
                    trashes.push((number, id));
                    continue;
                }
            };
            answers.push(answer(number, reply));
        }
        self.release(&releases, &mut answers);
        self.make(&makes, &mut answers);
        self.trash(&trashes, &mut answers);
        answers
    }

    fn make(
        &self,
        makes: &[(u64, Id, wasmvol_plan::DriverName, wasmvol_plan::Storage)],
        answers: &mut Answers,
    ) {
        if makes.is_empty() {
            return;
        }
        self.kill.at("make.begin");
        let made: Vec<_> = makes
            .iter()
            .map(|(_, id, driver, storage)| {
                self.grants(driver).and_then(|grants| storage.check(&grants))?;
                self.places.make(*id, storage)
            })
            .collect();
        self.kill.at("make.made");
        let parent = storage::sync(&self.places.volumes, "volumes");
        let synced: Vec<_> = made
            .into_iter()
            .map(|made| {
                made?.iter().try_for_each(|directory| storage::sync(directory, "a new volume"))?;
                parent.clone()
            })
            .collect();
        self.kill.at("make.synced");
        for ((number, ..), result) in makes.iter().zip(synced) {
            answers.push(answer(*number, result.map(|()| Reply::Made)));
        }
    }

    fn trash(&self, trashes: &[(u64, Id)], answers: &mut Answers) {
        if trashes.is_empty() {
            return;
        }
        self.kill.at("trash.begin");
        let moved: Vec<_> = trashes
            .iter()
            .map(|(_, id)| match self.anchor.mounted(*id)? {
                Some(_) => {
                    fault(FaultKind::Busy, format!("volume `{id}` is mounted: unmount it first"))
                }
                None => self.places.discard(*id),
            })
            .collect();
        self.kill.at("trash.renamed");
        let synced = storage::sync(&self.places.trash, "trash")
            .and_then(|()| storage::sync(&self.places.volumes, "volumes"));
        self.kill.at("trash.synced");
        self.discarded.set(true);
        for ((number, _), result) in trashes.iter().zip(moved) {
            let result = result.and_then(|there| synced.clone().map(|()| Reply::Trashed(there)));
            answers.push(answer(*number, result));
        }
    }

    /// Unmounts and scans: `(number, volume, whether to unmount)`.
    fn release(&self, wanted: &[(u64, Id, bool)], answers: &mut Answers) {
        if wanted.is_empty() {
            return;
        }
        let scanned = self.evidence(wanted.iter().map(|(_, id, _)| *id));
        for (at, (number, id, unmount)) in wanted.iter().enumerate() {
            let evidence = match &scanned {
                Ok(all) => all.get(at).cloned().unwrap_or_else(|| Ok(Evidence::default())),
                Err(e) => Err(e.clone()),
            };
            let reply = evidence.and_then(|evidence| match (unmount, evidence.is_free()) {
                (false, _) => Ok(Reply::Scanned(evidence)),
                (true, false) => Ok(Reply::Unmounted(Release::Held(evidence))),
                (true, true) => self.take_away(*id).map(Reply::Unmounted),
            });
            answers.push(answer(*number, reply));
        }
    }

    /// Who holds each of the volumes. One that is mounted nowhere is looked for by its directory.
    fn evidence(
        &self,
        ids: impl Iterator<Item = Id>,
    ) -> Result<Vec<Result<Evidence, Fault>>, Fault> {
        let text = self.processes.own_mounts()?;
        let lines = parse(&text)?;
        let mounts = self.mounts(&lines);
        let targets = ids.map(|id| {
            Ok(match self.line_in(&mounts, id)? {
                Some(line) => Target {
                    device: line.device,
                    root: (line.device == self.store.device).then(|| line.root.to_string()),
                },
                None => Target { device: self.store.device, root: Some(self.store.data(id, None)) },
            })
        });
        let targets: Vec<Result<Target, Fault>> = targets.collect();
        let known: Vec<&Target> = targets.iter().flatten().collect();
        let mut found = self.processes.scan(&known, self.anchor.device)?.into_iter();
        let answer = |target: &Result<Target, Fault>| match target {
            Ok(_) => Ok(found.next().unwrap_or_default()),
            Err(e) => Err(e.clone()),
        };
        Ok(targets.iter().map(answer).collect())
    }

    /// Unmounts a volume that nobody holds, and removes its mountpoint. Nothing there is done already.
    pub(crate) fn take_away(&self, id: Id) -> Result<Release, Fault> {
        self.kill.at("detach.begin");
        if self.anchor.mounted(id)?.is_some() && !self.anchor.detach(id)? {
            // A process in our own namespace works in it; the kernel does not say which.
            return Ok(Release::Held(Evidence { holders: Vec::new(), unknown: 1 }));
        }
        self.kill.at("detach.unmounted");
        self.anchor.remove(id)?;
        self.kill.at("detach.removed");
        Ok(Release::Gone)
    }

    /// The mounts under the anchor by volume, the lowest first where several lie on each other.
    fn mounts<'a, 'b>(&self, lines: &'b [Entry<'a>]) -> HashMap<Id, Vec<&'b Entry<'a>>> {
        let mut mounts: HashMap<Id, Vec<_>> = HashMap::new();
        for line in lines {
            let name = line.mount_point.strip_prefix(self.anchor.path.as_str());
            let name = name.and_then(|name| name.strip_prefix('/'));
            if let Some(Ok(id)) = name.map(Id::parse) {
                mounts.entry(id).or_default().push(line);
            }
        }
        mounts
    }

    fn line_in<'a, 'b>(
        &self,
        mounts: &HashMap<Id, Vec<&'b Entry<'a>>>,
        id: Id,
    ) -> Result<Option<&'b Entry<'a>>, Fault> {
        match mounts.get(&id).map(Vec::as_slice) {
            None => Ok(None),
            Some([line]) => Ok(Some(line)),
            Some(_) => {
                let path = &self.anchor.path;
                fault(
                    FaultKind::Busy,
                    format!("something is mounted over the volume: run `umount {path}/{id}` once"),
                )
            }
        }
    }

    /// The one line of a volume's mount.
    pub(crate) fn line_of<'a, 'b>(
        &self,
        id: Id,
        lines: &'b [Entry<'a>],
    ) -> Result<Option<&'b Entry<'a>>, Fault> {
        self.line_in(&self.mounts(lines), id)
    }

    fn survey(&self, kind: Inventory, after: Option<Id>) -> Result<Reply, Fault> {
        let id = |name: &str| Id::parse(name).ok();
        match kind {
            Inventory::Volumes => storage::page(&self.places.volumes, id, None, after),
            Inventory::Trash => storage::page(&self.places.trash, reaper::volume_of, None, after),
            Inventory::Mounts => {
                let text = self.processes.own_mounts()?;
                let lines = parse(&text)?;
                let mounts = self.mounts(&lines);
                let first = |(id, lines): (&Id, &Vec<&Entry<'_>>)| {
                    lines.first().map(|line| (*id, facts_of(line)))
                };
                let facts: HashMap<Id, Facts> = mounts.iter().filter_map(first).collect();
                storage::page(self.anchor.entries(), id, Some(&facts), after)
            }
        }
    }

    fn usage(&self, id: Id) -> Result<Usage, Fault> {
        if self.anchor.mounted(id)?.is_none() {
            return fault(FaultKind::Missing, format!("volume `{id}` is not mounted"));
        }
        let root = self.anchor.open_volume(id)?;
        let all = rustix::fs::fstatvfs(&root).trying(|| format!("measure volume `{id}`"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(all.f_frsize);
        Ok(Usage {
            size: bytes(all.f_blocks),
            used: bytes(all.f_blocks.saturating_sub(all.f_bfree)),
            inodes: all.f_files,
            inodes_used: all.f_files.saturating_sub(all.f_ffree),
        })
    }
}

fn answer(number: u64, reply: Result<Reply, Fault>) -> Frame<Reply> {
    Frame { number, body: reply.unwrap_or_else(Reply::Failed) }
}
