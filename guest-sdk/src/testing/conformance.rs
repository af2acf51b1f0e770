//! The sequences that a host may send to any driver, and what it relies on in the answers.
//!
//! A driver's test calls [`conformance`]; the first promise that is broken ends it with a sentence.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::{RESERVED, parse, volume};
use crate::contract::Source;
use crate::{
    Created, Driver, Error, ErrorCode, OptionValue, Plan, Reclaim, Storage, Value, Volume,
};

/// Most bytes of state that a host keeps.
const STATE_MAX: usize = 64 * 1024;

/// Most bytes of a driver's name.
const NAME_MAX: usize = 32;

/// Most bytes of an option's key.
const KEY_MAX: usize = 64;

/// Most that permission bits can be.
const MODE_MAX: u32 = 0o7777;

/// Puts a driver through what a host may ask of it, with options that it accepts: a description that the host will load,
/// create twice, path before and after, remove twice and of a volume that never was, an option that it does not describe, two volumes
/// apart.
///
/// # Panics
/// At the first promise that the driver breaks, with a sentence that names it.
#[expect(clippy::panic, reason = "called by tests, which say what is wrong by failing")]
pub fn conformance<D: Driver>(
    options: impl IntoIterator<Item = (&'static str, &'static str)> + Clone,
) {
    let sequences = || -> Result<(), String> {
        describe::<D>()?;
        let made = |name| {
            volume::<D>(name, options.clone())
                .map_err(|error| format!("the options of this test are refused: {error}"))
        };
        let first = created::<D>(made("first")?)?;
        let second = created::<D>(made("second")?)?;
        an_unknown_option_changes_nothing::<D>(&first)?;
        two_volumes_are_apart::<D>(&first, &second)?;
        removed::<D>(&second)?;
        removed::<D>(&made("never-made")?)?;
        list::<D>()
    };
    if let Err(broken) = sequences() {
        panic!("{broken}");
    }
}

/// The host will load a driver that says this of itself.
fn describe<D: Driver>() -> Result<(), String> {
    let said = D::describe();
    same("`describe`", &said, &D::describe())?;
    ensure(is_key(&said.name, NAME_MAX), || {
        format!(
            "`{}` is no name for a driver: lower-case letters, digits, dashes, at most {NAME_MAX}",
            said.name
        )
    })?;
    ensure(is_semantic(&said.version), || format!("`{}` is no semantic version", said.version))?;
    ensure(is_line(&said.help), || "the driver has no line of help".to_owned())?;
    let mut keys = BTreeSet::new();
    for spec in &said.options {
        let key = &spec.key;
        ensure(is_key(key, KEY_MAX), || {
            format!("`{key}` is no key: lower-case letters, digits, dashes, at most {KEY_MAX}")
        })?;
        ensure(!RESERVED.contains(&key.as_str()), || {
            format!("the host keeps option `{key}` for itself")
        })?;
        ensure(keys.insert(key), || format!("option `{key}` is described twice"))?;
        ensure(is_line(&spec.help), || format!("option `{key}` has no line of help"))?;
        if let Some(default) = &spec.default {
            ensure(!spec.required, || format!("option `{key}` is required and has a default"))?;
            parse::value(key, spec.value_type, default)
                .map_err(|error| format!("a default is refused: {error}"))?;
        }
    }
    Ok(())
}

/// Creates a volume as a host does that crashed once in the middle, and asks for its plan before and after.
fn created<D: Driver>(mut volume: Volume) -> Result<Volume, String> {
    let answer = answered("`create`", D::create(&volume))?;
    let again = answered("a second `create` of one id", D::create(&volume))?;
    same("`create` of one id", &answer.storage, &again.storage)?;
    let Created { storage, state } = again;
    ensure(state.len() <= STATE_MAX, || {
        format!("the state has {} bytes: a host keeps {STATE_MAX}", state.len())
    })?;
    volume.state = state;
    let plan = answered("`path`", D::path(&volume))?;
    same("`path` of one volume", &plan, &answered("a second `path`", D::path(&volume))?)?;
    check(&plan, &storage)?;
    Ok(volume)
}

