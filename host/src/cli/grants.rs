//! `grants.d`: what the operator lets each driver ask for, written by root's command line and never by the daemon.
//!
//! Used by `driver load` and `unload`. Where it lies is the operator's word: the daemon has no privileges, so what it says is compared
//! and never followed. The directory is opened once and checked; a name beneath it is never followed as a link.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;
use wasmvol_plan::{DriverName, Grants};

use super::{CliError, ConfigFile};
use crate::admin::client::{Client, parse};
use crate::admin::types::Status;
use crate::config;

/// Not NOFOLLOW: an administrator may put a whole directory elsewhere, and nobody else can, as each is checked.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const ENTRY: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

/// The opened directory.
#[derive(Debug)]
pub(super) struct GrantsDir {
    directory: OwnedFd,
    path: PathBuf,
}

impl GrantsDir {
    /// The one beside the configuration, if the daemon was served with the same.
    pub(super) fn of(config: &ConfigFile, client: &Client) -> Result<Self, CliError> {
        let theirs = parse::<Status>(&client.get("/status")?)?.places.config_dir;
        let ours = config.directory()?;
        if theirs != ours {
            return Err(CliError::Refused(format!(
                "this daemon's configuration lies in {theirs:?}, not in {ours:?}: name the file that it was served with by `--config`"
            )));
        }
        Self::open(ours)
    }

    fn open(config_dir: PathBuf) -> Result<Self, CliError> {
        let checked = |path: PathBuf, opened: Result<OwnedFd, Errno>| {
            let shown = path.display().to_string();
            let io = |e: Errno| CliError::Io(format!("`{shown}`"), e.into());
            let directory = opened.map_err(io)?;
            let stat = fstat(&directory).map_err(io)?;
            // Who else runs this cannot reach the daemon.
            if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
                return Err(CliError::Refused(format!(
                    "others than root can write to `{shown}`: chown root and chmod go-w it"
                )));
            }
            Ok(Self { directory, path })
        };
        let opened = openat(CWD, &config_dir, DIRECTORY, Mode::empty());
        let Self { directory, path } = checked(config_dir, opened)?;
        let opened = openat(&directory, config::GRANTS, DIRECTORY, Mode::empty());
        checked(path.join(config::GRANTS), opened)
    }

    /// What a driver was granted, as it was written.
    pub(super) fn read(&self, name: &DriverName) -> Result<Option<Vec<u8>>, CliError> {
        let read = || {
            let flags = OFlags::RDONLY | ENTRY;
            let mut file =
                File::from(openat(&self.directory, name.as_str(), flags, Mode::empty())?);
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| Some(bytes))
        };
        match read() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map_err(CliError::io(self.shown(name))),
        }
    }

    /// Writes what a driver is granted, whole or not at all.
    pub(super) fn grant(&self, name: &DriverName, grants: &[String]) -> Result<(), CliError> {
        let text: String = grants.iter().map(|grant| format!("{grant}\n")).collect();
        Grants::parse(&text).map_err(|fault| CliError::Refused(fault.message))?;
        self.write(name, text.as_bytes()).map_err(CliError::io(self.shown(name)))
    }

    /// Makes it again what [`Self::read`] answered.
    pub(super) fn put_back(
        &self,
        name: &DriverName,
        before: Option<&[u8]>,
    ) -> Result<(), CliError> {
        let Some(bytes) = before else { return self.remove(name) };
        let what = format!("{} could not be put back", self.shown(name));
        self.write(name, bytes).map_err(CliError::io(what))
    }

    /// Takes everything from a driver.
    pub(super) fn remove(&self, name: &DriverName) -> Result<(), CliError> {
        let what = format!("{} stay", self.shown(name));
        self.unlink(name.as_str()).map_err(CliError::io(what))
    }

    fn shown(&self, name: &DriverName) -> String {
        format!("grants in `{}`", self.path.join(name.as_str()).display())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn write(&self, name: &DriverName, bytes: &[u8]) -> io::Result<()> {
        // The name of a driver has no dot, so this one is nobody's grants; it may be there from a command that was killed.
        let draft = format!("{name}.new");
        self.unlink(&draft)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | ENTRY;
        let mut file = File::from(openat(&self.directory, &draft, flags, Mode::RUSR)?);
        // Whatever the caller's umask is: the daemon reads it, too.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(renameat(&self.directory, &draft, &self.directory, name.as_str())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn nfs() -> DriverName {
        DriverName::parse("nfs").unwrap()
    }

    fn made() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let grants = dir.path().join(config::GRANTS);
        fs::create_dir(&grants).unwrap();
        chmod(&grants, 0o755);
        (dir, grants)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn grants_are_replaced_whole_and_put_back() {
        let (dir, grants) = made();
        let opened = GrantsDir::open(dir.path().to_owned()).unwrap();
        assert_eq!(opened.read(&nfs()).unwrap(), None);
        opened.grant(&nfs(), &["suid".to_owned()]).unwrap();
        let before = opened.read(&nfs()).unwrap();
        opened.grant(&nfs(), &["dev".to_owned(), "suid".to_owned()]).unwrap();
        assert_eq!(fs::read_to_string(grants.join("nfs")).unwrap(), "dev\nsuid\n");
        opened.put_back(&nfs(), before.as_deref()).unwrap();
        assert_eq!(fs::read_to_string(grants.join("nfs")).unwrap(), "suid\n");
        opened.put_back(&nfs(), None).unwrap();
        assert!(!grants.join("nfs").exists());
    }

    #[test]
    fn a_grant_that_is_none_is_refused_before_anything_is_written() {
        let (dir, grants) = made();
        let opened = GrantsDir::open(dir.path().to_owned()).unwrap();
        assert!(opened.grant(&nfs(), &["everything".to_owned()]).is_err());
        assert_eq!(fs::read_dir(grants).unwrap().count(), 0);
    }

    #[test]
    fn a_link_among_the_grants_leads_nowhere() {
        let (dir, grants) = made();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        chmod(&victim, 0o600);
        symlink(&victim, grants.join("nfs.new")).unwrap();
        symlink(&victim, grants.join("nfs")).unwrap();
        let opened = GrantsDir::open(dir.path().to_owned()).unwrap();
        assert!(opened.read(&nfs()).is_err());
        opened.grant(&nfs(), &["suid".to_owned()]).unwrap();
        assert_eq!(opened.read(&nfs()).unwrap().unwrap(), b"suid\n");
        opened.remove(&nfs()).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(victim.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let (dir, grants) = made();
        for path in [dir.path(), &grants] {
            for mode in [0o775, 0o757, 0o1777] {
                chmod(path, mode);
                let why = GrantsDir::open(dir.path().to_owned()).unwrap_err().to_string();
                let named = format!("others than root can write to `{}`", path.display());
                assert!(why.starts_with(&named), "{mode:o}: {why}");
            }
            chmod(path, 0o755);
        }
        GrantsDir::open(dir.path().to_owned()).unwrap();
    }
}
