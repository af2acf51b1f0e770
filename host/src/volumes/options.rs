//! What a user wrote with `-o`, parsed and checked against what a driver takes, before any wasm runs.
//!
//! Called by Create, and by whoever loads, shows or checks what has options. Pure. Its errors name the option and say what would do.

use std::collections::BTreeMap;

use wasmvol_driver::types::Options;
use wasmvol_driver::{Description, OptionSpec, Reclaim, Value, ValueType};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{DriverName, SecretName};

use super::{VolumeError, secrets};
use crate::catalog::record::Record;

/// Most options of one volume: no driver of today takes a third of it.
const OPTIONS_MAX: usize = 64;
/// Longest value in bytes: a path's limit (PATH_MAX).
const VALUE_MAX: usize = 4096;
/// How alike two keys must be for "did you mean", by Jaro and Winkler; `sise` and `size` have 0.87.
const ALIKE: f64 = 0.8;

/// A create request, split into what the host and what the driver takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `driver=`.
    pub(crate) driver: Option<DriverName>,
    /// `reclaim=`.
    pub(crate) reclaim: Option<Reclaim>,
    /// Everything else.
    pub(crate) given: BTreeMap<String, String>,
}

impl Asked {
    /// Takes the host's own options out.
    pub(crate) fn split(mut given: BTreeMap<String, String>) -> Result<Self, VolumeError> {
        if given.len() > OPTIONS_MAX {
            let count = given.len();
            return refuse(format!(
                "{count} options were given: at most {OPTIONS_MAX} are allowed"
            ));
        }
        let driver = given.remove("driver").map(|text| DriverName::parse(&text)).transpose()?;
        let reclaim = match given.remove("reclaim").as_deref() {
            None => None,
            Some("delete") => Some(Reclaim::Delete),
            Some("retain") => Some(Reclaim::Retain),
            Some(other) => {
                let other = Quoted::new(other);
                return refuse(format!("option `reclaim`: use `delete` or `retain`, not {other}"));
            }
        };
        for reserved in ["from", "plugin"] {
            if given.contains_key(reserved) {
                return refuse(format!("option `{reserved}` is reserved: leave it out"));
            }
        }
        Ok(Self { driver, reclaim, given })
    }
}

/// Parses `given` by the driver's schema and fills in the defaults.
pub(crate) fn parse(
    driver: &DriverName,
    description: &Description,
    given: &BTreeMap<String, String>,
) -> Result<Options, VolumeError> {
    let mut options = Options::new();
    for (key, text) in given {
        let spec = description.options.iter().find(|spec| &spec.key == key);
        if secrets::is_in_clear(spec, key, text) {
            return refuse(secrets::in_clear(driver, description, key));
        }
        let Some(spec) = spec else { return refuse(unknown(driver, description, key)) };
        options.insert(key.clone(), value(driver, spec, text)?);
    }
    for spec in &description.options {
        if options.contains_key(&spec.key) {
            continue;
        }
        match &spec.default {
            Some(text) => {
                options.insert(spec.key.clone(), value(driver, spec, text)?);
            }
            None if spec.required => {
                let OptionSpec { key, help, .. } = spec;
                return refuse(format!("option `{key}` is missing: {help}: give `-o {key}=…`"));
            }
            None => {}
        }
    }
    Ok(options)
}

fn describes(description: &Description, key: &str) -> bool {
    description.options.iter().any(|spec| spec.key == key)
}

/// What a volume has, and a version of its driver does not describe.
pub(crate) fn undescribed<'a>(
    options: &'a Options,
    description: &Description,
) -> impl Iterator<Item = &'a String> {
    options.keys().filter(|key| !describes(description, key))
}

/// The first default of a description that is no value of its option's type, or why it is none.
pub(crate) fn check_defaults(
    driver: &DriverName,
    description: &Description,
) -> Result<(), VolumeError> {
    description.options.iter().try_for_each(|spec| {
        spec.default.as_ref().map_or(Ok(()), |text| value(driver, spec, text).map(drop))
    })
}

/// Gives a volume what a version of its driver describes and the one that made it did not know, with the defaults of this one, and takes what
/// others have added that this one does not know. What it has then is its own, whatever a later version's defaults are.
pub(crate) fn follow(record: &mut Record, description: &Description) {
    let Record { driver, options, left_out, added, .. } = record;
    left_out.retain(|key| describes(description, key));
    for key in added.extract_if(.., |key| !describes(description, key)) {
        options.remove(&key);
    }
    for spec in &description.options {
        if options.contains_key(&spec.key) || left_out.contains(&spec.key) {
            continue;
        }
        // One that does not parse is no value: a Create without it is refused.
        match spec.default.as_ref().map(|text| value(driver, spec, text)) {
            Some(Ok(default)) => {
                options.insert(spec.key.clone(), default);
                added.insert(spec.key.clone());
            }
            _ => drop(left_out.insert(spec.key.clone())),
        }
    }
}

