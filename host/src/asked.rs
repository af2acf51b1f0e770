//! What a driver says that it needs, beside what it was granted; and how either is typed.
//!
//! Used by the command line, which asks an operator for what is missing, and by the daemon, which shows it. Nothing is granted by it:
//! what a plan may have is checked against the grants alone.

use wasmvol_plan::grants::grant_of;

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

/// Whether an operator has something to fill in: capitals at the end of what is asked for stand for it, as in `share=nfs4:HOST`.
pub(crate) fn is_open(asked: &str) -> bool {
    fixed(asked).len() < asked.len()
}

fn meets(granted: &str, asked: &str) -> bool {
    if is_open(asked) { granted.starts_with(fixed(asked)) } else { granted == asked }
}

/// What of it stands for itself.
pub(crate) fn fixed(asked: &str) -> &str {
    asked.trim_end_matches(|c: char| c.is_ascii_uppercase())
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
    fn a_word_means_itself_to_a_shell() {
        assert_eq!(word("share=nfs4:10.0.0.0/8"), "share=nfs4:10.0.0.0/8");
        assert_eq!(word("host-directory=/it's $(reboot)"), r"'host-directory=/it'\''s $(reboot)'");
        assert_eq!(word(""), "''");
    }
}
