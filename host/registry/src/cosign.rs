//! Signatures as cosign 2 makes them by key, and we: a payload that names the manifest's digest, signed with ECDSA on P-256, under a tag
//! beside it. Those of cosign 3 are [`bundle`](crate::bundle)'s.
//!
//! Verified without asking anybody: public keys are the operator's. Certificates and transparency logs are not looked at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{self, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey};
use serde_json::json;

use crate::artifact::{Descriptor, IMAGE_CONFIG, Manifest};
use crate::digest::Digest;
use crate::fetch::Found;
use crate::signature::Seen;
use crate::{Registry, RegistryError, sealed};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The type of a payload.
const TYPE: &str = "cosign container image signature";
/// Longest payload: ours have 250 bytes; who signs may add annotations.
const PAYLOAD_MAX: u64 = 64 << 10;
/// Signatures that are looked at, of one place.
pub(crate) const SIGNATURES_MAX: usize = 32;
/// The variable that cosign takes the password of its key from.
const PASSWORD: &str = "COSIGN_PASSWORD";

/// Whom signatures are believed.
#[derive(Debug, Default)]
pub struct Keys(Vec<(Signer, VerifyingKey)>);

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// What the key's file is called.
    pub key: String,
    /// `sha256:` and the digits of the public key's DER.
    pub fingerprint: String,
}

/// Who signs.
pub struct SigningKey {
    key: ecdsa::SigningKey,
    signer: Signer,
}

impl Keys {
    /// Adds a public key, PEM as in `cosign.pub`; `name` is what it is called in what is shown.
    ///
    /// # Errors
    /// It is no public key on P-256.
    pub fn add(&mut self, name: &str, pem: &str) -> Result<(), RegistryError> {
        let key = VerifyingKey::from_public_key_pem(pem);
        let key = key.map_err(|_| {
            let why = "is no public key on the curve P-256 in PEM, as `cosign generate-key-pair` and `openssl pkey -pubout` write it";
            RegistryError::Key(name.to_owned(), why.to_owned())
        })?;
        self.0.push((Signer::new(name, &key)?, key));
        Ok(())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key has made a signature of these bytes.
    pub(crate) fn signer_of(&self, payload: &[u8], signature: &str) -> Option<&Signer> {
        let der = STANDARD.decode(signature.trim()).ok()?;
        let signature = ecdsa::Signature::from_der(&der).ok()?;
        let mut made = self.0.iter().filter(|(_, key)| key.verify(payload, &signature).is_ok());
        made.next().map(|(signer, _)| signer)
    }
}

impl Signer {
    fn new(name: &str, key: &VerifyingKey) -> Result<Self, RegistryError> {
        let der = key.to_public_key_der().map_err(|_| {
            RegistryError::Key(name.to_owned(), "has no form that can be named".to_owned())
        })?;
        Ok(Self { key: name.to_owned(), fingerprint: Digest::of(der.as_bytes()).to_string() })
    }
}

impl SigningKey {
    /// A private key: PKCS#8 in PEM without a password, or cosign's own, whose password is in `COSIGN_PASSWORD`. `name` is what it is
    /// called in what is shown.
    ///
    /// # Errors
    /// It is neither, or the password is another.
    pub fn read(name: &str, pem: &str) -> Result<Self, RegistryError> {
        let refused = |why: &str| RegistryError::Key(name.to_owned(), why.to_owned());
        let key = if sealed::is_one(pem) {
            let password = std::env::var(PASSWORD)
                .map_err(|_| refused("has a password: give it by the variable COSIGN_PASSWORD"))?;
            let der = sealed::open(pem, &password).map_err(refused)?;
            ecdsa::SigningKey::from_pkcs8_der(&der).map_err(|_| refused(NO_KEY))?
        } else {
            ecdsa::SigningKey::from_pkcs8_pem(pem).map_err(|_| refused(NO_KEY))?
        };
        let signer = Signer::new(name, key.verifying_key())?;
        Ok(Self { key, signer })
    }

    /// Whose signatures it makes.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Puts a signature of a manifest beside it and those that are there.
    pub(crate) fn sign(&self, registry: &Registry, digest: &Digest) -> Result<(), RegistryError> {
        let payload = registry.json(&json!({
            "critical": {
                "identity": { "docker-reference": registry.reference.place() },
                "image": { "docker-manifest-digest": digest },
                "type": TYPE,
            },
            "optional": null,
        }))?;
        let signature: ecdsa::Signature = self.key.sign(&payload);
        let signature = STANDARD.encode(signature.to_der().as_bytes());
        let mut layer = Descriptor::new(PAYLOAD, &payload);
        layer.annotations.insert(SIGNATURE.to_owned(), signature.clone());
        let there = registry.manifest(&tag_of(digest))?.and_then(|found| found.manifest.ok());
        let mut layers = there.map(|manifest| manifest.layers).unwrap_or_default();
        // The same key makes the same signature.
        layers.retain(|layer| layer.annotations.get(SIGNATURE) != Some(&signature));
        layers.push(layer.clone());
        let parts: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
        let config = registry.json(&json!({
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": parts },
        }))?;
        let config_of = Descriptor::new(IMAGE_CONFIG, &config);
        registry.put_blob(&layer.digest, &payload, &|_, _| {})?;
        registry.put_blob(&config_of.digest, &config, &|_, _| {})?;
        registry.put_manifest(&tag_of(digest), &Manifest::new(config_of, layers)).map(drop)
    }
}

const NO_KEY: &str = "is no private key on the curve P-256 that can be read: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one, and `cosign generate-key-pair`";

/// Who of `keys` has signed a manifest under the tag beside it. Those signatures that do not count are noted in `seen`.
pub(crate) fn signer(
    keys: &Keys,
    registry: &Registry,
    digest: &Digest,
    seen: &mut Seen,
) -> Result<Option<Signer>, RegistryError> {
    let found = seen.unless_unreadable(registry.manifest(&tag_of(digest)))?;
    let Some(Found { manifest, .. }) = found.flatten() else { return Ok(None) };
    let layers = manifest.map(|manifest| manifest.layers).unwrap_or_default();
    let is_one = |layer: &&Descriptor| layer.media_type == PAYLOAD;
    let count = layers.iter().filter(is_one).count();
    // The tag alone says that somebody has signed, even if what it holds is no signature.
    seen.count += count.max(1);
    for layer in layers.iter().filter(is_one).take(SIGNATURES_MAX) {
        let Some(signature) = layer.annotations.get(SIGNATURE) else { continue };
        let payload = registry.blob(layer, "signature", PAYLOAD_MAX);
        let Some(payload) = seen.unless_unreadable(payload)? else { continue };
        let Some(signer) = keys.signer_of(&payload, signature) else { continue };
        match named_by(&payload) {
            Some(named) if named == digest.as_str() => return Ok(Some(signer.clone())),
            _ => seen.of_others = true,
        }
    }
    if count > SIGNATURES_MAX {
        seen.passed_over(format!(
            "none of the first {SIGNATURES_MAX} of {count} signatures is by a key that is trusted here"
        ));
    }
    Ok(None)
}

/// The tag of a manifest's signatures.
fn tag_of(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The manifest that a payload is about, if it is one.
fn named_by(payload: &[u8]) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let text = |path: &str| payload.pointer(path)?.as_str();
    let is_one = text("/critical/type") == Some(TYPE);
    text("/critical/image/docker-manifest-digest").filter(|_| is_one).map(str::to_owned)
}
