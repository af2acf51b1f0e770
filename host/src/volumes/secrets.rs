//! Secrets in options: what looks like a password that was given in clear, by the name of an option or inside of its text, and what is
//! said of a secret that cannot be spent.
//!
//! Called where options are checked. Pure. It guesses, and rather too often: what it takes for a password is refused, and a secret is
//! always the way round. It never says what it has seen.

use wasmvol_driver::{Description, OptionSpec, ValueType};
use wasmvol_plan::name::Quoted;
use wasmvol_plan::{DriverName, Fault, FaultKind};

use super::{VolumeError, options};

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

/// Whether an option that is no secret looks like a password given in clear: whoever may look at the volume would see it.
pub(super) fn is_in_clear(spec: Option<&OptionSpec>, key: &str, text: &str) -> bool {
    match spec.map(|spec| spec.value_type) {
        Some(ValueType::Secret) => false,
        Some(ValueType::Boolean) if options::boolean(text).is_some() => false,
        _ => {
            is_password_key(key) && !text.is_empty() || holds_password(text) || holds_password(key)
        }
    }
}

/// Says why that is refused and what to do instead. What was given is not repeated.
pub(super) fn in_clear(driver: &DriverName, description: &Description, key: &str) -> String {
    let what = if is_password_key(key) {
        format!("option {} looks like a password given in clear", Quoted::new(key))
    } else if holds_password(key) {
        "an option holds what looks like a password given in clear".to_owned()
    } else {
        format!("option {} holds what looks like a password given in clear", Quoted::new(key))
    };
    let why = "which everybody sees who may look at the volume";
    match description.options.iter().find(|spec| spec.value_type == ValueType::Secret) {
        Some(OptionSpec { key, .. }) => {
            let cure = set(driver);
            format!("{what}, {why}: keep it with `{cure}` and give `-o {key}=NAME`")
        }
        None => format!("{what}, {why}: leave it out, since `{driver}` takes no secret"),
    }
}

/// What an operator types so that a driver has a secret.
pub(super) fn set(driver: &DriverName) -> String {
    format!("wasmvol secret set NAME --driver {driver} [--peer HOST]")
}

/// Why a volume cannot be made with the secret that an option names. One that is not there may be the secret itself, given in the wrong
/// place: it is not repeated.
pub(super) fn no_secret(driver: &DriverName, key: &str, fault: Fault) -> VolumeError {
    match fault.kind {
        FaultKind::Missing => VolumeError::Option(format!(
            "option `{key}`: no secret of that name is kept: make it with `{}`",
            set(driver)
        )),
        FaultKind::Denied => VolumeError::Option(format!("option `{key}`: {fault}")),
        _ => fault.into(),
    }
}

/// Whether an option of this name can only be a password.
fn is_password_key(key: &str) -> bool {
    // cifs has `password2`.
    let key = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let key = key.to_ascii_lowercase().replace(['_', '.'], "-");
    WORDS.iter().any(|word| {
        key.strip_suffix(word).is_some_and(|before| before.is_empty() || before.ends_with('-'))
    })
}

/// Whether a text has a password in it: as `password=…` among other options, or as `//user:password@host`.
fn holds_password(text: &str) -> bool {
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
