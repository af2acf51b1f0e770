//! A private writable layer over directories that stay as they are: the volume's own directory is the layer, the directories
//! beneath it are granted by `host-directory=ROOT`, or one is another volume's that the user named.

use serde::{Deserialize, Serialize};

use super::host_directory::check_granted;
use super::invalid;
use crate::{Fault, Grants, Storage};

/// Most directories beneath a layer; the kernel takes 500.
const LOWER_MAX: usize = 16;

/// An overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Absolute paths, the topmost first.
    pub lower: Vec<String>,
    /// Nothing is synced: faster, and lost with a crash of the machine.
    pub volatile: bool,
    /// Each mount of what is mounted nowhere begins with an empty layer.
    #[serde(default)]
    pub reset: bool,
}

impl Overlay {
    pub(crate) fn check(&self, storage: &Storage, grants: &Grants) -> Result<(), Fault> {
        let Storage::Directory(layer) = storage else {
            return invalid(
                "an overlay keeps its layer in a directory, but none was made at create",
            );
        };
        if layer.limit.is_some() {
            return invalid("a layer has no size of its own: make its directory without a limit");
        }
        let count = self.lower.len() + usize::from(layer.over.is_some());
        if count == 0 || count > LOWER_MAX {
            return invalid(format!("an overlay lies over 1 to {LOWER_MAX} directories"));
        }
        self.lower.iter().try_for_each(|path| check_granted(path, grants))
    }
}
