//! Who holds a volume: the kernel's evidence, from the mountinfo of one process for each mount namespace and root directory.
//!
//! What cannot be read counts as held. Copies of the whole tree, as `-v /:/host` makes them, hold nothing: there a volume lies on a
//! copy of the anchor.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wasmvol_plan::mountinfo::{self, Entry, MOUNTINFO_MAX, is_beneath};
use wasmvol_plan::{Evidence, Facts, Fault, FaultKind, Sighting};

use crate::anchor::{CLONE, identity};
use crate::fault::{Context, fault};
use crate::places::DIRECTORY;

/// Most holders that are named: a person needs a few, the rest only fills the frame.
const NAMED_MAX: usize = 32;
/// Most characters of a holder's path.
const PATH_SHOWN: usize = 256;

/// What a holder's line shows of a volume.
pub(crate) struct Target {
    pub(crate) device: (u32, u32),
    /// Root of the volume in a file system that others share; none where the device is the volume's own.
    pub(crate) root: Option<String>,
}

impl Target {
    fn is_shown_by(&self, line: &Entry<'_>) -> bool {
        self.device == line.device
            && self.root.as_ref().is_none_or(|root| is_beneath(&line.root, root))
    }
}

/// /proc, opened once.
pub(crate) struct Processes(OwnedFd);

