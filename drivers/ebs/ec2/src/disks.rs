//! A volume's disk from its beginning to its end: made or adopted, found again, released or deleted.
//!
//! Called by the driver's verbs. A disk belongs to the volume whose id its tags have, on whatever machine that is; and it was made here,
//! not adopted, if its volume has no option `volume`.

use wasmvol_sdk::{Error, Result, Volume, settings};

use crate::{Disk, Ec2, State, setting, tags};

/// Options of a disk that is made, with EC2's words for them.
const MADE: [(&str, &str); 8] = [
    ("size", "Size"),
    ("type", "VolumeType"),
    ("iops", "Iops"),
    ("throughput", "Throughput"),
    ("zone", "AvailabilityZone"),
    ("snapshot", "SnapshotId"),
    ("encrypted", "Encrypted"),
    ("kms-key", "KmsKeyId"),
];
/// What EC2 counts disks in.
const GIB: u64 = 1 << 30;

impl Ec2 {
    /// Makes a volume's disk. A second time it is the same one: EC2 knows it by the volume's id.
    ///
    /// # Errors
    /// Why EC2 does not.
    pub fn create(&self, volume: &Volume) -> Result<Disk> {
        if !volume.has("size") && !volume.has("snapshot") {
            let why = "is missing: it may be left out with `snapshot` or `volume` alone";
            return Err(Error::invalid_option("size", why));
        }
        let mut wanted = Vec::new();
        for (key, word) in MADE {
            let given = volume.options.iter().find(|option| option.key == key);
            let value = match key {
                "size" => {
                    volume.if_given(key, Volume::size)?.map(|size| size.div_ceil(GIB).to_string())
                }
                "type" => given.map(|given| tags::text(&given.value)).or(Some("gp3".to_owned())),
                "zone" if given.is_none() => Some(setting(key)?),
                _ => given.map(|given| tags::text(&given.value)),
            };
            wanted.extend(value.map(|value| (word, value)));
        }
        if volume.has("kms-key") && !volume.has("encrypted") {
            wanted.push(("Encrypted", "true".to_owned()));
        }
        let mut tags = tags::of(volume);
        tags.push(("Name".to_owned(), volume.name.clone()));
        self.make(&volume.id, &wanted, &tags)
    }

    /// Makes a disk that is there a volume's, which nobody must have.
    ///
    /// # Errors
    /// Who has it, or why EC2 does not tell.
    pub fn adopt(&self, volume: &Volume, id: &str) -> Result<Disk> {
        if let Some((key, _)) = MADE.iter().find(|(key, _)| volume.has(key)) {
            return Err(Error::invalid_option(key, "is for a disk that is made: leave it out"));
        }
        let refused = |why: &str| Error::invalid_option("volume", format!("`{id}` {why}"));
        let disk = self.disk(id)?.ok_or_else(|| refused("is not there"))?;
        match disk.tag(tags::ID) {
            // A second time.
            Some(own) if own == volume.id => return Ok(disk),
            Some(other) => return Err(refused(&format!("belongs to the volume with id {other}"))),
            None if disk.status == "available" => {}
            None => return Err(refused(&format!("is {}: detach it first", disk.status))),
        }
        self.tag(id, &tags::of(volume))?;
        Ok(disk)
    }

    /// A volume's disk, if it is there.
    ///
    /// # Errors
    /// Why EC2 does not tell.
    pub fn find(&self, volume: &Volume) -> Result<Option<Disk>> {
        match State::read(volume) {
            Some(State { disk, .. }) => self.disk(disk),
            None => Ok(self.disks(&[("tag:wasmvol:id", &volume.id)])?.pop()),
        }
    }

    /// All disks of volumes that a machine in the operator's zone can have, one of each name: the oldest.
    ///
    /// # Errors
    /// Why EC2 does not tell.
    pub fn all(&self) -> Result<Vec<Disk>> {
        let zone = settings::get("zone");
        let here = zone.as_deref().map(|zone| ("availability-zone", zone));
        let filters: Vec<_> = [("tag-key", tags::ID)].into_iter().chain(here).collect();
        let mut disks = self.disks(&filters)?;
        disks.sort_by(|first, second| {
            let of = |disk: &Disk| (disk.tag(tags::NAME).map(str::to_owned), disk.created.clone());
            of(first).cmp(&of(second))
        });
        disks.dedup_by(|second, first| first.tag(tags::NAME) == second.tag(tags::NAME));
        Ok(disks)
    }

    /// Leaves a disk that is not deleted as it is: one that was adopted is nobody's again.
    ///
    /// # Errors
    /// Why EC2 does not let it go.
    pub fn release(&self, volume: &Volume, disk: &Disk) -> Result<()> {
        match disk.tag(tags::ID) {
            Some(own) if own == volume.id => self.untag(&disk.id, &tags::of(volume)),
            _ => Ok(()),
        }
    }
}

impl Disk {
    /// Whether it was made for this volume, on this machine.
    #[must_use]
    pub fn is_made_for(&self, volume: &Volume) -> bool {
        !volume.has("volume") && self.tag(tags::ID) == Some(&volume.id)
    }
}
