//! What a driver's author relies on: the README, the lookups, and that `testing` finds a driver that breaks its promises.

use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;

use wasmvol_sdk::{
    Created, Description, Driver, Error, ErrorCode, Found, OptionSpec, Owner, Plan, Reclaim,
    Result, Storage, Volume, log, settings, testing,
};

/// An option of every type.
struct Every;

impl Driver for Every {
    fn describe() -> Description {
        Description::new("every", "0.1.0", "an option of every type")
            .option(OptionSpec::text("text", "some text").required())
            .option(OptionSpec::size("size", "a size").default("64k"))
            .option(OptionSpec::number("number", "a number").default("7"))
            .option(OptionSpec::boolean("boolean", "a boolean").default("false"))
            .option(OptionSpec::duration("duration", "a duration").default("2s"))
            .option(OptionSpec::secret("secret", "a secret"))
    }

    fn path(_: &Volume) -> Result<Plan> {
        Ok(Plan::storage())
    }
}

fn every(options: &[(&'static str, &'static str)]) -> Result<Volume> {
    testing::volume::<Every>("every", options.iter().copied())
}

#[test]
fn the_readmes_show_the_driver_that_is_compiled() {
    let driver = include_str!("../examples/scratch.rs");
    assert!(driver.lines().count() <= 40, "a whole driver has at most 40 lines");
    assert!(include_str!("../README.md").contains(driver), "guest-sdk/README.md shows another");
    assert!(include_str!("../../README.md").contains(driver), "README.md shows another");
}

#[test]
fn options_are_read_by_their_type() {
    let volume = every(&[("text", "a b"), ("size", "1m"), ("boolean", ""), ("secret", "nas")]);
    let volume = volume.expect("a volume");
    assert_eq!(volume.text("text"), Ok("a b"));
    assert_eq!(volume.size("size"), Ok(1 << 20));
    assert_eq!(volume.number("number"), Ok(7));
    assert_eq!(volume.boolean("boolean"), Ok(true));
    assert_eq!(volume.duration("duration"), Ok(std::time::Duration::from_secs(2)));
    assert_eq!(volume.secret("secret"), Ok("nas"));
}

#[test]
fn an_option_without_value_and_default_is_left_out() {
    let volume = every(&[("text", "t")]).expect("a volume");
    assert!(!volume.has("secret"));
    assert_eq!(volume.if_given("secret", Volume::secret), Ok(None));
    assert_eq!(volume.if_given("size", Volume::size), Ok(Some(65_536)));
}

#[test]
fn a_lookup_that_the_description_does_not_fit_is_the_drivers_fault() {
    let volume = every(&[("text", "t")]).expect("a volume");
    let faults = [
        (volume.size("number").map(drop), "mend the driver's description"),
        (volume.secret("secret").map(drop), "the driver is to read it with `if_given`"),
    ];
    for (read, cure) in faults {
        let error = read.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.message.ends_with(cure), "{error}");
    }
}

#[test]
fn a_required_option_is_missed_before_the_driver_is_asked() {
    assert_eq!(every(&[]).expect_err("refused").message, "option `text` is required");
}

#[test]
fn bounds_say_which_side_was_left() {
    let volume = |number| every(&[("text", "t"), ("number", number)]).expect("a volume");
    assert_eq!(volume("7").number_in("number", 7..=7u8), Ok(7));
    let refused = |number, bounds| {
        volume(number).number_in::<u8>("number", bounds).expect_err("refused").message
    };
    assert_eq!(refused("6", 7..=9), "option `number` must be at least 7: `6`");
    assert_eq!(refused("10", 7..=9), "option `number` must be at most 9: `10`");
    assert_eq!(refused("256", 7..=9), "option `number` must be at most 9: `256`");
    assert_eq!(refused("-1", 7..=9), "option `number` must be at least 7: `-1`");
}

