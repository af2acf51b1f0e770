//! Health: how mounted volumes are where their backends keep them, as far as their drivers can tell.
//!
//! Asked in the background alone, and shown from memory with everything else that is wrong with a volume.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use wasmvol_driver::Condition;
use wasmvol_plan::VolumeName;

use super::Volumes;
use super::world::{Drivers, World};

/// How often each volume is asked for, as the contract says.
pub(super) const ROUND: Duration = Duration::from_secs(60);
/// Volumes of a driver that are asked for at once: a backend that hangs takes one of its driver's calls for each.
const AT_ONCE: usize = 4;

impl<W: World> Volumes<W> {
    /// Asks the drivers of all mounted volumes that can tell.
    pub(super) async fn look_after_health(&self) {
        let can_tell = |entry: &super::Entry| {
            let abilities = self.world.drivers().abilities(&entry.record.driver);
            abilities.is_some_and(|abilities| abilities.health)
        };
        // Of what another version told this one knows nothing.
        for name in self.names(|entry| entry.ailing.is_some() && !can_tell(entry)) {
            self.write(&name, |entry| entry.ailing = None);
        }
        let mut of_drivers = BTreeMap::<_, Vec<_>>::new();
        for name in self.names(|entry| entry.facts.is_some() && can_tell(entry)) {
            let driver = self.read(&name, |entry| entry.record.driver.clone());
            of_drivers.entry(driver).or_default().push(name);
        }
        // A driver that hangs delays the questions to itself alone.
        let ask_one = |names: Vec<_>| {
            stream::iter(names).for_each_concurrent(AT_ONCE, |name| self.examine(name))
        };
        stream::iter(of_drivers.into_values()).for_each_concurrent(None, ask_one).await;
    }

    async fn examine(&self, name: VolumeName) {
        let driver = self.read(&name, |entry| entry.record.driver.clone());
        let Some(driver) = driver else { return };
        let Ok(_kept) = self.keep(&driver).await else { return };
        let Some(volume) = self.read(&name, super::Entry::volume) else { return };
        let scope = self.scope(&driver);
        let said = match self.world.drivers().check(&driver, &volume, scope).await {
            Ok(report) => match report.condition {
                Condition::Healthy => None,
                Condition::Degraded => Some(report.message),
                Condition::Unreachable => Some(format!("unreachable: {}", report.message)),
            },
            Err(error) => Some(error.to_string()),
        };
        self.write(&name, |entry| {
            // It may have been unmounted, or removed and made anew, while that was asked.
            if entry.facts.is_some() && entry.record.id == volume.id {
                entry.ailing = said.map(|why| format!("driver `{driver}`: {why}"));
            }
        });
    }
}
