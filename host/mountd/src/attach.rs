//! Mount: a plan becomes a mount that is attached nowhere, is verified, and appears at the mountpoint in one step.
//!
//! Killed before that step, nothing is left; killed after it, recovery finds the mount.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags, openat2};
use rustix::io::Errno;
use rustix::mount::open_tree;
use wasmvol_plan::grants::GRANTS_MAX;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{DriverName, Facts, Fault, FaultKind, Grants, Id, Plan, Source, Storage};

use crate::anchor::{CLONE, Device, NONE, identity, superblock};
use crate::fault::{Context, fault};
use crate::mounter::{Mounter, Place, facts_of};
use crate::places::BENEATH;
use crate::scan;
use crate::storage::open_subpath;
use crate::sys::{Flags, Propagation, mount_setattr};

/// The source of a superblock that is one volume's own: by it the volume is known in every namespace.
pub(crate) fn tag(id: Id) -> String {
    format!("{TAG}{id}")
}
const TAG: &str = "wasmvol-";

/// A directory that becomes a volume, and what mountinfo will show of it.
struct Origin {
    directory: OwnedFd,
    device: Device,
    root: String,
    filesystem: String,
}

/// What mountinfo will show of a tree. A file system may show its files another device than its mounts.
fn facts(plan: &Plan, origin: Option<Origin>, tree: &OwnedFd) -> Result<Facts, Fault> {
    let (mount_id, own) = identity(tree, "").trying("look at the new mount")?;
    let (device, root, filesystem) = match origin {
        None => (own, "/".to_owned(), "tmpfs".to_owned()),
        Some(_) if plan.read_only => (own, "/".to_owned(), "overlay".to_owned()),
        Some(Origin { device, root, filesystem, .. }) => (device, root, filesystem),
    };
    Ok(Facts { device, root, filesystem, mount_id })
}

impl Mounter {
    /// Mounts a volume, or answers the facts of the mount that is there.
    pub(crate) fn mount(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
        plan: &Plan,
        peer: Option<u32>,
        last: Option<&Facts>,
    ) -> Result<Facts, Fault> {
        let grants = self.grants(driver)?;
        storage.check(&grants)?;
        plan.check(storage, &grants)?;
        if self.anchor.mounted(id)?.is_some() {
            let facts = self.existing(id, plan)?;
            return self.show_to(peer, id, &facts).map(|()| facts);
        }
        self.kill.at("attach.begin");
        let origin = self.origin(id, plan, &grants)?;
        let tree = self.assemble(id, plan, origin.as_ref(), last)?;
        restrict(&tree, plan, &grants)?;
        let facts = facts(plan, origin, &tree)?;
        self.kill.at("attach.assembled");
        let shown = self.commit(id, &tree, &facts).and_then(|()| self.show_to(peer, id, &facts));
        // An open fd would keep the mount busy.
        drop(tree);
        match shown {
            Ok(()) => Ok(facts),
            Err(first) => match self.take_away(id) {
                Ok(_) => Err(first),
                Err(undo) => fault(first.kind, format!("{first}; and undoing it failed: {undo}")),
            },
        }
    }

    fn commit(&self, id: Id, tree: &OwnedFd, facts: &Facts) -> Result<(), Fault> {
        self.anchor.attach(id, tree)?;
        self.kill.at("attach.moved");
        // On the anchor it became shared: containers could send mounts back.
        mount_setattr(tree, NONE, NONE, Propagation::PRIVATE).trying("make a mount private")?;
        self.kill.at("attach.private");
        match self.anchor.mounted(id)? {
            Some((mount_id, _)) if mount_id == facts.mount_id => Ok(()),
            _ => fault(FaultKind::Failed, format!("something else was mounted for `{id}`")),
        }
    }

