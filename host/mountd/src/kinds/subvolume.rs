//! A btrfs subvolume beneath the state directory, `volumes/ID/data`: made and destroyed here, shown and opened as a directory is.

use std::os::fd::OwnedFd;

use rustix::fs::{IFlags, Mode, XattrFlags, openat2};
use rustix::io::Errno;
use wasmvol_plan::{Fault, FaultKind, Id, Subvolume};

use crate::fault::{Context, fault};
use crate::places::{BENEATH, DIRECTORY, Places, make_and_open, own};
use crate::sys::{ioctl, ioctl_size};

/// The ioctls of linux/btrfs.h: two with a `struct btrfs_ioctl_vol_args`, then those of quotas.
const CREATE: u32 = 0x5000_940e;
const DESTROY: u32 = 0x5000_940f;
const QUOTA: u32 = 0xc010_9428;
const LIMIT: u32 = 0x8030_942b;
/// Those that look something up: which subvolume a directory is of, and items of a tree. Each has one page.
const WHICH: u32 = 0xd000_9412;
const SEARCH: u32 = 0xd000_9411;
/// The tree of quotas, and its items: what a group refers to, and its limits.
const QUOTA_TREE: u64 = 8;
const INFO: u32 = 242;
const LIMITS: u32 = 244;
/// Bytes of the question at the begin of a search's page, and of the head of each item behind it.
const QUESTION: usize = 104;
const HEAD: usize = 32;
/// The number of btrfs among file systems, and of the root of each subvolume among its files.
const BTRFS: u64 = 0x9123_683e;
const ROOT: u64 = 256;
/// `BTRFS_QUOTA_CTL_ENABLE`, and `BTRFS_QGROUP_LIMIT_MAX_RFER`: all that the subvolume refers to counts.
const ENABLE: u64 = 1;
const REFERENCED: u64 = 1;

pub(super) fn make(places: &Places, id: Id, wanted: &Subvolume) -> Result<Vec<OwnedFd>, Fault> {
    let what = format_args!("make the subvolume of volume `{id}`");
    if !is_btrfs(&places.volumes).trying(what)? {
        let why = "is not on btrfs, which a subvolume needs: mount a btrfs there, or use `-o driver=image -o fs=btrfs`";
        return fault(FaultKind::Failed, format!("the state directory `{}` {why}", places.state));
    }
    let outer = make_and_open(&places.volumes, &id.to_string(), BENEATH).trying(what)?;
    if wanted.limit.is_some() {
        // Before there is something to count. To enable it again is done already.
        let mut enable = [ENABLE.to_ne_bytes(), [0; 8]].concat();
        ioctl(&outer, QUOTA, &mut enable).trying("turn on btrfs's quotas")?;
    }
    match ioctl(&outer, CREATE, &mut named("data")) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).trying(what),
    }
    let data = openat2(&outer, "data", DIRECTORY, Mode::empty(), BENEATH).trying(what)?;
    if let Some(bytes) = wanted.limit {
        limit(&data, bytes).trying(what)?;
    }
    if !wanted.copy_on_write {
        let flags = rustix::fs::ioctl_getflags(&data).trying(what)?;
        rustix::fs::ioctl_setflags(&data, flags | IFlags::NOCOW).trying(what)?;
    }
    if let Some(compression) = wanted.compress {
        let (key, value) = ("btrfs.compression", compression.name().as_bytes());
        rustix::fs::fsetxattr(&data, key, value, XattrFlags::empty()).trying(what)?;
    }
    let owner = wanted.owner;
    own(&data, owner.uid, owner.gid, Mode::from_raw_mode(owner.mode)).trying(what)?;
    Ok(vec![data, outer])
}

/// Sets the limit of a subvolume that has one.
pub(super) fn grow(places: &Places, id: Id, wanted: &Subvolume) -> Result<(), Fault> {
    let what = format_args!("set the limit of volume `{id}`");
    let data = openat2(&places.volumes, format!("{id}/data"), DIRECTORY, Mode::empty(), BENEATH);
    wanted.limit.map_or(Ok(()), |bytes| limit(&data?, bytes)).trying(what)
}

fn limit(subvolume: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    // Quota group 0 is the subvolume's own; then flags, four limits.
    let words = [0, REFERENCED, bytes, 0, 0, 0];
    ioctl(subvolume, LIMIT, &mut words.map(u64::to_ne_bytes).concat()).map(|_| ())
}

/// The limit of an opened subvolume and what it refers to, as its quota group counts them with each commit; nothing of what has no limit.
pub(super) fn counted(root: &OwnedFd) -> Result<Option<(u64, u64)>, Errno> {
    if !is_root(root)? {
        return Ok(None);
    }
    // It may have been opened as a place only.
    let root = &openat2(root, ".", DIRECTORY, Mode::empty(), BENEATH)?;
    let mut which = words(&[0, ROOT]);
    which.resize(ioctl_size(WHICH), 0);
    ioctl(root, WHICH, &mut which)?;
    let group = word(&which, 0);
    // Behind the flags, and behind the generation.
    let limit = item(root, LIMITS, group)?.filter(|item| word(item, 0) & REFERENCED != 0);
    let refers = item(root, INFO, group)?;
    Ok(limit.zip(refers).map(|(limit, refers)| (word(&limit, 1), word(&refers, 1))))
}

/// An item of a quota group, if there is one.
fn item(root: &OwnedFd, kind: u32, group: u64) -> Result<Option<Vec<u8>>, Errno> {
    // Tree, numbers, groups and generations from and to, kinds from and to, how many.
    let mut page = words(&[QUOTA_TREE, 0, 0, group, group, 0, u64::MAX]);
    page.extend([kind, kind, 1].iter().flat_map(|number| number.to_ne_bytes()));
    page.resize(ioctl_size(SEARCH), 0);
    match ioctl(root, SEARCH, &mut page) {
        // Nobody has turned quotas on.
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let head = page.get(QUESTION..).unwrap_or_default();
    // The same place of the question says how many were found.
    let found = page.get(64..68) == Some(&1_u32.to_ne_bytes()) && word(head, 2) == group;
    Ok(found.then(|| head.get(HEAD..).unwrap_or_default().to_vec()))
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A word of an answer; 0 beyond its end.
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at * 8..).and_then(<[u8]>::first_chunk).copied();
    u64::from_ne_bytes(bytes.unwrap_or_default())
}

fn is_btrfs(directory: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(directory)?.f_type.cast_unsigned() == BTRFS)
}

/// Whether an opened directory is the root of a subvolume.
pub(crate) fn is_root(directory: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstat(directory)?.st_ino == ROOT && is_btrfs(directory)?)
}

/// Destroys a subvolume with all that is in it; `false` if there are others in it.
pub(crate) fn destroy(parent: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match ioctl(parent, DESTROY, &mut named(name)) {
        Err(Errno::NOTEMPTY) => Ok(false),
        other => other.map(|_| true),
    }
}

/// A `struct btrfs_ioctl_vol_args`: a file's number, which is not used here, and a name that ends with zeros.
fn named(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; ioctl_size(CREATE)];
    // The last byte stays zero: a longer name is no name.
    let most = bytes.len() - 1;
    bytes.iter_mut().take(most).skip(8).zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}
