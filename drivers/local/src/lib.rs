//! Directories on the host's disk: `docker volume create -d wasmvol data`.
//!
//! The driver of a volume whose user names none. It asks for an empty directory and mounts it as it is; the host keeps the
//! directory beneath its state directory and deletes it with the volume.

use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Plan, Result, Storage, Volume, export_driver,
};

struct Local;

impl Driver for Local {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "directories on the host's disk",
        )
        .owner("0755")
        // Described although it is refused: the refusal can then name what has a size.
        .option(OptionSpec::size("size", "refused: a directory has no size limit"))
    }

    fn create(volume: &Volume) -> Result<Created> {
        if volume.has("size") {
            return Err(Error::invalid_option(
                "size",
                "a local volume has no size limit: use `-o driver=tmpfs -o size=…`",
            ));
        }
        Ok(Storage::directory(volume.owner()?).into())
    }

    fn path(_: &Volume) -> Result<Plan> {
        Ok(Plan::storage())
    }
}

export_driver!(Local);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::{ErrorCode, Owner, Reclaim, testing};

    use super::*;

    fn created(options: &[(&'static str, &'static str)]) -> Result<Created> {
        Local::create(&testing::volume::<Local>("data", options.iter().copied())?)
    }

    fn refused(options: &[(&'static str, &'static str)]) -> String {
        let error = created(options).expect_err("refused");
        assert_eq!(error.code, ErrorCode::InvalidOption);
        error.message
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Local>([]);
        testing::conformance::<Local>([("uid", "1000"), ("mode", "2770")]);
    }

    #[test]
    fn a_volume_without_options_is_a_directory_of_root() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        assert_eq!(created(&[]), Ok(Storage::directory(owner).into()));
    }

    #[test]
    fn owner_and_mode_reach_the_directory() {
        let owner = Owner { uid: 1000, gid: 100, mode: 0o750 };
        for mode in ["0750", "750"] {
            let made = created(&[("uid", "1000"), ("gid", "100"), ("mode", mode)]);
            assert_eq!(made, Ok(Storage::directory(owner).into()));
        }
    }

    #[test]
    fn the_storage_is_mounted_as_it_is_and_deleted_with_the_volume() {
        let volume = testing::volume::<Local>("data", []).expect("a volume");
        assert_eq!(Local::path(&volume), Ok(Plan::storage()));
        assert_eq!(Local::remove(&volume), Ok(Reclaim::Delete));
    }

    #[test]
    fn a_size_is_refused_with_what_has_one() {
        let message = refused(&[("size", "1g")]);
        assert!(message.contains("`size`"), "{message}");
        assert!(message.contains("-o driver=tmpfs -o size="), "{message}");
        assert_eq!(message.lines().count(), 1);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        for (key, value) in [
            ("mode", "10000"),
            ("mode", "0x1ed"),
            ("mode", "+755"),
            ("mode", "789"),
            ("mode", ""),
            ("uid", "-1"),
            ("uid", "4294967295"),
            ("gid", "9223372036854775807"),
            ("gid", "staff"),
        ] {
            let message = refused(&[(key, value)]);
            assert!(message.starts_with(&format!("option `{key}` ")), "{message}");
            assert!(message.ends_with(&format!(": `{value}`")), "{message}");
        }
    }
}
