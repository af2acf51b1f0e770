//! Whether mounts that are made here are seen by the engines: the rule that `serve` keeps and `doctor` explains.
//!
//! A process whose mount namespace is its own and receives from others only mounts where no engine looks; containers then start on
//! an empty directory. So: the namespace of PID 1, or one whose mounts reach its peers.

use std::path::Path;

use wasmvol_plan::mountinfo::{self, Entry};

/// Whose mounts are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// This process's, which will make them or would.
    Own,
    /// Those of a daemon that runs.
    Daemon(u32),
}

/// Why engines would not see what is mounted beneath `place`; none if they would.
pub(super) fn hidden_because(whose: Whose, place: &Path) -> Option<String> {
    let (proc, who) = match whose {
        Whose::Own => ("/proc/self".to_owned(), "this process".to_owned()),
        Whose::Daemon(pid) => (format!("/proc/{pid}"), format!("the daemon, process {pid},")),
    };
    let its = std::fs::read_link(format!("{proc}/ns/mnt")).ok();
    let first = std::fs::read_link("/proc/1/ns/mnt").ok();
    if its.is_some() && its == first {
        return None;
    }
    let bytes = match std::fs::read(format!("{proc}/mountinfo")) {
        Ok(bytes) => bytes,
        Err(e) => return Some(format!("{proc}/mountinfo cannot be read: {e}")),
    };
    let text = String::from_utf8_lossy(&bytes);
    let Some(mounts) = mountinfo::parse(&text) else {
        return Some(format!("{proc}/mountinfo cannot be understood"));
    };
    let place = place.ancestors().find_map(|dir| dir.canonicalize().ok())?;
    let mount = mount_of(&mounts, &place)?;
    private(mount).map(|how| {
        format!(
            "{who} has a mount namespace of its own, and `{}` is {how} in it: engines would not see any mount",
            mount.mount_point
        )
    })
}

/// The mount that a path lies on: the longest mountpoint above it, and the last of those at the same place.
fn mount_of<'a, 'b>(mounts: &'b [Entry<'a>], path: &Path) -> Option<&'b Entry<'a>> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(mount.mount_point.as_ref()))
        .max_by_key(|mount| mount.mount_point.len())
}

/// How a mount keeps to itself what is mounted on it, if it does.
fn private(mount: &Entry<'_>) -> Option<&'static str> {
    match (mount.shared, mount.master) {
        (Some(_), None) => None,
        (None, None) => Some("private"),
        (_, Some(_)) => Some("a slave"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(lines: &str, path: &str) -> Option<&'static str> {
        let mounts = mountinfo::parse(lines).unwrap();
        private(mount_of(&mounts, Path::new(path)).unwrap())
    }

    const SHARED: &str = "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
    const SLAVE: &str = "21 1 8:1 / / rw shared:2 master:1 - ext4 /dev/sda1 rw\n";
    const PRIVATE: &str = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
    const RUN_SHARED: &str = "22 21 0:9 / /run rw shared:5 - tmpfs tmpfs rw\n";

    #[test]
    fn a_shared_mount_shows_its_mounts() {
        assert_eq!(how(SHARED, "/run/wasmvol"), None);
    }

    #[test]
    fn a_private_or_slave_mount_hides_them() {
        assert_eq!(how(PRIVATE, "/run/wasmvol"), Some("private"));
        assert_eq!(how(SLAVE, "/run/wasmvol"), Some("a slave"));
    }

    #[test]
    fn the_nearest_mount_decides() {
        assert_eq!(how(&format!("{PRIVATE}{RUN_SHARED}"), "/run/wasmvol"), None);
        assert_eq!(how(&format!("{PRIVATE}{RUN_SHARED}"), "/runner"), Some("private"));
    }

    #[test]
    fn of_two_mounts_at_one_place_the_upper_one_decides() {
        let covered = "23 22 0:10 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(how(&format!("{SHARED}{RUN_SHARED}{covered}"), "/run/x"), Some("private"));
    }
}
