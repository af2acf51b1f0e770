//! Grants: what the operator lets a driver ask for, one a line in `grants.d/DRIVER`.
//!
//! The CLI, run as root, writes the file; daemon and mountd both read and parse it here. Directories beneath the state directory
//! and tmpfs need no grant.

use serde::{Deserialize, Serialize};

use crate::kinds::host_directory::is_absolute;
use crate::kinds::http::HttpGrant;
use crate::kinds::program::is_program;
use crate::kinds::share::ShareGrant;
use crate::name::Quoted;
use crate::{DriverName, Fault, FaultKind, SecretName};

/// Most bytes of a grants file: two hundred lines with their comments. Who reads it stops one byte later.
pub const GRANTS_MAX: usize = 16 * 1024;

/// What a grant is.
const USE: &str = "use `suid`, `dev`, `image`, `host-directory=PATH`, `device=PATH`, `share=KIND:HOST`, `program=NAME`, `http=ORIGIN` or `reveal=SECRET`";

/// What one driver was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Whose they are.
    pub driver: Option<DriverName>,
    /// Mounts keep set-user-id bits.
    pub suid: bool,
    /// Mounts keep device nodes.
    pub dev: bool,
    /// Directories of the host; what is beneath each is granted with it.
    pub host_directories: Vec<String>,
    /// Files with a file system inside.
    pub image: bool,
    /// File systems that servers share.
    pub shares: Vec<ShareGrant>,
    /// Block devices, or directories of them.
    pub devices: Vec<String>,
    /// Programs that serve a file system.
    pub programs: Vec<String>,
    /// Hosts that the driver itself may ask by HTTP.
    pub http: Vec<HttpGrant>,
    /// Secrets whose bytes the driver itself may have.
    pub reveals: Vec<SecretName>,
}

impl Grants {
    /// Parses a grants file: one grant a line, `#` starts a comment.
    ///
    /// # Errors
    /// `Invalid` with the line that is no grant, or if the text is longer than [`GRANTS_MAX`].
    pub fn parse(driver: &DriverName, text: &str) -> Result<Self, Fault> {
        let invalid = |why| Fault::new(FaultKind::Invalid, why);
        if text.len() > GRANTS_MAX {
            return Err(invalid(format!("grants have over {GRANTS_MAX} bytes: shorten them")));
        }
        let mut grants = Self { driver: Some(driver.clone()), ..Self::default() };
        let lines = (1..).zip(text.lines().map(grant_of));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            grants.add(line).map_err(|no| invalid(format!("line {number}: {}", no.message)))?;
        }
        Ok(grants)
    }

    /// Adds one grant, without a comment.
    ///
    /// # Errors
    /// `Invalid`, with what it would have to be, if it is none.
    pub fn add(&mut self, grant: &str) -> Result<(), Fault> {
        let invalid = |why: &str| {
            Fault::new(FaultKind::Invalid, format!("{} is no grant: {why}", Quoted::new(grant)))
        };
        match grant.split_once('=').unwrap_or((grant, "")) {
            ("suid", "") => self.suid = true,
            ("dev", "") => self.dev = true,
            ("image", "") => self.image = true,
            ("host-directory" | "device", path) if !is_absolute(path) => {
                return Err(invalid("use an absolute path without `.`, `..` and `//`, not `/`"));
            }
            ("host-directory", path) => self.host_directories.push(path.to_owned()),
            ("device", path) => self.devices.push(path.to_owned()),
            ("share", share) => self.shares.push(ShareGrant::parse(share).map_err(invalid)?),
            ("program", name) if is_program(name) => self.programs.push(name.to_owned()),
            ("http", origin) => self.http.push(HttpGrant::parse(origin).map_err(invalid)?),
            ("reveal", name) => {
                let name = SecretName::parse(name).map_err(|no| invalid(&no.to_string()))?;
                self.reveals.push(name);
            }
            _ => return Err(invalid(USE)),
        }
        Ok(())
    }
}

/// The grant on a line, or nothing. A `#` begins a comment where a word could begin: a path may hold one.
#[must_use]
pub fn grant_of(line: &str) -> &str {
    let starts = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(starts);
    comment.map_or(line, |at| &line[..at]).trim()
}

/// The command by which an operator grants something to a driver.
#[must_use]
pub fn cure(driver: Option<&DriverName>, grant: &str) -> String {
    let name = driver.map_or("NAME", DriverName::as_str);
    format!("`wasmvol driver grant {name} '{}'`", grant.replace('\'', r"'\''"))
}
