//! Names as they are parsed at the edge: a volume's, a driver's, a secret's, and the id that every path is built from.
//!
//! A user's name never becomes a path: directories, mountpoints and trash are named by [`Id`], so that no spelling of a name can
//! leave its directory.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest volume name in bytes. Docker sets no limit for plugins; 128 fits every file system and table.
pub const VOLUME_NAME_MAX: usize = 128;
/// Longest driver name in bytes.
pub const DRIVER_NAME_MAX: usize = 32;
/// Longest name of a secret in bytes.
pub const SECRET_NAME_MAX: usize = 64;

/// Why a name was refused. The text is one line whatever the name held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given, as in Docker's retry with an empty body.
    #[error("a volume needs a name")]
    Empty,
    /// More than [`VOLUME_NAME_MAX`] bytes.
    #[error("volume name is {0} bytes long: at most {VOLUME_NAME_MAX} are allowed")]
    TooLong(usize),
    /// A character outside `[a-zA-Z0-9_.-]`, or a first one outside `[a-zA-Z0-9]`.
    #[error(
        "volume name {0} is not allowed: use letters, digits, `_`, `.` and `-`, and start with a letter or digit"
    )]
    Characters(Quoted),
    /// Not a driver's name.
    #[error(
        "driver name {0} is not allowed: use at most {DRIVER_NAME_MAX} lower-case letters, digits and `-`, and start with a letter"
    )]
    Driver(Quoted),
    /// Not a secret's name. It may be the secret itself, given in the wrong place, so it is not repeated.
    #[error(
        "a secret's name has at most {SECRET_NAME_MAX} lower-case letters, digits and `-`, and starts with a letter or digit"
    )]
    Secret,
    /// Not 32 lower-case hex digits.
    #[error("{0} is no volume id: it has 32 hex digits")]
    Id(Quoted),
}

/// A character of a stranger's text: what a terminal or a log would act on, or nobody sees, is escaped as `\u{a}`. In no other way: a text
/// may hold `\n` of its own, as in a path of Windows.
pub fn escaped(c: char) -> impl Iterator<Item = char> {
    let is_plain = matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1;
    let escape = (!is_plain).then(|| c.escape_unicode());
    is_plain.then_some(c).into_iter().chain(escape.into_iter().flatten())
}

/// A stranger's text as it may stand in an error: escaped, in backticks, cut after 64 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    /// Escapes and cuts `text`.
    pub fn new(text: &str) -> Self {
        let mut shown: String = text.chars().take(64).flat_map(escaped).collect();
        if text.chars().nth(64).is_some() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

/// What every name can do, once it is parsed.
macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

/// A volume's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Parses a name as it came over the wire.
    ///
    /// # Errors
    /// Every name outside the pattern above.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.bytes().next() else { return Err(NameError::Empty) };
        if text.len() > VOLUME_NAME_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if first.is_ascii_alphanumeric() && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Characters(Quoted::new(text)))
        }
    }
}

text_name!(VolumeName);

/// A driver's name: `[a-z][a-z0-9-]{0,31}`; also the file name of its grants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriverName(String);

impl DriverName {
    /// Parses a driver's name.
    ///
    /// # Errors
    /// Every name outside the pattern above.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if starts && text.len() <= DRIVER_NAME_MAX && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Driver(Quoted::new(text)))
        }
    }
}

text_name!(DriverName);

/// A secret's name: `[a-z0-9][a-z0-9-]{0,63}`; also the name of its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// Parses a secret's name.
    ///
    /// # Errors
    /// Every name outside the pattern above.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let starts = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = |b: u8| starts(b) || b == b'-';
        if text.bytes().next().is_some_and(starts)
            && text.len() <= SECRET_NAME_MAX
            && text.bytes().all(fits)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Secret)
        }
    }
}

text_name!(SecretName);

/// 128 random bits, minted by each create and never used again. Written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u128);

impl Id {
    /// The id with these bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits of the id.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Parses 32 lower-case hex digits.
    ///
    /// # Errors
    /// Anything else, upper case too: one id has one spelling.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let fits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match u128::from_str_radix(text, 16) {
            Ok(bits) if text.len() == 32 && text.bytes().all(fits) => Ok(Self(bits)),
            _ => Err(NameError::Id(Quoted::new(text))),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u128(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            Self::parse(&text).map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(deserializer).map(Self)
        }
    }
}