/// How two sets of options differ in the keys that count, for people; none if they do not.
pub(crate) fn difference(
    there: &Options,
    here: &Options,
    counts: impl Fn(&str) -> bool,
) -> Option<String> {
    let shown = |value: Option<&Value>| value.map_or_else(|| "not set".to_owned(), show);
    let differs = |key: &&String| counts(key) && there.get(*key) != here.get(*key);
    there.keys().chain(here.keys()).find(differs).map(|key| {
        format!("`{key}` is {} there, {} here", shown(there.get(key)), shown(here.get(key)))
    })
}

/// A value as a user may read it.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Text(text) => Quoted::new(text).to_string(),
        Value::Size(bytes) => bytes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Duration(ms) => format!("{ms}ms"),
        Value::Secret(name) => format!("secret {name}"),
    }
}

fn refuse<T>(line: String) -> Result<T, VolumeError> {
    Err(VolumeError::Option(line))
}

fn unknown(driver: &DriverName, description: &Description, key: &str) -> String {
    let takes: Vec<&str> = description.options.iter().map(|spec| spec.key.as_str()).collect();
    let likeness = |known: &&&str| strsim::jaro_winkler(known, key);
    let nearest = takes
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|known| likeness(known) >= ALIKE);
    let hint = nearest.map_or_else(String::new, |known| format!(": did you mean `{known}`?"));
    let list = if takes.is_empty() { "no options".to_owned() } else { takes.join(", ") };
    format!("no option {}{hint} (`{driver}` takes: {list})", Quoted::new(key))
}

pub(crate) fn value(
    driver: &DriverName,
    spec: &OptionSpec,
    text: &str,
) -> Result<Value, VolumeError> {
    let key = &spec.key;
    if text.len() > VALUE_MAX {
        let length = text.len();
        return refuse(format!(
            "option `{key}` has {length} bytes: at most {VALUE_MAX} are allowed"
        ));
    }
    if text.chars().any(char::is_control) {
        return refuse(format!("option `{key}` holds a control character: leave it out"));
    }
    let parsed = match spec.value_type {
        ValueType::Text => Some(Value::Text(text.to_owned())),
        ValueType::Size => size(text).map(Value::Size),
        ValueType::Number => number(text).map(Value::Number),
        ValueType::Boolean => boolean(text).map(Value::Boolean),
        ValueType::Duration => duration(text).map(Value::Duration),
        ValueType::Secret => SecretName::parse(text).ok().map(|name| Value::Secret(name.into())),
    };
    let wanted = match spec.value_type {
        ValueType::Text => "text",
        ValueType::Size => "a size: a number with `k`, `m`, `g` or `t`, such as `64m`",
        ValueType::Number => "a whole number; with a leading 0 it is octal",
        ValueType::Boolean => "`true` or `false`",
        ValueType::Duration => "a duration: a number with `ms`, `s`, `m` or `h`, such as `30s`",
        ValueType::Secret => "the name of a secret: lower-case letters, digits and `-`",
    };
    parsed.map_or_else(
        // A secret's text may be the secret itself, given in the wrong place: it is not repeated.
        || match spec.value_type {
            ValueType::Secret => {
                let cure = secrets::set(driver);
                refuse(format!("option `{key}` is not {wanted}: make one with `{cure}`"))
            }
            _ => refuse(format!("option `{key}` is not {wanted}: {}", Quoted::new(text))),
        },
        Ok,
    )
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

pub(super) fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let at = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (count, unit) = lower.split_at_checked(at)?;
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits(count)?.checked_mul(1 << shift)
}

