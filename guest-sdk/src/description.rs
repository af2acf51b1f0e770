//! Saying what a driver is: builders for the contract's `description` and `option-spec`.
//!
//! Used in [`Driver::describe`](crate::Driver::describe) alone. Nothing is checked here: the host checks a description when it
//! loads the driver, and [`testing`](crate::testing) checks it by the same rules.

use crate::{Description, OptionSpec, ValueType};

impl Description {
    /// A driver without options. `name` is what `-o driver=NAME` says: lower-case letters, digits and dashes, 32 at most;
    /// `version` is semantic, as `env!("CARGO_PKG_VERSION")`; `help` is one line for people.
    #[must_use]
    pub fn new(name: &str, version: &str, help: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            help: help.to_owned(),
            options: Vec::new(),
            grants: Vec::new(),
        }
    }

    /// Takes one more option.
    #[must_use]
    pub fn option(mut self, option: OptionSpec) -> Self {
        self.options.push(option);
        self
    }

    /// Takes the options `uid`, `gid` and `mode`, that [`Volume::owner`](crate::Volume::owner) reads: every driver that makes
    /// a directory calls them so. `mode` is the default, octal.
    #[must_use]
    pub fn owner(self, mode: &str) -> Self {
        self.option(OptionSpec::number("uid", "user id that owns the volume").default("0"))
            .option(OptionSpec::number("gid", "group id that owns the volume").default("0"))
            .option(OptionSpec::text("mode", "permission bits, octal").default(mode))
    }

    /// Takes the options `uidmap` and `gidmap`, that [`Volume::id_map`](crate::Volume::id_map) reads.
    #[must_use]
    pub fn id_map(self) -> Self {
        let uid = "user ids as they are shown: DISK:SHOWN:COUNT, with commas between";
        let gid = "group ids likewise; without it as `uidmap`";
        self.option(OptionSpec::text("uidmap", uid)).option(OptionSpec::text("gidmap", gid))
    }

    /// Names something that the operator must grant before this driver is of use, as `driver load --grant` takes it.
    #[must_use]
    pub fn grant(mut self, grant: &str) -> Self {
        self.grants.push(grant.to_owned());
        self
    }
}

impl OptionSpec {
    /// An option that is any line of text.
    #[must_use]
    pub fn text(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Text, help)
    }

    /// An option that is a number of bytes: users write `64m`.
    #[must_use]
    pub fn size(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Size, help)
    }

    /// An option that is a whole number.
    #[must_use]
    pub fn number(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Number, help)
    }

    /// An option that is true or false: `-o KEY` alone is true.
    #[must_use]
    pub fn boolean(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Boolean, help)
    }

    /// An option that is a time: users write `30s`.
    #[must_use]
    pub fn duration(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Duration, help)
    }

    /// An option that names a secret of the operator's.
    #[must_use]
    pub fn secret(key: &str, help: &str) -> Self {
        Self::new(key, ValueType::Secret, help)
    }

    /// No volume is made without this option.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The value of a volume whose user gave none, as a user would write it.
    #[must_use]
    pub fn default(mut self, value: &str) -> Self {
        self.default = Some(value.to_owned());
        self
    }

    fn new(key: &str, value_type: ValueType, help: &str) -> Self {
        Self {
            key: key.to_owned(),
            value_type,
            required: false,
            default: None,
            help: help.to_owned(),
        }
    }
}
