//! What a child does: one slow request, whatever it waits for. Called by [`job`](super::job), in the child alone.

use std::os::fd::OwnedFd;

use wasmvol_plan::{Fault, FaultKind, Release, Reply, Request, Storage};

use super::Assembled;
use super::wire::Said;
use crate::fault::fault;
use crate::mounter::Mounter;
use crate::storage::sync;

impl Mounter {
    /// The child's whole life.
    pub(super) fn child(&self, request: &Request, gift: Option<OwnedFd>) -> Result<Said, Fault> {
        match request {
            Request::Mount(wanted) => {
                let grants = self.grants(&wanted.driver)?;
                let Assembled { tree, .. } = self.prepare(wanted, &grants)?;
                Ok((Reply::Made, Some(tree)))
            }
            Request::Unmount(_) => {
                drop(gift);
                Ok((Reply::Unmounted(Release::Gone), None))
            }
            Request::Usage(id) => Ok((Reply::Used(self.usage(*id)?), None)),
            Request::Make { storage: Storage::NamedDirectory(_), .. }
            | Request::Trash { .. }
            | Request::Marks(_) => Ok((self.answer_named(request)?, None)),
            Request::Make { id, driver, storage, .. } => {
                storage.check(&self.grants(driver)?)?;
                let made = self.make_storage(*id, storage)?;
                made.iter().try_for_each(|made| sync(made, "a new volume"))?;
                sync(&self.places.volumes, "volumes")?;
                Ok((Reply::Made, None))
            }
            Request::Measure(id) => {
                self.measure(*id).map(|measured| (Reply::Measured(measured), None))
            }
            _ => fault(FaultKind::Invalid, "this request needs no child"),
        }
    }
}
