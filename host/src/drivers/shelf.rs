//! Components on disk, each under the sha256 of its bytes, so that a driver that was loaded is there after a restart.
//!
//! Used by `components`, on threads that may block. The directory is the daemon's own and nobody else writes to it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The directory of components.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Keeps a component durably: it is there whole or not at all.
    pub(super) fn keep(&self, digest: &str, component: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        if self.read(digest).is_ok() {
            return Ok(());
        }
        let draft = self.dir.join(format!("{digest}.new"));
        let mut file = File::create(&draft)?;
        file.write_all(component)?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Reads a component and checks that it is the one that was kept.
    pub(super) fn read(&self, digest: &str) -> io::Result<Vec<u8>> {
        let component = std::fs::read(self.path(digest))?;
        if self::digest(&component) == digest {
            Ok(component)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its bytes have changed"))
        }
    }

    /// Forgets a component; one that is not there is forgotten already.
    pub(super) fn forget(&self, digest: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Forgets every component that is not among these, and what a crash has left of another.
    pub(super) fn keep_only(&self, digests: &BTreeSet<String>) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let (digest, ending) =
                name.to_str().and_then(|name| name.split_once('.')).unwrap_or_default();
            let is_ours = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            let is_needed = ending == "wasm" && digests.contains(digest);
            if is_ours && !is_needed {
                std::fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

/// sha256 as 64 hex digits.
pub(crate) fn digest(component: &[u8]) -> String {
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_back_and_forgotten_twice() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let name = digest(b"component");
        shelf.keep(&name, b"component").unwrap();
        // Whose bytes have changed on the disk is kept anew.
        std::fs::write(dir.path().join(format!("{name}.wasm")), b"changed").unwrap();
        shelf.read(&name).unwrap_err();
        shelf.keep(&name, b"component").unwrap();
        assert_eq!(shelf.read(&name).unwrap(), b"component");
        assert_eq!(shelf.read(&name).unwrap(), b"component");
        shelf.forget(&name).unwrap();
        shelf.forget(&name).unwrap();
        assert_eq!(shelf.read(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_nothing_needs_any_more_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let [kept, gone] = [b"kept", b"gone"].map(|bytes| {
            shelf.keep(&digest(bytes), bytes).unwrap();
            digest(bytes)
        });
        std::fs::write(dir.path().join(format!("{gone}.new")), "half").unwrap();
        std::fs::write(dir.path().join("somebody's.wasm"), "").unwrap();
        shelf.keep_only(&[kept.clone()].into()).unwrap();
        assert_eq!(shelf.read(&kept).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_component_that_was_changed_on_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let name = digest(b"component");
        shelf.keep(&name, b"component").unwrap();
        std::fs::write(dir.path().join(format!("{name}.wasm")), b"another").unwrap();
        assert_eq!(shelf.read(&name).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
