//! Remotes of rclone's: `docker volume create -d wasmvol -o driver=rclone -o remote=nas:data -o config=NAME far`.
//!
//! The host runs `rclone mount` for each volume that is mounted, with a configuration that is a secret as a whole. What is written lies
//! in a cache on the host's disk until it is uploaded; what is at the remote is the remote's: removing a volume deletes nothing there.

use wasmvol_sdk::contract::{MountOption, MountValue, Program, Source};
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Owner, Plan, Result, Storage, Volume,
    export_driver,
};

struct Rclone;

/// What rclone may keep on the disk, from nothing to all that is read.
const CACHES: [&str; 4] = ["off", "minimal", "writes", "full"];

impl Driver for Rclone {
    fn describe() -> Description {
        let help = "any remote that rclone knows: S3, WebDAV, SFTP, Drive and others";
        let new = Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), help);
        [
            OptionSpec::text("remote", "a remote of the configuration, and a path: `nas:data`")
                .required(),
            OptionSpec::secret("config", "the rclone.conf that has the remote").required(),
            OptionSpec::text("cache", "what is kept on the disk: off, minimal, writes or full")
                .default("writes"),
            OptionSpec::size("cache-size", "most that the cache holds on the disk").default("1g"),
            OptionSpec::duration("cache-age", "how long the cache keeps what nobody uses")
                .default("1h"),
            OptionSpec::duration("write-back", "how long a closed file waits for its upload")
                .default("0s"),
            OptionSpec::duration("list-age", "how long a listed directory is believed")
                .default("5m"),
            OptionSpec::size("buffer-size", "memory for each open file").default("16m"),
            OptionSpec::number("uid", "user id that files are shown with").default("0"),
            OptionSpec::number("gid", "group id that files are shown with").default("0"),
            OptionSpec::text("file-mode", "permission bits of files, octal").default("0644"),
            OptionSpec::text("dir-mode", "permission bits of directories, octal").default("0755"),
            OptionSpec::boolean("read-only", "nobody can write").default("false"),
        ]
        .into_iter()
        .fold(new, Description::option)
        .grant("program=rclone")
    }

    fn create(volume: &Volume) -> Result<Created> {
        Self::path(volume)?;
        // What was written and is not uploaded yet outlives a crash there.
        let root = Owner { uid: 0, gid: 0, mode: 0o700 };
        let keeps_nothing = volume.text("cache")? == "off";
        Ok(if keeps_nothing { Storage::None } else { Storage::directory(root) }.into())
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let mut options = Vec::new();
        let mut add = |key: &str, value| options.push(MountOption { key: key.to_owned(), value });
        add("config", MountValue::Secret(volume.secret("config")?.to_owned()));
        let cache = volume.text("cache")?;
        if !CACHES.contains(&cache) {
            return Err(Error::invalid_option("cache", "must be off, minimal, writes or full"));
        }
        add("cache", MountValue::Text(cache.to_owned()));
        for key in ["cache-size", "buffer-size"] {
            add(key, MountValue::Number(volume.size(key)?));
        }
        for key in ["cache-age", "write-back", "list-age"] {
            let ms = u64::try_from(volume.duration(key)?.as_millis());
            add(key, MountValue::Number(ms.unwrap_or(u64::MAX)));
        }
        for key in ["uid", "gid"] {
            add(key, MountValue::Number(volume.number_in(key, 0..=u32::MAX - 1)?.into()));
        }
        for key in ["file-mode", "dir-mode"] {
            let mode = volume.mode(key)?;
            if mode > 0o777 {
                return Err(Error::invalid_option(key, "must be at most 0777"));
            }
            add(key, MountValue::Number(mode.into()));
        }
        let source = remote(volume.text("remote")?)?.to_owned();
        let program = Program { name: "rclone".to_owned(), source, options };
        let plan = Plan::new(Source::Program(program));
        Ok(if volume.boolean("read-only")? { plan.read_only() } else { plan })
    }
}

/// A name of the configuration's, and a path: no remote that is made up on the spot, and no directory of the host's.
fn remote(text: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let refuse = |why| Err(Error::invalid_option("remote", why));
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && name.chars().all(plain) => {
            let leaves = path.split('/').any(|part| part == "..");
            if leaves { refuse("must have no `..`") } else { Ok(text) }
        }
        _ => refuse("must be `NAME:PATH`, with the name that its configuration has in brackets"),
    }
}

export_driver!(Rclone);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    /// A volume with this option beside, or in place of, the usual ones.
    fn volume(key: &'static str, value: &'static str) -> Result<Volume> {
        let mut all = vec![("remote", "nas:data"), ("config", "c")];
        all.retain(|(other, _)| *other != key);
        all.push((key, value));
        let volume = testing::volume::<Rclone>("v", all.clone())?;
        Rclone::path(&volume)?;
        testing::conformance::<Rclone>(all);
        Ok(volume)
    }

    #[test]
    fn remote_and_configuration_reach_the_plan() {
        let plan = Rclone::path(&volume("file-mode", "640").unwrap()).unwrap();
        let Source::Program(rclone) = plan.source else { panic!() };
        assert_eq!(rclone.source, "nas:data");
        let has = |value| rclone.options.iter().any(|option| option.value == value);
        assert!(has(MountValue::Secret("c".into())) && has(MountValue::Number(0o640)));
    }

    #[test]
    fn only_a_cache_takes_room_on_the_disk() {
        let storage = |cache| Rclone::create(&volume("cache", cache).unwrap()).unwrap().storage;
        assert!(matches!(storage("off"), Storage::None));
        assert!(matches!(storage("writes"), Storage::Directory(_)));
    }

    #[test]
    fn what_could_not_be_mounted_is_refused() {
        for (key, value) in [
            ("remote", "/etc"),
            ("remote", ":local:/etc"),
            ("remote", "nas:a/../b"),
            ("cache", "all"),
            ("file-mode", "4755"),
        ] {
            volume(key, value).unwrap_err();
        }
    }
}
