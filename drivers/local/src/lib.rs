//! Directories on the host's disk, and whatever Docker's own local driver mounts: `docker volume create -d wasmvol data`.
//!
//! The driver of a volume whose user names none. `type`, `device` and `o` mean what they mean to Docker, so that a compose file
//! moves over by its `driver:` alone; what they lead to the operator has to grant. Without them the host makes an empty directory
//! beneath its state directory, and deletes it with the volume.

use wasmvol_sdk::contract::{Device, MountOption, MountValue, Overlay, Source};
use wasmvol_sdk::mount_options::MountOptions;
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Owner, Plan, Result, Share, Storage, Volume,
    export_driver,
};

/// The driver.
#[derive(Debug)]
pub struct Local;

impl Driver for Local {
    fn describe() -> Description {
        let help = "directories on the host's disk, and what Docker's local driver mounts";
        Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), help)
            .owner("0755")
            .id_map()
            .option(OptionSpec::text("type", "file system to mount; `none` with `o=bind`"))
            .option(OptionSpec::text("device", "the directory, device or share to mount"))
            .option(OptionSpec::text("o", "mount options, with commas between"))
            .option(OptionSpec::boolean("make", "make a missing directory of `o=bind`"))
            .option(OptionSpec::secret("secret", "the password of `type=cifs`"))
            .option(OptionSpec::size("size", "most bytes; needs a disk with project quotas"))
    }

    fn create(volume: &Volume) -> Result<Created> {
        let limit = volume.if_given("size", Volume::size)?;
        Ok(match Self::path(volume)?.source {
            Source::Storage => Storage::limited_directory(volume.owner()?, limit).into(),
            Source::Overlay(_) => Storage::directory(volume.owner()?).into(),
            _ => Storage::None.into(),
        })
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let text = |key| volume.if_given(key, Volume::text);
        let needs = |key, other| Err(Error::invalid_option(key, format!("needs {other}, too")));
        let plan = match (text("type")?, text("device")?, text("o")?) {
            (None, None, None) => Plan::storage(),
            (None, None, Some(_)) => return needs("o", "`type` and `device`"),
            (Some(_), None, _) => return needs("type", "`device`"),
            (None, Some(_), _) => return needs("device", "`type`"),
            (Some(kind), Some(device), o) => {
                let mut o = MountOptions::read("o", o.unwrap_or_default())?;
                let source = source(volume, kind, device, &mut o)?;
                o.none_left(if o.bind { "a bound directory" } else { kind })?;
                o.applied(Plan::new(source))
            }
        };
        refuse_idle(volume, &plan.source)?;
        Ok(plan.id_map(volume.id_map()?))
    }
}

/// What Docker would mount.
fn source(volume: &Volume, kind: &str, device: &str, o: &mut MountOptions<'_>) -> Result<Source> {
    let wants = |why| Error::invalid_option("device", why);
    Ok(match kind {
        _ if o.bind => {
            let make = volume.has("make") && volume.boolean("make")?;
            Plan::host_directory(device, make.then(|| volume.owner()).transpose()?).source
        }
        "none" | "bind" => return Err(Error::invalid_option("type", "`none` needs `o=bind`")),
        "tmpfs" => Source::Tmpfs(o.take_tmpfs()?),
        "overlay" => {
            if o.take("upperdir").or(o.take("workdir")).is_some() {
                let cure = "for a layer use `-o driver=overlay -o lower=…`";
                return Err(o.refuse(&format!("`upperdir` is not the volume's own: {cure}")));
            }
            // Without an upper layer the kernel lets nobody write.
            o.read_only = true;
            let lower = o.take("lowerdir").ok_or_else(|| o.refuse("needs `lowerdir=…`"))?;
            let lower = lower.split(':').map(str::to_owned).collect();
            Source::Overlay(Overlay { lower, volatile: false, reset: false })
        }
        "nfs" | "nfs4" => {
            let split = device.split_once(":/");
            let (host, path) = split.ok_or_else(|| wants("must be like `:/srv/data`"))?;
            let version = o.take("nfsvers").or(o.take("vers"));
            let is_4 = kind == "nfs4" || version.is_some_and(|version| version.starts_with('4'));
            let (kind, path) = (if is_4 { "nfs4" } else { "nfs" }, format!("/{path}"));
            let version = version.map(|text| ("vers", MountValue::Text(text.to_owned())));
            share(kind, host.trim_matches(['[', ']']), &path, o, version)?
        }
        "cifs" | "smb3" => {
            let split = device.strip_prefix("//").and_then(|rest| rest.split_once('/'));
            let (host, path) = split.ok_or_else(|| wants("must be like `//server/share`"))?;
            let secret = volume.if_given("secret", Volume::secret)?;
            let password = secret.map(|name| ("password", MountValue::Secret(name.to_owned())));
            share("cifs", host, path, o, password)?
        }
        // Which ones there are the host knows.
        filesystem => {
            let (path, filesystem) = (device.to_owned(), filesystem.to_owned());
            Source::Device(Device { path, filesystem, options: o.take_all(), make: None })
        }
    })
}

/// What a server shares, with all options that are left and one more; `addr` says where the server is.
fn share(
    kind: &str,
    host: &str,
    path: &str,
    o: &mut MountOptions<'_>,
    more: Option<(&str, MountValue)>,
) -> Result<Source> {
    let server = o.take("addr").unwrap_or(host);
    if server.is_empty() {
        return Err(o.refuse("needs `addr=SERVER`, or `device` a server"));
    }
    let [kind, server, path] = [kind, server, path].map(str::to_owned);
    let more = more.map(|(key, value)| MountOption { key: key.to_owned(), value });
    let options = o.take_rest().into_iter().chain(more).collect();
    Ok(Source::Share(Share { kind, server, path, options, make: None }))
}

/// Refuses what would do nothing.
fn refuse_idle(volume: &Volume, source: &Source) -> Result<()> {
    let made = match source {
        Source::HostDirectory(directory) => directory.make.is_some(),
        source => matches!(source, Source::Storage | Source::Overlay(_)),
    };
    let plain = volume.owner()? == Owner { uid: 0, gid: 0, mode: 0o755 };
    let is_share = matches!(source, Source::Share(share) if share.kind == "cifs");
    let (key, why) = match source {
        _ if !made && !plain => ("uid", "as `gid` and `mode`, is for a directory that is made"),
        _ if volume.has("secret") && !is_share => ("secret", "is the password of `type=cifs`"),
        source if volume.has("size") && !matches!(source, Source::Storage) => {
            ("size", "is for a volume without `type`: `type=tmpfs` has it in `o`, as `o=size=…`")
        }
        Source::HostDirectory(_) => return Ok(()),
        _ if volume.has("make") => ("make", "is for a directory of the host, with `o=bind`"),
        _ => return Ok(()),
    };
    Err(Error::invalid_option(key, why))
}

export_driver!(Local);
