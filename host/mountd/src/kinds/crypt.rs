//! Encryption of an image: LUKS2 on its loop device, mapped by the kernel to a device that shows it in clear.
//!
//! Called by `image`, in a child, and to ask what is mapped. `cryptsetup` writes the header and opens it; the key comes to it through a
//! pipe. A mapping frees itself once nobody has it open, as its loop device does then: nothing of it outlives its last mount.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use wasmvol_plan::kinds::image::HEADER;
use wasmvol_plan::{Fault, FaultKind, Id, Secret};

use super::loops::Loop;
use super::tool::CRYPTSETUP;
use crate::attach::tag;
use crate::fault::{Context, fault};
use crate::sys::{ioctl, ioctl_size};

/// Where the kernel is asked about mappings, in linux/dm-ioctl.h: to remove one, and what there is of one.
const CONTROL: &str = "/dev/mapper/control";
const REMOVE: u32 = 0xc138_fd04;
const STATUS: u32 = 0xc138_fd07;
/// `DM_DEFERRED_REMOVE`: once nobody has it open.
const DEFERRED: u32 = 1 << 17;
/// The version of these calls, and where in a `struct dm_ioctl` its size, flags, device number and name lie.
const VERSION: u32 = 4;
const AT_SIZE: usize = 12;
const AT_FLAGS: usize = 28;
const AT_DEVICE: usize = 40;
const AT_NAME: usize = 48;
/// How a passphrase becomes a key: a second of work in 64 MiB, since sixteen images may be opened at once.
const HARD_TO_GUESS: [&str; 6] =
    ["--pbkdf-memory", "65536", "--pbkdf-parallel", "1", "--iter-time", "1000"];
/// The key comes through stdin, and no file outside is locked: there is one child for a volume.
const COMMON: [&str; 3] = ["--batch-mode", "--key-file=-", "--disable-locks"];
/// What `cryptsetup` ends with where no key fits.
const NO_KEY: i32 = 2;

/// What encrypts an image.
pub(super) struct Key<'a> {
    pub(super) name: &'a str,
    pub(super) secret: Secret,
}

/// A mapped device; open, so that it does not free itself.
pub(super) struct Mapping {
    /// Held open, for nothing else.
    _held: OwnedFd,
    path: String,
}

/// Writes the header of an encrypted device.
pub(super) fn format(device: &Loop, key: &Key<'_>) -> Result<(), Fault> {
    let (path, sectors) = (device.path(), (HEADER / 512).to_string());
    let words =
        ["luksFormat", "--type", "luks2", "--sector-size", "4096", "--offset", &sectors, &path];
    run(&[&words[..], &HARD_TO_GUESS, &COMMON].concat(), key)
}

/// By which the file system of a volume is known in every namespace.
pub(super) fn path(id: Id) -> String {
    format!("/dev/mapper/{}", tag(id))
}

/// Lets the mapping of a volume go, once nobody has it open.
pub(super) fn forget(id: Id) -> Result<(), Errno> {
    match ask(REMOVE, id, DEFERRED) {
        Err(Errno::NXIO) => Ok(()),
        other => other.map(|_| ()),
    }
}

impl Mapping {
    /// Opens what is on a device.
    pub(super) fn open(
        device: &Loop,
        id: Id,
        key: &Key<'_>,
        read_only: bool,
        thin: bool,
    ) -> Result<Self, Fault> {
        let (path, name) = (device.path(), tag(id));
        let mut words = vec!["open", "--type", "luks2", &path, &name];
        // The disk then shows which blocks are empty, as it does for every thin image.
        words.extend(thin.then_some("--allow-discards"));
        words.extend(read_only.then_some("--readonly"));
        run(&[&words, &COMMON[..]].concat(), key)?;
        let opened = Self::of(id)?;
        opened.ok_or_else(|| Fault::new(FaultKind::Failed, "`cryptsetup` has opened nothing"))
    }

    /// The one that a volume has, if it has one. It goes as soon as nobody has it open any more.
    pub(super) fn of(id: Id) -> Result<Option<Self>, Fault> {
        let what = format_args!("open the mapping of volume `{id}`");
        let number = match ask(STATUS, id, 0) {
            // No such mapping, or no device mapper at all.
            Err(Errno::NXIO | Errno::NOENT) => return Ok(None),
            number => number.trying(what)?,
        };
        let path = path(id);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let held = rustix::fs::open(&path, flags, Mode::empty()).trying(what)?;
        if rustix::fs::fstat(&held).trying(what)?.st_rdev != number {
            return fault(FaultKind::Failed, format!("`{path}` is another device: remove it"));
        }
        forget(id).trying(what)?;
        Ok(Some(Self { _held: held, path }))
    }

    pub(super) fn path(&self) -> String {
        self.path.clone()
    }

    /// Whether a file system of it is mounted anywhere.
    pub(super) fn is_mounted(&self) -> Result<bool, Errno> {
        match rustix::fs::open(&self.path, OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::BUSY) => Ok(true),
            other => other.map(|_| false),
        }
    }

    /// Takes over the size that its device has now.
    pub(super) fn grow(&self, key: &Key<'_>) -> Result<(), Fault> {
        run(&[&["resize", &self.path], &COMMON[..]].concat(), key)
    }
}

fn run(words: &[&str], key: &Key<'_>) -> Result<(), Fault> {
    let ended = CRYPTSETUP.run_with(words, key.secret.bytes())?;
    match ended.status {
        Some(0) => Ok(()),
        Some(NO_KEY) => {
            let why =
                format!("secret `{}` does not open the image: it was made with another", key.name);
            fault(FaultKind::Denied, why)
        }
        _ => fault(FaultKind::Failed, CRYPTSETUP.failure(&ended)),
    }
}

/// Asks the kernel about a volume's mapping, and answers the number of its device.
fn ask(number: u32, id: Id, flags: u32) -> Result<u64, Errno> {
    let control = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut words = [0; ioctl_size(STATUS)];
    let size = u32::try_from(words.len()).map_err(|_| Errno::INVAL)?;
    let mut set = |at: usize, bytes: &[u8]| {
        words.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    set(0, &VERSION.to_ne_bytes());
    set(AT_SIZE, &size.to_ne_bytes());
    set(AT_FLAGS, &flags.to_ne_bytes());
    set(AT_NAME, tag(id).as_bytes());
    ioctl(&control, number, &mut words)?;
    let device = words.get(AT_DEVICE..).and_then(<[u8]>::first_chunk).copied();
    Ok(u64::from_ne_bytes(device.unwrap_or_default()))
}
