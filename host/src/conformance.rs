//! The conformance suite of the contract: what a host may ask of any driver, in the orders in which it may ask, and what it relies on in
//! the answers.
//!
//! Called by `wasmvol driver check`, with the component itself in the daemon's own engine; the SDK's `testing::conformance` asks what can be
//! asked natively. [`CHECKS`], [`ABILITIES`] and [`LAST`] are read top to bottom; each is a sentence and a function that asks. Nothing is
//! mounted here, and nothing printed.

mod abilities;
mod describe;
mod odd;
mod subject;
mod verbs;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wasmvol_driver::{Abilities, CallError};

pub(crate) use subject::{Loaded, Setup, Subject, Told};

/// What came of one check.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// What was asked, as a sentence.
    pub(crate) check: String,
    pub(crate) result: Verdict,
    /// Why, or what was seen; one line, which may be empty.
    pub(crate) detail: String,
    #[serde(rename = "ms", with = "milliseconds")]
    pub(crate) time: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Ok,
    Fail,
    /// It could not be asked here.
    Skipped,
}

/// Why a check is not in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The driver breaks a promise.
    Broken(String),
    /// What it takes is not here.
    Lacking(String),
}

/// What one check does: it answers with what it saw, in a few words.
type Sequence = fn(&mut Subject) -> Result<String, Stop>;

/// What must be in order before anything is mounted.
pub(crate) const SERVED: &str = "a host can serve what it asks for";

/// What every driver is asked.
const CHECKS: [(&str, Sequence); 14] = [
    ("it describes itself", describe::describe),
    ("every default is a value of its option", describe::defaults),
    ("a volume is created twice", verbs::created),
    ("its plan is the same each time", verbs::planned),
    (SERVED, verbs::served),
    ("two volumes are apart", verbs::two_volumes_are_apart),
    ("so are two of one name", verbs::two_of_one_name_are_apart),
    ("a volume is removed twice", verbs::removed),
    ("one that never was is removed", verbs::never_made),
    ("what it knows is listed", verbs::list),
    ("names at the limit are answered", odd::names),
    ("odd values are answered", odd::values),
    ("unknown options are refused, or change nothing", odd::options),
    ("state that is not its own is answered", odd::state),
];

/// What is asked of one that has an ability.
type Has = fn(Abilities) -> bool;
const ABILITIES: [(Has, &str, Sequence); 5] = [
    (|has| has.attachment, "it is attached and detached twice", abilities::attachment),
    (|has| has.resizing, "it is resized twice", abilities::resizing),
    (|has| has.population, "an empty directory is filled twice", abilities::population),
    (|has| has.health, "its health is told", abilities::health),
    (|has| has.migration, "older state is migrated twice", abilities::migration),
];

/// What is asked at last: of what an earlier check has seen, and of all calls together.
const LAST: [(&str, Sequence); 3] = [
    ("time changes no plan", verbs::planned_later),
    ("no call comes near a limit", verbs::limits),
    ("all that was made is removed", verbs::ended),
];

/// Asks everything of a driver. A check that fails hides none after it, but for those that need what it has shown to be missing.
pub(crate) fn run(subject: &mut Subject) -> Vec<Finding> {
    let has = subject.abilities();
    let able = ABILITIES.into_iter().filter(|(ability, ..)| ability(has));
    let all = CHECKS.into_iter().chain(able.map(|(_, check, ask)| (check, ask))).chain(LAST);
    all.map(|(check, ask)| {
        let begin = Instant::now();
        let asked = ask(subject);
        let time = begin.elapsed();
        subject.clear();
        Finding::new(check, asked, time)
    })
    .collect()
}

impl Finding {
    pub(crate) fn new(check: &str, asked: Result<String, Stop>, time: Duration) -> Self {
        let (result, detail) = match asked {
            Ok(seen) => (Verdict::Ok, seen),
            Err(Stop::Broken(why)) => (Verdict::Fail, why),
            Err(Stop::Lacking(what)) => (Verdict::Skipped, what),
        };
        Self { check: check.to_owned(), result, detail, time }
    }
}

/// A time as JSON has it.
mod milliseconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)? / 1e3).map_err(D::Error::custom)
    }
}

/// A promise that is kept, or what is wrong.
fn ensure(kept: bool, broken: impl FnOnce() -> String) -> Result<(), Stop> {
    if kept { Ok(()) } else { Err(Stop::Broken(broken())) }
}

/// Two answers that must not differ.
fn same<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    first: &T,
    second: &T,
) -> Result<(), Stop> {
    ensure(first == second, || {
        cut(format!("{what} is answered in two ways: {first:?}, then {second:?}"))
    })
}

/// How a refusal names what only an operator gives.
const GRANTS: &str = "`wasmvol driver grant ";

/// Why something could not be asked, with the cure for who types the check: a driver that is loaded is granted things by a command of its
/// own.
fn needs_grant(why: &str) -> String {
    let cure = why.split_once(GRANTS).and_then(|(before, line)| {
        let (_name, grant) = line.split_once(' ')?;
        Some(format!("{before}`--grant {grant}"))
    });
    format!("needs a grant: {}", cure.as_deref().unwrap_or(why))
}

/// A line for a table: whole answers can have 64 KiB.
fn cut(mut line: String) -> String {
    const MOST: usize = 400;
    if line.len() > MOST {
        line.truncate(line.floor_char_boundary(MOST));
        line.push('…');
    }
    line
}

/// What is wrong with a sentence for people, where something is. The engine has escaped and cut it, so the mark of that is looked for.
fn is_no_sentence(text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        Some("says nothing")
    } else if text.contains(r"\u{") {
        Some("is not one line")
    } else {
        None
    }
}

/// The driver's refusal, if that is what an error is; anything else is no answer at all.
fn refusal(error: &CallError) -> Option<&str> {
    match error {
        CallError::Failed { message, .. } => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use wasmvol_plan::name::escaped;

    use super::is_no_sentence;

    #[test]
    fn a_sentence_is_one_line_and_may_name_a_path_with_backslashes() {
        for text in [
            "no such volume",
            r"the server has no share `\\nas\team`",
            r"`\\fs1\reports\new` is away",
            r"`c:\temp\new` is no path here",
            r"`WORK\nina` is no user, and `reports\new` no path",
        ] {
            assert_eq!(is_no_sentence(text), None, "{text}");
        }
        for text in ["two\nlines", "tabbed\tout", "it is red: \u{1b}[31m", "share \\\\nas is\naway"]
        {
            let told: String = text.chars().flat_map(escaped).collect();
            assert_eq!(is_no_sentence(&told), Some("is not one line"), "{told}");
        }
        assert_eq!(is_no_sentence(" "), Some("says nothing"));
    }
}
