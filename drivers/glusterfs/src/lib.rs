//! Volumes of Gluster: `docker volume create -d wasmvol -o driver=glusterfs -o servers=a,b -o volume=data far`.
//!
//! The host runs the glusterfs client for each volume that is mounted. What is in it is the servers': removing a volume deletes nothing.

use wasmvol_sdk::contract::{MountOption, MountValue, Program, Source};
use wasmvol_sdk::{Description, Driver, Error, OptionSpec, Plan, Result, Volume, export_driver};

struct Gluster;

impl Driver for Gluster {
    fn describe() -> Description {
        let new = Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "volumes of Gluster, or directories in them",
        );
        [
            OptionSpec::text("servers", "names or addresses, asked in turn: `a,b,c`").required(),
            OptionSpec::text("volume", "its name at the servers").required(),
            OptionSpec::text("subdir", "a directory inside it, which has to be there"),
            OptionSpec::number("port", "where the servers listen").default("24007"),
            OptionSpec::boolean("direct-io", "do not cache files in memory").default("false"),
            OptionSpec::boolean("acl", "keep POSIX ACLs").default("false"),
            OptionSpec::boolean("read-only", "nobody can write").default("false"),
        ]
        .into_iter()
        .fold(new, Description::option)
        .grant("program=glusterfs")
    }

    // `create` is the SDK's: no storage, and what `path` refuses is refused there already.
    fn path(volume: &Volume) -> Result<Plan> {
        let mut options = Vec::new();
        let mut add = |key: &str, value| options.push(MountOption { key: key.to_owned(), value });
        let port = volume.number_in("port", 1..=u16::MAX)?;
        add("port", MountValue::Number(port.into()));
        if let Some(subdir) = volume.if_given("subdir", Volume::text)? {
            let path = subdir.trim_matches('/');
            if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                let why = "must be a directory's name, without `.`, `..` and `//`";
                return Err(Error::invalid_option("subdir", why));
            }
            add("subdir", MountValue::Text(format!("/{path}")));
        }
        for key in ["direct-io", "acl"] {
            if volume.boolean(key)? {
                add(key, MountValue::Present);
            }
        }
        let program = Program { name: "glusterfs".to_owned(), source: source(volume)?, options };
        let plan = Plan::new(Source::Program(program));
        Ok(if volume.boolean("read-only")? { plan.read_only() } else { plan })
    }
}

/// `server,server:/volume`.
fn source(volume: &Volume) -> Result<String> {
    let (servers, name) = (volume.text("servers")?, volume.text("volume")?);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_host = |host: &str| {
        let inner = |c: char| plain(c) || matches!(c, '.' | ':');
        !host.is_empty() && !host.starts_with('-') && host.chars().all(inner)
    };
    if !servers.split(',').all(is_host) {
        let why = "must be host names or addresses, with commas between";
        return Err(Error::invalid_option("servers", why));
    }
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::invalid_option("volume", "is no volume's name"));
    }
    Ok(format!("{servers}:/{name}"))
}

export_driver!(Gluster);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    /// The plan of a volume with this option beside, or in place of, the usual ones.
    fn planned(key: &'static str, value: &'static str) -> Result<Plan> {
        let mut all = vec![("servers", "a,10.0.0.1"), ("volume", "data")];
        all.retain(|(other, _)| *other != key);
        all.push((key, value));
        let plan = Gluster::path(&testing::volume::<Gluster>("v", all.clone())?)?;
        testing::conformance::<Gluster>(all);
        Ok(plan)
    }

    #[test]
    fn servers_and_volume_reach_the_plan() {
        let Source::Program(gluster) = planned("subdir", "x/y").unwrap().source else { panic!() };
        assert_eq!(gluster.source, "a,10.0.0.1:/data");
        assert!(gluster.options.iter().any(|o| o.value == MountValue::Text("/x/y".into())));
    }

    #[test]
    fn what_could_not_be_mounted_is_refused() {
        for (key, value) in [
            ("servers", "a,-oProxy"),
            ("servers", "a b"),
            ("volume", "data/x"),
            ("subdir", "a/../b"),
            ("port", "0"),
        ] {
            planned(key, value).unwrap_err();
        }
    }
}
