//! Shares of SMB servers: `docker volume create -d wasmvol -o driver=cifs -o server=files -o share=team -o user=alice -o secret=team data`.
//!
//! The kernel mounts, and the host asks the grants for every address of the server; the password is a secret that the operator keeps,
//! and that goes into the kernel alone. A volume's files are the server's: nothing is deleted.

use wasmvol_sdk::{Description, Driver, OptionSpec, Plan, Result, Share, Volume, export_driver};

struct Cifs;

impl Driver for Cifs {
    fn describe() -> Description {
        let new = Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "what SMB servers share",
        );
        [
            OptionSpec::text("server", "host name or address").required(),
            OptionSpec::text("share", "its name at the server").required(),
            OptionSpec::text("subdir", "a directory inside it, made where it is missing"),
            OptionSpec::text("user", "who logs in; without one it is a guest"),
            OptionSpec::secret("secret", "the secret with the user's password"),
            OptionSpec::text("domain", "the user's domain or workgroup"),
            OptionSpec::text("version", "2.1, 3.0, 3.0.2 or 3.1.1").default("3.1.1"),
            OptionSpec::boolean("seal", "encrypt what goes over the network").default("false"),
            OptionSpec::boolean("read-only", "nobody can write").default("false"),
            OptionSpec::boolean("hard", "wait for a silent server, instead of failing")
                .default("false"),
            OptionSpec::number("uid", "user id that files are shown with").default("0"),
            OptionSpec::number("gid", "group id that files are shown with").default("0"),
            OptionSpec::text("file-mode", "permission bits of files, octal").default("0644"),
            OptionSpec::text("dir-mode", "permission bits of directories, octal").default("0755"),
            OptionSpec::number("port", "where the server listens"),
            OptionSpec::duration("attribute-cache", "how long attributes are believed"),
        ]
        .into_iter()
        .fold(new, Description::option)
        .grant("share=cifs:HOST")
    }

    // `create` is the SDK's: no storage, and what `path` refuses is refused there already.
    fn path(volume: &Volume) -> Result<Plan> {
        let id = |key| volume.number_in(key, 0..=u32::MAX - 1).map(u64::from);
        let mut share = Share::new("cifs", volume.text("server")?, volume.text("share")?)
            .text("vers", volume.text("version")?)
            .number("uid", id("uid")?)
            .number("gid", id("gid")?)
            .text("file_mode", format!("{:04o}", volume.mode("file-mode")?))
            .text("dir_mode", format!("{:04o}", volume.mode("dir-mode")?))
            .flag(if volume.boolean("hard")? { "hard" } else { "soft" });
        share = match volume.if_given("user", Volume::text)? {
            None => share.text("sec", "none"),
            Some(user) => share.text("username", user),
        };
        if let Some(secret) = volume.if_given("secret", Volume::secret)? {
            share = share.secret("password", secret);
        }
        if let Some(domain) = volume.if_given("domain", Volume::text)? {
            share = share.text("domain", domain);
        }
        if let Some(port) = volume.if_given("port", |v, key| v.number_in(key, 1..=u16::MAX))? {
            share = share.number("port", port);
        }
        if let Some(time) = volume.if_given("attribute-cache", Volume::duration)? {
            share = share.number("actimeo", time.as_secs());
        }
        if volume.boolean("seal")? {
            share = share.flag("seal");
        }
        let plan = match volume.if_given("subdir", Volume::subpath)? {
            None => Plan::share(share),
            // Whose it is the server says, by who logs in.
            Some(subdir) => {
                Plan::share(share.make(wasmvol_sdk::Owner { uid: 0, gid: 0, mode: 0o755 }))
                    .subpath(subdir)
            }
        };
        Ok(if volume.boolean("read-only")? { plan.read_only() } else { plan })
    }
}

export_driver!(Cifs);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::testing;

    use super::*;

    const GIVEN: [(&str, &str); 2] = [("server", "files"), ("share", "team")];

    fn planned(more: &[(&'static str, &'static str)]) -> Result<Plan> {
        let options = GIVEN.iter().chain(more).copied();
        Cifs::path(&testing::volume::<Cifs>("data", options)?)
    }

    fn share() -> Share {
        let share = Share::new("cifs", "files", "team").text("vers", "3.1.1");
        let share = share.number("uid", 0u32).number("gid", 0u32);
        share.text("file_mode", "0644").text("dir_mode", "0755").flag("soft")
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Cifs>(GIVEN);
        let more = [("user", "alice"), ("secret", "team"), ("seal", "true"), ("subdir", "a")];
        testing::conformance::<Cifs>(GIVEN.into_iter().chain(more));
    }

    #[test]
    fn without_a_user_it_is_a_guest() {
        assert_eq!(planned(&[]), Ok(Plan::share(share().text("sec", "none"))));
    }

    #[test]
    fn a_password_is_the_name_of_a_secret() {
        let share = share().text("username", "alice").secret("password", "team").flag("seal");
        let given = [("user", "alice"), ("secret", "team"), ("seal", "true")];
        assert_eq!(planned(&given), Ok(Plan::share(share)));
    }
}
