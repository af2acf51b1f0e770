//! Signatures as cosign 3 makes them by key: a sigstore bundle, whose envelope holds a statement about the manifest's digest. The registry
//! lists it among what refers to the manifest.
//!
//! Verified without asking anybody, as [`cosign`](crate::cosign) does: certificates, time stamps and log entries are not looked at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use ureq::http::{Method, StatusCode, header};

use crate::artifact::{Descriptor, INDEX};
use crate::client::Ask;
use crate::cosign::{Keys, SIGNATURES_MAX, Signer};
use crate::digest::Digest;
use crate::signature::Seen;
use crate::{Registry, RegistryError};

pub(crate) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What a list may say instead: ghcr.io and cosign itself, where it writes the list, tell the type of the config, which is empty.
pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The type of what an envelope holds.
const STATEMENT: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What makes a statement a signature. Others tell how a component was built, or of what: by the same key, and no promise that it may run.
pub(crate) const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
/// Where a list and a manifest may say what a bundle states.
const PREDICATE: &str = "/annotations/dev.sigstore.bundle.predicateType";
/// What is downloaded to see whether it is a signature, where its list does not tell: at two small answers each, so many are within the
/// look's deadline.
pub(crate) const LOOKED_AT_MAX: usize = 128;
/// Longest bundle: one of a key has 1 KiB, with a log entry and time stamps some 12.
pub(crate) const BUNDLE_MAX: u64 = 256 << 10;
/// Longest page of what refers to a manifest: 300 bytes each.
pub(crate) const INDEX_MAX: u64 = 1 << 20;
/// Most pages of it: of 100 entries each, as registries make them, more than anybody has there.
pub(crate) const PAGES_MAX: usize = 16;
/// Most that is kept of them in memory: more than are looked at.
const REFERRERS_MAX: usize = 4096;

/// What refers to a manifest. It is anybody's: one that makes no sense takes nothing away from the others.
#[derive(Deserialize)]
struct Index {
    /// `null` is how some write that there is nothing.
    manifests: Option<Vec<Value>>,
}

/// One of them, as far as its list tells.
struct Referrer {
    digest: Option<String>,
    artifact_type: Option<String>,
    /// What a statement in it would say.
    predicate: Option<String>,
}

impl Referrer {
    fn new(listed: &Value) -> Self {
        let text = |path| listed.pointer(path).and_then(Value::as_str).map(str::to_owned);
        Self {
            digest: text("/digest"),
            artifact_type: text("/artifactType"),
            predicate: text(PREDICATE),
        }
    }

    /// Whether it may be a signature.
    fn may_sign(&self) -> bool {
        matches!(self.artifact_type.as_deref(), None | Some(BUNDLE | EMPTY))
            && matches!(self.predicate.as_deref(), None | Some(SIGNED))
    }
}

/// A part of the list.
struct Page {
    referrers: Vec<Referrer>,
    /// Where the next one is.
    next: Option<String>,
}

/// Whoever says that it is a signature comes first.
fn sort(referrers: &mut [Referrer]) {
    referrers.sort_by_key(|referrer| referrer.predicate.is_none());
}

/// What the `Link` of an answer calls the next page.
fn next_of(link: &str) -> Option<&str> {
    let mut links = link.split('<').filter_map(|link| link.split_once('>'));
    links.find(|(_, what)| what.replace('"', "").contains("rel=next")).map(|(target, _)| target)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<OfEnvelope>,
}

#[derive(Deserialize)]
struct OfEnvelope {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digests,
}

#[derive(Deserialize)]
struct Digests {
    sha256: Option<String>,
}

/// Who of `keys` has signed a manifest by a bundle that refers to it. Those that do not count are noted in `seen`.
pub(crate) fn signer(
    keys: &Keys,
    registry: &Registry,
    digest: &Digest,
    seen: &mut Seen,
) -> Result<Option<Signer>, RegistryError> {
    let referrers = registry.referrers(digest, seen)?;
    let count = referrers.len();
    for referrer in referrers.into_iter().take(LOOKED_AT_MAX) {
        let bundle = seen.unless_unreadable(registry.bundle(&referrer))?.flatten();
        let signer = bundle.and_then(|bundle| signer_of(keys, &bundle, digest, seen));
        if signer.is_some() {
            return Ok(signer);
        }
    }
    if count > LOOKED_AT_MAX {
        seen.passed_over(format!(
            "{count} things refer to it that may be its signature, and none of the first {LOOKED_AT_MAX} is one that counts"
        ));
    }
    Ok(None)
}

