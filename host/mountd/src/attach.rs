//! Mount: a plan becomes a mount that is attached nowhere, is verified, and appears at the mountpoint in one step.
//!
//! Killed before that step, nothing is left; killed after it, recovery finds the mount.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::frame::Mount;
use wasmvol_plan::grants::GRANTS_MAX;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{DriverName, Facts, Fault, FaultKind, Grants, Id, Plan, Release};

use crate::anchor::{Device, NONE, identity};
use crate::fault::{Context, fault};
use crate::kinds::{self, Assembled, Shows};
use crate::mounter::{Mounter, Place, facts_of};
use crate::places::BENEATH;
use crate::scan;
use crate::sys::{Flags, Propagation, mount_setattr};

/// The source of a superblock that is one volume's own: by it the volume is known in every namespace.
pub(crate) fn tag(id: Id) -> String {
    format!("{TAG}{id}")
}
pub(crate) const TAG: &str = "wasmvol-";

impl Mounter {
    /// Mounts a volume, or answers the facts of the mount that is there.
    pub(crate) fn mount(&self, wanted: &Mount) -> Result<Facts, Fault> {
        if let Some(facts) = self.mounted(wanted)? {
            return Ok(facts);
        }
        let grants = self.grants(&wanted.driver)?;
        self.kill.at("attach.begin");
        let assembled = self.prepare(wanted, &grants)?;
        self.attach(wanted, assembled)
    }

    /// Makes the tree of a plan, restricted and verified. That asks the file system, so a child does it where a server may never answer.
    pub(crate) fn prepare(&self, wanted: &Mount, grants: &Grants) -> Result<Assembled, Fault> {
        let assembled = self.assemble(wanted, grants)?;
        restrict(&assembled.tree, &wanted.plan, grants)?;
        Ok(assembled)
    }

    /// Checks a plan; the facts of the mount that is there, if one is.
    pub(crate) fn mounted(&self, wanted: &Mount) -> Result<Option<Facts>, Fault> {
        let grants = self.grants(&wanted.driver)?;
        wanted.storage.check(&grants)?;
        wanted.plan.check(&wanted.storage, &grants)?;
        if self.anchor.mounted(wanted.id)?.is_none() {
            return Ok(None);
        }
        // A program that has ended comes back by a new mount; who has the old one has to begin anew in any case.
        if self.places.has_ended(wanted.id) {
            return match self.take_away(wanted.id)? {
                Release::Gone => Ok(None),
                Release::Held(_) => fault(
                    FaultKind::Busy,
                    "its program has ended, and a process works in its mount: end that one",
                ),
            };
        }
        let facts = self.existing(wanted)?;
        self.show_to(wanted.peer, wanted.id, &facts).map(|()| Some(facts))
    }

    /// Puts a tree on the mountpoint; nothing here asks the file system.
    pub(crate) fn attach(
        &self,
        wanted: &Mount,
        Assembled { tree, shows }: Assembled,
    ) -> Result<Facts, Fault> {
        let id = wanted.id;
        let (mount_id, own) = identity(&tree, "").trying("look at the new mount")?;
        self.kill.at("attach.assembled");
        let shown = self.commit(id, &tree, mount_id).and_then(|()| {
            let facts = self.facts(shows, mount_id, own)?;
            self.show_to(wanted.peer, id, &facts).map(|()| facts)
        });
        // An open fd would keep the mount busy.
        drop(tree);
        shown.or_else(|first| match self.take_away(id) {
            Ok(_) => Err(first),
            Err(undo) => fault(first.kind, format!("{first}; and undoing it failed: {undo}")),
        })
    }

    fn commit(&self, id: Id, tree: &OwnedFd, mount_id: u64) -> Result<(), Fault> {
        self.anchor.attach(id, tree)?;
        self.kill.at("attach.moved");
        // On the anchor it became shared: containers could send mounts back.
        mount_setattr(tree, NONE, NONE, Propagation::PRIVATE).trying("make a mount private")?;
        self.kill.at("attach.private");
        match self.anchor.mounted(id)? {
            Some((there, _)) if there == mount_id => Ok(()),
            _ => fault(FaultKind::Failed, format!("something else was mounted for `{id}`")),
        }
    }