#[test]
fn a_directory_inside_of_a_source_has_plain_names() {
    let read =
        |text| every(&[("text", text)]).expect("a volume").subpath("text").map(str::to_owned);
    for plain in ["a", "a/b.c", "..."] {
        assert_eq!(read(plain), Ok(plain.to_owned()));
    }
    for odd in ["", "/a", "a/", "a//b", ".", "a/../b"] {
        let error = read(odd).expect_err("refused");
        assert_eq!(error.code, ErrorCode::InvalidOption);
        assert!(error.message.ends_with(&format!("`{odd}`")), "{error}");
    }
}

#[test]
fn settings_last_as_long_as_the_code_that_was_given_them() {
    testing::with_settings([("root", "/srv"), ("limit", "12")], || {
        assert_eq!(settings::get("root").as_deref(), Some("/srv"));
        assert_eq!(settings::parse::<u32>("limit"), Ok(Some(12)));
        testing::with_settings([], || assert_eq!(settings::get("root"), None));
        assert_eq!(settings::get("root").as_deref(), Some("/srv"));
    });
    assert_eq!(settings::parse::<u32>("limit"), Ok(None));
}

#[test]
fn a_setting_that_cannot_be_read_is_named_but_not_shown() {
    let error = testing::with_settings([("limit", "hunter2")], || settings::parse::<u32>("limit"));
    let message = error.expect_err("refused").message;
    assert!(message.contains("`limit`") && !message.contains("hunter2"), "{message}");
}

#[test]
fn a_setting_that_is_a_size_is_written_as_an_option_is() {
    testing::with_settings([("ceiling", "64m"), ("least", "4096"), ("odd", "64x")], || {
        assert_eq!(settings::size("ceiling"), Ok(Some(64 << 20)));
        assert_eq!(settings::size("least"), Ok(Some(4096)));
        assert_eq!(settings::size("none"), Ok(None));
        let error = settings::size("odd").expect_err("no size");
        let why = "setting `odd` must be a size, such as `64m`: the operator can mend it with `wasmvol driver set NAME odd=VALUE`";
        assert_eq!(error, Error::new(ErrorCode::Internal, why));
    });
}

