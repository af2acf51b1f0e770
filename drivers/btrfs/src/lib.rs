//! Btrfs subvolumes: `docker volume create -d wasmvol -o driver=btrfs -o compress=zstd logs`.
//!
//! For a state directory on btrfs: each volume is a subvolume of its own, limited, compressed or written in place as its options say.

use wasmvol_sdk::contract::{Compression, Subvolume};
use wasmvol_sdk::{
    Created, Description, Driver, Error, OptionSpec, Plan, Result, Storage, Volume, export_driver,
};

struct Btrfs;

impl Driver for Btrfs {
    fn describe() -> Description {
        Description::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "subvolumes, where the state directory is on btrfs",
        )
        .option(OptionSpec::size("size", "most bytes, as a quota group counts them"))
        .option(OptionSpec::text("compress", "how new files are compressed: zstd, lzo or zlib"))
        .option(
            OptionSpec::boolean(
                "nodatacow",
                "files are written in place, without checksums: for databases",
            )
            .default("false"),
        )
        .owner("0755")
    }

    fn create(volume: &Volume) -> Result<Created> {
        let limit = volume.if_given("size", Volume::size)?;
        if limit == Some(0) {
            return Err(Error::invalid_option("size", "must be at least 1 byte"));
        }
        let compress = match volume.if_given("compress", Volume::text)? {
            None => None,
            Some("zlib") => Some(Compression::Zlib),
            Some("lzo") => Some(Compression::Lzo),
            Some("zstd") => Some(Compression::Zstd),
            Some(_) => {
                return Err(Error::invalid_option("compress", "use `zstd`, `lzo` or `zlib`"));
            }
        };
        let copy_on_write = !volume.boolean("nodatacow")?;
        if compress.is_some() && !copy_on_write {
            let why = "what is written in place is not compressed: leave out one of the two";
            return Err(Error::invalid_option("nodatacow", why));
        }
        let owner = volume.owner()?;
        Ok(Storage::Subvolume(Subvolume { owner, limit, compress, copy_on_write }).into())
    }

    fn path(_: &Volume) -> Result<Plan> {
        Ok(Plan::storage())
    }
}

export_driver!(Btrfs);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::{Owner, testing};

    use super::*;

    fn created(options: &[(&'static str, &'static str)]) -> Result<Storage> {
        let volume = testing::volume::<Btrfs>("data", options.iter().copied())?;
        Btrfs::create(&volume).map(|created| created.storage)
    }

    fn refused(options: &[(&'static str, &'static str)]) -> String {
        created(options).expect_err("refused").message
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Btrfs>([]);
        testing::conformance::<Btrfs>([("size", "1g"), ("compress", "lzo"), ("mode", "0700")]);
    }

    #[test]
    fn options_reach_the_subvolume() {
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let plain = Subvolume { owner, limit: None, compress: None, copy_on_write: true };
        assert_eq!(created(&[]), Ok(Storage::Subvolume(plain)));
        let given = [("size", "1g"), ("compress", "zstd"), ("gid", "7"), ("mode", "2770")];
        let (limit, compress) = (Some(1 << 30), Some(Compression::Zstd));
        let owner = Owner { uid: 0, gid: 7, mode: 0o2770 };
        let limited = Subvolume { owner, limit, compress, copy_on_write: true };
        assert_eq!(created(&given), Ok(Storage::Subvolume(limited)));
    }

    #[test]
    fn what_btrfs_could_not_do_is_refused() {
        assert_eq!(
            refused(&[("compress", "zstd:99")]),
            "option `compress`: use `zstd`, `lzo` or `zlib`"
        );
        assert_eq!(refused(&[("size", "0")]), "option `size`: must be at least 1 byte");
        let both = refused(&[("compress", "zstd"), ("nodatacow", "true")]);
        assert!(both.ends_with("leave out one of the two"), "{both}");
    }
}
