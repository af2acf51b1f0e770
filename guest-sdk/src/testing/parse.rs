//! The host's rules for what a user writes, so that a native test refuses what the host refuses.
//!
//! Called by `testing` alone. The rules are the contract's and stand in wit/README.md.

use crate::{Error, ErrorCode, Result, Value, ValueType};

/// Most bytes of one value.
const VALUE_MAX: usize = 4096;

/// One value of the given type.
pub(super) fn value(key: &str, value_type: ValueType, text: &str) -> Result<Value> {
    let refused = |what: &str| {
        let message = format!("option `{key}` is not {what}: `{}`", text.escape_debug());
        Error::new(ErrorCode::InvalidOption, message)
    };
    if text.len() > VALUE_MAX || text.chars().any(char::is_control) {
        return Err(refused("one line of at most 4096 bytes"));
    }
    let value = match value_type {
        ValueType::Text => Some(Value::Text(text.to_owned())),
        ValueType::Size => size(text).map(Value::Size),
        ValueType::Number => number(text).map(Value::Number),
        ValueType::Boolean => boolean(text).map(Value::Boolean),
        ValueType::Duration => duration(text).map(Value::Duration),
        ValueType::Secret => (!text.is_empty()).then(|| Value::Secret(text.to_owned())),
    };
    value.ok_or_else(|| refused(expected(value_type)))
}

fn expected(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::Text => "text",
        ValueType::Size => "a size, as in `512`, `64m` or `1g`",
        ValueType::Number => "a whole number",
        ValueType::Boolean => "`true` or `false`",
        ValueType::Duration => "a duration, as in `500ms`, `30s` or `5m`",
        ValueType::Secret => "the name of a secret",
    }
}

/// Splits `64m` where its digits end.
fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit))
}

fn size(text: &str) -> Option<u64> {
    let (count, unit) = digits(text)?;
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    count.checked_mul(1024_u64.checked_pow(power)?)
}

fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        // `-o key` arrives as an empty value.
        "" | "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn duration(text: &str) -> Option<u64> {
    let (count, unit) = digits(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return None,
    };
    count.checked_mul(milliseconds)
}