#[test]
fn an_io_error_says_its_kind_in_words() {
    let error = Error::from(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
    assert_eq!(error, Error::new(ErrorCode::Denied, "permission denied"));
}

#[test]
fn log_lines_take_formats() {
    log::error!("{} of {}", 1, 2);
    log::warn!("a");
    log::info!("b");
    log::debug!("c");
}

/// A driver that breaks the one promise that its setting `fault` names.
struct Faulty;

fn faulty(fault: &str) -> bool {
    settings::get("fault").as_deref() == Some(fault)
}

/// Another number at each call: what a driver must not answer by.
fn restless() -> String {
    thread_local!(static CALLS: Cell<u32> = const { Cell::new(0) });
    CALLS.set(CALLS.get() + 1);
    CALLS.get().to_string()
}

impl Driver for Faulty {
    fn describe() -> Description {
        let name = if faulty("name") { "Faulty Driver" } else { "faulty" };
        let version = match settings::get("fault").as_deref() {
            Some("version") => "1",
            Some("long version") => "1.2.3.4",
            Some("odd version") => "1.02.3",
            Some("cut version") => "1.0.0-",
            Some("odd suffix") => "1.0.0-01",
            _ => "1.0.0-rc.1+build",
        };
        let help = if faulty("help") { "two\nlines".to_owned() } else { "a driver".to_owned() };
        let help = if faulty("restless describe") { restless() } else { help };
        let plain = Description::new(name, version, &help);
        match settings::get("fault").as_deref() {
            Some("key") => plain.option(OptionSpec::text("Big", "a key")),
            Some("reserved") => plain.option(OptionSpec::text("driver", "a key")),
            Some("twice") => plain.owner("0755").owner("0755"),
            Some("default") => plain.option(OptionSpec::size("size", "a size").default("big")),
            Some("required") => {
                plain.option(OptionSpec::size("size", "a size").default("1").required())
            }
            _ => plain,
        }
    }

    fn create(volume: &Volume) -> Result<Created> {
        thread_local!(static SEEN: RefCell<Vec<String>> = RefCell::default());
        let seen = SEEN.with_borrow(|seen| seen.contains(&volume.id));
        SEEN.with_borrow_mut(|all| all.push(volume.id.clone()));
        if faulty("create") && seen {
            return Err(Error::new(ErrorCode::AlreadyExists, "it is there"));
        }
        let mode = match settings::get("fault").as_deref() {
            Some("mode") => 0o10000,
            Some("storage") if seen => 1,
            _ => 0,
        };
        let owner = Owner { uid: 0, gid: 0, mode };
        let storage = if faulty("none") { Storage::None } else { Storage::directory(owner) };
        Ok(Created::from(storage).state(vec![0; if faulty("state") { 65_537 } else { 1 }]))
    }

    fn remove(volume: &Volume) -> Result<Reclaim> {
        if faulty("remove") && volume.state.is_empty() {
            return Err(Error::new(ErrorCode::Internal, "it has no state"));
        }
        Err(Error::new(ErrorCode::NotFound, "no such thing"))
    }

    fn path(volume: &Volume) -> Result<Plan> {
        match settings::get("fault").as_deref() {
            Some("options") if !volume.options.is_empty() => {
                Err(Error::new(ErrorCode::InvalidOption, "what is that?"))
            }
            Some("restless path") => Ok(Plan::storage().subpath(restless())),
            Some("subpath") => Ok(Plan::storage().subpath("a/../..")),
            Some("message") => Err(Error::new(ErrorCode::Internal, "two\nlines")),
            _ => Ok(Plan::storage()),
        }
    }

    fn list() -> Result<Vec<Found>> {
        let found = |name: &str| Found {
            name: name.to_owned(),
            id: None,
            options: Vec::new(),
            state: Vec::new(),
            owned: true,
        };
        Ok(if faulty("list") { vec![found("one"), found("one")] } else { vec![found("one")] })
    }
}

#[test]
fn a_driver_that_keeps_its_promises_conforms() {
    testing::conformance::<Faulty>([]);
}

#[test]
fn every_broken_promise_is_found_and_named() {
    for (fault, sentence) in [
        ("name", "no name for a driver"),
        ("version", "`1` is no semantic version"),
        ("long version", "`1.2.3.4` is no semantic version"),
        ("odd version", "`1.02.3` is no semantic version"),
        ("cut version", "`1.0.0-` is no semantic version"),
        ("odd suffix", "`1.0.0-01` is no semantic version"),
        ("help", "no line of help"),
        ("restless describe", "`describe` is answered in two ways"),
        ("key", "`Big` is no key"),
        ("reserved", "the host keeps option `driver`"),
        ("twice", "option `uid` is described twice"),
        ("default", "a default is refused: option `size`"),
        ("required", "is required and has a default"),
        ("create", "a second `create` of one id is refused: it is there"),
        ("storage", "`create` of one id is answered in two ways"),
        ("mode", "mode 10000 has more than permission bits"),
        ("none", "mounts the volume's storage, and `create` asked for none"),
        ("state", "the state has 65537 bytes"),
        ("remove", "`remove` with empty state is refused"),
        ("restless path", "`path` of one volume is answered in two ways"),
        ("subpath", "subpath `a/../..` does not stay inside"),
        ("message", "message that is not one line"),
        ("options", "`path` with an option that is not described is refused: what is that?"),
        ("list", "`list` finds `one` twice"),
    ] {
        let said = catch_unwind(|| {
            testing::with_settings([("fault", fault)], || testing::conformance::<Faulty>([]));
        });
        let said = said.expect_err(fault);
        let said = said.downcast_ref::<String>().expect("a sentence");
        assert!(said.contains(sentence), "{fault}: {said}");
    }
}
