//! Volumes of a size: `docker volume create -d wasmvol -o driver=image -o size=10g database`.
//!
//! Each is a file system in a file of its own, so a volume can neither grow beyond its size nor be starved by its neighbours. The host
//! makes, checks and mounts it; `wasmvol volume resize` makes it larger.

use wasmvol_sdk::contract::{Filesystem, Image};
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Plan, Result, Storage, Volume, export_driver,
};

struct Images;

impl Driver for Images {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "a file system of a fixed size, in a file of its own",
        )
        .option(
            OptionSpec::size("size", "bytes of the file, all that the volume may take").required(),
        )
        .option(OptionSpec::text("fs", "file system: ext4, xfs or btrfs").default("ext4"))
        .option(
            OptionSpec::boolean(
                "thin",
                "takes blocks of the disk as they are written, not all at once",
            )
            .default("false"),
        )
        .option(OptionSpec::secret("encrypt", "the secret that encrypts it"))
        .owner("0755")
        .grant("image")
    }

    fn create(volume: &Volume) -> Result<Created> {
        let filesystem = match volume.text("fs")? {
            "ext4" => Filesystem::Ext4,
            "xfs" => Filesystem::Xfs,
            "btrfs" => Filesystem::Btrfs,
            _ => return Err(Error::invalid_option("fs", "use `ext4`, `xfs` or `btrfs`")),
        };
        let (size, thin) = (volume.size("size")?, volume.boolean("thin")?);
        let encrypt = volume.if_given("encrypt", Volume::secret)?.map(str::to_owned);
        let owner = volume.owner()?;
        Ok(Storage::Image(Image { size, thin, filesystem, encrypt, owner }).into())
    }

    fn path(_: &Volume) -> Result<Plan> {
        Ok(Plan::storage())
    }
}

export_driver!(Images);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::{ErrorCode, Owner, testing};

    use super::*;

    fn created(options: &[(&'static str, &'static str)]) -> Result<Storage> {
        let volume = testing::volume::<Images>("data", options.iter().copied())?;
        Images::create(&volume).map(|created| created.storage)
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Images>([("size", "64m")]);
        testing::conformance::<Images>([("size", "1g"), ("fs", "xfs"), ("thin", "true")]);
    }

    #[test]
    fn a_size_is_asked_for_and_the_rest_has_defaults() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let (size, filesystem) = (64 << 20, Filesystem::Ext4);
        let image = Image { size, thin: false, filesystem, encrypt: None, owner };
        assert_eq!(created(&[("size", "64m")]), Ok(Storage::Image(image)));
        assert_eq!(created(&[]).map_err(|error| error.code), Err(ErrorCode::InvalidOption));
    }

    #[test]
    fn options_reach_the_image() {
        let given =
            [("size", "1g"), ("fs", "btrfs"), ("thin", "true"), ("uid", "5"), ("mode", "700")];
        let owner = Owner { uid: 5, gid: 0, mode: 0o700 };
        let filesystem = Filesystem::Btrfs;
        let image = Image { size: 1 << 30, thin: true, filesystem, encrypt: None, owner };
        assert_eq!(created(&given), Ok(Storage::Image(image)));
    }

    #[test]
    fn a_file_system_that_no_image_can_have_is_refused_with_those_that_can() {
        let refused = created(&[("size", "64m"), ("fs", "ext4,discard")]).expect_err("refused");
        assert_eq!(refused.message, "option `fs`: use `ext4`, `xfs` or `btrfs`");
    }
}
