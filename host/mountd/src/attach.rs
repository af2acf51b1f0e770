//! Mount: a plan becomes a mount that is attached nowhere, is verified, and appears at the mountpoint in one step.
//!
//! Killed before that step, nothing is left; killed after it, recovery finds the mount.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use wasmvol_plan::grants::GRANTS_MAX;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{DriverName, Facts, Fault, FaultKind, Grants, Id, Plan, Source, Storage, Tmpfs};

use crate::anchor::{CLONE, identity};
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::BENEATH;
use crate::sys;

/// What a Mount asks for, beside the volume.
pub(crate) struct Wanted {
    pub(crate) driver: DriverName,
    pub(crate) storage: Storage,
    pub(crate) plan: Plan,
    pub(crate) peer: Option<u32>,
    pub(crate) last: Option<Facts>,
}

/// The source of a superblock that is one volume's own: by it the volume is known in every namespace.
fn tag(id: Id) -> String {
    format!("wasmvol-{id}")
}

impl Mounter {
    /// Mounts a volume, or answers the facts of the mount that is there.
    pub(crate) fn mount(&self, id: Id, wanted: &Wanted) -> Result<Facts, Fault> {
        let plan = &wanted.plan;
        let grants = self.grants(&wanted.driver)?;
        wanted.storage.check(&grants)?;
        plan.check(&wanted.storage, &grants)?;
        if self.anchor.mounted(id)?.is_some() {
            let facts = self.existing(id, plan)?;
            self.show_to(wanted.peer, id, &facts)?;
            return Ok(facts);
        }
        self.kill.at("attach.begin");
        let tree = self.assemble(id, plan, wanted.last.as_ref())?;
        let attributes = attributes(plan, &grants);
        let none = MountAttrFlags::empty();
        // A mount taken back may have a container's flags.
        let clear = if plan.read_only { none } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
        sys::mount_setattr(tree.as_fd(), attributes, clear, MountPropagationFlags::PRIVATE)
            .trying(|| "set the flags of the mount".to_owned())?;
        verify(&tree, plan, attributes)?;
        let facts = self.facts(id, plan, &tree)?;
        self.kill.at("attach.assembled");
        let shown =
            self.commit(id, &tree, &facts).and_then(|()| self.show_to(wanted.peer, id, &facts));
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
        self.anchor.attach(id, tree.as_fd())?;
        self.kill.at("attach.moved");
        // On a shared mount it became shared: containers could send mounts back.
        let none = MountAttrFlags::empty();
        sys::mount_setattr(tree.as_fd(), none, none, MountPropagationFlags::PRIVATE)
            .trying(|| format!("make the mount of `{id}` private"))?;
        self.kill.at("attach.private");
        match self.anchor.mounted(id)? {
            Some(mount_id) if mount_id == facts.mount_id => Ok(()),
            _ => fault(
                FaultKind::Failed,
                format!("`{id}` is not what was mounted: look at `{}`", self.anchor.path),
            ),
        }
    }

    /// The facts of a mount that is there, if it is what the plan would make.
    fn existing(&self, id: Id, plan: &Plan) -> Result<Facts, Fault> {
        let text = self.processes.own_mounts()?;
        let lines = crate::scan::parse(&text)?;
        let Some(line) = self.line_of(id, &lines)? else {
            return fault(
                FaultKind::Failed,
                format!("the mount of `{id}` is not listed: try again"),
            );
        };
        let (device, root) = (self.store.device, self.store.data(id, plan.subpath.as_deref()));
        let expected = match &plan.source {
            Source::Storage if plan.read_only => {
                line.filesystem == "overlay" && line.source == tag(id)
            }
            Source::Storage => line.device == device && line.root == root,
            Source::Tmpfs(_) => line.filesystem == "tmpfs" && line.source == tag(id),
        };
        if expected {
            Ok(facts_of(line))
        } else {
            let what = format!("{} from {}", line.filesystem, line.source);
            fault(
                FaultKind::Busy,
                format!("something else is mounted for `{id}` ({what}): unmount it first"),
            )
        }
    }

    /// What mountinfo will show of a tree.
    fn facts(&self, id: Id, plan: &Plan, tree: &OwnedFd) -> Result<Facts, Fault> {
        let what = || "look at the new mount".to_owned();
        let (mount_id, device) = identity(tree, "", AtFlags::EMPTY_PATH).trying(what)?;
        let (device, root, filesystem) = match &plan.source {
            Source::Storage if !plan.read_only => (
                // A file system may show its files another device than its mounts.
                self.store.device,
                self.store.data(id, plan.subpath.as_deref()),
                self.store.filesystem.as_str(),
            ),
            Source::Storage => (device, "/".to_owned(), "overlay"),
            Source::Tmpfs(_) => (device, "/".to_owned(), "tmpfs"),
        };
        Ok(Facts { device, root, filesystem: filesystem.to_owned(), mount_id })
    }