    /// The facts of a mount that is there, if it is what the plan would make.
    fn existing(&self, id: Id, plan: &Plan) -> Result<Facts, Fault> {
        let (mount_id, _) =
            identity(&self.anchor.open_volume(id)?, "").trying("look at a mount")?;
        let text = self.processes.own_mounts()?;
        let own = |line: &Entry<'_>, kind| line.source == tag(id) && line.filesystem == kind;
        let is_it = |line: &&Entry<'_>| match &plan.source {
            Source::Tmpfs(_) => own(line, "tmpfs"),
            Source::Storage | Source::HostDirectory(_) if plan.read_only => own(line, "overlay"),
            Source::Storage => {
                let root = self.store.data(id, plan.subpath.as_deref());
                line.device == self.store.device && line.root == root
            }
            // The directory may have got another name since.
            Source::HostDirectory(_) => !line.source.starts_with(TAG),
        };
        let line = scan::parse(&text)?.into_iter().find(|line| line.mount_id == mount_id);
        match line.as_ref().filter(is_it) {
            Some(line) => Ok(facts_of(line)),
            None => {
                fault(FaultKind::Busy, format!("something else is mounted at `{id}`: umount it"))
            }
        }
    }

    /// The directory that is to be shown, and where it lies; none where the file system is the volume's own.
    fn origin(&self, id: Id, plan: &Plan, grants: &Grants) -> Result<Option<Origin>, Fault> {
        match &plan.source {
            Source::Tmpfs(_) => Ok(None),
            Source::Storage => {
                let subpath = plan.subpath.as_deref();
                let directory = self.places.open_data(id, subpath)?;
                let (device, root) = (self.store.device, self.store.data(id, subpath));
                Ok(Some(Origin {
                    directory,
                    device,
                    root,
                    filesystem: self.store.filesystem.clone(),
                }))
            }
            Source::HostDirectory(wanted) => {
                let directory = self.places.open_host_directory(wanted, grants)?;
                let directory = match &plan.subpath {
                    None => directory,
                    Some(subpath) => open_subpath(&directory, subpath)?,
                };
                let text = self.processes.own_mounts()?;
                let Place { device, root, filesystem, .. } =
                    Place::of(&directory, &scan::parse(&text)?)?;
                Ok(Some(Origin { directory, device, root, filesystem }))
            }
        }
    }

    fn assemble(
        &self,
        id: Id,
        plan: &Plan,
        origin: Option<&Origin>,
        last: Option<&Facts>,
    ) -> Result<OwnedFd, Fault> {
        let source = ("source", tag(id));
        match (&plan.source, origin) {
            (_, Some(origin)) if plan.read_only => {
                // An overlay without an upper layer refuses writes whatever an engine's remount says.
                let fds = [origin.directory.as_raw_fd(), self.places.empty.as_raw_fd()];
                let layers = fds.map(|fd| format!("/proc/self/fd/{fd}")).join(":");
                superblock("overlay", &[source, ("lowerdir", layers)], true)
            }
            (_, Some(origin)) => open_tree(&origin.directory, "", CLONE)
                .trying(format_args!("clone the directory of `{id}`")),
            (Source::Tmpfs(tmpfs), None) => {
                // What is in memory lives as long as anybody has it: a second tmpfs would hide it.
                if let Some(last) = last.filter(|last| last.filesystem == "tmpfs")
                    && let Some(tree) = self.processes.take_back(last, &tag(id))?
                {
                    return Ok(tree);
                }
                let owner = tmpfs.owner;
                let mut options = vec![
                    source,
                    ("mode", format!("{:04o}", owner.mode)),
                    ("uid", owner.uid.to_string()),
                    ("gid", owner.gid.to_string()),
                ];
                options.extend(tmpfs.size.map(|size| ("size", size.to_string())));
                options.extend(tmpfs.inodes.map(|inodes| ("nr_inodes", inodes.to_string())));
                superblock("tmpfs", &options, plan.read_only)
            }
            (Source::Storage | Source::HostDirectory(_), None) => {
                fault(FaultKind::Missing, format!("volume `{id}` has no directory"))
            }
        }
    }

    /// What the operator granted to a driver, from a file that only root may have written.
    pub(crate) fn grants(&self, driver: &DriverName) -> Result<Grants, Fault> {
        let path = format!("grants.d/{driver}");
        let what = format_args!("read `{path}`");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat2(&self.places.grants, driver.as_str(), flags, Mode::empty(), BENEATH);
        if matches!(opened, Err(Errno::NOENT)) {
            return Ok(Grants::default());
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
        Grants::parse(&text).map_err(|e| Fault::new(e.kind, format!("`{path}`: {e}")))
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
