//! A directory that only root can write to: opened once and checked; a name in it is never followed as a link.
//!
//! Used for what root's command line writes and the daemon must not: grants and secrets. Where it lies is the operator's word.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::CliError;

/// Not NOFOLLOW: an administrator may put a whole directory elsewhere, and nobody else can, as each is checked.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const ENTRY: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The opened directory.
#[derive(Debug)]
pub(super) struct RootedDir {
    directory: OwnedFd,
    path: PathBuf,
}

impl RootedDir {
    pub(super) fn open(path: PathBuf) -> Result<Self, CliError> {
        let opened = openat(CWD, &path, DIRECTORY, Mode::empty());
        Self::checked(path, opened)
    }

    /// One that lies in it.
    pub(super) fn inside(&self, name: &str) -> Result<Self, CliError> {
        let opened = openat(&self.directory, name, DIRECTORY, Mode::empty());
        Self::checked(self.path.join(name), opened)
    }

    fn checked(path: PathBuf, opened: Result<OwnedFd, Errno>) -> Result<Self, CliError> {
        let shown = path.display().to_string();
        let io = |e: Errno| CliError::Io(format!("`{shown}`"), e.into());
        let directory = opened.map_err(io)?;
        let stat = fstat(&directory).map_err(io)?;
        // Who else runs this cannot reach the daemon, and believes root.
        let is_own = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
        if !is_own || stat.st_mode & 0o022 != 0 {
            return Err(CliError::Refused(format!(
                "others than root can write to `{shown}`: chown root and chmod go-w it"
            )));
        }
        Ok(Self { directory, path })
    }

    /// The names in it, in order.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// A path in it, for errors.
    pub(super) fn shown(&self, name: &str) -> String {
        format!("`{}`", self.path.join(name).display())
    }

    /// A file's content, but for what is behind its first `max` bytes, and what the system knows of it; none if it is not there.
    pub(super) fn read(
        &self,
        name: &str,
        max: usize,
    ) -> io::Result<Option<(Vec<u8>, std::fs::Metadata)>> {
        let file = match openat(&self.directory, name, OFlags::RDONLY | ENTRY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let about = file.metadata()?;
        // Where it is a secret, a buffer that had to grow would leave a copy behind.
        let mut bytes = Vec::with_capacity(max);
        file.take(max as u64).read_to_end(&mut bytes)?;
        Ok(Some((bytes, about)))
    }

    /// Writes a file, durably, whole or not at all; its mode is exactly `mode`.
    pub(super) fn write(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let draft = draft(name);
        self.unlink(&draft)?;
        let written = self
            .write_draft(&draft, bytes, mode)
            .and_then(|()| Ok(renameat(&self.directory, &draft, &self.directory, name)?));
        if written.is_err() {
            // Why it could not be written is what counts; the next write unlinks it too.
            let _ = self.unlink(&draft);
        }
        written?;
        Ok(fsync(&self.directory)?)
    }

    fn write_draft(&self, draft: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | ENTRY;
        let mut file = File::from(openat(&self.directory, draft, flags, Mode::RUSR)?);
        // Whatever the caller's umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Removes a file, durably, and what a write of it left that was killed; says whether there was anything.
    pub(super) fn remove(&self, name: &str) -> io::Result<bool> {
        let draft = self.unlink(&draft(name))?;
        let file = self.unlink(name)?;
        fsync(&self.directory)?;
        Ok(file || draft)
    }

    fn unlink(&self, name: &str) -> io::Result<bool> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// What a file is called while it is written. Names of drivers and of secrets have no dot, so this is none.
fn draft(name: &str) -> String {
    format!("{name}.new")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn made() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        chmod(dir.path(), 0o755);
        chmod(&inner, 0o755);
        (dir, inner)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn open(dir: &Path) -> Result<RootedDir, CliError> {
        RootedDir::open(dir.to_owned())?.inside("inner")
    }

    fn content(dir: &RootedDir, name: &str) -> Option<Vec<u8>> {
        dir.read(name, 100).unwrap().map(|(bytes, _)| bytes)
    }

    #[test]
    fn a_file_is_replaced_whole_and_has_the_mode_that_was_asked_for() {
        let (dir, inner) = made();
        let opened = open(dir.path()).unwrap();
        assert_eq!(content(&opened, "file"), None);
        opened.write("file", b"long", 0o644).unwrap();
        opened.write("file", b"x", 0o600).unwrap();
        assert_eq!(content(&opened, "file").unwrap(), b"x");
        let mode = fs::metadata(inner.join("file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(opened.names().unwrap(), ["file"]);
        assert!(opened.remove("file").unwrap());
        assert!(!opened.remove("file").unwrap());
    }

    #[test]
    fn what_a_killed_write_left_goes_with_its_file() {
        let (dir, inner) = made();
        fs::write(inner.join("file.new"), "half").unwrap();
        let opened = open(dir.path()).unwrap();
        assert!(opened.remove("file").unwrap());
        assert_eq!(fs::read_dir(inner).unwrap().count(), 0);
    }

    #[test]
    fn a_link_leads_nowhere() {
        let (dir, inner) = made();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        chmod(&victim, 0o600);
        symlink(&victim, inner.join("file.new")).unwrap();
        symlink(&victim, inner.join("file")).unwrap();
        let opened = open(dir.path()).unwrap();
        assert!(opened.read("file", 100).is_err());
        opened.write("file", b"ours", 0o644).unwrap();
        assert_eq!(content(&opened, "file").unwrap(), b"ours");
        opened.remove("file").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(victim.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let (dir, inner) = made();
        for path in [dir.path(), &inner] {
            for mode in [0o775, 0o757, 0o1777] {
                chmod(path, mode);
                let why = open(dir.path()).unwrap_err().to_string();
                let named = format!("others than root can write to `{}`", path.display());
                assert!(why.starts_with(&named), "{mode:o}: {why}");
            }
            chmod(path, 0o755);
        }
        open(dir.path()).unwrap();
    }
}
