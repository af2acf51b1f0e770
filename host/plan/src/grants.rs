//! Grants: what the operator lets a driver ask for, one a line in `grants.d/DRIVER`.
//!
//! The CLI, run as root, writes the file; daemon and mountd both read and parse it here. Directories beneath the state directory
//! and tmpfs need no grant.

use serde::{Deserialize, Serialize};

use crate::name::Quoted;
use crate::{Fault, FaultKind};

/// Most bytes of a grants file: two hundred lines with their comments. Who reads it stops one byte later.
pub const GRANTS_MAX: usize = 16 * 1024;

/// What one driver was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Mounts keep set-user-id bits.
    pub suid: bool,
    /// Mounts keep device nodes.
    pub dev: bool,
}

impl Grants {
    /// Parses a grants file: one grant a line, `#` starts a comment.
    ///
    /// # Errors
    /// `Invalid` with the line that is no grant, or if the text is longer than [`GRANTS_MAX`].
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let invalid = |why| Fault::new(FaultKind::Invalid, why);
        if text.len() > GRANTS_MAX {
            return Err(invalid(format!("grants have over {GRANTS_MAX} bytes: shorten them")));
        }
        let mut grants = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            match line.split('#').next().unwrap_or_default().trim() {
                "" => {}
                "suid" => grants.suid = true,
                "dev" => grants.dev = true,
                other => {
                    let line = format!("line {number}, {}", Quoted::new(other));
                    return Err(invalid(format!("{line}, is no grant: use `suid` or `dev`")));
                }
            }
        }
        Ok(grants)
    }
}
