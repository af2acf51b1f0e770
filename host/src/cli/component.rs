//! Where a component comes from, a file or a registry, and whether it may be believed: the one place that tells them apart.
//!
//! Used by every command that takes `FILE|REF`. Here the operator's policy of signatures is kept: the daemon asks no registry, and
//! takes what root's command line hands to it.

use std::path::{Path, PathBuf};

use wasmvol_driver::{COMPONENT_MAX, check_interfaces};
use wasmvol_registry::{Keys, Reference, Registry, RegistryError, Signature, Signer};

use super::output::{Output, size};
use super::progress::Progress;
use super::rooted::RootedDir;
use super::{CliError, ConfigFile, serve};
use crate::catalog::{Origin, SignedBy};
use crate::config::{Config, KEYS, Signatures};

/// Ending of the files that are keys.
const KEY_ENDING: &str = ".pub";
/// Longest such file: one has 178 bytes.
const KEY_MAX: usize = 16 << 10;

/// How a registry is spoken to.
#[derive(Debug, clap::Args)]
pub(super) struct PlainHttp {
    /// Speak HTTP without TLS [default: to this machine's own addresses only]
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    plain_http: Option<bool>,
}

impl PlainHttp {
    pub(super) fn open(&self, reference: &Reference) -> Registry {
        Registry::open(reference, self.plain_http)
    }
}

/// How what is no file is fetched.
#[derive(Debug, clap::Args)]
pub(super) struct Fetching {
    #[command(flatten)]
    pub(super) config: ConfigFile,
    #[command(flatten)]
    plain_http: PlainHttp,
}

/// What is larger takes seconds to compile, and more where others compute.
const LARGE: usize = 2 << 20;

/// Says what takes so long to compile, if it will.
pub(super) fn announce(component: &[u8], output: &Output) {
    if component.len() > LARGE {
        let bytes = size(u64::try_from(component.len()).unwrap_or(u64::MAX));
        output.note(&format!("wasmvol: compiling {bytes}, which may take a minute …"));
    }
}

/// Whether a signature decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// As `wasmvol.toml` says.
    Configured,
    /// The same, but for what has no signature where one is required.
    Unsigned,
    /// It is shown to the operator and used for nothing.
    ToBeSeen,
}

/// A component, whole.
#[derive(Debug)]
pub(super) struct Component {
    /// What it was asked for by, in backticks: errors about it begin with that.
    pub(super) shown: String,
    pub(super) bytes: Vec<u8>,
    /// Of one that came from a registry.
    pub(super) pulled: Option<Pulled>,
}

/// What is known of a component that came from a registry.
#[derive(Debug)]
pub(super) struct Pulled {
    /// The reference with the digest in place of the tag.
    pub(super) pinned: String,
    pub(super) origin: Origin,
    /// Whose signature it has, in words.
    pub(super) signature: String,
}

impl Component {
    /// Reads a file, or fetches what a reference names.
    pub(super) fn open(place: &Path, fetching: &Fetching, trust: Trust) -> Result<Self, CliError> {
        let is_path = place.exists() || place.as_os_str().as_encoded_bytes().starts_with(b"/");
        let text = place.to_str().filter(|text| !is_path && !text.starts_with('.'));
        let shown = format!("`{}`", place.display());
        let Some(text) = text else { return Self::read(place, shown, fetching, trust) };
        let reference: Reference = text.parse().map_err(|e| match e {
            RegistryError::Reference(..) => {
                CliError::Refused(format!("no file is called that, and {e}"))
            }
            other => other.into(),
        })?;
        Self::pull(&reference, fetching, trust)
    }

    /// Fetches what a reference names. What can be refused is refused before it is downloaded.
    pub(super) fn pull(
        reference: &Reference,
        fetching: &Fetching,
        trust: Trust,
    ) -> Result<Self, CliError> {
        let shown = format!("`{reference}`");
        let refused = |why: String| CliError::Refused(format!("{shown}: {why}"));
        let policy = Policy::read(&fetching.config, trust)?;
        let registry = fetching.plain_http.open(reference);
        let keys = policy.keys(&fetching.config)?;
        let offer = registry.look(COMPONENT_MAX as u64)?;
        check_interfaces(offer.imports(), offer.exports())
            .map_err(|why| refused(why.to_string()))?;
        let signature = match (keys.is_empty(), trust) {
            (true, _) => Signature::NotLookedAt,
            // What is only shown keeps nobody from looking at the component.
            (false, Trust::ToBeSeen) => registry
                .signature(&offer, &keys)
                .unwrap_or_else(|e| Signature::Unclear(e.to_string())),
            (false, _) => registry.signature(&offer, &keys)?,
        };
        policy.judge(&signature).map_err(refused)?;
        let mut progress = Progress::new();
        let fetched = registry.fetch(&offer, &mut |done, size| progress.show(done, size));
        progress.end();
        let words = policy.words(&signature);
        let signed_by = match signature {
            Signature::By(signer) => Some(signer.into()),
            _ => None,
        };
        let (given, digest) = (reference.to_string(), offer.digest().to_owned());
        let pulled = Pulled {
            pinned: reference.pinned(&digest),
            origin: Origin { reference: given, digest, signed_by },
            signature: words,
        };
        Ok(Self { bytes: fetched?, pulled: Some(pulled), shown })
    }

