//! What nobody promises to take, and nobody may crash of: names at the limit, odd values, what another version or somebody else wrote.
//!
//! A driver answers, or it refuses in a sentence.

use std::time::{Duration, Instant};

use wasmvol_driver::{Cost, OptionSpec, Value, ValueType, Volume};
use wasmvol_plan::VolumeName;
use wasmvol_plan::name::VOLUME_NAME_MAX;

use super::{Stop, Subject, abilities, ensure, same};
use crate::volumes::resize::SIZE;

/// How long odd values may take together: a driver in Python takes 50 ms for a call, and one may have 60 options.
const VALUES: Duration = Duration::from_secs(10);
/// An option that no driver has.
const UNKNOWN: &str = "of-another-version";
/// Bytes of a long text: more than any name has, and with what a driver puts before it still a path.
const LONG: usize = 1 << 10;

/// Whatever Docker and the host let pass.
pub(super) fn names(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    subject.plan(&mut made)?;
    let signs = "Zz9_.-".chars().cycle();
    let longest: String = signs.take(VOLUME_NAME_MAX).collect();
    let names = ["a", "0", "A.B_c-", longest.as_str()];
    let mut refused = Vec::new();
    for name in names {
        let parsed = VolumeName::parse(name).map_err(|error| Stop::Broken(error.to_string()))?;
        let volume = subject.volume_named(parsed);
        let what = match name.len() {
            VOLUME_NAME_MAX => format!("a volume with a name of {VOLUME_NAME_MAX} characters"),
            _ => format!("a volume named `{name}`"),
        };
        if !is_taken(subject, volume, &what)? {
            refused.push(what);
        }
    }
    Ok(match refused.as_slice() {
        [] => format!("1 to {VOLUME_NAME_MAX} characters"),
        refused => format!("refused: {}", refused.join(", ")),
    })
}

/// Each option at the ends of what its type allows.
pub(super) fn values(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    subject.plan(&mut made)?;
    if subject.has_backend() {
        return Err(Stop::Lacking("each would be a volume at its backend".into()));
    }
    let until = Instant::now() + VALUES;
    let specs = subject.driver().description().options.clone();
    let (mut asked, mut refused, mut left) = (0, 0, 0);
    for OptionSpec { key, value_type, .. } in &specs {
        for text in at_the_ends(*value_type) {
            let mut given = subject.setup.given.clone();
            given.insert(key.clone(), text.clone());
            // What the host refuses by itself never gets to a driver.
            let Ok(options) = subject.parse(&given) else { continue };
            if Instant::now() > until {
                left += 1;
                continue;
            }
            let volume = Volume { options, ..subject.new_volume()? };
            let shown: String = text.chars().take(24).collect();
            asked += 1;
            if !is_taken(subject, volume, &format!("a volume with `{key}={shown}`"))? {
                refused += 1;
            }
        }
    }
    let mut detail = format!("{asked} volumes, {refused} refused");
    if left > 0 {
        detail.push_str(&format!("; {left} more were not asked for, after {} s", VALUES.as_secs()));
    }
    Ok(detail)
}

fn at_the_ends(value_type: ValueType) -> Vec<String> {
    let texts: &[&str] = match value_type {
        ValueType::Text => &["", " ", "-", "/", "..", "a,b=c:d", "größe ✓", "'\"$(x)`"],
        ValueType::Size => &["0", "1", "18446744073709551615"],
        ValueType::Number => &["0", "-1", "9223372036854775807", "-9223372036854775807"],
        ValueType::Boolean => &["true", "false"],
        ValueType::Duration => &["0ms", "1ms", "18446744073709551615ms"],
        ValueType::Secret => {
            &["0", "a-name-that-is-as-long-as-the-name-of-any-secret-is-allowed-to-be"]
        }
    };
    let long = (value_type == ValueType::Text).then(|| "x".repeat(LONG));
    texts.iter().map(|text| (*text).to_owned()).chain(long).collect()
}

/// Whether a volume is made and planned, which then goes again.
fn is_taken(subject: &mut Subject, volume: Volume, what: &str) -> Result<bool, Stop> {
    let made = subject.make(volume);
    let Some(mut made) = subject.or_refused(&format!("`create` of {what}"), made)? else {
        return Ok(false);
    };
    let is_planned = match subject.try_plan(&mut made) {
        Ok(_) => true,
        Err((verb, error)) => {
            let refused: Result<(), _> = Err(error);
            subject.or_refused(&format!("{verb} of {what}"), refused)?.is_some()
        }
    };
    if made.attached {
        let detached = subject.detach(&mut made);
        subject.or_refused(&format!("`detach` of {what}"), detached)?;
    }
    let removed = subject.end(&made.volume);
    removed.map_err(|error| subject.stop(&format!("`remove` of {what}"), &error))?;
    Ok(is_planned)
}

