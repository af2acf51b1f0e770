//! A file system on a block device of the host: `device=PATH` grants it.

use serde::{Deserialize, Serialize};

use super::host_directory::is_absolute;
use super::options::{self, MountOption, MountValue};
use super::{denied, invalid};
use crate::grants::cure;
use crate::name::Quoted;
use crate::path::rest;
use crate::{Fault, Grants, Owner};

/// A file system on a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The device's path.
    pub path: String,
    /// The file system type, as the kernel knows it.
    pub filesystem: String,
    /// Options of the mount.
    pub options: Vec<MountOption>,
    /// Who owns the root of the file system that is made where the device is blank. Without it none is made.
    pub make: Option<Owner>,
}

/// What can be made on a blank device: what this host makes images of.
const MADE: &[&str] = &["ext4", "xfs", "btrfs"];

/// What a file system takes: options without a value, and with one. What is not here is not allowed: some options name another device
/// (`logdev`, `journal_path`), label every file (`context`), or stop the machine (`errors=panic`).
struct Takes {
    names: &'static [&'static str],
    flags: &'static [&'static str],
    valued: &'static [&'static str],
}

/// What every file system takes.
const ALL: &[&str] = &[
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
];

/// The file systems that lie on one device, with what their manual pages list.
const FILESYSTEMS: &[Takes] = &[
    Takes {
        names: &["ext2", "ext3", "ext4"],
        flags: &[
            "acl",
            "noacl",
            "user_xattr",
            "nouser_xattr",
            "barrier",
            "nobarrier",
            "discard",
            "nodiscard",
            "delalloc",
            "nodelalloc",
            "grpid",
            "nogrpid",
            "bsdgroups",
            "sysvgroups",
            "auto_da_alloc",
            "noauto_da_alloc",
            "journal_checksum",
            "journal_async_commit",
            "dioread_lock",
            "dioread_nolock",
            "init_itable",
            "noinit_itable",
            "noload",
            "norecovery",
            "quota",
            "noquota",
            "usrquota",
            "grpquota",
            "prjquota",
            "i_version",
        ],
        valued: &[
            "commit",
            "data",
            "errors",
            "resuid",
            "resgid",
            "stripe",
            "inode_readahead_blks",
            "max_batch_time",
            "min_batch_time",
            "journal_ioprio",
            "init_itable",
            "barrier",
        ],
    },
    Takes {
        names: &["xfs"],
        flags: &[
            "attr2",
            "discard",
            "nodiscard",
            "filestreams",
            "grpid",
            "nogrpid",
            "bsdgroups",
            "sysvgroups",
            "ikeep",
            "noikeep",
            "inode32",
            "inode64",
            "largeio",
            "nolargeio",
            "noalign",
            "norecovery",
            "nouuid",
            "swalloc",
            "wsync",
            "quota",
            "noquota",
            "uquota",
            "usrquota",
            "uqnoenforce",
            "gquota",
            "grpquota",
            "gqnoenforce",
            "pquota",
            "prjquota",
            "pqnoenforce",
        ],
        valued: &["allocsize", "logbsize", "logbufs", "sunit", "swidth"],
    },
    Takes {
        names: &["btrfs"],
        flags: &[
            "acl",
            "noacl",
            "autodefrag",
            "noautodefrag",
            "barrier",
            "nobarrier",
            "compress",
            "compress-force",
            "datacow",
            "nodatacow",
            "datasum",
            "nodatasum",
            "degraded",
            "discard",
            "nodiscard",
            "flushoncommit",
            "noflushoncommit",
            "ssd",
            "nossd",
            "ssd_spread",
            "nossd_spread",
            "treelog",
            "notreelog",
            "user_subvol_rm_allowed",
        ],
        valued: &[
            "commit",
            "compress",
            "compress-force",
            "discard",
            "max_inline",
            "metadata_ratio",
            "rescue",
            "space_cache",
            "subvol",
            "subvolid",
            "thread_pool",
        ],
    },
    Takes {
        names: &["f2fs"],
        flags: &["acl", "noacl", "discard", "nodiscard", "inline_data", "noinline_data"],
        valued: &["background_gc", "compress_algorithm", "active_logs", "mode"],
    },
    Takes {
        names: &["vfat", "exfat", "ntfs3"],
        flags: &[
            "quiet",
            "flush",
            "discard",
            "utf8",
            "showexec",
            "sparse",
            "nohidden",
            "hidden",
            "hide_dot_files",
            "windows_names",
            "prealloc",
            "acl",
        ],
        valued: &[
            "uid",
            "gid",
            "umask",
            "fmask",
            "dmask",
            "allow_utime",
            "codepage",
            "iocharset",
            "shortname",
            "time_offset",
            "tz",
            "utf8",
            "check",
            "errors",
        ],
    },
    Takes {
        names: &["iso9660", "udf"],
        flags: &["norock", "nojoliet", "utf8", "unhide", "undelete"],
        valued: &["uid", "gid", "mode", "dmode", "umask", "map", "iocharset", "session"],
    },
    Takes { names: &["squashfs", "erofs"], flags: &[], valued: &["errors", "threads"] },
];

impl Device {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        let path = Quoted::new(&self.path);
        if !is_absolute(&self.path) || rest("/dev", &self.path).is_none_or(str::is_empty) {
            return invalid(format!(
                "{path} is no device: use a path beneath `/dev` without `.` and `..`"
            ));
        }
        let known = |takes: &&Takes| takes.names.contains(&self.filesystem.as_str());
        let Some(takes) = FILESYSTEMS.iter().find(known) else {
            let names: Vec<_> = FILESYSTEMS.iter().flat_map(|takes| takes.names).copied().collect();
            return invalid(format!(
                "{} is no file system of a device: use one of {}",
                Quoted::new(&self.filesystem),
                names.join(", ")
            ));
        };
        options::check(&self.options)?;
        if let Some(owner) = self.make {
            owner.check()?;
            if !MADE.contains(&self.filesystem.as_str()) {
                return invalid(format!(
                    "no {} is made on a blank device: use one of {}",
                    self.filesystem,
                    MADE.join(", ")
                ));
            }
        }
        self.options.iter().try_for_each(|option| self.check_option(takes, option))?;
        if grants.devices.iter().any(|granted| rest(granted, &self.path).is_some()) {
            return Ok(());
        }
        let cure = cure(grants.driver.as_ref(), &format!("device={}", self.path));
        denied(format!("device {path} is not granted: {cure}"))
    }

    fn check_option(
        &self,
        takes: &Takes,
        MountOption { key, value }: &MountOption,
    ) -> Result<(), Fault> {
        let (filesystem, name) = (&self.filesystem, key.as_str());
        let flag = ALL.contains(&name) || takes.flags.contains(&name);
        let valued = takes.valued.contains(&name);
        match value {
            MountValue::Text(text) if name == "errors" && text == "panic" => {
                invalid("mount option `errors=panic` would stop the machine: use `remount-ro`")
            }
            MountValue::Present if flag => Ok(()),
            MountValue::Text(text) if valued && !text.is_empty() => Ok(()),
            MountValue::Number(_) if valued => Ok(()),
            _ if flag => invalid(format!("mount option `{key}` of {filesystem} takes no value")),
            _ if valued => invalid(format!("mount option `{key}` of {filesystem} needs a value")),
            _ => invalid(format!("{filesystem} takes no mount option `{key}` here")),
        }
    }
}
