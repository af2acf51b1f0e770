//! Answering: builders for the contract's `storage`, `created` and `plan`.
//!
//! What has a builder is what the host serves; the rest of the contract's shapes are in [`contract`](crate::contract).

use crate::contract::{
    Directory, HostDirectory, IdMap, MountOption, MountValue, NamedDirectory, Source,
};
use crate::{Created, Owner, Plan, Share, Storage, Tmpfs};

impl Storage {
    /// A directory on the host's disk, empty at first.
    #[must_use]
    pub fn directory(owner: Owner) -> Self {
        Self::limited_directory(owner, None)
    }

    /// The same with at most so many bytes in it, where the host's file system has project quotas.
    #[must_use]
    pub fn limited_directory(owner: Owner, limit: Option<u64>) -> Self {
        Self::Directory(Directory { owner, limit, over: None })
    }

    /// The layer of an overlay, over another volume if that is given: its name, as the user wrote it into an option.
    #[must_use]
    pub fn layer(owner: Owner, over: Option<&str>) -> Self {
        Self::Directory(Directory { owner, limit: None, over: over.map(str::to_owned) })
    }

    /// A directory beneath a granted root that is named by its volume and may have a limit in bytes, or that the user chose. Its plan is
    /// [`Plan::host_directory`].
    #[must_use]
    pub fn named_directory(
        root: &str,
        chosen: Option<&str>,
        owner: Owner,
        limit: Option<u64>,
    ) -> Self {
        let (root, directory) = (root.to_owned(), chosen.map(str::to_owned));
        Self::NamedDirectory(NamedDirectory { root, directory, owner, limit })
    }
}

impl From<Storage> for Created {
    fn from(storage: Storage) -> Self {
        Self { storage, state: Vec::new() }
    }
}

impl Created {
    /// Bytes of the driver's own, that later calls get back as the volume's state: 64 KiB at most.
    #[must_use]
    pub fn state(mut self, state: impl Into<Vec<u8>>) -> Self {
        self.state = state.into();
        self
    }
}

impl Plan {
    /// The volume is the storage that the host made at create.
    #[must_use]
    pub fn storage() -> Self {
        Self::new(Source::Storage)
    }

    /// The volume is memory: it is empty at each first mount and gone at the last unmount.
    #[must_use]
    pub fn tmpfs(tmpfs: Tmpfs) -> Self {
        Self::new(Source::Tmpfs(tmpfs))
    }

    /// The volume is a directory of the host, beneath a granted root. `make` is the owner with which it is made where it is missing.
    #[must_use]
    pub fn host_directory(path: &str, make: Option<Owner>) -> Self {
        Self::new(Source::HostDirectory(HostDirectory { path: path.to_owned(), make }))
    }

    /// The volume is what a server shares, or a directory inside it: see [`subpath`](Self::subpath).
    #[must_use]
    pub fn share(share: Share) -> Self {
        Self::new(Source::Share(share))
    }

    /// A plan for a source that has no builder of its own.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, read_only: false, no_exec: false, subpath: None, id_map: None }
    }

    /// Nobody can write, also after an engine's own remount.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// No program is run from the volume, as far as the engine keeps the mount's flags.
    #[must_use]
    pub fn no_exec(mut self) -> Self {
        self.no_exec = true;
        self
    }

    /// The volume is a directory inside the source: relative, without `..`.
    #[must_use]
    pub fn subpath(mut self, subpath: impl Into<String>) -> Self {
        self.subpath = Some(subpath.into());
        self
    }

    /// Owners are shown as other ids than the disk has; [`Volume::id_map`](crate::Volume::id_map) reads them.
    #[must_use]
    pub fn id_map(mut self, map: Option<IdMap>) -> Self {
        self.id_map = map;
        self
    }
}

impl Share {
    /// A share without options: `kind` is the file system type as the kernel knows it, `path` what the server calls it.
    #[must_use]
    pub fn new(kind: &str, server: &str, path: &str) -> Self {
        let [kind, server, path] = [kind, server, path].map(str::to_owned);
        Self { kind, server, path, options: Vec::new(), make: None }
    }

    /// Takes a mount option without a value.
    #[must_use]
    pub fn flag(self, key: &str) -> Self {
        self.option(key, MountValue::Present)
    }

    /// Takes a mount option that is a word or a line.
    #[must_use]
    pub fn text(self, key: &str, text: impl Into<String>) -> Self {
        self.option(key, MountValue::Text(text.into()))
    }

    /// Takes a mount option that is a number.
    #[must_use]
    pub fn number(self, key: &str, number: impl Into<u64>) -> Self {
        self.option(key, MountValue::Number(number.into()))
    }

    /// Takes a mount option whose value is a secret of the operator's, by its name.
    #[must_use]
    pub fn secret(self, key: &str, name: &str) -> Self {
        self.option(key, MountValue::Secret(name.to_owned()))
    }

    /// The plan's subpath is made where it is missing, with this owner.
    #[must_use]
    pub fn make(mut self, owner: Owner) -> Self {
        self.make = Some(owner);
        self
    }

    fn option(mut self, key: &str, value: MountValue) -> Self {
        self.options.push(MountOption { key: key.to_owned(), value });
        self
    }
}