/// The host refuses what the driver does not describe, and of another type. But a volume keeps what its user gave, and after a rollback its
/// driver may not describe all of that.
pub(super) fn options(subject: &mut Subject) -> Result<String, Stop> {
    refuses_what_is_not_described(subject)?;
    let mut made = subject.made()?;
    let plan = subject.plan(&mut made)?;
    made.volume.options.insert(UNKNOWN.to_owned(), Value::Text("1".to_owned()));
    let told = |verb: &str| format!("{verb} with an option that it does not describe");
    let again = subject.path(&made.volume);
    let again = again.map_err(|error| subject.stop(&told("`path`"), &error))?;
    same(&told("`path`"), &plan, &again)?;
    if subject.abilities().attachment {
        let detached = subject.detach(&mut made);
        detached.map_err(|error| subject.stop(&told("`detach`"), &error))?;
    }
    let removed = subject.end(&made.volume);
    removed.map_err(|error| subject.stop(&told("`remove`"), &error))?;
    Ok(String::new())
}

fn refuses_what_is_not_described(subject: &Subject) -> Result<(), Stop> {
    let is_taken = |key: &str, text: &str| {
        let mut given = subject.setup.given.clone();
        given.insert(key.to_owned(), text.to_owned());
        subject.parse(&given).is_ok()
    };
    let malformed = |value_type| match value_type {
        ValueType::Text => "two\nlines",
        ValueType::Size => "64 bytes",
        ValueType::Number => "1.5",
        ValueType::Boolean => "perhaps",
        ValueType::Duration => "soon",
        ValueType::Secret => "No Name",
    };
    let described = subject.driver().description().options.iter();
    let described = described.map(|spec| (spec.key.as_str(), malformed(spec.value_type)));
    for (key, text) in described.chain([(UNKNOWN, "1")]) {
        ensure(!is_taken(key, text), || format!("option `{key}` would be taken as `{text}`"))?;
    }
    Ok(())
}

/// What a driver is given back may be of another version, or of another driver that had its name.
pub(super) fn state(subject: &mut Subject) -> Result<String, Stop> {
    let mut made = subject.made()?;
    subject.plan(&mut made)?;
    let mut cut = made.volume.state.clone();
    cut.pop();
    let foreign = [
        ("empty state", Vec::new()),
        ("state that was cut", cut),
        ("33 bytes of garbage", (0..33_u8).map(|n| n.wrapping_mul(151) ^ 0xa5).collect()),
        ("64 KiB of garbage", vec![0xa5; Cost::STATE_MAX]),
    ];
    let has = subject.abilities();
    let mut refused = 0;
    for (what, state) in &foreign {
        let volume = Volume { state: state.clone(), ..made.volume.clone() };
        let planned = subject.path(&volume);
        if subject.or_refused(&format!("`path` with {what}"), planned)?.is_none() {
            refused += 1;
        }
        if has.health {
            let told = subject.check(&volume);
            subject.or_refused(&format!("`check` with {what}"), told)?;
        }
        // Who answers with the state that it was given would be blamed for its length.
        if state.len() == Cost::STATE_MAX {
            continue;
        }
        if has.attachment {
            let detached = subject.detach_once(&volume);
            subject.or_refused(&format!("`detach` with {what}"), detached)?;
            let attached = subject.attach_once(&volume);
            subject.or_refused(&format!("`attach` with {what}"), attached)?;
        }
        if let Some(Value::Size(size)) = volume.options.get(SIZE)
            && has.resizing
        {
            let resized = subject.resize(&volume, size.saturating_mul(2));
            subject.or_refused(&format!("`resize` with {what}"), resized)?;
        }
        if has.population {
            let (filled, _) = abilities::fill(subject, &volume)?;
            subject.or_refused(&format!("`populate` with {what}"), filled)?;
        }
        if has.migration {
            let migrated = subject.migrate(&volume, abilities::OLDER);
            subject.or_refused(&format!("`migrate` with {what}"), migrated)?;
        }
    }
    for (what, state) in &foreign {
        let removed = subject.remove(&Volume { state: state.clone(), ..made.volume.clone() });
        subject.or_refused(&format!("`remove` with {what}"), removed)?;
    }
    Ok(if refused == 0 { String::new() } else { format!("`path` refuses {refused} of 4") })
}
