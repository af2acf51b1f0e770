//! A size as people write it: the contract's rule, for settings and for tests.
//!
//! A driver gets its options parsed; the host's parser keeps the same table, wit/since_v0.1.0/values.tsv.

/// Splits `64m` where its digits end.
pub(crate) fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit))
}

/// A size in bytes.
pub(crate) fn parse(text: &str) -> Option<u64> {
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
