//! `grants.d`: what the operator lets each driver ask for, written by root's command line and never by the daemon.
//!
//! Used by `driver load`, `grant`, `revoke` and `unload`. Where it lies is the operator's word: the daemon has no privileges, so what it says
//! is compared and never followed.

use wasmvol_plan::grants::{GRANTS_MAX, grant_of};
use wasmvol_plan::{DriverName, Grants};

use super::rooted::RootedDir;
use super::{CliError, ConfigFile};
use crate::admin::client::{Client, parse};
use crate::admin::types::Status;
use crate::config;

/// Whatever the caller's umask is: the daemon reads it, too.
const MODE: u32 = 0o644;

/// The opened directory.
#[derive(Debug)]
pub(super) struct GrantsDir(RootedDir);

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
        Ok(Self(RootedDir::open(ours)?.inside(config::GRANTS)?))
    }

    /// What a driver was granted, as it was written.
    pub(super) fn read(&self, name: &DriverName) -> Result<Option<Vec<u8>>, CliError> {
        let read =
            self.0.read(name.as_str(), GRANTS_MAX + 1).map_err(CliError::io(self.shown(name)));
        Ok(read?.map(|(bytes, _)| bytes))
    }

    /// What a driver is granted with some lines more and some less than it had `before`. Comments stay.
    pub(super) fn changed(
        &self,
        name: &DriverName,
        before: Option<&[u8]>,
        grant: &[String],
        revoke: &[String],
    ) -> Result<Vec<u8>, CliError> {
        let before = String::from_utf8_lossy(before.unwrap_or_default());
        let has: Vec<_> = before.lines().map(grant_of).collect();
        if let Some(absent) = revoke.iter().find(|gone| !has.contains(&grant_of(gone))) {
            return Err(CliError::Refused(format!("`{name}` was not granted `{absent}`")));
        }
        for new in grant {
            // By itself: nobody has seen the line of a file that it is to be.
            let added = Grants::default().add(grant_of(new));
            added.map_err(|fault| CliError::Refused(fault.message))?;
        }
        let kept =
            before.lines().filter(|line| !revoke.iter().any(|r| grant_of(r) == grant_of(line)));
        let new = grant.iter().map(String::as_str).filter(|new| !has.contains(&grant_of(new)));
        let text: String = kept.chain(new).map(|line| format!("{line}\n")).collect();
        Grants::parse(name, &text).map_err(|fault| CliError::Refused(fault.message))?;
        Ok(text.into_bytes())
    }

    /// Writes what a driver is granted in the place of what [`Self::read`] had answered, whole or not at all.
    pub(super) fn write(
        &self,
        name: &DriverName,
        before: Option<&[u8]>,
        text: &[u8],
    ) -> Result<(), CliError> {
        self.expect(name, before)?;
        self.0.write(name.as_str(), text, MODE).map_err(CliError::io(self.shown(name)))
    }

    /// Makes what [`Self::write`] has written again what was there before.
    pub(super) fn put_back(
        &self,
        name: &DriverName,
        before: Option<&[u8]>,
        written: &[u8],
    ) -> Result<(), CliError> {
        self.expect(name, Some(written))?;
        let Some(bytes) = before else { return self.remove(name) };
        let what = format!("{} could not be put back", self.shown(name));
        self.0.write(name.as_str(), bytes, MODE).map_err(CliError::io(what))
    }

    /// Refuses to write over what somebody else has written meanwhile.
    fn expect(&self, name: &DriverName, there: Option<&[u8]>) -> Result<(), CliError> {
        if self.read(name)?.as_deref() == there {
            return Ok(());
        }
        let why = "have been changed by somebody else meanwhile: see what it has, and try again";
        Err(CliError::Refused(format!("{} {why}", self.shown(name))))
    }

    /// Takes everything from a driver.
    pub(super) fn remove(&self, name: &DriverName) -> Result<(), CliError> {
        let what = format!("{} stay", self.shown(name));
        self.0.remove(name.as_str()).map(drop).map_err(CliError::io(what))
    }

    fn shown(&self, name: &DriverName) -> String {
        format!("grants in {}", self.0.shown(name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn nfs() -> DriverName {
        DriverName::parse("nfs").unwrap()
    }

    fn made() -> (tempfile::TempDir, GrantsDir) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let opened = GrantsDir(RootedDir::open(dir.path().to_owned()).unwrap());
        (dir, opened)
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn grants_come_and_go_one_by_one_beside_what_the_operator_wrote() {
        let (dir, opened) = made();
        let text = || fs::read_to_string(dir.path().join("nfs")).unwrap();
        let change = |grant: &[&str], revoke: &[&str]| {
            let before = opened.read(&nfs()).unwrap();
            let text = opened.changed(&nfs(), before.as_deref(), &words(grant), &words(revoke))?;
            opened.write(&nfs(), before.as_deref(), &text)
        };
        change(&["suid"], &[]).unwrap();
        fs::write(dir.path().join("nfs"), "# the team's\nsuid # for sudo\n").unwrap();
        change(&["dev", "suid"], &[]).unwrap();
        assert_eq!(text(), "# the team's\nsuid # for sudo\ndev\n");
        change(&["image"], &["suid"]).unwrap();
        assert_eq!(text(), "# the team's\ndev\nimage\n");
        let refused = change(&[], &["suid"]).unwrap_err().to_string();
        assert!(refused.contains("`nfs` was not granted `suid`"), "{refused}");
        assert_eq!(text(), "# the team's\ndev\nimage\n");
    }

    #[test]
    fn grants_are_put_back_as_they_were_unless_somebody_else_has_written_meanwhile() {
        let (dir, opened) = made();
        opened.write(&nfs(), None, b"suid\n").unwrap();
        let before = opened.read(&nfs()).unwrap();
        let text = || fs::read_to_string(dir.path().join("nfs")).unwrap();
        let change = || {
            opened.write(&nfs(), before.as_deref(), b"dev\n").unwrap();
            b"dev\n"
        };
        let written = change();
        opened.put_back(&nfs(), before.as_deref(), written).unwrap();
        assert_eq!(text(), "suid\n");
        let written = change();
        fs::write(dir.path().join("nfs"), "image\n").unwrap();
        let refused = opened.put_back(&nfs(), before.as_deref(), written).unwrap_err().to_string();
        assert!(refused.contains("by somebody else"), "{refused}");
        assert_eq!(text(), "image\n");
        opened.put_back(&nfs(), None, b"image\n").unwrap();
        assert!(!dir.path().join("nfs").exists());
    }

    #[test]
    fn a_grant_that_is_none_and_a_change_of_what_is_not_there_are_refused_before_anything_is_written()
     {
        let (dir, opened) = made();
        assert!(opened.changed(&nfs(), None, &words(&["everything"]), &[]).is_err());
        assert!(opened.write(&nfs(), Some(b"suid\n"), b"dev\n").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
