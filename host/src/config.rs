//! `wasmvol.toml`: what the operator decides for the whole daemon. A file that is not there decides nothing.
//!
//! Read by `wasmvol serve` as root; the daemon gets what it needs as arguments. Grants are not in it: they lie beside it, in
//! `grants.d`, one file a driver.

use std::path::Path;

use serde::Deserialize;
use wasmvol_plan::DriverName;

/// The file's name, and where it is looked for.
pub(crate) const DEFAULT: &str = "/etc/wasmvol/wasmvol.toml";
/// The directory of grants, beside the file.
pub(crate) const GRANTS: &str = "grants.d";
/// The directory of public keys that components are signed by, beside the file.
pub(crate) const KEYS: &str = "keys.d";
/// The driver of a volume that names none, unless the file says otherwise.
const DEFAULT_DRIVER: &str = "local";
/// What is logged, unless the file says otherwise.
const LOG: &str = "info";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Config {
    default_driver: Option<DriverName>,
    log: Option<String>,
    signatures: Option<Signatures>,
}

/// What signatures decide of components that the command line loads or pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Signatures {
    /// Nothing comes in that none of the keys has signed.
    Required,
    /// What is signed is signed by one of the keys, if there is any.
    #[default]
    IfPresent,
    /// Nobody looks.
    Off,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("`{0}` cannot be read: {1}")]
    Read(String, std::io::Error),
    #[error("`{0}`: {1}")]
    Parse(String, String),
}

impl Config {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|why| ConfigError::Parse(shown, why)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(ConfigError::Read(shown, e)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let at = e.span().map_or(0, |span| span.start);
            let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
            format!("line {line}: {}", e.message())
        })
    }

    /// The driver of a volume that names none.
    pub(crate) fn default_driver(&self) -> &str {
        self.default_driver.as_ref().map_or(DEFAULT_DRIVER, DriverName::as_str)
    }

    /// What is logged: `error`, `warn`, `info`, `debug`, or directives of tracing's.
    pub(crate) fn log(&self) -> &str {
        self.log.as_deref().unwrap_or(LOG)
    }

    /// What signatures decide.
    pub(crate) fn signatures(&self) -> Signatures {
        self.signatures.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_decides_nothing() {
        let config = Config::parse("").unwrap();
        assert_eq!((config.default_driver(), config.log()), ("local", "info"));
        assert_eq!(config.signatures(), Signatures::IfPresent);
    }

    #[test]
    fn every_key_is_taken() {
        let text = "default-driver = \"tmpfs\"\nlog = \"debug\"\nsignatures = \"required\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!((config.default_driver(), config.log()), ("tmpfs", "debug"));
        assert_eq!(config.signatures(), Signatures::Required);
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line() {
        let error = Config::parse("log = \"info\"\ndefault-drivr = \"tmpfs\"\n").unwrap_err();
        assert!(error.starts_with("line 2: unknown field `default-drivr`"), "{error}");
    }

    #[test]
    fn a_driver_that_is_no_name_is_refused() {
        let error = Config::parse("default-driver = \"../x\"\n").unwrap_err();
        assert!(error.contains("driver name `../x` is not allowed"), "{error}");
    }
}
