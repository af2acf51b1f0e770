//! What root makes of a plan: each kind of storage and of source has a file of its own beneath here.
//!
//! Called by `mounter` and `attach`. A kind opens or makes the data and hands over a tree that is attached nowhere; flags, the commit
//! and everything after it are the core's. What may take longer than a frame may wait runs in a child: see [`job`].

mod child;
mod command;
mod crypt;
mod device;
mod directory;
mod filesystem;
mod fill;
pub(crate) mod fusermount;
mod glusterfs;
mod host_directory;
mod id_map;
mod image;
pub(crate) mod job;
mod loops;
mod marks;
mod measure;
pub(crate) mod named_directory;
mod overlay;
mod program;
pub(crate) mod quota;
mod rclone;
mod room;
mod s3fs;
mod secret;
mod share;
mod sshfs;
pub(crate) mod subvolume;
mod tmpfs;
mod tool;
mod wait;
pub(crate) mod wire;

use std::os::fd::OwnedFd;

use wasmvol_plan::frame::Mount;
use wasmvol_plan::mountinfo::Entry;
use wasmvol_plan::{DriverName, Fault, FaultKind, Grants, Id, Source, Storage};

use crate::attach::{TAG, tag};
use crate::fault::fault;
use crate::mounter::{Mounter, Place};

/// A tree that is attached nowhere, and what mountinfo will show of it.
pub(crate) struct Assembled {
    pub(crate) tree: OwnedFd,
    pub(crate) shows: Shows,
}

/// What mounts of a volume's own file system show as their source.
pub(crate) enum OwnSource {
    /// This, if there are any.
    Perhaps(String),
    /// There is one at least, whether any namespace shows it or not.
    Held(String),
}

/// What mountinfo will show of a tree.
pub(crate) enum Shows {
    /// The root of a file system of the volume's own, of this type.
    Own(&'static str),
    /// A directory that lies somewhere. A file system may show its files another device than its mounts.
    Place(Place),
    /// Known only once it is attached.
    Unknown,
}

/// Whether a line of mountinfo is what a plan makes.
pub(crate) fn is_it(mounter: &Mounter, wanted: &Mount, line: &Entry<'_>) -> bool {
    let own = |kind| line.source == tag(wanted.id) && line.filesystem == kind;
    match (&wanted.plan.source, &wanted.storage) {
        (Source::Tmpfs(_) | Source::Device(_), _) if wanted.plan.read_only && own("overlay") => {
            true
        }
        (Source::Tmpfs(_), _) => own("tmpfs"),
        (Source::Overlay(_), _) => own("overlay"),
        (Source::Storage, Storage::Image(image)) => image::is_it(wanted.id, image, line),
        (Source::Storage | Source::HostDirectory(_), _) if wanted.plan.read_only => own("overlay"),
        (Source::Storage, _) => directory::is_it(mounter, wanted, line),
        // The directory may have got another name since.
        (Source::HostDirectory(_), _) => !line.source.starts_with(TAG),
        (Source::Share(share), _) => share::is_it(wanted, share, line),
        (Source::Device(device), _) => device::is_it(device, line),
        (Source::Program(_), _) => program::is_it(line),
    }
}

/// Whether the superblock of a line is one volume's own: who shows it, shows the volume.
pub(crate) fn is_own(id: Id, line: &Entry<'_>) -> bool {
    line.source == tag(id) || image::backs(id, line)
}

impl Mounter {
    /// Makes one volume's storage; what has to be synced comes back.
    pub(crate) fn make_storage(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<Vec<OwnedFd>, Fault> {
        match storage {
            // A named directory is made by another request's child: it lies elsewhere.
            Storage::None | Storage::NamedDirectory(_) => Ok(Vec::new()),
            Storage::Directory(wanted) => directory::make(&self.places, id, wanted),
            Storage::Image(wanted) => image::make(&self.places, id, driver, wanted),
            Storage::Subvolume(wanted) => subvolume::make(&self.places, id, wanted),
        }
    }

    /// Makes one volume's storage as large as `storage` says.
    pub(crate) fn grow_storage(
        &self,
        id: Id,
        driver: &DriverName,
        storage: &Storage,
    ) -> Result<(), Fault> {
        match storage {
            Storage::Image(wanted) => image::grow(&self.places, id, driver, wanted),
            Storage::Subvolume(wanted) => subvolume::grow(&self.places, id, wanted),
            Storage::Directory(wanted) => directory::limit(&self.places, id, wanted.limit),
            Storage::None | Storage::NamedDirectory(_) => unserved("a size of this storage"),
        }
    }

    /// The source of a volume's own file system that is mounted somewhere, if storage of this volume has one; else what a file system
    /// in memory would have.
    pub(crate) fn own_source(&self, id: Id) -> Result<OwnSource, Fault> {
        let mounted = image::mounted(&self.places, id)?;
        Ok(mounted.map_or_else(|| OwnSource::Perhaps(tag(id)), OwnSource::Held))
    }

    /// Makes the tree of a plan.
    pub(crate) fn assemble(&self, wanted: &Mount, grants: &Grants) -> Result<Assembled, Fault> {
        let assembled = self.tree(wanted, grants)?;
        if let Some(map) = &wanted.plan.id_map
            && !maps_its_own(&assembled, wanted)
        {
            id_map::apply(&assembled.tree, map)?;
        }
        // A privileged container could make these file systems writable again: an overlay without an upper layer it cannot.
        let is_reversible = matches!(wanted.plan.source, Source::Tmpfs(_) | Source::Device(_));
        if wanted.plan.read_only && is_reversible {
            // Linux before 6.15 lays no overlay over what is attached nowhere.
            return directory::frozen(self, wanted.id, [&assembled.tree]).or(Ok(assembled));
        }
        Ok(assembled)
    }

    fn tree(&self, wanted: &Mount, grants: &Grants) -> Result<Assembled, Fault> {
        match (&wanted.plan.source, &wanted.storage) {
            (Source::Storage, Storage::Image(image)) => image::assemble(self, wanted, image),
            (Source::Storage, _) => directory::assemble(self, wanted),
            (Source::Tmpfs(tmpfs), _) => tmpfs::assemble(self, wanted, tmpfs),
            (Source::HostDirectory(directory), _) => {
                host_directory::assemble(self, wanted, directory, grants)
            }
            (Source::Share(share), _) => share::assemble(self, wanted, share, grants),
            (Source::Overlay(overlay), _) => overlay::assemble(self, wanted, overlay, grants),
            (Source::Device(device), _) => device::assemble(self, wanted, device),
            (Source::Program(program), _) => program::assemble(self, wanted, program),
        }
    }
}

/// Whether a kind has mapped ids itself: an overlay is made of mapped layers, and a tmpfs that is taken back has its map.
fn maps_its_own(assembled: &Assembled, wanted: &Mount) -> bool {
    matches!(assembled.shows, Shows::Own("overlay"))
        || matches!(wanted.plan.source, Source::Tmpfs(_))
}

/// A kind that this host does not serve yet.
pub(crate) fn unserved<T>(what: &str) -> Result<T, Fault> {
    fault(FaultKind::Invalid, format!("this host does not serve {what}"))
}
