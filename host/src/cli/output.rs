//! How answers look: tables with aligned columns for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::client::{ClientError, parse};

/// Where answers go.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour }
    }

    /// Prints what the daemon answered: as it is, or as `people` prints it.
    pub(super) fn answer<T: DeserializeOwned>(
        &self,
        answer: &Bytes,
        people: impl FnOnce(T),
    ) -> Result<(), ClientError> {
        if self.json {
            print(&[answer.as_ref(), b"\n"].concat());
        } else {
            people(parse(answer)?);
        }
        Ok(())
    }

    /// Prints what this program itself found or did: as JSON, or as `people` prints it.
    pub(super) fn own<T: Serialize>(
        &self,
        value: &T,
        people: impl FnOnce(&T),
    ) -> Result<(), ClientError> {
        if self.json {
            let bytes = serde_json::to_vec(value).map_err(ClientError::Answer)?;
            print(&[bytes.as_slice(), b"\n"].concat());
        } else {
            people(value);
        }
        Ok(())
    }

    /// Prints a message about what is printed as data; as JSON that says it itself.
    pub(super) fn note(&self, text: &str) {
        if !self.json {
            say(text);
        }
    }

    /// Prints data as it is, for a pipe.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        print(bytes);
    }

    /// Prints one line.
    pub(super) fn line(&self, text: &str) {
        print(format!("{text}\n").as_bytes());
    }

    /// Prints rows under their heads, every column as wide as its widest cell. Without rows nothing but a message appears.
    pub(super) fn table<const N: usize>(&self, heads: [&str; N], rows: &[[String; N]], none: &str) {
        if rows.is_empty() {
            say(none);
            return;
        }
        let heads = heads.map(str::to_owned);
        let mut text = String::new();
        for (index, line) in lines(&heads, rows).into_iter().enumerate() {
            if index == 0 {
                self.emphasise(&mut text, &line);
            } else {
                text.push_str(&line);
            }
            text.push('\n');
        }
        print(text.as_bytes());
    }

    /// Prints names and values, the values aligned.
    pub(super) fn fields(&self, fields: &[(&str, String)]) {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
        let mut text = String::new();
        for (name, value) in fields {
            let padded = format!("{name:<width$}");
            self.emphasise(&mut text, &padded);
            text.push_str(value);
            text.push('\n');
        }
        print(text.as_bytes());
    }

    fn emphasise(&self, text: &mut String, part: &str) {
        if self.colour {
            // Writing to a string cannot fail.
            let _ = write!(text, "\x1b[1m{part}\x1b[0m");
        } else {
            text.push_str(part);
        }
    }
}

fn lines<const N: usize>(heads: &[String; N], rows: &[[String; N]]) -> Vec<String> {
    let all = || std::iter::once(heads).chain(rows);
    let mut widths = [0; N];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    all()
        .map(|row| {
            let cells: Vec<_> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("   ").trim_end().to_owned()
        })
        .collect()
}

/// Bytes as people say them: binary units, as in options.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = UNITS.iter();
    let mut name = unit.next();
    while tenths >= 10_240 {
        tenths /= 1024;
        name = unit.next().or(name);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, name.unwrap_or(&""))
}

/// How long ago a time was, in the largest unit that there is one of; nothing of what is no time.
pub(super) fn age(time: &str) -> Option<String> {
    let then = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    Some(ago((OffsetDateTime::now_utc() - then).whole_seconds()))
}

fn ago(seconds: i64) -> String {
    match seconds {
        // Somebody may have set the clock.
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Prints a message for a person.
pub(super) fn say(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks a person, and answers the line that is typed.
pub(super) fn ask(question: &str) -> std::io::Result<String> {
    let mut stderr = std::io::stderr();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush())?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line)
}

fn print(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // The reader of a pipe may have had enough.
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() {
        let rows = [["a".to_owned(), "xyz".to_owned()], ["long".to_owned(), String::new()]];
        let heads = ["N".to_owned(), "V".to_owned()];
        assert_eq!(lines(&heads, &rows), ["N      V", "a      xyz", "long"]);
    }

    #[test]
    fn an_age_has_one_unit() {
        let cases = [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86_400 * 3, "3 d")];
        for (seconds, text) in cases {
            assert_eq!(ago(seconds), text);
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (64 << 20, "64.0 MiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size((3 << 30) / 2), "1.5 GiB");
        assert_eq!(size(u64::MAX), "15.9 EiB");
    }
}
