//! What is wrong and needs a person, each with the command that mends it: what `doctor` prints and `status` counts.
//!
//! Answered from memory; only [`Volumes::look_again`] asks mountd. It changes nothing: what it names is the person's to end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use wasmvol_plan::{Id, Storage, VolumeName};

use super::world::World;
use super::{Entry, Volumes};
use crate::catalog::record::Phase;

/// Something that needs a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// The volume's name, or the stray thing's.
    pub(crate) what: String,
    /// What is wrong, one line.
    pub(crate) why: String,
    /// What mends it, as it is typed. There is always something.
    pub(crate) cure: String,
}

impl Trouble {
    /// Storage that no record names: of another catalog, or put there by hand.
    pub(super) fn stray_storage(state_dir: &str, name: &str) -> Self {
        let dir = format!("{state_dir}/volumes");
        let why = format!("lies in `{dir}` and belongs to no volume: wasmvol never deletes it");
        Self { what: name.to_owned(), why, cure: set_aside(&dir, name, state_dir) }
    }

    /// Something in the trash that no Remove has put there.
    pub(super) fn stray_trash(state_dir: &str, name: &str) -> Self {
        let dir = format!("{state_dir}/trash");
        let why = format!("lies in `{dir}` and is not ours: wasmvol never deletes it");
        Self { what: name.to_owned(), why, cure: set_aside(&dir, name, state_dir) }
    }

    /// Something beside the mountpoints, where only root can have put it, and on purpose.
    pub(super) fn stray_mountpoint(anchor: &str, name: &str) -> Self {
        let why = format!("lies in `{anchor}` and is no volume's mountpoint: it is never touched");
        let dir = quoted(anchor);
        let cure = match plain(name) {
            Some(plain) => {
                let place = quoted(&format!("{anchor}/{plain}"));
                format!(
                    "mount -o remount,bind,rw {dir}; umount -q {place}; rm -d {place}; mount -o remount,bind,ro {dir}"
                )
            }
            None => format!("ls -lb {dir}  # then umount it, and remove it by hand"),
        };
        Self { what: name.to_owned(), why, cure }
    }

    /// A mount under the anchor that no record names, and that stays because somebody has it, or because it cannot be unmounted.
    pub(super) fn stray_mount(anchor: &str, id: Id, why: &str) -> Self {
        let place = quoted(&format!("{anchor}/{id}"));
        let why = format!("is mounted, and belongs to no volume: {why}");
        let cure =
            format!("findmnt {place}  # end the processes named: it is then unmounted by itself");
        Self { what: id.to_string(), why, cure }
    }
}

/// A stray thing's name, if the one that mountd shows is the one it has: others are escaped or cut.
fn plain(name: &str) -> Option<&str> {
    let name = name.trim_matches('`');
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (!name.is_empty() && name.bytes().all(fits)).then_some(name)
}

/// The command that puts a stray thing where it is in nobody's way; to delete it is for who has looked at it.
fn set_aside(dir: &str, name: &str, to: &str) -> String {
    match plain(name) {
        Some(name) => {
            let (from, to) = (format!("{dir}/{name}"), format!("{to}/stray-{name}"));
            format!("mv -nT {} {}  # and delete it if nobody wants it", quoted(&from), quoted(&to))
        }
        None => format!("ls -lb {}  # then move it out of there by hand", quoted(dir)),
    }
}

/// A path as one word of a shell.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

impl<W: World> Volumes<W> {
    /// What is wrong, as far as is known: of our directories, what was there at the start or at the last [`Volumes::look_again`].
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let state = self.state.borrow();
        let mut troubles = Vec::new();
        for (name, entry) in &state.volumes {
            if let Some((word, why)) = entry.trouble() {
                let cure = entry.cure(name, word, &self.data_of(&entry.record).unwrap_or_default());
                troubles.push(Trouble {
                    what: name.to_string(),
                    why: format!("{word}: {why}"),
                    cure,
                });
            }
        }
        for (id, waiting) in &state.stray_mounts {
            troubles.push(Trouble::stray_mount(&self.settings.mountpoints, *id, &waiting.why));
        }
        for record in state.retained.values() {
            // What is kept is kept as asked, and what was found is its backend's: nothing is to be done about either.
            if record.phase != Phase::Purging || record.found().is_some() {
                continue;
            }
            let data = match self.data_of(record) {
                Some(data) => format!("in `{data}`"),
                None => format!("at the backend of driver `{}`", record.driver),
            };
            let mut why = format!("is being deleted for good, and what lies {data} is not gone");
            if let Some(waiting) = state.purges.get(&record.id) {
                why = format!("{why}: {}", waiting.why);
            }
            let cure = format!(
                "wasmvol volume purge {}  # deletes it; who wants the data moves it away before",
                record.id
            );
            troubles.push(Trouble { what: record.name.to_string(), why, cure });
        }
        troubles.extend(state.strangers.iter().cloned());
        troubles
    }

    /// Looks into our directories again, so that what a person has mended is a trouble no longer.
    pub(crate) async fn look_again(&self) {
        if !*self.recovered.borrow() {
            return;
        }
        let ready: BTreeSet<Id> = {
            let state = self.state.borrow();
            let ready = state.volumes.values().filter(|e| e.record.phase == Phase::Ready);
            ready.map(|entry| entry.record.id).collect()
        };
        // What is made or removed meanwhile looks like a stray in one of them, never in both.
        let (first, second) = match (self.survey().await, self.survey().await) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(fault), _) | (_, Err(fault)) => {
                tracing::warn!("what lies in our directories is not known: {fault}");
                return;
            }
        };
        self.note_storage(&second.storage, |id| ready.contains(&id));
        let first: BTreeSet<Trouble> = first.strangers.into_iter().collect();
        let both = second.strangers.into_iter().filter(|stray| first.contains(stray));
        self.state.borrow_mut().strangers = both.collect();
    }
}

impl Entry {
    /// What mends the trouble that goes by this word.
    fn cure(&self, name: &VolumeName, word: &str, data: &str) -> String {
        match word {
            "half made" | "being removed" => format!("wasmvol volume rm --force {name}"),
            "missing" if self.record.storage == Storage::None => {
                format!("wasmvol volume rm {name}")
            }
            "missing" => {
                let place = quoted(data);
                format!(
                    "wasmvol volume rm {name}  # gives it up: who has a backup puts it back in {place} instead"
                )
            }
            "draining" if self.facts.is_none() && self.is_attached() => format!(
                "wasmvol driver inspect {}  # its backend has not let go of the volume, and is asked again by itself",
                self.record.driver
            ),
            "draining" => format!("docker ps --filter volume={name}  # and stop those"),
            // Degraded: it is tried again by itself, and whoever lost the mount has to begin anew in any case.
            _ => self.holders.restart(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_of_a_stray_thing_names_it_exactly_or_shows_where_it_is() {
        let cure = |name| Trouble::stray_storage("/it's", name).cure;
        assert_eq!(
            cure("`lost+found`"),
            r"ls -lb '/it'\''s/volumes'  # then move it out of there by hand"
        );
        assert!(
            cure("`old.data`")
                .starts_with(r"mv -nT '/it'\''s/volumes/old.data' '/it'\''s/stray-old.data'  #")
        );
    }
}
