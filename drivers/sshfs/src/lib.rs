//! Directories of machines that are reached by SSH: `docker volume create -d wasmvol -o driver=sshfs -o host=nas -o path=/srv/data …`.
//!
//! The host runs sshfs for each volume that is mounted. What is in the directory is the server's: removing a volume deletes nothing.

use wasmvol_sdk::contract::{MountOption, MountValue, Program, Source};
use wasmvol_sdk::{Description, Driver, Error, OptionSpec, Plan, Result, Volume, export_driver};

struct Ssh;

impl Driver for Ssh {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "directories of other machines, by SSH",
        )
        .option(OptionSpec::text("host", "name or address of the server").required())
        .option(OptionSpec::text("path", "directory there, absolute").required())
        .option(OptionSpec::text("user", "whom to log in as").default("root"))
        .option(OptionSpec::number("port", "where its SSH listens").default("22"))
        .option(
            OptionSpec::text("host-key", "the server's public key: `ssh-ed25519 AAAA…`").required(),
        )
        .option(OptionSpec::secret("key", "private key to log in with"))
        .option(OptionSpec::secret("password", "password to log in with"))
        .option(
            OptionSpec::boolean("reconnect", "connect again when the connection is lost")
                .default("true"),
        )
        .option(OptionSpec::boolean("compression", "compress what is sent").default("false"))
        .option(OptionSpec::number("uid", "user id that all files are shown with"))
        .option(OptionSpec::number("gid", "group id that all files are shown with"))
        .option(OptionSpec::boolean("ro", "nobody can write").default("false"))
        .grant("program=sshfs")
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let mut options = Vec::new();
        let mut add = |key: &str, value| options.push(MountOption { key: key.to_owned(), value });
        add("host-key", MountValue::Text(host_key(volume.text("host-key")?)?));
        let port = volume.number_in("port", 1..=u16::MAX)?;
        add("port", MountValue::Number(port.into()));
        if volume.has("key") == volume.has("password") {
            let why = "give either `-o key=NAME` or `-o password=NAME`, the name of a secret";
            return Err(Error::invalid_option("key", why));
        }
        for key in ["key", "password"] {
            let secret = volume.if_given(key, Volume::secret)?;
            secret.into_iter().for_each(|name| add(key, MountValue::Secret(name.to_owned())));
        }
        for key in ["reconnect", "compression"] {
            if volume.boolean(key)? {
                add(key, MountValue::Present);
            }
        }
        for key in ["uid", "gid"] {
            let id = volume.if_given(key, |volume, key| volume.number_in(key, 0..=u32::MAX - 1))?;
            id.into_iter().for_each(|id| add(key, MountValue::Number(id.into())));
        }
        let program = Program { name: "sshfs".to_owned(), source: source(volume)?, options };
        let plan = Plan::new(Source::Program(program));
        Ok(if volume.boolean("ro")? { plan.read_only() } else { plan })
    }
}

/// `user@host:/path`, as sshfs takes it.
fn source(volume: &Volume) -> Result<String> {
    let [user, host, path] = ["user", "host", "path"].map(|key| volume.text(key));
    let (user, host, path) = (user?, host?, path?);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if user.is_empty() || user.starts_with('-') || !user.chars().all(plain) {
        return Err(Error::invalid_option("user", "is no user's name"));
    }
    let is_host = |c: char| plain(c) || c == ':';
    if host.is_empty() || host.starts_with('-') || !host.chars().all(is_host) {
        return Err(Error::invalid_option("host", "is no host name and no address"));
    }
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(Error::invalid_option("path", "must be absolute, without `..`"));
    }
    // An address with colons would end at the first of them.
    Ok(if host.contains(':') {
        format!("{user}@[{host}]:{path}")
    } else {
        format!("{user}@{host}:{path}")
    })
}

/// The two words of a key; a comment behind them says nothing.
fn host_key(text: &str) -> Result<String> {
    let mut words = text.split_whitespace();
    let is_key = |word: &&str| {
        word.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-' | '@' | '.'))
    };
    match (words.next().filter(is_key), words.next().filter(is_key)) {
        (Some(kind), Some(key)) if key.starts_with("AAAA") => Ok(format!("{kind} {key}")),
        _ => {
            let why = "is no public key: see `ssh-keyscan HOST`, and whether that is the right one";
            Err(Error::invalid_option("host-key", why))
        }
    }
}

export_driver!(Ssh);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    /// The plan of a volume with this option beside, or in place of, the usual ones.
    fn planned(key: &'static str, value: &'static str) -> Result<Plan> {
        let mut all =
            vec![("host", "nas"), ("path", "/d"), ("host-key", "ssh-rsa AAAA x"), ("key", "k")];
        all.retain(|(other, _)| *other != key);
        all.push((key, value));
        let plan = Ssh::path(&testing::volume::<Ssh>("v", all.clone())?)?;
        testing::conformance::<Ssh>(all);
        Ok(plan)
    }

    #[test]
    fn server_and_key_reach_the_plan() {
        for (host, source) in [("nas", "root@nas:/d"), ("::1", "root@[::1]:/d")] {
            let Source::Program(sshfs) = planned("host", host).unwrap().source else { panic!() };
            assert_eq!(sshfs.source, source);
            let has = |value| sshfs.options.iter().any(|option| option.value == value);
            assert!(has(MountValue::Text("ssh-rsa AAAA".into())));
            assert!(has(MountValue::Secret("k".into())) && has(MountValue::Number(22)));
        }
    }

    #[test]
    fn what_could_not_be_mounted_is_refused() {
        let bad = [("host", "-oProxyCommand=x"), ("user", "a b"), ("path", "/srv/../etc")];
        for (key, value) in
            bad.into_iter().chain([("host-key", "x"), ("port", "0"), ("password", "p")])
        {
            planned(key, value).unwrap_err();
        }
    }
}
