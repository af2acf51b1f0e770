//! Which requests may wait for a server or a disk, and for how long: those are carried out in a child.
//!
//! Called by `mounter`, which queues them, and by `job`. The hot ones, about directories on the disk of the state directory and memory,
//! are told apart without a look at the mount table.

use std::time::Duration;

use rustix::mount::UnmountFlags;
use wasmvol_plan::frame::{Attached, Mount};
use wasmvol_plan::mountinfo::{Entry, is_beneath};
use wasmvol_plan::{Fault, Id, Overlay, Release, Reply, Request, Source, Storage};

use super::job::Begun;
use super::{named_directory, share};
use crate::mounter::Mounter;
use crate::scan::parse;

/// File systems that ask nobody but disks of this machine, and those only for a moment.
const LOCAL: [&str; 12] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "vfat", "tmpfs", "ramfs",
    "squashfs",
];
/// How long a request waits for a child before it and takes itself; the daemon waits longer, so that it hears why.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// How long files may be counted: some ten million, on a disk that is busy.
const MEASURE_DEADLINE: Duration = Duration::from_secs(300);
/// How long a server or a disk may take to get what was written, before its volume counts as unmounted or as draining: engines wait
/// 60 s.
pub(super) const FLUSH_DEADLINE: Duration = Duration::from_secs(10);
/// How long a server may take to tell how full it is: the daemon, which asks in the background, waits a little longer.
const USAGE_DEADLINE: Duration = Duration::from_secs(4);

/// How a mount ends.
#[derive(PartialEq, Eq)]
enum Ending {
    /// At once.
    Quick,
    /// After all was written that it has not written yet: this is the last mount of its file system.
    Flushed,
    /// Lazily: it asks a server, which may be gone.
    LetGo,
}

/// Whether a request may take longer than the others can wait, whatever its volume lies on.
pub(super) fn is_slow(request: &Request) -> bool {
    match request {
        // A granted root may be on a server.
        Request::Make { storage, .. } => {
            matches!(
                storage,
                Storage::Image(_) | Storage::Subvolume(_) | Storage::NamedDirectory(_)
            )
        }
        Request::Trash { storage, .. } => matches!(storage, Storage::NamedDirectory(_)),
        Request::Marks(_) | Request::Grow { .. } => true,
        Request::Fill { .. } | Request::Settle { .. } => true,
        Request::Mount(wanted) => match wanted.plan.source {
            Source::Share(_) | Source::Device(_) | Source::Program(_) => true,
            // A directory of the host may lie on a server, too.
            Source::HostDirectory(_) => true,
            Source::Storage => matches!(wanted.storage, Storage::Image(_)),
            Source::Tmpfs(_) | Source::Overlay(_) => false,
        },
        Request::Measure(_) => true,
        _ => false,
    }
}

impl Mounter {
    /// Whether a request may take longer than the others can wait, so that this process must not carry it out.
    pub(crate) fn may_wait(&self, request: &Request) -> bool {
        // What cannot be read is told by whoever carries the request out.
        let looked = match request {
            Request::Unmount { id, .. } => self.ending(*id).map(|ending| ending != Ending::Quick),
            Request::Usage(id) => self.asks_elsewhere(*id),
            Request::Mount(wanted) => self.lies_over_another(wanted),
            _ => Ok(false),
        };
        is_slow(request) || looked.unwrap_or(false)
    }

