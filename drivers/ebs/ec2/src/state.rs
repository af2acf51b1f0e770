//! What a volume remembers of its disk: the bytes that the host keeps for the driver.
//!
//! Written by the driver after each answer of EC2, read before each question. One line of words `KEY=VALUE`; a word that is not known is
//! one of a later version.

use wasmvol_sdk::Volume;

use crate::Disk;

/// A volume's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State<'a> {
    /// The disk's id: `vol-…`
    pub disk: &'a str,
    /// The snapshot that the disk was made from.
    pub snapshot: Option<&'a str>,
    /// The name that the disk has while it is attached: `/dev/xvdba`.
    pub device: Option<&'a str>,
}

impl<'a> State<'a> {
    /// Of a disk that is not attached.
    #[must_use]
    pub fn of(disk: &'a Disk) -> Self {
        Self { disk: &disk.id, snapshot: disk.snapshot.as_deref(), device: None }
    }

    /// The one that a volume has, if `create` has returned.
    #[must_use]
    pub fn read(volume: &'a Volume) -> Option<Self> {
        let text = std::str::from_utf8(&volume.state).ok()?;
        let word = |key| {
            let words = text.split(' ').filter_map(|word| word.split_once('='));
            words.into_iter().find(|(other, _)| *other == key).map(|(_, value)| value)
        };
        Some(Self { disk: word("disk")?, snapshot: word("snapshot"), device: word("device") })
    }

    /// As it is kept.
    #[must_use]
    pub fn text(&self) -> String {
        let words =
            [("disk", Some(self.disk)), ("snapshot", self.snapshot), ("device", self.device)];
        let words = words.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        words.collect::<Vec<_>>().join(" ")
    }
}