    /// What mountinfo shows of a new mount, read there only where its kind cannot know it.
    fn facts(&self, shows: Shows, mount_id: u64, own: Device) -> Result<Facts, Fault> {
        let (device, root, filesystem) = match shows {
            Shows::Own(kind) => (own, "/".to_owned(), kind.to_owned()),
            Shows::Place(Place { device, root, filesystem, .. }) => (device, root, filesystem),
            Shows::Unknown => {
                let facts = self.line(mount_id, |line| line.map(facts_of))?;
                return facts.ok_or(Errno::NOENT).trying("find the new mount among this process's");
            }
        };
        Ok(Facts { device, root, filesystem, mount_id })
    }

    /// What `look` makes of the line of a mount in this process's mountinfo.
    fn line<T>(
        &self,
        mount_id: u64,
        look: impl FnOnce(Option<&Entry<'_>>) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let text = self.processes.own_mounts()?;
        Ok(look(scan::parse(&text)?.iter().find(|line| line.mount_id == mount_id)))
    }

    /// The facts of a mount that is there, if it is what the plan would make.
    fn existing(&self, wanted: &Mount) -> Result<Facts, Fault> {
        let id = wanted.id;
        let mount_id = self.anchor.mounted(id)?.map_or(0, |(mount_id, _)| mount_id);
        let is_it = |line: &&Entry<'_>| kinds::is_it(self, wanted, line);
        let facts = self.line(mount_id, |line| line.filter(is_it).map(facts_of))?;
        facts.map_or_else(
            || fault(FaultKind::Busy, format!("something else is mounted at `{id}`: umount it")),
            Ok,
        )
    }

    /// What the operator granted to a driver, from a file that only root may have written.
    pub(crate) fn grants(&self, driver: &DriverName) -> Result<Grants, Fault> {
        let path = format!("grants.d/{driver}");
        let what = format_args!("read `{path}`");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat2(&self.places.grants, driver.as_str(), flags, Mode::empty(), BENEATH);
        if matches!(opened, Err(Errno::NOENT)) {
            return Grants::parse(driver, "");
        }
        let file = opened.trying(what)?;
        let stat = rustix::fs::fstat(&file).trying(what)?;
        let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !plain || stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            let why = "must be a plain file that only root can write: chown root and chmod 0644 it";
            return fault(FaultKind::Denied, format!("`{path}` {why}"));
        }
        let mut text = String::new();
        File::from(file).take(GRANTS_MAX as u64 + 1).read_to_string(&mut text).trying(what)?;
        Grants::parse(driver, &text).map_err(|e| Fault::new(e.kind, format!("`{path}`: {e}")))
    }

    /// Refuses to answer an engine that would give a container the anchor's empty directory.
    fn show_to(&self, peer: Option<u32>, id: Id, facts: &Facts) -> Result<(), Fault> {
        let anchor = &self.anchor.path;
        match peer {
            Some(pid) if !self.processes.sees(pid, &format!("{anchor}/{id}"), facts.device)? => {
                let cure = "remove PrivateMounts=, PrivateTmp=, ProtectSystem= and the like from the unit of the engine \
                            or of wasmvol, or run `mount --make-rshared /` and start both again";
                let why = format!(
                    "process {pid} has a mount namespace that does not see `{anchor}`: {cure}"
                );
                fault(FaultKind::Invisible, why)
            }
            _ => Ok(()),
        }
    }
}

/// Sets the flags of a tree, never fewer than nosuid and nodev unless that was granted, and asks the kernel whether it has them.
fn restrict(tree: &OwnedFd, plan: &Plan, grants: &Grants) -> Result<(), Fault> {
    let pairs = [
        (!grants.suid, Flags::MOUNT_ATTR_NOSUID, StatVfsMountFlags::NOSUID),
        (!grants.dev, Flags::MOUNT_ATTR_NODEV, StatVfsMountFlags::NODEV),
        (plan.no_exec, Flags::MOUNT_ATTR_NOEXEC, StatVfsMountFlags::NOEXEC),
    ];
    let (mut set, mut shown) = (NONE, StatVfsMountFlags::empty());
    for (_, flag, show) in pairs.into_iter().filter(|(wanted, ..)| *wanted) {
        set |= flag;
        shown |= show;
    }
    // A tree that was taken back may have a container's flag.
    let clear = if plan.read_only { NONE } else { Flags::MOUNT_ATTR_RDONLY };
    mount_setattr(tree, set, clear, Propagation::PRIVATE)
        .trying("set the flags of the new mount")?;
    let flags = rustix::fs::fstatvfs(tree).trying("look at the new mount")?.f_flag;
    if flags.contains(shown) && plan.read_only == flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    fault(FaultKind::Failed, format!("the kernel made a mount with other flags: {flags:?}"))
}