fn number(text: &str) -> Option<i64> {
    let (sign, rest) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    digits(rest)?;
    let radix = if rest.len() > 1 && rest.starts_with('0') { 8 } else { 10 };
    i64::from_str_radix(rest, radix).ok()?.checked_mul(sign)
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "" | "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn duration(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at_checked(at)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return None,
    };
    digits(count)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(key: &str, value_type: ValueType) -> OptionSpec {
        OptionSpec {
            key: key.into(),
            value_type,
            required: false,
            default: None,
            help: "some help".into(),
        }
    }

    fn local() -> (DriverName, Description) {
        let options = vec![
            spec("size", ValueType::Size),
            OptionSpec { default: Some("0755".into()), ..spec("mode", ValueType::Number) },
            spec("wait", ValueType::Duration),
            spec("fast", ValueType::Boolean),
            spec("key", ValueType::Secret),
        ];
        let description = Description {
            name: "local".into(),
            version: "0.1.0".into(),
            help: String::new(),
            options,
            grants: Vec::new(),
        };
        (DriverName::parse("local").unwrap(), description)
    }

    fn parsed(pairs: &[(&str, &str)]) -> Result<Options, String> {
        let (driver, description) = local();
        let given = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse(&driver, &description, &given).map_err(|e| e.to_string())
    }

    #[test]
    fn a_misspelt_option_is_answered_with_the_one_that_was_meant() {
        let error = parsed(&[("sise", "1g")]).unwrap_err();
        assert_eq!(
            error,
            "no option `sise`: did you mean `size`? (`local` takes: size, mode, wait, fast, key)"
        );
    }

    #[test]
    fn an_option_like_no_other_is_answered_with_the_list_alone() {
        let error = parsed(&[("zzz", "1")]).unwrap_err();
        assert_eq!(error, "no option `zzz` (`local` takes: size, mode, wait, fast, key)");
    }

    /// The contract's table: type, what a user writes, what a driver gets. The SDK's tests read it, too.
    const TABLE: &str = include_str!("../../../wit/since_v0.1.0/values.tsv");

    #[test]
    fn what_a_user_writes_is_read_as_the_contract_says() {
        let (driver, _) = local();
        let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
        let mut kept = 0;
        for row in rows {
            let cells: Vec<_> = row.split('\t').collect();
            let [value_type, text, meaning] = cells[..] else { panic!("three cells: `{row}`") };
            let value_type = serde_json::from_value(value_type.into()).expect(row);
            let read = match value(&driver, &spec("key", value_type), text) {
                Ok(Value::Text(text) | Value::Secret(text)) => text,
                Ok(Value::Size(count) | Value::Duration(count)) => count.to_string(),
                Ok(Value::Number(number)) => number.to_string(),
                Ok(Value::Boolean(flag)) => flag.to_string(),
                Err(_) => "refused".to_owned(),
            };
            assert_eq!(read, meaning, "{row}");
            kept += 1;
        }
        assert!(kept > 0, "the table is empty");
    }

    #[test]
    fn a_default_is_filled_in() {
        assert_eq!(parsed(&[]).unwrap()["mode"], Value::Number(0o755));
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        let error = parsed(&[("key", "hunter2!")]).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(
            error.contains("`wasmvol secret set NAME --driver local [--peer HOST]`"),
            "{error}"
        );
    }

    #[test]
    fn a_password_given_in_clear_is_refused_with_the_cure_and_not_repeated() {
        let given = [
            ("password", "hunter2"),
            ("size", "password=hunter2"),
            ("wait", "//user:hunter2@host/share"),
            ("fast", "o=username=u,pass=hunter2"),
            ("token", "hunter2"),
            ("https://user:hunter2@host", ""),
        ];
        for (key, text) in given {
            let error = parsed(&[(key, text)]).unwrap_err();
            assert!(error.contains("a password given in clear"), "{key}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
            let cure =
                "`wasmvol secret set NAME --driver local [--peer HOST]` and give `-o key=NAME`";
            assert!(error.ends_with(cure), "{error}");
        }
    }

    #[test]
    fn a_password_for_a_driver_that_takes_no_secret_is_to_be_left_out() {
        let (driver, mut description) = local();
        description.options.retain(|spec| spec.value_type != ValueType::Secret);
        let given = BTreeMap::from([("password".to_owned(), "hunter2".to_owned())]);
        let error = parse(&driver, &description, &given).unwrap_err().to_string();
        assert!(error.ends_with("leave it out, since `local` takes no secret"), "{error}");
    }

    #[test]
    fn a_flag_may_be_named_like_a_password() {
        let (driver, mut description) = local();
        description.options.push(spec("no-password", ValueType::Boolean));
        let parsed = |text: &str| {
            let given = BTreeMap::from([("no-password".to_owned(), text.to_owned())]);
            parse(&driver, &description, &given).map_err(|e| e.to_string())
        };
        assert_eq!(parsed("true").unwrap()["no-password"], Value::Boolean(true));
        assert!(!parsed("hunter2").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn an_error_is_one_line_whatever_was_given() {
        for (key, text) in [("si\nze", "1"), ("size", "1\n2"), ("size", "\u{1b}[31m")] {
            assert!(!parsed(&[(key, text)]).unwrap_err().contains(['\n', '\u{1b}']));
        }
    }

    #[test]
    fn the_hosts_own_options_never_reach_a_driver() {
        let given = [("driver", "tmpfs"), ("reclaim", "retain"), ("size", "1m")];
        let given = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let asked = Asked::split(given).unwrap();
        assert_eq!(asked.driver.unwrap().as_str(), "tmpfs");
        assert_eq!(asked.reclaim, Some(Reclaim::Retain));
        assert_eq!(asked.given.keys().collect::<Vec<_>>(), ["size"]);
    }

    #[test]
    fn two_sets_of_options_differ_by_the_first_key_that_does() {
        let there = parsed(&[("size", "1m")]).unwrap();
        let here = parsed(&[("size", "2m")]).unwrap();
        let all = |_: &str| true;
        assert_eq!(
            difference(&there, &here, all).unwrap(),
            "`size` is 1048576 there, 2097152 here"
        );
        assert_eq!(difference(&there, &there, all), None);
        assert_eq!(difference(&there, &here, |key| key != "size"), None);
    }
}
