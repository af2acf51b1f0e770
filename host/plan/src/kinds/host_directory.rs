//! A directory of the host that is there without the volume: `host-directory=ROOT` grants it with all beneath.

use serde::{Deserialize, Serialize};

use super::{denied, invalid};
use crate::grants::cure;
use crate::name::{Quoted, escaped};
use crate::path::{PATH_MAX, is_plain, rest};
use crate::{Fault, Grants, Owner};

/// A directory of the host, beneath a root that the operator granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirectory {
    /// Absolute, without `.`, `..` and empty parts.
    pub path: String,
    /// Where it is missing it is made, with this owner; parents that are missing too belong to root.
    pub make: Option<Owner>,
}

impl HostDirectory {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        check_granted(&self.path, grants)?;
        self.make.map_or(Ok(()), Owner::check)
    }
}

/// Says whether a path is one that a driver with `grants` may name.
pub(super) fn check_granted(path: &str, grants: &Grants) -> Result<(), Fault> {
    if !is_absolute(path) {
        let shown = Quoted::new(path);
        return invalid(format!(
            "directory {shown} is not allowed: use an absolute path without `.`, `..` and `//`"
        ));
    }
    grants.host_directory(path).map(|_| ())
}

/// Whether a path is absolute, plain, and not all of the host: who has that is root.
pub(crate) fn is_absolute(path: &str) -> bool {
    path.len() <= PATH_MAX && path.strip_prefix('/').is_some_and(is_plain)
}

impl Grants {
    /// The granted root that a path is beneath, and what is left of the path, which is empty for the root itself.
    ///
    /// # Errors
    /// `Denied` names the grant to add.
    pub fn host_directory<'a>(&'a self, path: &'a str) -> Result<(&'a str, &'a str), Fault> {
        let mut roots = self.host_directories.iter();
        let found = roots.find_map(|root| Some((root.as_str(), rest(root, path)?)));
        if let Some(granted) = found {
            return Ok(granted);
        }
        // Whole, also where it is long: it is to be typed.
        let bare: String = path.chars().flat_map(escaped).collect();
        let cure = cure(self.driver.as_ref(), &format!("host-directory={bare}"));
        denied(format!("a directory of the host is not granted: {cure}, or one above it"))
    }
}
