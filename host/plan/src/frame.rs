//! The frames between the daemon and mountd: one SOCK_SEQPACKET message each, postcard inside.
//!
//! A frame carries a number that the answer repeats, so that a slow request does not hold up the next. mountd answers every
//! frame, also one it cannot read.

use serde::{Deserialize, Serialize};

use crate::kinds::named_directory::{Look, Page};
use crate::{DriverName, Id, Plan, SecretName, Storage};

/// Largest frame in bytes. SEQPACKET takes 212 000 here; 64 KiB is enough for [`PAGE`] ids.
pub const FRAME_MAX: usize = 64 * 1024;
/// Most bytes of a secret that a driver may have: as many as fit into a frame, and enough for any key.
pub const REVEAL_MAX: usize = 32 * 1024;
/// Most entries in one page of a survey: 1000 bare ids have 20 KiB. Mounts with long roots make a page shorter.
pub const PAGE: usize = 1000;
/// Most strangers that a survey names: each is at most 64 characters long, escaped.
pub const STRANGERS_MAX: usize = 20;

/// A volume that goes from this machine once it is unmounted: who shows its file system anywhere holds it, and it is unmounted once all of
/// it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Its mount, or the last one, as far as that is known: somebody may have taken it away by hand.
    pub last: Option<Facts>,
}

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What is there: the first [`PAGE`] entries of a kind with an id above `after`, in order.
    Survey {
        /// Which directory.
        kind: Inventory,
        /// The last id of the page before.
        after: Option<Id>,
    },
    /// Make a volume's storage, durably. Already there with the same id: done.
    Make {
        /// The volume.
        id: Id,
        /// Whose grants apply.
        driver: DriverName,
        /// What to make.
        storage: Storage,
        /// What the marker of a named directory says behind its first line.
        note: Vec<u8>,
    },
    /// Hand out the root of a new volume's storage, empty, for its driver to fill it. What was filled before is gone.
    Fill {
        /// The volume.
        id: Id,
        /// Whose grants apply.
        driver: DriverName,
        /// What was made.
        storage: Storage,
    },
    /// Check what a driver has filled, and take it over for the volume's owner, durably.
    Settle {
        /// The volume.
        id: Id,
        /// Whose grants apply.
        driver: DriverName,
        /// What was made.
        storage: Storage,
    },
    /// Make a volume's storage as large as this says, durably, mounted or not. As large already: done.
    Grow {
        /// The volume.
        id: Id,
        /// Whose grants apply.
        driver: DriverName,
        /// What it is to be.
        storage: Storage,
        /// What the marker of a named directory says from then on behind its first line.
        note: Vec<u8>,
    },
    /// Mount a volume at its mountpoint. Already mounted there: its facts.
    Mount(Box<Mount>),
    /// Unmount a volume unless somebody holds it.
    Unmount {
        /// The volume.
        id: Id,
        /// Its backend takes it from this machine afterwards, if that is so.
        attached: Option<Attached>,
    },
    /// Who holds a volume.
    Scan {
        /// The volume.
        id: Id,
        /// As in `Unmount`.
        attached: Option<Attached>,
    },
    /// Move a volume's storage into the trash, durably. Nothing there: done. Refused while it is mounted.
    Trash {
        /// The volume.
        id: Id,
        /// Whose grants apply.
        driver: DriverName,
        /// What was made at create, or was about to be.
        storage: Storage,
    },
    /// A page of the markers beneath a driver's granted roots.
    Marks(Look),
    /// Size and use of a mounted volume, as statfs tells.
    Usage(Id),
    /// Whether a secret is kept for a driver. Nothing of it is answered.
    Secret {
        /// Whose volume is to name it.
        driver: DriverName,
        /// What it is kept under.
        name: SecretName,
    },
    /// The bytes of a secret, for a driver that was granted `reveal=NAME`.
    Reveal {
        /// Whose grants apply.
        driver: DriverName,
        /// What it is kept under.
        name: SecretName,
    },
    /// What a volume's files take, counted one by one: for as long as that takes.
    Measure(Id),
    /// Which volumes are mounted whose program has ended.
    Ended,
}

/// What [`Request::Mount`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume.
    pub id: Id,
    /// Whose grants apply.
    pub driver: DriverName,
    /// What was made at create.
    pub storage: Storage,
    /// How it is mounted.
    pub plan: Plan,
    /// The process that asked (SO_PEERCRED): its mount namespace must see the result. None for the CLI and recovery.
    pub peer: Option<u32>,
    /// Facts of the mount that this one follows in the same boot: a superblock that a container still holds is taken back.
    pub last: Option<Facts>,
}

/// A directory that [`Request::Survey`] lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inventory {
    /// Mounts under the anchor.
    Mounts,
    /// Storage in `volumes/`.
    Volumes,
    /// What waits for the reaper in `trash/`.
    Trash,
}