    fn read(
        file: &Path,
        shown: String,
        fetching: &Fetching,
        trust: Trust,
    ) -> Result<Self, CliError> {
        let policy = Policy::read(&fetching.config, trust)?;
        if policy.is_required() && !came_with_wasmvol(file) {
            let why = format!("a file has no signature, and {REQUIRED}");
            return Err(CliError::Refused(format!("{shown}: {why}")));
        }
        let bytes = std::fs::read(file).map_err(CliError::io(shown.clone()))?;
        Ok(Self { shown, bytes, pulled: None })
    }
}

/// What the operator says of signatures, for one command.
struct Policy {
    says: Signatures,
    trust: Trust,
    /// Where keys lie, in backticks.
    place: String,
}

impl Policy {
    fn read(config: &ConfigFile, trust: Trust) -> Result<Self, CliError> {
        let file = config.path()?;
        let says = Config::read(&file)?.signatures();
        Ok(Self { says, trust, place: format!("`{}`", file.with_file_name(KEYS).display()) })
    }

    /// Whether what has no signature is refused.
    fn is_required(&self) -> bool {
        self.says == Signatures::Required && self.trust == Trust::Configured
    }

    /// Those that signatures are looked at with.
    fn keys(&self, config: &ConfigFile) -> Result<Keys, CliError> {
        if self.says == Signatures::Off { Ok(Keys::default()) } else { keys_in(config) }
    }

    /// Refuses what may not come in.
    fn judge(&self, signature: &Signature) -> Result<(), String> {
        let place = &self.place;
        match signature {
            _ if self.trust == Trust::ToBeSeen => Ok(()),
            Signature::Refused(why) => Err(format!("{why}: keys lie in {place}")),
            Signature::Unclear(why) => {
                Err(format!("{why}: remove that from the registry, and sign anew what was signed"))
            }
            Signature::Missing if self.is_required() => {
                Err(format!("it is not signed, and {REQUIRED}"))
            }
            Signature::NotLookedAt if self.is_required() => {
                Err(format!("no key is in {place} that could verify it, and {REQUIRED}"))
            }
            _ => Ok(()),
        }
    }

    /// What is known of a signature, in words.
    fn words(&self, signature: &Signature) -> String {
        match signature {
            Signature::By(signer) => signed(Some(signer)),
            Signature::Missing => signed(None),
            Signature::Refused(why) | Signature::Unclear(why) => format!("not verified: {why}"),
            Signature::NotLookedAt if self.says == Signatures::Off => {
                "not verified: `signatures` is `off`".to_owned()
            }
            Signature::NotLookedAt => format!("not verified: no key is in {}", self.place),
        }
    }
}

/// Whose signature something has, in words.
pub(super) fn signed(by: Option<&Signer>) -> String {
    match by {
        Some(signer) => format!("signed by `{}` ({})", signer.key, signer.fingerprint),
        None => "not signed".to_owned(),
    }
}

impl From<Signer> for SignedBy {
    fn from(Signer { key, fingerprint }: Signer) -> Self {
        Self { key, fingerprint }
    }
}

/// Why something is refused that has no signature.
const REQUIRED: &str =
    "wasmvol.toml says `signatures = \"required\"`: say `--unsigned` for this one";

/// Whether a file is one of the drivers that were installed with this program: who believes one believes the other.
fn came_with_wasmvol(file: &Path) -> bool {
    let theirs = || {
        let program = std::env::current_exe().ok()?;
        serve::first_party(program.parent()?)?.canonicalize().ok()
    };
    file.canonicalize().is_ok_and(|file| file.parent().map(Path::to_owned) == theirs())
}

/// The operator's public keys, from beside the configuration; none where there is no directory of them.
fn keys_in(config: &ConfigFile) -> Result<Keys, CliError> {
    let mut keys = Keys::default();
    let directory: PathBuf = config.directory()?;
    if !directory.join(KEYS).exists() {
        return Ok(keys);
    }
    let directory = RootedDir::open(directory)?.inside(KEYS)?;
    let shown = || format!("`{KEYS}`");
    for file in directory.names().map_err(CliError::io(shown()))? {
        let Some(name) = file.strip_suffix(KEY_ENDING) else { continue };
        let read = directory.read(&file, KEY_MAX).map_err(CliError::io(directory.shown(&file)))?;
        // One that has just gone is none.
        let Some((bytes, _)) = read else { continue };
        keys.add(name, &String::from_utf8_lossy(&bytes))
            .map_err(|e| CliError::Refused(format!("{KEYS}: {e}")))?;
    }
    Ok(keys)
}
