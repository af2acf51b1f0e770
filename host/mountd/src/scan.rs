//! Who holds a volume: the kernel's evidence, from the mountinfo of one process for each mount namespace and root directory.
//!
//! What cannot be read counts as held. Copies of the whole tree, as `-v /:/host` makes them, hold nothing: there a volume lies on a
//! copy of the anchor. `namespaces` answers first, and only who it says is there is looked for here.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::open_tree;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wasmvol_plan::mountinfo::{self, Entry, MOUNTINFO_MAX, is_beneath};
use wasmvol_plan::{Evidence, Facts, Fault, FaultKind, Sighting, name::escaped};

use crate::anchor::{CLONE, Device, identity};
use crate::fault::{Context, fault};
use crate::namespaces::{self, Devices};
use crate::places::{DIRECTORY, PLACE};

/// Most holders that are named: a person needs a few, the rest only fills the frame.
const NAMED_MAX: usize = 32;
/// Most characters of a holder's path.
const PATH_SHOWN: usize = 256;

/// What a holder's mount shows of a volume.
pub(crate) struct Target {
    pub(crate) device: Device,
    /// Root of the volume in a file system that others share; none where the device is the volume's own.
    pub(crate) root: Option<String>,
    /// Where nothing is mounted: the source of the volume's own file system, if it had one.
    pub(crate) lost: Option<String>,
    /// On this device a mount is the volume's own, or a copy of it, and holds nothing.
    pub(crate) anchor: Device,
}

impl Target {
    /// Whether a mount of this device and root shows the volume.
    pub(crate) fn is(&self, device: Device, root: &str) -> bool {
        self.device == device && self.root.as_ref().is_none_or(|top| is_beneath(root, top))
    }
}

/// What /proc tells of processes and their mounts.
pub(crate) struct Processes {
    proc: OwnedFd,
    /// This process's mount namespace.
    namespace: OwnedFd,
    devices: std::cell::RefCell<Devices>,
}

impl Processes {
    /// Opens /proc.
    pub(crate) fn open() -> Result<Self, Fault> {
        let proc = rustix::fs::open("/proc", DIRECTORY, Mode::empty()).trying("open `/proc`")?;
        let namespace = open_file(&proc, "self/ns/mnt").trying("open `/proc/self/ns/mnt`")?;
        Ok(Self { proc, namespace, devices: std::cell::RefCell::default() })
    }