impl Processes {
    /// Opens /proc.
    pub(crate) fn open() -> Result<Self, Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc", flags, Mode::empty())
            .map(Self)
            .trying(|| "open `/proc`".to_owned())
    }

    /// The mountinfo of this process.
    pub(crate) fn own_mounts(&self) -> Result<String, Fault> {
        match self.mounts("self") {
            Ok(text) => Ok(text),
            Err(e) => Err(e).trying(|| "read `/proc/self/mountinfo`".to_owned()),
        }
    }

    fn mounts(&self, pid: &str) -> Result<String, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, format!("{pid}/mountinfo"), flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(MOUNTINFO_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        if bytes.len() as u64 > MOUNTINFO_MAX {
            return Err(Errno::FBIG);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The mount namespace of a process, and its root directory in it.
    fn view(&self, pid: &str) -> Result<(u64, u64, u64), Errno> {
        let flags = AtFlags::STATX_DONT_SYNC;
        let of = |what: &str| {
            let mask = StatxFlags::INO | StatxFlags::MNT_ID;
            rustix::fs::statx(&self.0, format!("{pid}/{what}"), flags, mask)
        };
        let (namespace, root) = (of("ns/mnt")?, of("root")?);
        Ok((namespace.stx_ino, root.stx_mnt_id, root.stx_ino))
    }

    /// Shows `visit` the mounts of one process for each view that there is, and answers how many processes could not be read.
    fn each_view(&self, mut visit: impl FnMut(u32, &[Entry<'_>])) -> Result<u32, Fault> {
        let mut seen = HashSet::new();
        let mut unknown = 0;
        for name in names(&self.0).trying(|| "list `/proc`".to_owned())? {
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
            match read {
                Ok(()) => {}
                Err(e) if is_gone(e) => {}
                Err(_) => unknown += 1,
            }
        }
        Ok(unknown)
    }

    /// The evidence for each target, from one walk over all processes.
    pub(crate) fn scan(
        &self,
        targets: &[&Target],
        anchor: (u32, u32),
    ) -> Result<Vec<Evidence>, Fault> {
        let mut found: Vec<Evidence> = targets.iter().map(|_| Evidence::default()).collect();
        let unknown = self.each_view(|pid, lines| {
            for (target, evidence) in targets.iter().zip(&mut found) {
                let held = lines.iter().find(|line| {
                    target.is_shown_by(line)
                        && !lines.iter().any(|l| l.mount_id == line.parent_id && l.device == anchor)
                });
                if let Some(line) = held
                    && evidence.holders.len() < NAMED_MAX
                {
                    evidence.holders.push(Sighting { pid, path: shown(&line.mount_point) });
                }
            }
        })?;
        for evidence in &mut found {
            evidence.unknown = unknown;
        }
        Ok(found)
    }

    /// Whether `pid` sees a mount of this device at `path`; so it does if it has ended, or shares our namespace.
    pub(crate) fn sees(&self, pid: u32, path: &str, device: (u32, u32)) -> Result<bool, Fault> {
        let pid = pid.to_string();
        let answer = self.view(&pid).and_then(|(namespace, ..)| {
            if namespace == self.view("self")?.0 {
                return Ok(true);
            }
            let text = self.mounts(&pid)?;
            let lines = mountinfo::parse(&text).ok_or(Errno::PROTO)?;
            Ok(lines.iter().any(|l| l.device == device && l.mount_point == path))
        });
        match answer {
            Err(e) if is_gone(e) => Ok(true),
            other => other.trying(|| format!("read the mounts of process {pid}")),
        }
    }

    /// Clones a superblock of the volume's own out of a namespace that still has it. None if nobody has.
    pub(crate) fn take_back(&self, last: &Facts, source: &str) -> Result<Option<OwnedFd>, Fault> {
        let mut holders = Vec::new();
        let unknown = self.each_view(|pid, lines| {
            let same = |l: &&Entry<'_>| {
                l.device == last.device && l.filesystem == last.filesystem && l.source == source
            };
            holders.extend(
                lines.iter().find(same).map(|l| (pid, l.mount_point.to_string(), l.mount_id)),
            );
        })?;
        let mut failure = None;
        for (pid, path, mount_id) in &holders {
            match self.clone_from(*pid, path, *mount_id) {
                Ok(tree) => return Ok(Some(tree)),
                Err(e) => failure = Some(e),
            }
        }
        match failure {
            Some(e) => {
                Err(e).trying(|| "take the volume back from the container that holds it".to_owned())
            }
            None if unknown > 0 => fault(
                FaultKind::Busy,
                "cannot tell whether a container still holds the volume: end the processes that root cannot read",
            ),
            None => Ok(None),
        }
    }

    fn clone_from(&self, pid: u32, path: &str, mount_id: u64) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.0, format!("{pid}/root"), flags, Mode::empty())?;
        let inside =
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let place = rustix::fs::openat2(root, path, flags, Mode::empty(), inside)?;
        if identity(&place, "", AtFlags::EMPTY_PATH)?.0 != mount_id {
            return Err(Errno::STALE);
        }
        let namespace = |pid: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.0, format!("{pid}/ns/mnt"), flags, Mode::empty())
        };
        let (theirs, ours) = (namespace(&pid.to_string())?, namespace("self")?);
        // The kernel clones only what is in the caller's own namespace. Nothing in between resolves a path.
        move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Mount))?;
        let tree = rustix::mount::open_tree(&place, "", CLONE | OpenTreeFlags::AT_NO_AUTOMOUNT);
        if move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::Mount)).is_err() {
            // In a stranger's namespace nothing of ours may go on; the next start adopts every mount.
            std::process::abort();
        }
        tree
    }
}

/// The error of a process that has ended, is a zombie, or has no mounts at all.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::INVAL)
}

/// Names in a directory, in no order. What is not UTF-8 is shown with replacement characters: it is nobody's id.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    // A clone of a tree is opened only as a place; this makes it readable.
    let readable = rustix::fs::openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut entries = rustix::fs::Dir::new(readable)?;
    while let Some(entry) = entries.read() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// A stranger's path as it may stand in a line.
fn shown(path: &str) -> String {
    let escape =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    path.chars().take(PATH_SHOWN).map(escape).collect()
}

/// All lines of a mountinfo.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry<'_>>, Fault> {
    match mountinfo::parse(text) {
        Some(lines) => Ok(lines),
        None => fault(FaultKind::Failed, "this kernel's mountinfo has an unknown form: report it"),
    }
}
