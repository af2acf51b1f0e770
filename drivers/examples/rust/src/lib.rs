//! Memory with a ceiling: `docker volume create -d wasmvol -o driver=example-rust -o size=64m data`.
//!
//! The operator sets the ceiling, and what a volume gets whose user asked for no size. Every call is answered by an instance of its
//! own: what must be remembered are the volume's options, and the bytes that `create` returned as its state.

use wasmvol_sdk::{
    Created, Description, Driver, Error, ErrorCode, OptionSpec, Owner, Plan, Result, Storage,
    Tmpfs, Volume, export_driver, settings,
};

/// Most bytes of a volume, unless the operator has set another.
const CEILING: u64 = 1 << 30;
/// What a volume gets without `size`, unless the operator has set another.
const DEFAULT: u64 = 64 << 20;

struct Memory;

impl Driver for Memory {
    fn describe() -> Description {
        let help = "memory, up to the operator's ceiling";
        Description::new("example-rust", env!("CARGO_PKG_VERSION"), help)
            .option(OptionSpec::size("size", "most bytes; without it what the operator has set"))
            .option(OptionSpec::number("inodes", "most files and directories"))
            .option(OptionSpec::boolean("exec", "programs may run from it").default("false"))
            .option(OptionSpec::text("mode", "permission bits, octal").default("1777"))
    }

    fn create(volume: &Volume) -> Result<Created> {
        let ceiling = setting("ceiling", CEILING)?;
        let size = match volume.if_given("size", Volume::size)? {
            Some(size) => size,
            None => setting("default", DEFAULT)?.min(ceiling),
        };
        if size == 0 {
            // The kernel would take it for "no limit".
            return Err(Error::invalid_option("size", "must be at least 1 byte"));
        }
        if size > ceiling {
            let why = format!("the operator's ceiling is {ceiling} bytes");
            return Err(Error::invalid_option("size", why));
        }
        // What could not be mounted later is refused now.
        planned(volume, size)?;
        // The operator may set another default later: this volume keeps what it was made with.
        Ok(Created::from(Storage::None).state(size.to_string()))
    }

    fn path(volume: &Volume) -> Result<Plan> {
        let size = std::str::from_utf8(&volume.state).ok().and_then(|text| text.parse().ok());
        let why = "the volume's state was not written by this driver";
        planned(volume, size.ok_or_else(|| Error::new(ErrorCode::Internal, why))?)
    }

    // `remove` and `list` are the SDK's: data is deleted, and volumes live in the host's records alone.
}

/// How a volume of this size is mounted.
fn planned(volume: &Volume, size: u64) -> Result<Plan> {
    let inodes = volume.if_given("inodes", |volume, key| volume.number_in(key, 1..=u64::MAX))?;
    let owner = Owner { uid: 0, gid: 0, mode: volume.mode("mode")? };
    let plan = Plan::tmpfs(Tmpfs { size: Some(size), inodes, owner });
    Ok(if volume.boolean("exec")? { plan } else { plan.no_exec() })
}

/// A size that the operator wrote with `driver load --setting KEY=SIZE` or `driver set`.
fn setting(key: &str, otherwise: u64) -> Result<u64> {
    match settings::size(key)? {
        Some(0) => Err(Error::invalid_setting(key, "must be a size of at least 1 byte")),
        size => Ok(size.unwrap_or(otherwise)),
    }
}

export_driver!(Memory);

#[cfg(test)]
mod tests {
    use wasmvol_sdk::contract::Source;
    use wasmvol_sdk::testing;

    use super::*;

    type Given = &'static [(&'static str, &'static str)];

    /// A volume as it comes back to `path`, made with these options under these settings.
    fn made(options: Given, written: Given) -> Result<Volume> {
        let mut volume = testing::volume::<Memory>("data", options.iter().copied())?;
        let create = || Memory::create(&volume);
        let created = testing::with_settings(written.iter().copied(), create)?;
        assert_eq!(created.storage, Storage::None);
        volume.state = created.state;
        Ok(volume)
    }

    fn memory(plan: &Plan) -> &Tmpfs {
        let Source::Tmpfs(tmpfs) = &plan.source else { panic!("no memory: {plan:?}") };
        tmpfs
    }