    /// What a child keeps of it.
    pub(crate) fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.proc.as_fd(), self.namespace.as_fd()]
    }

    /// The mountinfo of this process.
    pub(crate) fn own_mounts(&self) -> Result<String, Fault> {
        self.mounts("self").trying("read `/proc/self/mountinfo`")
    }

    fn mounts(&self, pid: &str) -> Result<String, Errno> {
        let file = File::from(open_file(&self.proc, &format!("{pid}/mountinfo"))?);
        let mut bytes = Vec::new();
        let read = file.take(MOUNTINFO_MAX + 1).read_to_end(&mut bytes);
        match read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))? as u64 {
            0..=MOUNTINFO_MAX => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            _ => Err(Errno::FBIG),
        }
    }

    /// The mount namespace of a process, and its root directory in it.
    fn view(&self, pid: &str) -> Result<(u64, u64, u64), Errno> {
        let look = |what: &str| {
            let mask = StatxFlags::INO | StatxFlags::MNT_ID;
            rustix::fs::statx(&self.proc, format!("{pid}/{what}"), AtFlags::STATX_DONT_SYNC, mask)
        };
        let (namespace, root) = (look("ns/mnt")?, look("root")?);
        Ok((namespace.stx_ino, root.stx_mnt_id, root.stx_ino))
    }

    /// Shows `visit` the mounts of one process for each view that there is, and answers how many processes could not be read.
    fn each_view(&self, mut visit: impl FnMut(u32, &[Entry<'_>])) -> Result<u32, Fault> {
        let mut seen = HashSet::new();
        let mut unknown = 0;
        for name in names(&self.proc).trying("list `/proc`")? {
            let Ok(pid) = name.parse() else { continue };
            let read = match self.view(&name) {
                Ok(view) if seen.contains(&view) => Ok(()),
                Err(e) if is_gone(e) => Ok(()),
                // Some processes show root their mounts, but not which view that is.
                view => self.mounts(&name).and_then(|text| {
                    visit(pid, &mountinfo::parse(&text).ok_or(Errno::PROTO)?);
                    seen.extend(view);
                    Ok(())
                }),
            };
            unknown += u32::from(read.is_err_and(|e| !is_gone(e)));
        }
        Ok(unknown)
    }

    /// Who holds the target.
    pub(crate) fn scan(&self, target: &Target) -> Result<Evidence, Fault> {
        let mut holders = Vec::new();
        let somewhere = namespaces::show(&self.namespace, target, &mut self.devices.borrow_mut());
        if somewhere == Ok(false) && target.lost.is_none() {
            return Ok(Evidence::default());
        }
        let unknown = self.each_view(|pid, lines| {
            let anchors = lines.iter().filter(|line| line.device == target.anchor);
            let anchors: HashSet<_> = anchors.map(|line| line.mount_id).collect();
            let is_lost = |line: &Entry<'_>| target.lost.as_deref() == Some(&line.source);
            let is_it = |line: &Entry<'_>| target.is(line.device, &line.root) || is_lost(line);
            let shows = |line: &&Entry<'_>| is_it(line) && !anchors.contains(&line.parent_id);
            let line = lines.iter().find(shows).filter(|_| holders.len() < NAMED_MAX);
            let shown = |path: &str| path.chars().flat_map(escaped).take(PATH_SHOWN).collect();
            holders.extend(line.map(|line| Sighting { pid, path: shown(&line.mount_point) }));
        })?;
        // A namespace that no process shows is a thread's, or is kept by its file.
        let hidden = u32::from(holders.is_empty());
        Ok(Evidence { holders, unknown: if somewhere == Ok(true) { hidden } else { unknown } })
    }

    /// Whether `pid` sees a mount of this device at `path`; so it does if it has ended, or shares our namespace.
    pub(crate) fn sees(&self, pid: u32, path: &str, device: Device) -> Result<bool, Fault> {
        let pid = pid.to_string();
        let answer = self.view(&pid).and_then(|(namespace, ..)| {
            if namespace == rustix::fs::fstat(&self.namespace)?.st_ino {
                return Ok(true);
            }
            let text = self.mounts(&pid)?;
            let lines = mountinfo::parse(&text).ok_or(Errno::PROTO)?;
            Ok(lines.iter().any(|line| line.device == device && line.mount_point == path))
        });
        match answer {
            Err(e) if is_gone(e) => Ok(true),
            other => other.trying(format_args!("read the mounts of process {pid}")),
        }
    }

    /// Clones a superblock of the volume's own out of a namespace that still has it. None if nobody has.
    pub(crate) fn take_back(&self, last: &Facts, source: &str) -> Result<Option<OwnedFd>, Fault> {
        let mut holders = Vec::new();
        let unknown = self.each_view(|pid, lines| {
            // Another file system may have got the device's number since; it has not this source.
            let same = |line: &&Entry<'_>| line.device == last.device && line.source == source;
            // A directory inside the volume is not the volume: who has only that holds it, and cannot give it back.
            let line = lines.iter().filter(same).min_by_key(|line| line.root != last.root);
            let whole = |line: &Entry<'_>| (line.root == last.root).then_some(line.mount_id);
            holders.extend(line.map(|line| (pid, line.mount_point.to_string(), whole(line))));
        })?;
        let tree = holders.iter().find_map(|holder| self.clone_from(holder).ok());
        if tree.is_none() && (unknown > 0 || !holders.is_empty()) {
            let why = "cannot be taken back from who holds it: end the containers that use it";
            return fault(FaultKind::Busy, why);
        }
        Ok(tree)
    }

    /// Clones the mount with a number that a process sees at a path.
    fn clone_from(&self, (pid, path, id): &(u32, String, Option<u64>)) -> Result<OwnedFd, Errno> {
        let flags = PLACE.difference(OFlags::NOFOLLOW);
        let root = openat(&self.proc, format!("{pid}/root"), flags, Mode::empty())?;
        let theirs = open_file(&self.proc, &format!("{pid}/ns/mnt"))?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let place = openat2(root, path, PLACE, Mode::empty(), inside)?;
        if Some(identity(&place, "")?.0) != *id {
            return Err(Errno::STALE);
        }
        // The kernel clones only what is in the caller's own namespace. Nothing in between resolves a path.
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(theirs.as_fd(), kind)?;
        let tree = open_tree(&place, "", CLONE);
        if move_into_link_name_space(self.namespace.as_fd(), kind).is_err() {
            // In a stranger's namespace nothing of ours may go on; the next start adopts every mount.
            std::process::abort();
        }
        tree
    }
}

fn open_file(proc: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// The error of a process that has ended, is a zombie, or has no mounts at all.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::INVAL)
}

/// Names in a directory, in no order. What is not UTF-8 is shown with replacement characters: it is nobody's id.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<String>, Errno> {
    // A clone of a tree is opened only as a place; this makes it readable.
    let mut entries = rustix::fs::Dir::new(openat(directory, ".", DIRECTORY, Mode::empty())?)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.read() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// All lines of this process's mountinfo.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry<'_>>, Fault> {
    mountinfo::parse(text).ok_or(Errno::PROTO).trying("read this kernel's mountinfo")
}