    /// A volume's line of the mount table; none if it is not mounted, or lies on the disk of the state directory, as most do.
    fn with_line<T>(
        &self,
        id: Id,
        look: impl FnOnce(&Entry<'_>, &[Entry<'_>]) -> T,
    ) -> Result<Option<T>, Fault> {
        let Some((mount_id, device)) = self.anchor.mounted(id)? else { return Ok(None) };
        if device == self.store.shown {
            return Ok(None);
        }
        let text = self.processes.own_mounts()?;
        let lines = parse(&text)?;
        let line = lines.iter().find(|line| line.mount_id == mount_id);
        Ok(line.map(|line| look(line, &lines)))
    }

    fn ending(&self, id: Id) -> Result<Ending, Fault> {
        let ending = self.with_line(id, |line, lines| {
            let is_last = || lines.iter().filter(|l| l.device == line.device).count() == 1;
            if share::is_remote(line) {
                Ending::LetGo
            } else if !matches!(&*line.filesystem, "tmpfs" | "ramfs") && is_last() {
                Ending::Flushed
            } else {
                Ending::Quick
            }
        });
        ending.map(|ending| ending.unwrap_or(Ending::Quick))
    }

    /// Whether to tell how full it is a volume may ask a server, by itself or by what lies below it.
    fn asks_elsewhere(&self, id: Id) -> Result<bool, Fault> {
        let asks = self.with_line(id, |line, _| !LOCAL.contains(&&*line.filesystem));
        asks.map(|asks| asks.unwrap_or(false))
    }

    /// Whether an overlay lies over directories that a server may have.
    fn lies_over_another(&self, wanted: &Mount) -> Result<bool, Fault> {
        let Source::Overlay(Overlay { lower, .. }) = &wanted.plan.source else { return Ok(false) };
        let text = self.processes.own_mounts()?;
        let lines = parse(&text)?;
        // The last one that covers a path is what is seen there.
        let filesystem = |path: &String| {
            let covers = |line: &&Entry<'_>| is_beneath(path, &line.mount_point);
            let found = lines.iter().filter(covers).max_by_key(|line| line.mount_point.len());
            found.map_or("", |line| &*line.filesystem)
        };
        Ok(lower.iter().any(|path| !LOCAL.contains(&filesystem(path))))
    }

    /// Begins to unmount what does not end at once. A share goes lazily: who still uses it keeps it, and nobody waits for a server. What
    /// was written and has not reached the server is with the last one who closes the share: that is a child, which waits as long as it
    /// takes. By force it would be lost. What ends on a disk stays mounted until a child has written it out.
    pub(super) fn let_go(&self, id: Id, attached: Option<&Attached>) -> Result<Begun, Fault> {
        let evidence = self.scan(id, attached)?;
        if !evidence.is_free() {
            return Ok(Begun::Answered(Reply::Unmounted(Release::Held(evidence))));
        }
        let root = self.anchor.open_volume(id)?;
        if self.ending(id)? == Ending::Flushed {
            return Ok(Begun::ForAChild(Some(root)));
        }
        self.kill.at("detach.begin");
        self.anchor.detach(id, UnmountFlags::DETACH)?;
        self.kill.at("detach.unmounted");
        self.anchor.remove(id)?;
        self.kill.at("detach.removed");
        Ok(Begun::ForAChild(Some(root)))
    }

    /// The child has closed it, or nobody waits for that any longer.
    pub(super) fn was_let_go(&self, id: Id, reply: Reply) -> Reply {
        self.places.forget_program(id);
        reply
    }
}

/// How long a child may take for a request.
pub(super) fn deadline_of(request: &Request) -> Duration {
    match request {
        Request::Unmount { .. } => FLUSH_DEADLINE,
        Request::Usage(_) => USAGE_DEADLINE,
        Request::Measure(_) => MEASURE_DEADLINE,
        _ => DEADLINE,
    }
}

/// Whether a request changes a volume.
pub(super) fn changes(request: &Request) -> bool {
    use Request::{Fill, Grow, Make, Mount, Settle, Trash, Unmount};
    let is_made = matches!(request, Make { .. } | Fill { .. } | Settle { .. } | Grow { .. });
    is_made || matches!(request, Mount(_) | Unmount { .. } | Trash { .. })
}

/// Whether a request has an image checked, and mended where it is damaged, which takes as long as it takes: killed, it begins anew the next
/// time, and never ends.
pub(super) fn checks_an_image(request: &Request) -> bool {
    match request {
        Request::Grow { storage, .. } => matches!(storage, Storage::Image(_)),
        Request::Mount(wanted) => {
            matches!((&wanted.plan.source, &wanted.storage), (Source::Storage, Storage::Image(_)))
        }
        _ => false,
    }
}

/// The volume that a request is about.
pub(super) fn id_of(request: &Request) -> Id {
    match request {
        Request::Make { id, .. } | Request::Grow { id, .. } | Request::Trash { id, .. } => *id,
        Request::Fill { id, .. } | Request::Settle { id, .. } => *id,
        Request::Mount(wanted) => wanted.id,
        Request::Unmount { id, .. } | Request::Scan { id, .. } => *id,
        Request::Usage(id) | Request::Measure(id) => *id,
        Request::Marks(wanted) => named_directory::id_of(&wanted.driver),
        Request::Survey { .. }
        | Request::Secret { .. }
        | Request::Reveal { .. }
        | Request::Ended => Id::from_bits(0),
    }
}

/// Whether a request only looks: nobody's volume is the worse for its waiting.
pub(super) fn only_looks(request: &Request) -> bool {
    matches!(request, Request::Usage(_) | Request::Measure(_) | Request::Marks(_))
}