/// What mountd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Survey`.
    Surveyed {
        /// Entries by id; the facts are there for mounts only.
        entries: Vec<(Id, Option<Facts>)>,
        /// Names that are no id: reported, never touched. Only in the first page, cut after [`STRANGERS_MAX`].
        strangers: Vec<String>,
        /// Whether another page follows.
        more: bool,
    },
    /// To `Make`.
    Made,
    /// To `Fill`; the root comes with it as an open file.
    Opened,
    /// To `Settle`.
    Settled,
    /// To `Grow`.
    Grown,
    /// To `Mount`.
    Mounted(Facts),
    /// To `Unmount`.
    Unmounted(Release),
    /// To `Scan`.
    Scanned(Evidence),
    /// To `Trash`.
    Trashed,
    /// To `Marks`.
    Marked(Page),
    /// To `Usage`.
    Used(Usage),
    /// To `Secret`: it is.
    Kept,
    /// To `Reveal`.
    Revealed(Revealed),
    /// To `Measure`.
    Measured(Measure),
    /// To `Ended`.
    Ended(Vec<Id>),
    /// To any request that failed.
    Failed(Fault),
}

/// Bytes of a secret, which nothing shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revealed(pub Vec<u8>);

impl std::fmt::Debug for Revealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Drop for Revealed {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

/// What the kernel says of a mount: enough to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Major and minor number of the superblock's device, as mountinfo shows it.
    pub device: (u32, u32),
    /// Root of the mount within its file system, as mountinfo shows it.
    pub root: String,
    /// File system type.
    pub filesystem: String,
    /// Mount id of this boot, as mountinfo shows it.
    pub mount_id: u64,
}

/// How an unmount ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Nothing is mounted any more.
    Gone,
    /// Somebody holds it, or nobody can tell.
    Held(Evidence),
}

/// What a holder scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Processes that have the volume mounted, one a mount namespace; cut after 32.
    pub holders: Vec<Sighting>,
    /// Processes whose mounts could not be read: each counts as a holder.
    pub unknown: u32,
}

impl Evidence {
    /// Somebody holds it, or may, and nothing says who.
    pub fn hidden() -> Self {
        Self { holders: Vec::new(), unknown: 1 }
    }

    /// Whether nobody holds the volume.
    pub fn is_free(&self) -> bool {
        self.holders.is_empty() && self.unknown == 0
    }
}

/// One namespace that has the volume mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// A process in it.
    pub pid: u32,
    /// Where it is mounted there, without control characters.
    pub path: String,
}

/// Size and use of a volume in bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes in all.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes in use.
    pub inodes_used: u64,
}

/// What a volume's files take on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Bytes of the blocks that they take; a file with several names counts once.
    pub bytes: u64,
    /// Files, directories and whatever else has a name.
    pub files: u64,
    /// Directories that could not be read, or that something is mounted on.
    pub unread: u64,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of failure.
    pub kind: FaultKind,
    /// One line for the user: lower case, no full stop, says what to do.
    pub message: String,
}

/// The kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// A grant is missing.
    Denied,
    /// The frame makes no sense.
    Invalid,
    /// Storage that should be there is not.
    Missing,
    /// In use.
    Busy,
    /// No space, no inodes, no memory.
    Exhausted,
    /// The engine that asked cannot see our mounts.
    Invisible,
    /// Any other failed syscall.
    Failed,
    /// mountd is gone; made by the daemon's side only.
    Gone,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// A numbered message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame<T> {
    /// Chosen by the daemon, repeated in the answer.
    pub number: u64,
    /// The message.
    pub body: T,
}

impl<T: Serialize> Frame<T> {
    /// The bytes of the frame.
    ///
    /// # Errors
    /// `Invalid` if it is larger than [`FRAME_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        let bytes =
            postcard::to_allocvec(self).map_err(|e| unfit(format!("cannot be written: {e}")))?;
        if bytes.len() > FRAME_MAX { Err(too_long(bytes.len())) } else { Ok(bytes) }
    }
}

impl<'de, T: Deserialize<'de>> Frame<T> {
    /// Reads a frame.
    ///
    /// # Errors
    /// `Invalid` if the bytes are no frame, more than one, or more than [`FRAME_MAX`].
    pub fn decode(bytes: &'de [u8]) -> Result<Self, Fault> {
        if bytes.len() > FRAME_MAX {
            return Err(too_long(bytes.len()));
        }
        match postcard::take_from_bytes(bytes) {
            Ok((frame, [])) => Ok(frame),
            Ok(_) => Err(unfit("has bytes after its end".to_owned())),
            Err(e) => Err(unfit(format!("cannot be read: {e}"))),
        }
    }
}

fn unfit(why: String) -> Fault {
    Fault::new(FaultKind::Invalid, format!("frame {why}"))
}

fn too_long(length: usize) -> Fault {
    unfit(format!("has {length} bytes: at most {FRAME_MAX} are allowed"))
}