    #[test]
    fn it_keeps_the_contract() {
        testing::conformance::<Memory>([]);
        testing::conformance::<Memory>([("size", "1m"), ("inodes", "100"), ("exec", "true")]);
    }

    #[test]
    fn a_volume_has_the_size_and_the_limits_that_were_asked_for() {
        let options = &[("size", "1m"), ("inodes", "100"), ("exec", "true"), ("mode", "0750")];
        let plan = Memory::path(&made(options, &[]).unwrap()).unwrap();
        let owner = Owner { uid: 0, gid: 0, mode: 0o750 };
        let tmpfs = Tmpfs { size: Some(1 << 20), inodes: Some(100), owner };
        assert_eq!(plan, Plan::tmpfs(tmpfs));
    }

    #[test]
    fn a_volume_without_size_gets_what_the_operator_has_set() {
        let cases: [(Given, u64); 4] = [
            (&[], 64 << 20),
            (&[("default", "4096")], 4096),
            (&[("ceiling", "8k")], 8192),
            (&[("ceiling", "8192"), ("default", "16384")], 8192),
        ];
        for (written, size) in cases {
            let plan = Memory::path(&made(&[], written).unwrap()).unwrap();
            assert_eq!(memory(&plan).size, Some(size));
            assert!(plan.no_exec);
        }
    }

    #[test]
    fn a_setting_is_written_as_an_option_is() {
        for (text, size) in [
            ("512b", 512),
            ("64k", 64 << 10),
            ("64K", 64 << 10),
            ("64kb", 64 << 10),
            ("64KiB", 64 << 10),
            ("10MB", 10 << 20),
            ("1G", 1 << 30),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            let volume = testing::volume::<Memory>("data", []).unwrap();
            let written = [("ceiling", "18446744073709551615"), ("default", text)];
            let created = testing::with_settings(written, || Memory::create(&volume)).unwrap();
            assert_eq!(created.state, size.to_string().into_bytes());
        }
    }

    #[test]
    fn a_volume_keeps_the_size_that_it_was_made_with() {
        let old = made(&[], &[("default", "4096")]).unwrap();
        let plan = testing::with_settings([("default", "8192")], || Memory::path(&old));
        assert_eq!(memory(&plan.unwrap()).size, Some(4096));
    }

    #[test]
    fn an_error_says_what_to_do() {
        let octal = "option `mode` must be octal and at most 7777, as in `0755`: ";
        for (key, value, message) in [
            ("size", "0", "option `size`: must be at least 1 byte"),
            ("size", "4097", "option `size`: the operator's ceiling is 4096 bytes"),
            ("inodes", "0", "option `inodes` must be at least 1: `0`"),
            ("mode", "9", &format!("{octal}`9`")),
            ("mode", "+7", &format!("{octal}`+7`")),
        ] {
            let volume = testing::volume::<Memory>("data", [(key, value)]).unwrap();
            let create = || Memory::create(&volume);
            let error = testing::with_settings([("ceiling", "4096")], create).unwrap_err();
            assert_eq!(error, Error::new(ErrorCode::InvalidOption, message));
        }
    }

    #[test]
    fn a_setting_that_cannot_be_read_is_the_operators_to_mend() {
        let units = ["1x", "m", "1.5g", "1 g", "1ib", "kib", "1\u{212a}", "1\n", "16777216t"];
        for ceiling in units.into_iter().chain(["", "0", "-1", "18446744073709551616"]) {
            let volume = testing::volume::<Memory>("data", []).unwrap();
            let create = || Memory::create(&volume);
            let error = testing::with_settings([("ceiling", ceiling)], create).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
            assert!(error.message.starts_with("setting `ceiling` must be a size"), "{error}");
        }
    }

    #[test]
    fn a_state_of_another_drivers_is_refused() {
        for state in ["", "elsewhere"] {
            let mut volume = testing::volume::<Memory>("data", []).unwrap();
            volume.state = state.into();
            assert_eq!(Memory::path(&volume).unwrap_err().code, ErrorCode::Internal);
        }
    }
}