/// The same, of one bundle. What is no signature of a component at all is as if it were not there.
fn signer_of(keys: &Keys, bundle: &[u8], digest: &Digest, seen: &mut Seen) -> Option<Signer> {
    let Bundle { dsse_envelope: envelope } = serde_json::from_slice(bundle).ok()?;
    let payload = STANDARD.decode(&envelope.payload).ok()?;
    let statement: Statement = serde_json::from_slice(&payload).ok()?;
    let types = [&envelope.payload_type, &statement.statement_type, &statement.predicate_type];
    if types.map(String::as_str) != [STATEMENT, STATEMENT_TYPE, SIGNED] {
        return None;
    }
    seen.count += 1;
    let encoded =
        [format!("DSSEv1 {} {STATEMENT} {} ", STATEMENT.len(), payload.len()).as_bytes(), &payload]
            .concat();
    let signatures = envelope.signatures.iter().take(SIGNATURES_MAX);
    let signer = signatures.filter_map(|made| keys.signer_of(&encoded, &made.sig)).next()?;
    let is_this = |subject: &Subject| subject.digest.sha256.as_deref() == Some(digest.hex());
    if statement.subject.iter().any(is_this) {
        return Some(signer.clone());
    }
    seen.of_others = true;
    None
}

impl Registry {
    /// What refers to a manifest: by the registry's own list, or under the tag that stands for it where a registry keeps none.
    fn referrers(&self, digest: &Digest, seen: &mut Seen) -> Result<Vec<Referrer>, RegistryError> {
        let listed = self.url(&format!("referrers/{digest}"));
        let tagged = self.url(&format!("manifests/sha256-{}", digest.hex()));
        for url in [listed, tagged] {
            let Some(Some(first)) = seen.unless_unreadable(self.page(url))? else { continue };
            let Page { mut referrers, mut next } = first;
            sort(&mut referrers);
            for _ in 1..PAGES_MAX {
                // What another server says is not this registry's list.
                let Some(url) = next.take_if(|next| self.is_own(next)) else { break };
                let page = seen.unless_unreadable(self.page(url))?.flatten();
                let Some(page) = page else {
                    seen.passed_over("the list of what refers to it breaks off".to_owned());
                    break;
                };
                referrers.extend(page.referrers);
                sort(&mut referrers);
                // No more than these are looked at, and of others only whether there are more.
                referrers.truncate(REFERRERS_MAX);
                next = page.next;
            }
            if next.is_some() {
                seen.passed_over(format!("its registry's list of what refers to it goes on elsewhere, or after {PAGES_MAX} pages"));
            }
            return Ok(referrers);
        }
        Ok(Vec::new())
    }

    /// A page of such a list, if there is one.
    fn page(&self, url: String) -> Result<Option<Page>, RegistryError> {
        let headers = [(header::ACCEPT, INDEX)];
        let answer = self.ask(&Ask::new(Method::GET, url).with(&headers))?;
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_index = kind.is_some_and(|kind| kind.starts_with(INDEX));
        match answer.status() {
            StatusCode::OK if is_index => {}
            // What a registry says that has never heard of such lists.
            StatusCode::OK
            | StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE => return Ok(None),
            _ => return Err(self.refusal(answer)),
        }
        let links = answer.headers().get_all(header::LINK).iter();
        let next = links.filter_map(|link| link.to_str().ok()).find_map(next_of);
        let next = next.map(|next| self.located(next));
        let bytes = self.read(answer, "list of referrers", INDEX_MAX)?;
        let Index { manifests } = self.parse(&bytes, "list of referrers")?;
        let listed = manifests.iter().flatten().map(Referrer::new);
        let referrers = listed.filter(Referrer::may_sign).collect();
        Ok(Some(Page { referrers, next }))
    }

