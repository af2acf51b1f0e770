//! A file system that a program of the host serves through FUSE: `program=NAME` grants it.

use serde::{Deserialize, Serialize};

use super::options::{self, MountOption};
use super::{denied, invalid};
use crate::grants::cure;
use crate::name::Quoted;
use crate::path::PATH_MAX;
use crate::{Fault, Grants};

/// A program and what it shall serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// One of the names that mountd knows a command line for: `sshfs`, `rclone`, `glusterfs`, `s3fs`.
    pub name: String,
    /// What it calls its source: `user@host:/path`, `remote:path`, …
    pub source: String,
    /// Options, each of which mountd knows a place on the command line for.
    pub options: Vec<MountOption>,
}

impl Program {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        if self.name.len() > 32 || !is_program(&self.name) {
            return invalid(format!("{} is no program's name", Quoted::new(&self.name)));
        }
        let source = &self.source;
        // A source that begins with a dash would be an option.
        if source.is_empty()
            || source.len() > PATH_MAX
            || source.starts_with('-')
            || source.contains(char::is_control)
        {
            return invalid(format!("{} is no source for a program", Quoted::new(source)));
        }
        options::check(&self.options)?;
        if grants.programs.contains(&self.name) {
            return Ok(());
        }
        let name = &self.name;
        let cure = cure(grants.driver.as_ref(), &format!("program={name}"));
        denied(format!("program `{name}` is not granted: {cure}"))
    }
}

/// Whether a text may name a program.
pub(crate) fn is_program(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}
