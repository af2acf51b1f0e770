//! What a child does: one slow request, whatever it waits for. Called by [`job`](super::job), in the child alone.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, mount_change, move_mount, open_tree};
use rustix::process::Pid;
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{Fault, FaultKind, Release, Reply, Request, Storage};

use super::Assembled;
use super::wait::FLUSH_DEADLINE;
use super::wire::{Said, receive, send};
use crate::anchor::CLONE;
use crate::daemon::die_with;
use crate::fault::{Context, fault};
use crate::mounter::Mounter;
use crate::places::DIRECTORY;
use crate::storage::{open_subpath, sync};
use crate::sys::{self, Propagation, unshare_mounts};

impl Mounter {
    /// Attaches a tree in a namespace of this child's own, where nobody else sees it: Linux before 6.15 neither clones what is attached
    /// nowhere nor takes it as a layer. What was opened before in other trees is of no use for that from then on.
    pub(super) fn attach_unseen(&self, tree: &OwnedFd) -> Result<(), Errno> {
        unshare_mounts()?;
        mount_change("/", Propagation::PRIVATE | Propagation::REC)?;
        move_mount(tree, "", CWD, &self.anchor.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// A directory of a tree that is attached nowhere, and nothing beside it.
    pub(super) fn only(&self, tree: &OwnedFd, subpath: &str) -> Result<OwnedFd, Fault> {
        let inside = open_subpath(tree, subpath)?;
        let only = self.attach_unseen(tree).and_then(|()| open_tree(&inside, "", CLONE));
        only.trying(format_args!("show directory {} of a volume alone", Quoted::new(subpath)))
    }

    /// The child's whole life: it gets its tree, does its work, answers, and ends with this status.
    pub(super) fn live(&self, parent: Pid, socket: &OwnedFd, request: &Request) -> i32 {
        let prepare = || {
            rustix::process::setsid()?;
            sys::unblock_signals()?;
            die_with(parent)
        };
        let gift = receive(socket).ok().flatten().and_then(|(_, gift)| gift);
        let done = prepare().trying("prepare a child").and_then(|()| self.work_on(request, gift));
        let (reply, tree) = done.unwrap_or_else(|fault| (Reply::Failed(fault), None));
        i32::from(send(socket, reply, tree.as_ref()).is_err())
    }

    fn work_on(&self, request: &Request, gift: Option<OwnedFd>) -> Result<Said, Fault> {
        match request {
            Request::Mount(wanted) => {
                let grants = self.grants(&wanted.driver)?;
                let Assembled { tree, .. } = self.prepare(wanted, &grants)?;
                Ok((Reply::Made, Some(tree)))
            }
            Request::Unmount { id, .. } => {
                if let Some(gift) = &gift {
                    // A server that is gone hears nothing more: its volume is unmounted all the same.
                    let root = openat(gift, ".", DIRECTORY, Mode::empty());
                    let _written = root.and_then(rustix::fs::syncfs);
                }
                self.places.see_out(*id, gift, FLUSH_DEADLINE);
                Ok((Reply::Unmounted(Release::Gone), None))
            }
            Request::Usage(id) => Ok((Reply::Used(self.usage(*id)?), None)),
            Request::Make { storage: Storage::NamedDirectory(_), .. }
            | Request::Grow { storage: Storage::NamedDirectory(_), .. }
            | Request::Trash { .. }
            | Request::Marks(_) => Ok((self.answer_named(request)?, None)),
            Request::Make { id, driver, storage, .. } => {
                storage.check(&self.grants(driver)?)?;
                let made = self.make_storage(*id, driver, storage)?;
                made.iter().try_for_each(|made| sync(made, "a new volume"))?;
                sync(&self.places.volumes, "volumes")?;
                Ok((Reply::Made, None))
            }
            Request::Fill { id, driver, storage } => {
                storage.check(&self.grants(driver)?)?;
                Ok((Reply::Opened, Some(self.open_to_fill(*id, driver, storage)?)))
            }
            Request::Settle { id, driver, storage } => {
                storage.check(&self.grants(driver)?)?;
                self.settle(*id, driver, storage)?;
                Ok((Reply::Settled, None))
            }
            Request::Grow { id, driver, storage, .. } => {
                storage.check(&self.grants(driver)?)?;
                self.grow_storage(*id, driver, storage)?;
                Ok((Reply::Grown, None))
            }
            Request::Measure(id) => {
                self.measure(*id).map(|measured| (Reply::Measured(measured), None))
            }
            _ => fault(FaultKind::Invalid, "this request needs no child"),
        }
    }
}
