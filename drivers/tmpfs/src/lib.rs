//! Volumes in memory: `docker volume create -d wasmvol -o driver=tmpfs -o size=64m scratch`.
//!
//! Nothing is kept on disk: a volume is empty at its first mount, lives while anybody holds it, and is gone after the last
//! unmount. The kernel enforces `size` and `inodes`.

use wasmvol_sdk::{
    Description, Driver, Error, OptionSpec, Plan, Result, Tmpfs, Volume, export_driver,
};

struct Memory;

impl Driver for Memory {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "volumes in memory, empty at each first mount",
        )
        .option(OptionSpec::size("size", "most bytes; without it half of the machine's memory"))
        .option(OptionSpec::number("inodes", "most files and directories"))
        .owner("1777")
    }

    // `create` is the SDK's: no storage, and what `path` refuses is refused there already.
    fn path(volume: &Volume) -> Result<Plan> {
        let size = volume.if_given("size", Volume::size)?;
        if size == Some(0) {
            // The kernel would take it for "no limit".
            return Err(Error::invalid_option("size", "must be at least 1 byte"));
        }
        let inodes =
            volume.if_given("inodes", |volume, key| volume.number_in(key, 1..=u64::MAX))?;
        Ok(Plan::tmpfs(Tmpfs { size, inodes, owner: volume.owner()? }))
    }
}

export_driver!(Memory);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::{Created, ErrorCode, Owner, Storage, testing};

    use super::*;

    fn volume(options: &[(&'static str, &'static str)]) -> Result<Volume> {
        testing::volume::<Memory>("scratch", options.iter().copied())
    }

    fn planned(options: &[(&'static str, &'static str)]) -> Result<Plan> {
        Memory::path(&volume(options)?)
    }

    fn refused(options: &[(&'static str, &'static str)]) -> String {
        let error =
            volume(options).and_then(|volume| Memory::create(&volume)).expect_err("refused");
        assert_eq!(error.code, ErrorCode::InvalidOption);
        error.message
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Memory>([]);
        testing::conformance::<Memory>([("size", "64m"), ("inodes", "1000"), ("mode", "0700")]);
    }

    #[test]
    fn a_volume_without_options_is_everybodys_and_has_the_kernels_limits() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o1777 };
        assert_eq!(planned(&[]), Ok(Plan::tmpfs(Tmpfs { size: None, inodes: None, owner })));
    }

    #[test]
    fn limits_and_owner_reach_the_plan() {
        let given =
            [("size", "64m"), ("inodes", "1000"), ("uid", "5"), ("gid", "6"), ("mode", "700")];
        let owner = Owner { uid: 5, gid: 6, mode: 0o700 };
        let tmpfs = Tmpfs { size: Some(64 << 20), inodes: Some(1000), owner };
        assert_eq!(planned(&given), Ok(Plan::tmpfs(tmpfs)));
    }

    #[test]
    fn it_needs_no_storage() {
        let made = Memory::create(&volume(&[("size", "64m")]).expect("a volume"));
        assert_eq!(made, Ok(Created::from(Storage::None)));
    }

    #[test]
    fn a_limit_of_nothing_is_refused_because_the_kernel_would_lift_it() {
        assert_eq!(refused(&[("size", "0")]), "option `size`: must be at least 1 byte");
        assert_eq!(refused(&[("inodes", "0")]), "option `inodes` must be at least 1: `0`");
    }

    #[test]
    fn create_refuses_what_could_not_be_mounted() {
        for (key, value) in [("mode", "17777"), ("uid", "-1"), ("inodes", "-5"), ("size", "big")] {
            let message = refused(&[(key, value)]);
            assert!(message.starts_with(&format!("option `{key}` ")), "{message}");
            assert!(message.ends_with(&format!(": `{value}`")), "{message}");
        }
    }
}
