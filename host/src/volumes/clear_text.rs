//! What looks like a password that was given in clear: by the name of an option, or inside of its text.
//!
//! Called where options are checked. Pure. It guesses, and rather too often: what it takes for a password is refused, and a secret is
//! always the way round. It never says what it has seen.

/// The last words of a name that stands for a password, in mount options, in URLs and in the configurations of programs.
const WORDS: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "pass",
    "pwd",
    "secret-key",
    "secret-access-key",
    "secretkey",
    "access-key-secret",
    "client-secret",
    "token",
    "api-key",
];

/// Whether an option of this name can only be a password.
pub(super) fn is_password_key(key: &str) -> bool {
    // cifs has `password2`.
    let key = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let key = key.to_ascii_lowercase().replace(['_', '.'], "-");
    WORDS.iter().any(|word| {
        key.strip_suffix(word).is_some_and(|before| before.is_empty() || before.ends_with('-'))
    })
}

/// Whether a text has a password in it: as `password=…` among other options, or as `//user:password@host`.
pub(super) fn holds_password(text: &str) -> bool {
    text.match_indices('=').any(|(at, _)| {
        let (before, after) = (text.get(..at), text.get(at + 1..));
        before.zip(after).is_some_and(|(before, after)| is_assigned(before, after))
    }) || text
        .match_indices("//")
        .any(|(at, slashes)| text.get(at + slashes.len()..).is_some_and(begins_with_password))
}

/// Whether the name before a `=` is a password's, and something is behind it.
fn is_assigned(before: &str, after: &str) -> bool {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let start = before.trim_end_matches(is_of_a_name).len();
    let key = before.get(start..).unwrap_or_default();
    let is_end = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&');
    // To ceph's mount it is the key itself.
    let is_named_so = is_password_key(key) || key.eq_ignore_ascii_case("secret");
    is_named_so && !after.starts_with(is_end) && !after.is_empty()
}

/// Whether the part of a URL behind its `//` begins with `user:password@`.
fn begins_with_password(rest: &str) -> bool {
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#'));
    let authority = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    let user = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
    user.is_some_and(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_ends_with_a_word_for_password_is_one() {
        for key in [
            "password",
            "Password2",
            "passwd",
            "pass",
            "smb_password",
            "secret_key",
            "aws_secret_access_key",
            "sas-token",
            "key.passphrase",
        ] {
            assert!(is_password_key(key), "{key}");
        }
    }

    #[test]
    fn a_name_that_only_resembles_one_is_none() {
        for key in
            ["bypass", "passthrough", "password-file", "secret", "keys", "tokens", "size", "", "2"]
        {
            assert!(!is_password_key(key), "{key}");
        }
    }

    #[test]
    fn a_password_is_found_inside_of_a_text() {
        for text in [
            "username=u,password=p",
            "addr=1.2.3.4,vers=3.0,PASS=p",
            "o=password=p",
            "name=admin,secret=AQ==",
            ":webdav,url='https://host',pass='p':path",
            "host?user=u&token=p",
            "https://user:p@host/path",
            "//user:p@host/share",
            "smb://domain;user:p@ss@host",
        ] {
            assert!(holds_password(text), "{text}");
        }
    }

    #[test]
    fn a_text_without_a_password_is_let_through() {
        for text in [
            "",
            "=",
            "password",
            "password=",
            "password=,username=u",
            "password_file=/etc/key",
            "addr=10.0.0.5,rw,vers=4.2",
            "https://host:8080/a@b",
            "https://user@host/path",
            "https://user:@host",
            "ssh://[::1]:22/path",
            "host:/export@snapshot",
            "a//b:c/d@e",
        ] {
            assert!(!holds_password(text), "{text}");
        }
    }
}
