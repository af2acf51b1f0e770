//! Loop devices: an image's file as a block device. A file has one for ever: a second one would write over the first.
//!
//! Each frees itself once nobody has it open and nothing is mounted from it. That something is mounted shows in that nobody may open
//! it exclusively: a device which only a stranger looks at is not in use.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::fault::Context;
use crate::scan::names;
use crate::sys::{ioctl, ioctl_size};
use wasmvol_plan::Fault;

/// Bytes of a block of the device, and of every file system's blocks in it: so direct I/O works on disks of either kind.
pub(super) const BLOCK: u32 = 4096;
/// The ioctls of linux/loop.h: the last three take no argument, and a `struct loop_info64`.
const CONFIGURE: u32 = 0x4c0a;
const SET_CAPACITY: u32 = 0x4c07;
const GET_FREE: u32 = 0x4c82;
const GET_STATUS: u32 = 0x4c05;
/// How often a free device is asked for: others may take each before us.
const TRIES: u32 = 64;
/// `LO_FLAGS_AUTOCLEAR` and `LO_FLAGS_DIRECT_IO`: the page cache of the file system inside is enough.
const FLAGS: u32 = 4 | 16;
/// `LO_FLAGS_READ_ONLY`: nothing is written, whatever a mount is made to say.
const READ_ONLY: u32 = 1;
/// Where the flags lie in a `struct loop_info64`, and the name, which the kernel only keeps.
const AT_FLAGS: usize = 52;
const AT_NAME: usize = 56;
const NAME: usize = 64;
/// Where that struct begins in a `struct loop_config`, after the file's number and the size of a block.
const AT_INFO: usize = 8;

/// How the path of every image ends, while it is made, too.
const FILES: [&str; 2] = ["/image", "/image.new"];

/// A loop device; open, so that it does not free itself.
pub(super) struct Loop {
    device: OwnedFd,
    number: String,
}

/// What the kernel tells of a device.
struct Info([u8; ioctl_size(GET_STATUS)]);

impl Info {
    fn word(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk).copied();
        u64::from_ne_bytes(bytes.unwrap_or_default())
    }

    fn name(&self) -> &[u8] {
        let name = self.0.get(AT_NAME..AT_NAME + NAME).unwrap_or_default();
        name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Loop {
    /// The device of a name as mountinfo shows it, if it is one that a file backs.
    pub(super) fn open(source: &str) -> Result<Option<Self>, Errno> {
        let number =
            source.strip_prefix("/dev/loop").filter(|number| number.parse::<u32>().is_ok());
        let Some(number) = number else { return Ok(None) };
        let device = Self { device: open(source, OFlags::RDONLY)?, number: number.to_owned() };
        match device.info() {
            Ok(_) => Ok(Some(device)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The device that a file backs, if there is one.
    pub(super) fn of(file: &OwnedFd) -> Result<Option<Self>, Fault> {
        let find = || -> Result<Option<Self>, Errno> {
            let wanted = rustix::fs::fstat(file)?;
            let block = rustix::fs::open(
                "/sys/block",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            for name in names(&block)? {
                // What a stranger's device is backed by may lie on a server that is gone, and the device would ask that.
                let backing = format!("/sys/block/{name}/loop/backing_file");
                let backing = std::fs::read_to_string(backing).unwrap_or_default();
                let backing = backing.trim_end().trim_end_matches(" (deleted)");
                if !FILES.iter().any(|file| backing.ends_with(file)) {
                    continue;
                }
                let found = match Self::open(&format!("/dev/{name}")) {
                    // It was freed meanwhile.
                    Err(Errno::NXIO | Errno::NOENT) => None,
                    found => found?,
                };
                let is_it = |found: &Self| {
                    found.info().is_ok_and(|info| {
                        (info.word(0), info.word(8)) == (wanted.st_dev, wanted.st_ino)
                    })
                };
                if let Some(found) = found.filter(is_it) {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        };
        find().trying("look for the loop device of an image")
    }

    /// Makes a file a device, under a name of ours.
    pub(super) fn attach(file: &OwnedFd, name: &str, read_only: bool) -> Result<Self, Fault> {
        let what = "take a loop device";
        let (how, flags) =
            if read_only { (OFlags::RDONLY, FLAGS | READ_ONLY) } else { (OFlags::RDWR, FLAGS) };
        let control = open("/dev/loop-control", OFlags::RDWR).trying(what)?;
        let mut config = [0; ioctl_size(CONFIGURE)];
        let mut set = |at: usize, bytes: &[u8]| {
            config.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        set(0, &file.as_raw_fd().to_ne_bytes());
        set(4, &BLOCK.to_ne_bytes());
        set(AT_INFO + AT_FLAGS, &flags.to_ne_bytes());
        set(AT_INFO + AT_NAME, name.as_bytes().get(..NAME - 1).unwrap_or(name.as_bytes()));
        let mut taken = Errno::BUSY;
        for _ in 0..TRIES {
            let number = ioctl(&control, GET_FREE, &mut config).trying(what)?.to_string();
            let device = open(&format!("/dev/loop{number}"), how).trying(what)?;
            match ioctl(&device, CONFIGURE, &mut config) {
                Ok(_) => {
                    return Ok(Self { device, number });
                }
                Err(Errno::BUSY) => {}
                Err(e) => taken = e,
            }
            if taken != Errno::BUSY {
                break;
            }
        }
        Err(taken).trying(what)
    }

    /// Its path, by which a file system in it is known in every namespace.
    pub(super) fn path(&self) -> String {
        format!("/dev/loop{}", self.number)
    }

    /// Whether it was attached under a name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.info().is_ok_and(|info| info.name() == name.as_bytes())
    }

    /// Whether a file system of it is mounted anywhere.
    pub(super) fn is_mounted(&self) -> Result<bool, Errno> {
        match open(&self.path(), OFlags::EXCL) {
            Err(Errno::BUSY) => Ok(true),
            other => other.map(|_| false),
        }
    }

    /// Takes over the size that its file has now.
    pub(super) fn grow(&self) -> Result<(), Errno> {
        ioctl(&self.device, SET_CAPACITY, &mut [0; ioctl_size(SET_CAPACITY)]).map(|_| ())
    }

    fn info(&self) -> Result<Info, Errno> {
        let mut info = Info([0; ioctl_size(GET_STATUS)]);
        ioctl(&self.device, GET_STATUS, &mut info.0).map(|_| info)
    }
}

fn open(path: &str, how: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, how | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}
