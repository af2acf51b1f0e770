//! The kernel's mount table as the tests see it: a reader of its own, so that the checker shares no code with what it checks.

use std::fs;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    /// `major:minor`.
    pub(crate) device: String,
    /// The mounted directory within its file system.
    pub(crate) root: String,
    pub(crate) path: String,
    /// Flags of the mount itself.
    pub(crate) flags: Vec<String>,
    pub(crate) is_shared: bool,
    pub(crate) filesystem: String,
}

impl Mount {
    /// The block device of the file system.
    pub(crate) fn block_device(&self) -> String {
        let device = fs::canonicalize(format!("/sys/dev/block/{}", self.device)).unwrap();
        format!("/dev/{}", device.file_name().unwrap().display())
    }
}

/// The mounts of this namespace, in the order of the kernel.
pub(crate) fn all() -> Vec<Mount> {
    read("/proc/self/mountinfo")
}

/// The mounts that a process sees.
pub(crate) fn of_process(pid: u32) -> Vec<Mount> {
    read(&format!("/proc/{pid}/mountinfo"))
}

fn read(file: &str) -> Vec<Mount> {
    fs::read_to_string(file).unwrap().lines().map(parse).collect()
}

/// See proc(5): `36 35 98:0 /root /path rw,noatime shared:1 - ext4 /dev/root rw`.
fn parse(line: &str) -> Mount {
    let (mount, filesystem) = line.split_once(" - ").unwrap();
    let fields: Vec<&str> = mount.split(' ').collect();
    Mount {
        id: fields[0].parse().unwrap(),
        parent: fields[1].parse().unwrap(),
        device: fields[2].to_owned(),
        root: fields[3].to_owned(),
        path: fields[4].to_owned(),
        flags: fields[5].split(',').map(str::to_owned).collect(),
        is_shared: fields[6..].iter().any(|tag| tag.starts_with("shared:")),
        filesystem: filesystem.split(' ').next().unwrap().to_owned(),
    }
}

/// Unmounts whatever is mounted below `path`, the last one first.
pub(crate) fn clear(path: &Path) {
    for mount in all().iter().rev() {
        if Path::new(&mount.path).starts_with(path) {
            // The janitor tries again.
            let _ = unmount(&mount.path, UnmountFlags::DETACH);
        }
    }
}
