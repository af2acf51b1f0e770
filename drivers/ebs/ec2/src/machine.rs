//! A disk and a machine: brought there, and taken away again, in steps between which EC2 gets some time.
//!
//! Called by the driver's `attach` and `detach`, again and again until they answer that it is done.

use wasmvol_sdk::{Error, ErrorCode, Result};

use crate::{Disk, Ec2};

/// First letters of the device names that Amazon recommends: `/dev/xvdba` to `/dev/xvdcz`.
const NAMES: [char; 2] = ['b', 'c'];

impl Ec2 {
    /// One step towards a disk at this machine; answers the name of its device once it is there.
    ///
    /// # Errors
    /// `in-use` says who has it, else why EC2 does not attach it.
    pub fn bring(&self, disk: &Disk, here: &str) -> Result<Option<String>> {
        let Disk { id, status, .. } = disk;
        let refused = |why| Err(Error::new(ErrorCode::InUse, format!("`{id}` is {why}")));
        match disk.at(here).or(disk.attachments.first()) {
            Some(at) if at.instance == here && at.status == "attached" => {
                return Ok(Some(at.device.clone()));
            }
            Some(at) if at.instance == here || at.status == "detaching" => return Ok(None),
            Some(at) => {
                return refused(format!("{} to `{}`: unmount it there", at.status, at.instance));
            }
            None => {}
        }
        match status.as_str() {
            "available" => {}
            // Of who has it now the next answer tells.
            "creating" | "in-use" => return Ok(None),
            other => return refused(format!("in the state `{other}`")),
        }
        let name = self.free_name(here)?;
        match self.attach(id, here, &name) {
            // Somebody was faster, with the disk or with the name.
            Err(error) if error.code == ErrorCode::InUse => Ok(None),
            begun => begun.map(|()| None),
        }
    }

    /// One step towards a disk that is not at this machine; answers whether that is so.
    ///
    /// # Errors
    /// Why EC2 does not detach it.
    pub fn take_away(&self, disk: &Disk, here: &str) -> Result<bool> {
        match disk.at(here) {
            None => Ok(true),
            Some(at) if at.status == "detaching" => Ok(false),
            Some(_) => self.detach(&disk.id, here).map(|()| false),
        }
    }

    /// A device's name that no disk of a machine has.
    fn free_name(&self, instance: &str) -> Result<String> {
        let there = self.disks(&[("attachment.instance-id", instance)])?;
        let taken: Vec<_> =
            there.iter().filter_map(|disk| Some(&disk.at(instance)?.device)).collect();
        let mut names = NAMES
            .iter()
            .flat_map(|first| ('a'..='z').map(move |last| format!("/dev/xvd{first}{last}")));
        names.find(|name| !taken.contains(&name)).ok_or_else(|| {
            Error::new(ErrorCode::Exhausted, format!("`{instance}` has no name for one more disk"))
        })
    }
}
