//! Reading a volume's options by their type.
//!
//! The host has parsed them by the driver's description before any call, so this looks up and never parses, but for octal modes.
//! A lookup that does not fit the description is the driver's fault and is answered with `internal`.

use std::fmt;
use std::ops::RangeInclusive;

use crate::contract::{IdMap, IdRange};
use crate::{Error, ErrorCode, Owner, Result, Value, Volume};

/// Most that a user or group id can be: the kernel takes the last number for "leave it".
const ID_MAX: u32 = u32::MAX - 1;

/// Most that permission bits can be: set-uid, set-gid, sticky, and three times `rwx`.
const MODE_MAX: u32 = 0o7777;

macro_rules! lookups {
    ($($(#[$doc:meta])* $name:ident $case:ident -> $type:ty, $value:ident => $read:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// `internal` where the volume was made without the option and a default for it (see [`Volume::if_given`]), or the option is
            /// described with another type.
            pub fn $name(&self, key: &str) -> Result<$type> {
                match self.value(key)? {
                    Value::$case($value) => Ok($read),
                    _ => Err(disagree(key, concat!("is not described as a ", stringify!($name)))),
                }
            }
        )*
    };
}

impl Volume {
    lookups! {
        /// Any line of text.
        text Text -> &str, value => value.as_str();
        /// A number of bytes.
        size Size -> u64, value => *value;
        /// A whole number.
        number Number -> i64, value => *value;
        /// True or false.
        boolean Boolean -> bool, value => *value;
        /// A time.
        duration Duration -> std::time::Duration, value => std::time::Duration::from_millis(*value);
        /// The name of a secret.
        secret Secret -> &str, value => value.as_str();
    }

    /// A whole number within bounds.
    ///
    /// # Errors
    /// `invalid-option` where it is out of bounds, and as [`number`](Self::number).
    pub fn number_in<T>(&self, key: &str, bounds: RangeInclusive<T>) -> Result<T>
    where
        T: TryFrom<i64> + PartialOrd + Copy + fmt::Display,
    {
        let number = self.number(key)?;
        let (least, most) = (*bounds.start(), *bounds.end());
        match T::try_from(number) {
            Ok(value) if bounds.contains(&value) => Ok(value),
            Ok(value) if value > most => Err(out_of_bounds(key, "at most", most, number)),
            Err(_) if number > 0 => Err(out_of_bounds(key, "at most", most, number)),
            _ => Err(out_of_bounds(key, "at least", least, number)),
        }
    }

    /// Permission bits, from an option described as text. Octal with or without a leading zero: `mode=755` can mean nothing
    /// else, so it must not be read as a decimal number.
    ///
    /// # Errors
    /// `invalid-option` where it is not octal or beyond `7777`, and as [`text`](Self::text).
    pub fn mode(&self, key: &str) -> Result<u32> {
        let text = self.text(key)?;
        // `from_str_radix` would take a sign.
        let octal = text.bytes().all(|byte| byte.is_ascii_digit());
        u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= MODE_MAX).ok_or_else(
            || {
                Error::new(
                    ErrorCode::InvalidOption,
                    format!(
                        "option `{key}` must be octal and at most 7777, as in `0755`: `{text}`"
                    ),
                )
            },
        )
    }

    /// A directory inside of a source, from an option described as text: for [`Plan::subpath`](crate::Plan::subpath).
    ///
    /// # Errors
    /// `invalid-option` where it is absolute or has empty names, `.` or `..` in it, and as [`text`](Self::text).
    pub fn subpath(&self, key: &str) -> Result<&str> {
        let text = self.text(key)?;
        let is_name = |part: &str| !matches!(part, "" | "." | "..");
        if text.split('/').all(is_name) {
            return Ok(text);
        }
        let why = format!("must be a directory's name, or several with `/` between: `{text}`");
        Err(Error::invalid_option(key, why))
    }

    /// The options `uid`, `gid` and `mode`, that [`Description::owner`](crate::Description::owner) describes.
    ///
    /// # Errors
    /// `invalid-option` names the one that is out of bounds.
    pub fn owner(&self) -> Result<Owner> {
        Ok(Owner {
            uid: self.number_in("uid", 0..=ID_MAX)?,
            gid: self.number_in("gid", 0..=ID_MAX)?,
            mode: self.mode("mode")?,
        })
    }

    /// The options `uidmap` and `gidmap`, that [`Description::id_map`](crate::Description::id_map) describes; where one is left out
    /// it is as the other.
    ///
    /// # Errors
    /// `invalid-option` names the one that is no list of ranges.
    pub fn id_map(&self) -> Result<Option<IdMap>> {
        let read = |key: &'static str| {
            let text = self.if_given(key, Self::text)?;
            text.map(|text| ranges(key, text)).transpose()
        };
        let (users, groups) = (read("uidmap")?, read("gidmap")?);
        let other = users.clone().or_else(|| groups.clone());
        Ok(other.map(|other| IdMap {
            users: users.unwrap_or_else(|| other.clone()),
            groups: groups.unwrap_or(other),
        }))
    }

    /// Whether the option has a value or a default.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.options.iter().any(|option| option.key == key)
    }

    /// Reads an option that may be left out: `volume.if_given("size", Volume::size)?`.
    ///
    /// # Errors
    /// What `read` answers.
    pub fn if_given<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.has(key) { read(self, key).map(Some) } else { Ok(None) }
    }

    fn value(&self, key: &str) -> Result<&Value> {
        self.options.iter().find(|option| option.key == key).map(|option| &option.value).ok_or_else(
            || {
                let why = "volume was made without it, and no default was there for it then";
                Error::new(
                    ErrorCode::Internal,
                    format!("option `{key}`: the {why}: the driver is to read it with `if_given`"),
                )
            },
        )
    }
}

/// Ranges as `DISK:SHOWN:COUNT`, with commas between.
fn ranges(key: &str, text: &str) -> Result<Vec<IdRange>> {
    let range = |range: &str| {
        let mut numbers = range.split(':').map(|number| number.parse().ok());
        let [disk, shown, count] = [(); 3].map(|()| numbers.next().flatten());
        let range = IdRange { disk: disk?, shown: shown?, count: count? };
        (numbers.next().is_none() && range.count > 0).then_some(range)
    };
    let read: Option<Vec<_>> = text.split(',').map(range).collect();
    read.ok_or_else(|| {
        let why = format!("must be DISK:SHOWN:COUNT, as in `0:100000:65536`: `{text}`");
        Error::invalid_option(key, why)
    })
}

fn disagree(key: &str, how: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("option `{key}` {how}: mend the driver's description"))
}

fn out_of_bounds(key: &str, side: &str, bound: impl fmt::Display, number: i64) -> Error {
    Error::new(
        ErrorCode::InvalidOption,
        format!("option `{key}` must be {side} {bound}: `{number}`"),
    )
}
