//! A writable layer over what stays as it is, a directory or another volume:
//! `docker volume create -d wasmvol -o driver=overlay -o over=base data`.
//!
//! The layer is a directory of the volume's own, which the host keeps beneath its state directory and deletes with the volume. What
//! lies below has to be granted, and is never written.

use wasmvol_sdk::contract::{Overlay, Source};
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Plan, Result, Storage, Volume, export_driver,
};

struct Layer;

impl Driver for Layer {
    fn describe() -> Description {
        let help = "a writable layer over directories, or another volume, that stay as they are";
        let lower = "the directory below, or several with `:` between, the topmost first";
        let volatile = "never sync: faster, and begun anew when the machine has restarted";
        Description::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), help)
            .option(OptionSpec::text("lower", lower))
            .option(OptionSpec::text("over", "a volume that lies below, beneath all directories"))
            .option(OptionSpec::boolean("volatile", volatile).default("false"))
            .option(OptionSpec::boolean("reset", "empty it at each first mount").default("false"))
            .option(OptionSpec::boolean("read-only", "nobody can write").default("false"))
            .owner("0755")
            .id_map()
            .grant("host-directory=PATH")
    }

    fn create(volume: &Volume) -> Result<Created> {
        Self::path(volume)?;
        let over = volume.if_given("over", Volume::text)?;
        Ok(Storage::layer(volume.owner()?, over).into())
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let given = volume.if_given("lower", Volume::text)?;
        if given.is_none() && !volume.has("over") {
            let why = "needs a directory that lies below, or `over` a volume that does";
            return Err(Error::invalid_option("lower", why));
        }
        let lower = given.map_or_else(Vec::new, |all| all.split(':').map(str::to_owned).collect());
        if let Some(path) = lower.iter().find(|path: &&String| !path.starts_with('/')) {
            let why = format!("must be absolute paths with `:` between: `{path}`");
            return Err(Error::invalid_option("lower", why));
        }
        let (volatile, reset) = (volume.boolean("volatile")?, volume.boolean("reset")?);
        let read_only = volume.boolean("read-only")?;
        if reset && read_only {
            let why = "nothing is ever written to a read-only volume: leave out one of the two";
            return Err(Error::invalid_option("reset", why));
        }
        let plan = Plan::new(Source::Overlay(Overlay { lower, volatile, reset }));
        let plan = if read_only { plan.read_only() } else { plan };
        Ok(plan.id_map(volume.id_map()?))
    }
}

export_driver!(Layer);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::contract::{IdMap, IdRange};
    use wasmvol_sdk::{Owner, testing};

    use super::*;

    fn volume(options: &[(&'static str, &'static str)]) -> Result<Volume> {
        testing::volume::<Layer>("data", options.iter().copied())
    }

    fn planned(options: &[(&'static str, &'static str)]) -> Result<Plan> {
        Layer::path(&volume(options)?)
    }

    fn over(lower: &[&str], volatile: bool) -> Plan {
        let lower = lower.iter().map(|path| (*path).to_owned()).collect();
        Plan::new(Source::Overlay(Overlay { lower, volatile, reset: false }))
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Layer>([("lower", "/srv")]);
        testing::conformance::<Layer>([("lower", "/srv/a:/srv/b"), ("volatile", "true")]);
        testing::conformance::<Layer>([("lower", "/srv"), ("reset", "true")]);
        testing::conformance::<Layer>([("over", "base")]);
    }

    #[test]
    fn the_layer_is_a_directory_with_the_owner_that_was_given_over_the_volume_that_was_named() {
        let volume = volume(&[("lower", "/srv"), ("uid", "5"), ("mode", "0700")]);
        let owner = Owner { uid: 5, gid: 0, mode: 0o700 };
        let made = Layer::create(&volume.expect("a volume"));
        assert_eq!(made, Ok(Storage::directory(owner).into()));
        let over = [("over", "base"), ("uid", "5"), ("mode", "0700")];
        let made = Layer::create(&self::volume(&over).expect("a volume"));
        assert_eq!(made, Ok(Storage::layer(owner, Some("base")).into()));
        assert_eq!(planned(&over), Ok(self::over(&[], false)));
    }

    #[test]
    fn what_lies_below_reaches_the_plan_in_its_order() {
        assert_eq!(planned(&[("lower", "/srv/a:/srv/b")]), Ok(over(&["/srv/a", "/srv/b"], false)));
        let volatile = planned(&[("lower", "/srv"), ("volatile", "true")]);
        assert_eq!(volatile, Ok(over(&["/srv"], true)));
        let read_only = planned(&[("lower", "/srv"), ("read-only", "true")]);
        assert_eq!(read_only, Ok(over(&["/srv"], false).read_only()));
    }

    #[test]
    fn a_layer_is_reset_where_that_was_asked_for_and_something_can_be_written() {
        let reset = planned(&[("lower", "/srv"), ("reset", "true")]).map(|plan| plan.source);
        let Ok(Source::Overlay(Overlay { reset: true, volatile: false, .. })) = reset else {
            panic!("{reset:?}")
        };
        let never = planned(&[("lower", "/srv"), ("reset", "true"), ("read-only", "true")]);
        let message = never.expect_err("refused").message;
        assert!(message.starts_with("option `reset`: nothing is ever written"), "{message}");
    }

    #[test]
    fn without_something_below_there_is_no_overlay() {
        let message = planned(&[]).expect_err("nothing is below").message;
        assert!(message.ends_with("or `over` a volume that does"), "{message}");
        for lower in ["", "srv", "/srv:", "/srv:b"] {
            let message = planned(&[("lower", lower)]).expect_err(lower).message;
            assert!(message.starts_with("option `lower`: must be absolute paths"), "{message}");
        }
    }

    #[test]
    fn ids_are_mapped_alike_for_users_and_groups_unless_both_are_given() {
        let range = |disk, shown, count| IdRange { disk, shown, count };
        let (users, groups) =
            (vec![range(0, 1000, 1)], vec![range(0, 5, 1), range(1, 100_000, 65536)]);
        let mapped = |given: &[(&'static str, &'static str)]| {
            planned(&[&[("lower", "/srv")], given].concat()).map(|plan| plan.id_map)
        };
        let alike = IdMap { users: users.clone(), groups: users.clone() };
        assert_eq!(mapped(&[("uidmap", "0:1000:1")]), Ok(Some(alike.clone())));
        assert_eq!(mapped(&[("gidmap", "0:1000:1")]), Ok(Some(alike)));
        let both = [("uidmap", "0:1000:1"), ("gidmap", "0:5:1,1:100000:65536")];
        assert_eq!(mapped(&both), Ok(Some(IdMap { users, groups })));
        for odd in ["", "0", "0:1", "0:1:0", "0:1:2:3", "a:1:2", "0:1:1,", "-1:0:1"] {
            let message = mapped(&[("uidmap", odd)]).expect_err(odd).message;
            assert!(message.starts_with("option `uidmap`: must be DISK:SHOWN:COUNT"), "{message}");
        }
    }
}