/// The host lets no user give one. But a volume that another version made may have it, after a rollback.
fn an_unknown_option_changes_nothing<D: Driver>(volume: &Volume) -> Result<(), String> {
    let mut with = volume.clone();
    let (key, value) = ("of-another-version".to_owned(), Value::Text("1".to_owned()));
    with.options.push(OptionValue { key, value });
    let plan = answered("`path`", D::path(volume))?;
    let again = answered("`path` with an option that is not described", D::path(&with))?;
    same("`path` with and without an option that is not described", &plan, &again)
}

/// What one volume gets has nothing to do with the other, nor with its end.
fn two_volumes_are_apart<D: Driver>(first: &Volume, second: &Volume) -> Result<(), String> {
    let before = answered("`path`", D::path(second))?;
    removed::<D>(first)?;
    let after = answered("`path` after another volume was removed", D::path(second))?;
    same("`path` across the removal of another volume", &before, &after)
}

/// Removes a volume as a host does that crashed once in the middle, and once before `create` had returned. One that the driver does not know
/// is gone.
fn removed<D: Driver>(volume: &Volume) -> Result<(), String> {
    let remove = |volume| match D::remove(volume) {
        Err(error) if error.code == ErrorCode::NotFound => Ok(Reclaim::Delete),
        answer => answer,
    };
    let reclaim = answered("`remove`", remove(volume))?;
    same("`remove`", &reclaim, &answered("a second `remove`", remove(volume))?)?;
    let unsaid = Volume { state: Vec::new(), ..volume.clone() };
    answered("`remove` with empty state", remove(&unsaid)).map(drop)
}

fn list<D: Driver>() -> Result<(), String> {
    let mut names = BTreeSet::new();
    for found in answered("`list`", D::list())? {
        ensure(names.insert(found.name.clone()), || {
            format!("`list` finds `{}` twice", found.name)
        })?;
    }
    Ok(())
}

/// Storage and plan that no host refuses whatever was granted.
fn check(plan: &Plan, storage: &Storage) -> Result<(), String> {
    ensure(plan.source != Source::Storage || *storage != Storage::None, || {
        "the plan mounts the volume's storage, and `create` asked for none".to_owned()
    })?;
    let is_named = matches!(storage, Storage::NamedDirectory(_));
    ensure(plan.source != Source::Storage || !is_named, || {
        "the plan mounts a named directory as `storage`: use its path".to_owned()
    })?;
    let made = match storage {
        Storage::Directory(directory) => Some(&directory.owner),
        Storage::NamedDirectory(directory) => Some(&directory.owner),
        _ => None,
    };
    let mounted = match &plan.source {
        Source::Tmpfs(tmpfs) => Some(&tmpfs.owner),
        _ => None,
    };
    for owner in made.into_iter().chain(mounted) {
        ensure(owner.mode <= MODE_MAX, || {
            format!("mode {:o} has more than permission bits", owner.mode)
        })?;
    }
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let Some(subpath) = &plan.subpath else { return Ok(()) };
    ensure(subpath.split('/').all(is_name), || {
        format!("subpath `{}` does not stay inside of the volume", subpath.escape_debug())
    })
}

fn answered<T>(verb: &str, answer: Result<T, Error>) -> Result<T, String> {
    answer.map_err(|error| {
        if is_line(&error.message) {
            format!("{verb} is refused: {error}")
        } else {
            format!(
                "{verb} is refused with a message that is not one line: `{}`",
                error.message.escape_debug()
            )
        }
    })
}

fn same<T: PartialEq + Debug>(what: &str, first: &T, second: &T) -> Result<(), String> {
    ensure(first == second, || {
        format!("{what} is answered in two ways: {first:?}, then {second:?}")
    })
}

fn ensure(kept: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if kept { Ok(()) } else { Err(broken()) }
}

fn is_key(text: &str, max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= max && text.bytes().all(plain)
}

/// Three numbers, and what may stand behind them: see <https://semver.org>.
fn is_semantic(version: &str) -> bool {
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let has_zeros = |part: &str| is_digits(part) && part.len() > 1 && part.starts_with('0');
    let is_number = |part: &str| !part.is_empty() && is_digits(part) && !has_zeros(part);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(plain);
    let (version, build) = version.split_once('+').unwrap_or((version, "0"));
    let (numbers, before) = version.split_once('-').unwrap_or((version, "0"));
    let words = |text: &str| text.split('.').all(is_word);
    numbers.split('.').count() == 3
        && numbers.split('.').all(is_number)
        && words(before)
        && !before.split('.').any(has_zeros)
        && words(build)
}

fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}