    fn assemble(&self, id: Id, plan: &Plan, last: Option<&Facts>) -> Result<OwnedFd, Fault> {
        match &plan.source {
            Source::Storage => {
                let data = self.places.open_data(id, plan.subpath.as_deref())?;
                if plan.read_only {
                    return self.overlay(id, &data);
                }
                open_tree(&data, "", CLONE).trying(|| format!("clone the directory of `{id}`"))
            }
            Source::Tmpfs(tmpfs) => {
                // Data in memory lives as long as anybody has it: a second tmpfs would hide it.
                if let Some(last) = last.filter(|last| last.filesystem == "tmpfs")
                    && let Some(tree) = self.processes.take_back(last, &tag(id))?
                {
                    return Ok(tree);
                }
                new_tmpfs(id, tmpfs, plan.read_only)
            }
        }
    }

    /// A view of a directory whose superblock refuses writes: an engine's remount cannot change that.
    fn overlay(&self, id: Id, data: &OwnedFd) -> Result<OwnedFd, Fault> {
        let (data, empty) = (data.as_raw_fd(), self.places.empty.as_raw_fd());
        let layers = format!("/proc/self/fd/{data}:/proc/self/fd/{empty}");
        superblock("overlay", &[("source", tag(id)), ("lowerdir", layers)], true)
    }

    /// What the operator granted to a driver, from a file that only root may have written.
    pub(crate) fn grants(&self, driver: &DriverName) -> Result<Grants, Fault> {
        let path = format!("grants.d/{driver}");
        let what = || format!("read `{path}`");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat2(
            &self.places.grants,
            driver.as_str(),
            flags,
            Mode::empty(),
            BENEATH,
        ) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Grants::default()),
            Err(e) => return Err(e).trying(what),
        };
        let stat = rustix::fs::fstat(&file).trying(what)?;
        let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !plain || stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            let cure = format!("chown root `{path}`; chmod 0644 `{path}`");
            return fault(
                FaultKind::Denied,
                format!("grants must be a plain file that only root can write: {cure}"),
            );
        }
        let mut text = String::new();
        File::from(file).take(GRANTS_MAX as u64 + 1).read_to_string(&mut text).trying(what)?;
        Grants::parse(&text).map_err(|e| Fault::new(e.kind, format!("`{path}`: {e}")))
    }

    /// Refuses to answer an engine that would give a container the anchor's empty directory.
    fn show_to(&self, peer: Option<u32>, id: Id, facts: &Facts) -> Result<(), Fault> {
        let Some(pid) = peer else { return Ok(()) };
        let path = format!("{}/{id}", self.anchor.path);
        if self.processes.sees(pid, &path, facts.device)? {
            return Ok(());
        }
        fault(
            FaultKind::Invisible,
            format!(
                "process {pid} is in a mount namespace that does not see `{}`: remove PrivateMounts=, PrivateTmp=, \
                 ProtectSystem= and the like from the unit of the engine or of wasmvol, or run `mount --make-rshared /` \
                 and start both again",
                self.anchor.path
            ),
        )
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

/// Never fewer than nosuid and nodev, unless that was granted.
fn attributes(plan: &Plan, grants: &Grants) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !grants.suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !grants.dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, plan.no_exec);
    flags
}

/// Asks the kernel whether a tree is what was meant.
fn verify(tree: &OwnedFd, plan: &Plan, attributes: MountAttrFlags) -> Result<(), Fault> {
    let shown = rustix::fs::fstatvfs(tree).trying(|| "look at the new mount".to_owned())?.f_flag;
    let wanted = [
        (MountAttrFlags::MOUNT_ATTR_NOSUID, StatVfsMountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, StatVfsMountFlags::NODEV),
    ];
    let kept = wanted.iter().all(|(set, show)| !attributes.contains(*set) || shown.contains(*show));
    if kept && plan.read_only == shown.contains(StatVfsMountFlags::RDONLY) {
        Ok(())
    } else {
        fault(FaultKind::Failed, format!("the kernel made a mount with other flags: {shown:?}"))
    }
}

fn new_tmpfs(id: Id, tmpfs: &Tmpfs, read_only: bool) -> Result<OwnedFd, Fault> {
    let owner = tmpfs.owner;
    let mut options = vec![
        ("source", tag(id)),
        ("mode", format!("{:04o}", owner.mode)),
        ("uid", owner.uid.to_string()),
        ("gid", owner.gid.to_string()),
    ];
    options.extend(tmpfs.size.map(|size| ("size", size.to_string())));
    options.extend(tmpfs.inodes.map(|inodes| ("nr_inodes", inodes.to_string())));
    superblock("tmpfs", &options, read_only)
}

/// Makes a superblock; the kernel's own words for an option that it refuses.
fn superblock(kind: &str, options: &[(&str, String)], read_only: bool) -> Result<OwnedFd, Fault> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).trying(|| format!("use {kind}"))?;
    let configure = || {
        for (key, value) in options {
            fsconfig_set_string(&context, *key, value.as_str())?;
        }
        if read_only {
            fsconfig_set_flag(&context, "ro")?;
        }
        fsconfig_create(&context)
    };
    configure().trying(|| format!("make a {kind}{}", complaint(&context)))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .trying(|| format!("mount a {kind}"))
}

/// What the kernel wrote about a failure, if anything: `e tmpfs: Bad value for 'size'`.
fn complaint(context: &OwnedFd) -> String {
    let mut message = [0u8; 512];
    match rustix::io::read(context, &mut message) {
        Ok(length) => {
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            let words = text.trim().trim_start_matches("e ").replace(char::is_control, " ");
            format!(" ({words})")
        }
        Err(_) => String::new(),
    }
}