    /// The bundle of a referrer, if it is one that may be a signature.
    fn bundle(&self, referrer: &Referrer) -> Result<Option<Vec<u8>>, RegistryError> {
        let at = Digest::parse(referrer.digest.as_deref().unwrap_or_default())?;
        let Some((bytes, _)) = self.manifest_bytes(at.as_str())? else {
            return Err(RegistryError::Absent(self.reference.to_string()));
        };
        let manifest: Value = self.parse(&bytes, "manifest")?;
        let text = |path| manifest.pointer(path).and_then(Value::as_str);
        if text("/layers/0/mediaType") != Some(BUNDLE)
            || text(PREDICATE).is_some_and(|it| it != SIGNED)
        {
            return Ok(None);
        }
        let layer = manifest.pointer("/layers/0").cloned().unwrap_or_default();
        let layer: Descriptor = serde_json::from_value(layer)
            .map_err(|e| self.answered(&format!("its manifest is not understood: {e}")))?;
        self.blob(&layer, "signature", BUNDLE_MAX).map(Some)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Made by sigstore's own library for JavaScript, `@sigstore/sign` 4.1.1, of the manifest `a component`.
    pub(crate) const MADE: &str = r#"{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"MOHhBAfzfK0r+gXPSBJCLZQZNGbkKdWjvqvUwfhNZDU="},"timestampVerificationData":{}},"dsseEnvelope":{"payload":"eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLCJzdWJqZWN0IjpbeyJkaWdlc3QiOnsic2hhMjU2IjoiNjI2ZDBjZTMzY2E1NTBkYzA2MzUxYzNlYTdiNjk4YmU1NTdmZjVkMzViZjI1ZWRjNDQyMjFiNTYxODM4NTk0YyJ9fV0sInByZWRpY2F0ZVR5cGUiOiJodHRwczovL3NpZ3N0b3JlLmRldi9jb3NpZ24vc2lnbi92MSIsInByZWRpY2F0ZSI6e319","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"MEUCIQCBdHOEgWVowVpOkAF71DhHnVP/Z3SYUeKtqgyfL/EgnwIgLpsblm065746KbWbUSmASsS+rzXDevmNoqX6ty+wfaA=","keyid":"MOHhBAfzfK0r+gXPSBJCLZQZNGbkKdWjvqvUwfhNZDU="}]}}"#;
    const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmIGUvJe9xMT78hXZBQs1vDOuLZ8Z
JVn6A7TLaHeQWPAW/+0a3nXCGK4zppKXJGXxCcLLauQ8aPlokzjf/QGrRg==
-----END PUBLIC KEY-----
";

    /// Its key.
    pub(crate) fn keys() -> Keys {
        let mut keys = Keys::default();
        keys.add("ours", KEY).unwrap();
        keys
    }

    fn of(bundle: &str, digest: &Digest) -> (bool, Seen) {
        let mut seen = Seen::default();
        (signer_of(&keys(), bundle.as_bytes(), digest, &mut seen).is_some(), seen)
    }

    #[test]
    fn a_bundle_that_sigstore_made_is_a_signature_of_its_own_component_only() {
        let digest = Digest::of(b"a component");
        assert!(matches!(of(MADE, &digest), (true, _)));
        let other = of(MADE, &Digest::of(b"another"));
        assert!(matches!(other, (false, Seen { count: 1, of_others: true, .. })), "{other:?}");
    }

    #[test]
    fn a_bundle_that_was_changed_or_says_something_else_is_none() {
        let digest = Digest::of(b"a component");
        let envelope = |change: &dyn Fn(&str) -> String| {
            let mut bundle: serde_json::Value = serde_json::from_str(MADE).unwrap();
            let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
            let payload = String::from_utf8(STANDARD.decode(payload).unwrap()).unwrap();
            bundle["dsseEnvelope"]["payload"] = STANDARD.encode(change(&payload)).into();
            of(&bundle.to_string(), &digest)
        };
        assert!(envelope(&str::to_owned).0);
        let changed = envelope(&|payload| payload.replace("\"predicate\":{}", "\"predicate\":{ }"));
        assert!(matches!(changed, (false, Seen { count: 1, of_others: false, .. })), "{changed:?}");
        // How it was built is told by the same key, and is no signature.
        let told = envelope(&|payload| payload.replace(SIGNED, "https://slsa.dev/provenance/v1"));
        assert!(matches!(told, (false, Seen { count: 0, .. })), "{told:?}");
        for none in ["", "{}", &MADE.replace("in-toto+json", "other+json")] {
            assert!(matches!(of(none, &digest), (false, Seen { count: 0, .. })), "{none}");
        }
    }
}
