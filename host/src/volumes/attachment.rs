//! Attachment: a volume whose backend must make it reachable on this machine first, as a disk of a cloud.
//!
//! Called by Mount before the plan is asked for, and wherever the last mount has gone. The record says durably that the driver is to be
//! told again, before it is asked the first time; so after whatever crash, or a reboot, what nobody uses is detached. A step of either may
//! take seconds, and the driver says when to ask for the next.

use std::time::Duration;

use tokio::time::Instant;
use wasmvol_driver::{CallError, Progress, Scope};
use wasmvol_plan::VolumeName;

use super::world::{Drivers, World};
use super::{VolumeError, Volumes};

/// How long all steps to attach a volume may take: clouds need up to half a minute, and dockerd waits 120 s for the whole Mount.
pub(crate) const ATTACH: Duration = Duration::from_secs(40);
/// The same to detach one: dockerd waits 60 s for an Unmount. What takes longer is asked for again later.
pub(crate) const DETACH: Duration = Duration::from_secs(20);

impl<W: World> Volumes<W> {
    /// Has a volume's driver make it reachable here, if it is of such a kind. Where it is already that is done already.
    pub(super) async fn reach(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let Some(record) = self.read(name, |entry| entry.record.clone()) else { return Ok(()) };
        let driver = &record.driver;
        match self.world.drivers().abilities(driver) {
            Some(abilities) if abilities.attachment => {}
            Some(_) => return Ok(()),
            // It may be there when it is asked for the plan, and would have had to attach.
            None => {
                let error = CallError::NotLoaded(driver.to_string());
                return Err(VolumeError::Driver { driver: driver.clone(), error });
            }
        }
        if !record.attached {
            let mut record = record.clone();
            record.attached = true;
            self.put(record).await?;
            self.step("reach.intent").await;
        }
        self.until_done(name, ATTACH, async |volume, scope| {
            self.world.drivers().attach(driver, volume, scope).await
        })
        .await?;
        self.step("reach.done").await;
        Ok(())
    }

    /// Tells a volume's driver that nothing of it is mounted here any more, if it made it reachable.
    pub(super) async fn let_go(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let found = self.read(name, |entry| entry.record.clone());
        let Some(record) = found.filter(|record| record.attached) else { return Ok(()) };
        let driver = &record.driver;
        self.step("let-go.begin").await;
        self.until_done(name, DETACH, async |volume, scope| {
            self.world.drivers().detach(driver, volume, scope).await
        })
        .await?;
        self.step("let-go.done").await;
        let Some(mut record) = self.read(name, |entry| entry.record.clone()) else { return Ok(()) };
        record.attached = false;
        self.put(record).await
    }

    /// Asks for step after step until it is done. The state that each leaves is durable before the next.
    async fn until_done(
        &self,
        name: &VolumeName,
        within: Duration,
        step: impl AsyncFn(
            &wasmvol_driver::Volume,
            Scope,
        ) -> Result<wasmvol_driver::Answer<Progress>, CallError>,
    ) -> Result<(), VolumeError> {
        let until = Instant::now() + within;
        loop {
            let found = self.read(name, |entry| (entry.volume(), entry.record.driver.clone()));
            let Some((volume, driver)) = found else { return Ok(()) };
            let call = async |scope| step(&volume, scope).await;
            let version = self.version_of(&driver);
            let progress = self.ask((name, volume.id), &driver, call, |progress, record| {
                record.set_state(state_of(progress), &version);
            });
            let progress = progress.await?;
            let state = state_of(&progress);
            let mut record = self.read(name, |entry| entry.record.clone());
            if let Some(mut record) = record.take_if(|record| record.state != state) {
                record.set_state(state, &version);
                self.put(record).await?;
            }
            let Progress::Again { after, .. } = progress else { return Ok(()) };
            if Instant::now() + after > until {
                let error = CallError::TimedOut(within);
                return Err(VolumeError::Driver { driver, error });
            }
            tokio::time::sleep(after).await;
        }
    }
}

fn state_of(progress: &Progress) -> &[u8] {
    match progress {
        Progress::Done(state) | Progress::Again { state, .. } => state,
    }
}
