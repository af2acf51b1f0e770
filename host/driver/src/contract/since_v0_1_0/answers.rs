//! Storage and plan as a driver answered them, in the host's own types. Texts are bounded here; whether they are fit and granted is
//! asked where plans are checked.

use wasmvol_plan::path::PATH_MAX;
use wasmvol_plan::plan::check_subpath;
use wasmvol_plan::{
    Below, Compression, Device, Directory, Filesystem, HostDirectory, IdMap, IdRange, Image,
    MountOption, MountValue, NamedDirectory, Overlay, Owner, Plan, Program, Share, Source, Storage,
    Subvolume, Tmpfs, VolumeName,
};

use super::{line, types};
use crate::answer::{KEY_MAX, OPTIONS_MAX, Unfit, VALUE_MAX, broken, count, one_line};
use crate::types::CallError;

/// Most entries of a list in a plan that is no list of options.
const LIST_MAX: usize = 64;

pub(super) fn storage(storage: types::Storage, name: &VolumeName) -> Result<Storage, Unfit> {
    Ok(match storage {
        types::Storage::None => Storage::None,
        types::Storage::Directory(types::Directory { owner: by, limit, over }) => {
            let over = over.map(|name| line("volume's name", name, VALUE_MAX)).transpose()?;
            let over = over.map(|name| Below { name, id: None });
            Storage::Directory(Directory { owner: owner(by)?, limit, over })
        }
        types::Storage::NamedDirectory(wanted) => {
            let types::NamedDirectory { root, directory, owner: by, limit } = wanted;
            let adopt = directory.is_some();
            let directory = directory.unwrap_or_else(|| name.to_string());
            Storage::NamedDirectory(NamedDirectory {
                root: line("root", root, PATH_MAX)?,
                name: name.clone(),
                directory: line("directory", directory, PATH_MAX)?,
                owner: owner(by)?,
                adopt,
                limit,
            })
        }
        types::Storage::Image(image) => Storage::Image(Image {
            size: image.size,
            thin: image.thin,
            filesystem: match image.filesystem {
                types::Filesystem::Ext4 => Filesystem::Ext4,
                types::Filesystem::Xfs => Filesystem::Xfs,
                types::Filesystem::Btrfs => Filesystem::Btrfs,
            },
            encrypt: image.encrypt.map(|name| line("secret name", name, KEY_MAX)).transpose()?,
            owner: owner(image.owner)?,
        }),
        types::Storage::Subvolume(subvolume) => Storage::Subvolume(Subvolume {
            owner: owner(subvolume.owner)?,
            limit: subvolume.limit,
            compress: subvolume.compress.map(|compression| match compression {
                types::Compression::Zlib => Compression::Zlib,
                types::Compression::Lzo => Compression::Lzo,
                types::Compression::Zstd => Compression::Zstd,
            }),
            copy_on_write: subvolume.copy_on_write,
        }),
        types::Storage::Other(other) => return Err(unserved("storage", other)),
    })
}

pub(super) fn plan(plan: types::Plan) -> Result<Plan, Unfit> {
    let types::Plan { source: from, read_only, no_exec, subpath, id_map } = plan;
    if let Some(subpath) = &subpath {
        check_subpath(subpath).map_err(|f| Unfit::repeats(&**subpath, broken(f.message)))?;
    }
    let id_map = id_map.map(|types::IdMap { users, groups }| {
        Ok::<_, CallError>(IdMap { users: ranges(users)?, groups: ranges(groups)? })
    });
    let id_map = id_map.transpose()?;
    Ok(Plan { source: source(from)?, read_only, no_exec, subpath, id_map })
}

fn source(source: types::Source) -> Result<Source, Unfit> {
    Ok(match source {
        types::Source::Storage => Source::Storage,
        types::Source::Tmpfs(types::Tmpfs { size, inodes, owner: by }) => {
            Source::Tmpfs(Tmpfs { size, inodes, owner: owner(by)? })
        }
        types::Source::HostDirectory(types::HostDirectory { path, make }) => {
            let make = make.map(owner).transpose()?;
            Source::HostDirectory(HostDirectory { path: line("path", path, PATH_MAX)?, make })
        }
        types::Source::Share(share) => Source::Share(Share {
            kind: line("kind of a share", share.kind, KEY_MAX)?,
            server: line("server", share.server, VALUE_MAX)?,
            path: line("path", share.path, PATH_MAX)?,
            options: options(share.options)?,
            make: share.make.map(owner).transpose()?,
        }),
        types::Source::Overlay(types::Overlay { lower, volatile, reset }) => {
            count("plan", lower.len(), LIST_MAX, "directories")?;
            let lower = lower.into_iter().map(|path| line("path", path, PATH_MAX));
            let lower = lower.collect::<Result<_, _>>()?;
            Source::Overlay(Overlay { lower, volatile, reset })
        }
        types::Source::Device(device) => Source::Device(Device {
            path: line("path", device.path, PATH_MAX)?,
            filesystem: line("file system", device.filesystem, KEY_MAX)?,
            options: options(device.options)?,
            make: device.make.map(owner).transpose()?,
        }),
        types::Source::Program(program) => Source::Program(Program {
            name: line("program", program.name, KEY_MAX)?,
            source: line("source", program.source, PATH_MAX)?,
            options: options(program.options)?,
        }),
        types::Source::Served => {
            return Err(CallError::Unsupported("source `served`".to_owned()).into());
        }
        types::Source::Other(other) => return Err(unserved("source", other)),
    })
}

/// A kind that came after this contract, and after this host.
fn unserved(what: &str, other: types::Other) -> Unfit {
    let error = CallError::Unsupported(format!("{what} `{}`", one_line(&other.kind, KEY_MAX)));
    Unfit::repeats(other.kind, error)
}

pub(super) fn owner(owner: types::Owner) -> Result<Owner, CallError> {
    let types::Owner { uid, gid, mode } = owner;
    let owner = Owner { uid, gid, mode };
    owner.check().map_err(|fault| broken(fault.message))?;
    Ok(owner)
}

fn ranges(ranges: Vec<types::IdRange>) -> Result<Vec<IdRange>, CallError> {
    count("id map", ranges.len(), LIST_MAX, "ranges")?;
    let range = |types::IdRange { disk, shown, count }| IdRange { disk, shown, count };
    Ok(ranges.into_iter().map(range).collect())
}

fn options(options: Vec<types::MountOption>) -> Result<Vec<MountOption>, Unfit> {
    count("plan", options.len(), OPTIONS_MAX, "options")?;
    let option = |types::MountOption { key, value }| {
        let value = match value {
            types::MountValue::Present => MountValue::Present,
            types::MountValue::Text(text) => {
                MountValue::Text(line("mount option", text, VALUE_MAX)?)
            }
            types::MountValue::Number(number) => MountValue::Number(number),
            types::MountValue::Secret(name) => {
                MountValue::Secret(line("secret name", name, KEY_MAX)?)
            }
        };
        Ok(MountOption { key: line("mount option", key, KEY_MAX)?, value })
    };
    options.into_iter().map(option).collect()
}
