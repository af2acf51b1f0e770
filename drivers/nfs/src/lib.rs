//! Exports of NFS servers: `docker volume create -d wasmvol -o driver=nfs -o server=10.0.0.5 -o export=/srv/data data`.
//!
//! The kernel mounts, and the host asks the grants for every address of the server. A volume's files are the server's: nothing is made
//! but a subdirectory where it is missing, and nothing is deleted.

use wasmvol_sdk::{
    Description, Driver, Error, OptionSpec, Plan, Result, Share, Volume, export_driver,
};

struct Nfs;

impl Driver for Nfs {
    fn describe() -> Description {
        let option = Description::option;
        let new = Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "what NFS servers export",
        );
        [
            OptionSpec::text("server", "host name or address").required(),
            OptionSpec::text("export", "what the server exports, as /srv/data").required(),
            OptionSpec::text("subdir", "a directory inside it, made where it is missing"),
            OptionSpec::text("version", "3, 4.0, 4.1 or 4.2").default("4.2"),
            OptionSpec::boolean("read-only", "nobody can write").default("false"),
            OptionSpec::boolean("soft", "fail when the server is silent, instead of waiting")
                .default("false"),
            OptionSpec::duration("timeout", "how long one try may take"),
            OptionSpec::number("retries", "tries before `soft` fails"),
            OptionSpec::boolean("server-locks", "version 3: lock at the server; needs rpc.statd")
                .default("false"),
            OptionSpec::text("security", "sys, krb5, krb5i or krb5p").default("sys"),
            OptionSpec::number("port", "where the server listens"),
            OptionSpec::size("read-size", "most bytes of one read"),
            OptionSpec::size("write-size", "most bytes of one write"),
            OptionSpec::number("connections", "TCP connections to the server"),
            OptionSpec::duration("attribute-cache", "how long attributes are believed"),
        ]
        .into_iter()
        .fold(new, option)
        .owner("0755")
        .grant("share=nfs4:HOST")
        .grant("share=nfs:HOST")
    }

    // `create` is the SDK's: no storage, and what `path` refuses is refused there already.
    fn path(volume: &Volume) -> Result<Plan> {
        let version = volume.text("version")?;
        let kind = match version {
            "3" => "nfs",
            "4" | "4.0" | "4.1" | "4.2" => "nfs4",
            _ => return Err(Error::invalid_option("version", "must be 3, 4.0, 4.1 or 4.2")),
        };
        let mut share = Share::new(kind, volume.text("server")?, volume.text("export")?)
            .text("vers", version)
            .text("sec", volume.text("security")?)
            .flag(if volume.boolean("soft")? { "soft" } else { "hard" });
        if kind == "nfs" {
            share = share.flag(if volume.boolean("server-locks")? { "lock" } else { "nolock" });
        }
        for (key, option, most) in [
            ("retrans", "retries", 100_u16),
            ("port", "port", u16::MAX),
            ("nconnect", "connections", 16),
        ] {
            let given = volume.if_given(option, |volume, key| volume.number_in(key, 1..=most))?;
            share = given.into_iter().fold(share, |share, number| share.number(key, number));
        }
        for (key, option) in [("rsize", "read-size"), ("wsize", "write-size")] {
            let given = volume.if_given(option, Volume::size)?;
            share = given.into_iter().fold(share, |share, size| share.number(key, size));
        }
        if let Some(timeout) = volume.if_given("timeout", Volume::duration)? {
            // The kernel counts tenths of a second, of which 0 would be its default.
            share = share.number("timeo", (timeout.as_millis() as u64 / 100).max(1));
        }
        if let Some(time) = volume.if_given("attribute-cache", Volume::duration)? {
            share = share.number("actimeo", time.as_secs());
        }
        let plan = match volume.if_given("subdir", Volume::subpath)? {
            None => Plan::share(share),
            Some(subdir) => Plan::share(share.make(volume.owner()?)).subpath(subdir),
        };
        Ok(if volume.boolean("read-only")? { plan.read_only() } else { plan })
    }
}

export_driver!(Nfs);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::{Owner, testing};

    use super::*;

    const GIVEN: [(&str, &str); 2] = [("server", "10.0.0.5"), ("export", "/srv")];

    fn planned(more: &[(&'static str, &'static str)]) -> Result<Plan> {
        let options = GIVEN.iter().chain(more).copied();
        Nfs::path(&testing::volume::<Nfs>("data", options)?)
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Nfs>(GIVEN);
        testing::conformance::<Nfs>(GIVEN.into_iter().chain([("version", "3"), ("subdir", "a/b")]));
    }

    #[test]
    fn a_volume_is_the_whole_export_by_the_newest_version_and_waits_for_its_server() {
        let share = Share::new("nfs4", "10.0.0.5", "/srv").text("vers", "4.2").text("sec", "sys");
        assert_eq!(planned(&[]), Ok(Plan::share(share.flag("hard"))));
    }

    #[test]
    fn a_subdirectory_is_made_for_the_owner_that_was_asked_for() {
        let share = Share::new("nfs", "10.0.0.5", "/srv").text("vers", "3").text("sec", "sys");
        let owner = Owner { uid: 5, gid: 0, mode: 0o755 };
        let share = share.flag("soft").flag("nolock").number("timeo", 15_u32).make(owner);
        let given = [
            ("version", "3"),
            ("subdir", "a/b"),
            ("uid", "5"),
            ("soft", "true"),
            ("timeout", "1500ms"),
        ];
        assert_eq!(planned(&given), Ok(Plan::share(share).subpath("a/b")));
    }

    #[test]
    fn what_is_no_version_and_no_directory_is_refused() {
        let error = planned(&[("version", "5")]).expect_err("refused");
        assert_eq!(error.message, "option `version`: must be 3, 4.0, 4.1 or 4.2");
        let error = planned(&[("subdir", "../a")]).expect_err("refused");
        assert!(error.message.starts_with("option `subdir`: must be"), "{error}");
    }
}
