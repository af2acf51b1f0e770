//! The host's rules for what a user writes, so that a native test refuses what the host refuses.
//!
//! Called by `testing` alone. The rules are the contract's: wit/since_v0.1.0/values.tsv has them as a table, which the test here
//! and the host's parser both keep.

use crate::size::{self, digits};
use crate::{Error, ErrorCode, Result, Value, ValueType};

/// Most bytes of one value: the longest path of Linux.
const VALUE_MAX: usize = 4096;

/// Most bytes of a secret's name.
const SECRET_MAX: usize = 64;

/// One value of the given type.
pub(super) fn value(key: &str, value_type: ValueType, text: &str) -> Result<Value> {
    let refused = |what: &str| {
        let message = match value_type {
            // It may be the secret itself, given in the wrong place: it is not repeated.
            ValueType::Secret => format!("option `{key}` is not {what}"),
            _ => format!("option `{key}` is not {what}: `{text}`"),
        };
        Error::new(ErrorCode::InvalidOption, message)
    };
    if text.len() > VALUE_MAX || text.chars().any(char::is_control) {
        let message = format!("option `{key}` is not one line of at most {VALUE_MAX} bytes");
        return Err(Error::new(ErrorCode::InvalidOption, message));
    }
    let value = match value_type {
        ValueType::Text => Some(Value::Text(text.to_owned())),
        ValueType::Size => size::parse(text).map(Value::Size),
        ValueType::Number => number(text).map(Value::Number),
        ValueType::Boolean => boolean(text).map(Value::Boolean),
        ValueType::Duration => duration(text).map(Value::Duration),
        ValueType::Secret => secret(text).map(Value::Secret),
    };
    value.ok_or_else(|| refused(expected(value_type)))
}

fn expected(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::Text => "text",
        ValueType::Size => "a size: a number with `k`, `m`, `g` or `t`, such as `64m`",
        ValueType::Number => "a whole number; with a leading 0 it is octal",
        ValueType::Boolean => "`true` or `false`",
        ValueType::Duration => "a duration: a number with `ms`, `s`, `m` or `h`, such as `30s`",
        ValueType::Secret => "the name of a secret: lower-case letters, digits and `-`",
    }
}

fn number(text: &str) -> Option<i64> {
    let (sign, rest) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (_, "") = digits(rest)? else { return None };
    let radix = if rest.len() > 1 && rest.starts_with('0') { 8 } else { 10 };
    i64::from_str_radix(rest, radix).ok()?.checked_mul(sign)
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

fn secret(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let named =
        (1..=SECRET_MAX).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(plain);
    named.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's table: type, what a user writes, what a driver gets.
    const TABLE: &str = include_str!("../../../wit/since_v0.1.0/values.tsv");

    #[test]
    fn the_contracts_table_is_kept() {
        let mut rows = 0;
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let cells: Vec<_> = line.split('\t').collect();
            let [name, text, meaning] = cells[..] else { panic!("three cells: `{line}`") };
            let value_type = match name {
                "text" => ValueType::Text,
                "size" => ValueType::Size,
                "number" => ValueType::Number,
                "boolean" => ValueType::Boolean,
                "duration" => ValueType::Duration,
                "secret" => ValueType::Secret,
                _ => panic!("no type: `{line}`"),
            };
            let value = value("key", value_type, text);
            let shown = value.map_or_else(
                |_| "refused".to_owned(),
                |value| match value {
                    Value::Text(text) | Value::Secret(text) => text,
                    Value::Size(count) | Value::Duration(count) => count.to_string(),
                    Value::Number(number) => number.to_string(),
                    Value::Boolean(flag) => flag.to_string(),
                },
            );
            assert_eq!(shown, meaning, "{line}");
            rows += 1;
        }
        assert!(rows > 0);
    }

    #[test]
    fn no_type_takes_two_lines_or_more_than_the_limit() {
        let long = "1".repeat(VALUE_MAX + 1);
        for text in ["1\n2", "1\u{0}", "\u{1b}[31m", &long] {
            let error = value("key", ValueType::Text, text).expect_err("refused");
            assert!(error.message.starts_with("option `key` is not one line"), "{error}");
            assert!(!error.message.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        let error = value("key", ValueType::Secret, "hunter2!").expect_err("refused");
        assert!(!error.message.contains("hunter2"), "{error}");
    }
}
