//! The bytes of secrets on their way to a driver: from mountd, which alone can read them, to the thread of a call that waits for them.
//!
//! Used by [`Drivers`](super::Drivers). Nothing is kept: each call asks anew, and mountd looks at the grant and at the secret each time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use wasmvol_driver::Reveal;
use wasmvol_plan::secret::Bytes;
use wasmvol_plan::{DriverName, Fault, FaultKind, SecretName};

use crate::mounter::Mounter;

/// Questions that wait: as many as calls run at once.
const QUEUE: usize = 64;

struct Question {
    driver: DriverName,
    name: SecretName,
    answer: std::sync::mpsc::SyncSender<Result<Bytes, Fault>>,
}

/// Where calls ask.
#[derive(Debug, Clone)]
pub(super) struct Revealer(mpsc::Sender<Question>);

impl Revealer {
    /// Must run where local tasks can be spawned: one asks mountd.
    pub(super) fn start(mounter: Mounter) -> Self {
        let (sender, mut questions) = mpsc::channel::<Question>(QUEUE);
        tokio::task::spawn_local(async move {
            while let Some(Question { driver, name, answer }) = questions.recv().await {
                let mounter = mounter.clone();
                tokio::task::spawn_local(async move {
                    let revealed = mounter.reveal(&name, &driver).await;
                    // The call has ended meanwhile.
                    let _ = answer.try_send(revealed);
                });
            }
        });
        Self(sender)
    }

    /// Hands out what one driver may have.
    pub(super) fn of(&self, driver: &DriverName) -> Reveal {
        let (questions, driver) = (self.0.clone(), driver.clone());
        Arc::new(move |name: &str, until: Instant| {
            let name = SecretName::parse(name)
                .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
            let (answer, answered) = std::sync::mpsc::sync_channel(1);
            let late =
                || Fault::new(FaultKind::Failed, format!("secret `{name}` cannot be read now"));
            let question = Question { driver: driver.clone(), name: name.clone(), answer };
            questions.try_send(question).map_err(|_| late())?;
            let left = until.saturating_duration_since(Instant::now());
            answered.recv_timeout(left).map_err(|_| late())?
        })
    }
}
