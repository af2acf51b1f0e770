//! What a driver says that it needs, beside what it was granted; and how either is typed.
//!
//! Used by the command line, which asks an operator for what is missing, and by the daemon, which shows it. Nothing is granted by it:
//! what a plan may have is checked against the grants alone.

use wasmvol_plan::grants::grant_of;
use wasmvol_plan::mountinfo::is_beneath;

/// Grants of a path, and of all beneath it.
const PATHS: [&str; 2] = ["host-directory=", "device="];

/// The grants in a grants file.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let grants = text.lines().map(grant_of).filter(|grant| !grant.is_empty());
    grants.map(str::to_owned).collect()
}

/// What is asked for and was not granted.
pub(crate) fn missing(asked: &[String], granted: &[String]) -> Vec<String> {
    let is_met = |asked: &str| granted.iter().any(|granted| meets(granted, asked));
    asked.iter().filter(|asked| !is_met(asked)).cloned().collect()
}

/// Whether an operator has something to fill in: words of capitals stand for it, as in `share=nfs4:HOST`; in a path only one that is all
/// of it.
pub(crate) fn is_open(asked: &str) -> bool {
    fixed(asked).len() > 1
}

fn meets(granted: &str, asked: &str) -> bool {
    let pieces = fixed(asked);
    let [first, between @ .., last] = pieces.as_slice() else {
        return granted == asked || is_within(asked, granted);
    };
    let Some(mut rest) = granted.strip_prefix(first) else { return false };
    for piece in between {
        // What is filled in is not empty.
        let from = rest.chars().next().map_or(0, char::len_utf8);
        let Some((_, after)) = rest.get(from..).and_then(|rest| rest.split_once(piece)) else {
            return false;
        };
        rest = after;
    }
    rest.strip_suffix(last).is_some_and(|filled| !filled.is_empty())
}

/// Whether a grant of a directory or a device has what is asked for beneath it.
fn is_within(asked: &str, granted: &str) -> bool {
    let paths = |key: &str| Some((asked.strip_prefix(key)?, granted.strip_prefix(key)?));
    PATHS.iter().find_map(|key| paths(key)).is_some_and(|(asked, top)| is_beneath(asked, top))
}

/// What of it stands for itself: what is before, between and behind the words of capitals.
pub(crate) fn fixed(asked: &str) -> Vec<&str> {
    let from = PATHS.iter().find(|key| asked.starts_with(**key)).map_or(0, |key| key.len());
    let is_capital = |c: char| c.is_ascii_uppercase();
    if from > 0 {
        let (key, path) = asked.split_at(from);
        let is_hole = !path.is_empty() && path.chars().all(is_capital);
        return if is_hole { vec![key, ""] } else { vec![asked] };
    }
    let (mut pieces, mut begin) = (Vec::new(), 0);
    for word in asked.split(|c: char| !c.is_ascii_alphanumeric()) {
        if word.len() > 1 && word.chars().all(is_capital) {
            let at = word.as_ptr().addr() - asked.as_ptr().addr();
            pieces.push(asked.get(begin..at).unwrap_or_default());
            begin = at + word.len();
        }
    }
    pieces.push(asked.get(begin..).unwrap_or_default());
    pieces
}

/// A text as one word of a shell, with quotes where it needs them.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_is_asked_for_is_met_by_itself_or_by_whatever_fills_it_in() {
        let asked = words(&["image", "share=nfs4:HOST", "http=https://api.example", "dev"]);
        let granted = lines("# the team's\nimage # all of it\nshare=nfs4:10.0.0.0/8\n\nsuid\n");
        assert_eq!(missing(&asked, &granted), words(&["http=https://api.example", "dev"]));
        assert_eq!(missing(&asked, &[]), asked);
        let open: Vec<_> = asked.iter().filter(|asked| is_open(asked)).collect();
        assert_eq!(open, ["share=nfs4:HOST"]);
    }

    #[test]
    fn a_grant_meets_what_lies_beneath_it_and_no_other_path_that_looks_like_it() {
        for (asked, granted, is_met) in [
            ("host-directory=/srv/data", "host-directory=/srv", true),
            ("host-directory=/srv", "host-directory=/srv/data", false),
            ("host-directory=/srv/DATA", "host-directory=/srv/logs", false),
            ("host-directory=PATH", "host-directory=/srv/logs", true),
            ("device=/dev/disk/by-id", "device=/dev", true),
            ("device=/dev/disk", "host-directory=/dev", false),
            ("http=https://ec2.REGION.x.com", "http=https://ec2.eu-1.x.com", true),
            ("http=https://ec2.REGION.x.com", "http=https://ec2..x.com", false),
            ("http=https://ec2.REGION.x.com", "http=https://evil.com", false),
            ("reveal=SECRET", "reveal=ec2", true),
            ("reveal=SECRET", "reveal=", false),
        ] {
            let is_missing = !missing(&words(&[asked]), &words(&[granted])).is_empty();
            assert_eq!(is_missing, !is_met, "{asked} by {granted}");
        }
    }

    #[test]
    fn a_word_means_itself_to_a_shell() {
        assert_eq!(word("share=nfs4:10.0.0.0/8"), "share=nfs4:10.0.0.0/8");
        assert_eq!(word("host-directory=/it's $(reboot)"), r"'host-directory=/it'\''s $(reboot)'");
        assert_eq!(word(""), "''");
    }
}
