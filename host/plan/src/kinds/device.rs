//! A file system on a block device of the host: `device=PATH` grants it.

use serde::{Deserialize, Serialize};

use super::host_directory::is_absolute;
use super::options::{self, MountOption};
use super::{denied, invalid};
use crate::name::Quoted;
use crate::path::rest;
use crate::{Fault, Grants};

/// A file system on a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The device's path.
    pub path: String,
    /// The file system type, as the kernel knows it.
    pub filesystem: String,
    /// Options of the mount.
    pub options: Vec<MountOption>,
}

impl Device {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        if !is_absolute(&self.path) {
            let shown = Quoted::new(&self.path);
            return invalid(format!("device {shown} is no absolute path without `.` and `..`"));
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let name = &self.filesystem;
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            return invalid(format!("{} is no file system type", Quoted::new(name)));
        }
        options::check(&self.options)?;
        if grants.devices.iter().any(|granted| rest(granted, &self.path).is_some()) {
            return Ok(());
        }
        let path = &self.path;
        denied(format!(
            "device `{path}` is not granted: load the driver again with `--grant device={path}`"
        ))
    }
}
