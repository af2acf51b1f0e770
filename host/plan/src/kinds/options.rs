//! Options of a mount, typed so that nothing can be smuggled into a string: a kind says which keys it takes.

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::Fault;
use crate::name::Quoted;

/// Most options of one mount: the longest lists of nfs(5) and mount.cifs(8) have fewer.
const OPTIONS_MAX: usize = 64;
/// Longest key and text in bytes: the kernel takes 256 for a text, programs more.
const KEY_MAX: usize = 64;
const TEXT_MAX: usize = 1024;

/// One option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOption {
    /// Its name, as the file system or the program knows it.
    pub key: String,
    /// What it is set to.
    pub value: MountValue,
}

/// What an option is set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountValue {
    /// It is there, without a value.
    Present,
    /// A text without commas and control characters.
    Text(String),
    /// A number.
    Number(u64),
    /// The name of a secret, never its bytes.
    Secret(String),
}

/// Says whether options are plain, and each key at most once there.
pub(super) fn check(options: &[MountOption]) -> Result<(), Fault> {
    if options.len() > OPTIONS_MAX {
        return invalid(format!("a mount has over {OPTIONS_MAX} options: use fewer"));
    }
    for (at, MountOption { key, value }) in options.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if key.is_empty() || key.len() > KEY_MAX || !key.chars().all(plain) {
            return invalid(format!("{} is no mount option", Quoted::new(key)));
        }
        if options.iter().take(at).any(|other| other.key == *key) {
            return invalid(format!("mount option `{key}` is there twice"));
        }
        let (MountValue::Text(text) | MountValue::Secret(text)) = value else { continue };
        if text.len() > TEXT_MAX || text.contains(|c: char| c == ',' || c.is_control()) {
            return invalid(format!(
                "mount option `{key}` has a comma, a control character or over {TEXT_MAX} bytes"
            ));
        }
    }
    Ok(())
}

/// The secret that one of the options names, if any.
pub fn secret(options: &[MountOption]) -> Option<(&str, &str)> {
    options.iter().find_map(|option| match &option.value {
        MountValue::Secret(name) => Some((option.key.as_str(), name.as_str())),
        _ => None,
    })
}
