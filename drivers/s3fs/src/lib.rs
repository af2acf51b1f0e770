//! Buckets of S3: `docker volume create -d wasmvol -o driver=s3fs -o bucket=data -o secret=NAME far`.
//!
//! The host runs s3fs for each volume that is mounted; its keys are a secret. What is in the bucket is the server's: removing a volume
//! deletes nothing there.

use wasmvol_sdk::contract::{MountOption, MountValue, Program, Source};
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Owner, Plan, Result, Storage, Volume,
    export_driver,
};

struct S3fs;

impl Driver for S3fs {
    fn describe() -> Description {
        let new = Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "buckets of S3 and of what speaks as it does",
        );
        [
            OptionSpec::text("bucket", "its name").required(),
            OptionSpec::text("prefix", "a directory inside it, which has to be there"),
            OptionSpec::secret("secret", "the keys, as one line: `ACCESS:SECRET`").required(),
            OptionSpec::text("endpoint", "the server: `https://HOST` or `http://HOST:PORT`")
                .default("https://s3.amazonaws.com"),
            OptionSpec::text("region", "where the bucket is, as requests are signed for")
                .default("us-east-1"),
            OptionSpec::boolean("path-style", "name the bucket in the path, not in the host")
                .default("false"),
            OptionSpec::number("uid", "user id that files are shown with"),
            OptionSpec::number("gid", "group id that files are shown with"),
            OptionSpec::text("umask", "permission bits that are taken off, octal"),
            OptionSpec::boolean("read-only", "nobody can write").default("false"),
        ]
        .into_iter()
        .fold(new, Description::option)
        .grant("program=s3fs")
    }

    fn create(volume: &Volume) -> Result<Created> {
        Self::path(volume)?;
        // Files pass through it on their way.
        Ok(Storage::directory(Owner { uid: 0, gid: 0, mode: 0o700 }).into())
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let mut options = Vec::new();
        let mut add = |key: &str, value| options.push(MountOption { key: key.to_owned(), value });
        add("secret", MountValue::Secret(volume.secret("secret")?.to_owned()));
        add("url", MountValue::Text(endpoint(volume.text("endpoint")?)?.to_owned()));
        let region = volume.text("region")?;
        if !is_plain(region) {
            return Err(Error::invalid_option("region", "is no region's name"));
        }
        add("region", MountValue::Text(region.to_owned()));
        if volume.boolean("path-style")? {
            add("path-style", MountValue::Present);
        }
        for key in ["uid", "gid"] {
            let id = volume.if_given(key, |volume, key| volume.number_in(key, 0..=u32::MAX - 1))?;
            id.into_iter().for_each(|id| add(key, MountValue::Number(id.into())));
        }
        if let Some(umask) = volume.if_given("umask", Volume::mode)? {
            if umask > 0o777 {
                return Err(Error::invalid_option("umask", "must be at most 0777"));
            }
            add("umask", MountValue::Number(umask.into()));
        }
        let program = Program { name: "s3fs".to_owned(), source: source(volume)?, options };
        let plan = Plan::new(Source::Program(program));
        Ok(if volume.boolean("read-only")? { plan.read_only() } else { plan })
    }
}

/// `bucket` or `bucket:/prefix`, as s3fs takes it.
fn source(volume: &Volume) -> Result<String> {
    let bucket = volume.text("bucket")?;
    if !is_plain(bucket) {
        return Err(Error::invalid_option("bucket", "is no bucket's name"));
    }
    let Some(prefix) = volume.if_given("prefix", Volume::text)? else {
        return Ok(bucket.to_owned());
    };
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() || prefix.split('/').any(|part| part == "..") {
        return Err(Error::invalid_option("prefix", "must be a directory's name, without `..`"));
    }
    Ok(format!("{bucket}:/{prefix}"))
}

/// What the host takes apart once more: it gives the keys to nobody but the one who is named there.
fn endpoint(text: &str) -> Result<&str> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_host = |rest: &&str| is_plain(rest.split_once(':').map_or(*rest, |(host, _)| host));
    let why = "must be `https://HOST` or `http://HOST:PORT`, without a path";
    rest.filter(is_host).map(|_| text).ok_or_else(|| Error::invalid_option("endpoint", why))
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && !text.starts_with(['-', '.']) && text.chars().all(plain)
}

export_driver!(S3fs);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    /// The plan of a volume with this option beside, or in place of, the usual ones.
    fn planned(key: &'static str, value: &'static str) -> Result<Plan> {
        let mut all = vec![("bucket", "data"), ("secret", "s")];
        all.retain(|(other, _)| *other != key);
        all.push((key, value));
        let plan = S3fs::path(&testing::volume::<S3fs>("v", all.clone())?)?;
        testing::conformance::<S3fs>(all);
        Ok(plan)
    }

    #[test]
    fn bucket_and_keys_reach_the_plan() {
        for (prefix, source) in [("a/b", "data:/a/b"), ("/a/", "data:/a")] {
            let Source::Program(s3fs) = planned("prefix", prefix).unwrap().source else { panic!() };
            assert_eq!(s3fs.source, source);
            assert!(s3fs.options.iter().any(|o| o.value == MountValue::Secret("s".into())));
        }
    }

    #[test]
    fn what_could_not_be_mounted_is_refused() {
        for (key, value) in [
            ("bucket", "-ouid=0"),
            ("bucket", "a/b"),
            ("prefix", "a/../b"),
            ("endpoint", "s3.example"),
            ("endpoint", "https://s3.example@evil.example"),
            ("region", "eu,use_cache=/"),
            ("umask", "7777"),
        ] {
            planned(key, value).unwrap_err();
        }
    }
}
