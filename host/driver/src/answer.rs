//! Limits of what a driver may answer, and how its words are made fit for a terminal.
//!
//! Used by `contract` for every answer. An answer beyond a limit is an error of the driver's, never cut silently; only sentences
//! for people are cut.

use wasmvol_plan::name::escaped;

use crate::journal::Journal;
use crate::types::CallError;

/// Most bytes of a driver's own state: a record with it still fits one page run of the catalog.
pub(crate) const STATE_MAX: usize = 64 << 10;
/// Most bytes of an error's sentence, after escaping: a terminal's worth.
pub(crate) const MESSAGE_MAX: usize = 1 << 10;
/// Most bytes of an option's value, as the contract says.
pub(crate) const VALUE_MAX: usize = 4 << 10;
/// Most bytes of any other string of an answer: a path has at most as many.
pub(crate) const TEXT_MAX: usize = 4 << 10;
/// Most options of a driver or a volume.
pub(crate) const OPTIONS_MAX: usize = 64;
/// Most bytes of an option's key.
pub(crate) const KEY_MAX: usize = 64;
/// Most bytes of a line of help.
pub(crate) const HELP_MAX: usize = 256;
/// Most bytes of a version.
pub(crate) const VERSION_MAX: usize = 64;
/// Most grants that a driver may name.
pub(crate) const GRANTS_MAX: usize = 32;
/// Most programs in a volume that its driver fills, as the contract says.
pub(crate) const EXECUTABLES_MAX: usize = 100_000;
/// Most volumes in one answer of `list`: what one daemon is made for.
pub(crate) const FOUND_MAX: usize = 10_000;

/// The error for an answer that the contract does not allow.
pub(crate) fn broken(why: impl Into<String>) -> CallError {
    CallError::Contract(why.into())
}

/// Why an answer cannot be used, before anybody hears of it.
pub(crate) struct Unfit {
    error: CallError,
    /// What of the answer the error repeats, as the driver said it.
    said: Option<String>,
}

impl Unfit {
    /// An error that repeats this.
    pub(crate) fn repeats(said: impl Into<String>, error: CallError) -> Self {
        Self { error, said: Some(said.into()) }
    }

    /// The error, without what is told to nobody. An error's own text would not do: there it is cut and escaped.
    pub(crate) fn told(self, journal: &Journal) -> CallError {
        match &self.said {
            Some(said) if journal.told(said) != said => broken(journal.told(said)),
            _ => self.error,
        }
    }
}

impl From<CallError> for Unfit {
    fn from(error: CallError) -> Self {
        Self { error, said: None }
    }
}

/// `text`, unless it has more than `max` bytes.
pub(crate) fn bounded(what: &str, text: String, max: usize) -> Result<String, CallError> {
    count(what, text.len(), max, "bytes")?;
    Ok(text)
}

/// Refuses more than `max` of something.
pub(crate) fn count(what: &str, count: usize, max: usize, unit: &str) -> Result<(), CallError> {
    if count > max {
        return Err(broken(format!("{what} has {count} {unit}: at most {max} are allowed")));
    }
    Ok(())
}

/// A driver's text as one line of at most `max` bytes: what a terminal or a log would act on is escaped.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    // A character has a byte at least: more need not be looked at.
    let mut line: String = text.trim().chars().take(max + 1).flat_map(escaped).collect();
    if line.len() > max {
        line.truncate(line.floor_char_boundary(max - '…'.len_utf8()));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_one_harmless_line() {
        assert_eq!(one_line("no\nspace\u{1b}[2J", 64), "no\\u{a}space\\u{1b}[2J");
        assert_eq!(one_line("left\u{202e}thgir", 64), "left\\u{202e}thgir");
        assert_eq!(one_line("  größe\n", 64), "größe");
    }

    #[test]
    fn a_long_text_is_cut_within_the_limit_and_between_characters() {
        let line = one_line(&"ö".repeat(1000), 64);
        assert!(line.len() <= 64, "{} bytes", line.len());
        assert!(line.ends_with("ö…"));
        assert_eq!(one_line("abcd", 4), "abcd");
    }
}
