//! How a component gets into a registry, and a signature beside it.

use std::thread;
use std::time::Duration;

use ureq::Body;
use ureq::http::{Method, Response, StatusCode, header};

use crate::artifact::{
    COMPONENT, COMPONENT_CONFIG, ComponentConfig, Descriptor, Interfaces, MANIFEST, Manifest,
};
use crate::auth::escaped;
use crate::client::Ask;
use crate::cosign::{Signer, SigningKey};
use crate::digest::Digest;
use crate::{Registry, RegistryError};

/// The annotation by which tools for any artifact name the file, and that name: always one, since the same bytes have the same digest.
const TITLE: &str = "org.opencontainers.image.title";
const FILE: &str = "driver.wasm";
/// Tries of one upload. What a registry keeps of a broken one it takes back as it likes, Debian's for one not at all: each begins anew.
const UPLOADS_MAX: u32 = 3;
/// Before another try, as often as there were some.
const PAUSE: Duration = Duration::from_millis(500);

/// What was pushed.
#[derive(Debug)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: String,
    /// Whose signature it got.
    pub signer: Option<Signer>,
}

impl Registry {
    /// Pushes a component under the reference's tag, and a signature of it by `key`. `progress` hears how many of its bytes were sent, and
    /// how many there are, from the first one again where it broke off; nothing where the registry has it.
    ///
    /// # Errors
    /// The reference names a digest, or the registry does not take it.
    pub fn push(
        &self,
        component: &[u8],
        imports: Vec<String>,
        exports: Vec<String>,
        key: Option<&SigningKey>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Pushed, RegistryError> {
        if self.reference.digest().is_some() {
            return Err(RegistryError::PushToDigest(self.reference.to_string()));
        }
        let mut layer = Descriptor::new(COMPONENT, component);
        layer.annotations.insert(TITLE.to_owned(), FILE.to_owned());
        let config = ComponentConfig::new(&layer, Interfaces { exports, imports });
        let config = self.json(&config)?;
        let config_of = Descriptor::new(COMPONENT_CONFIG, &config);
        self.put_blob(&layer.digest, component, progress)?;
        self.put_blob(&config_of.digest, &config, &|_, _| {})?;
        let manifest = Manifest::new(config_of, vec![layer]);
        let digest = self.put_manifest(self.reference.tag_or_digest(), &manifest)?;
        let signer = match key {
            Some(key) => {
                key.sign(self, &digest)?;
                Some(key.signer().clone())
            }
            None => None,
        };
        Ok(Pushed { digest: digest.to_string(), signer })
    }

    /// Uploads some bytes, unless they are there; again where that breaks off.
    pub(crate) fn put_blob(
        &self,
        digest: &Digest,
        bytes: &[u8],
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), RegistryError> {
        let is_there = || {
            let there = self.ask(&Ask::new(Method::HEAD, self.blob_url(digest)))?;
            Ok::<_, RegistryError>(there.status() == StatusCode::OK)
        };
        if is_there()? {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let why = match self.upload(digest, bytes, progress) {
                Err(RegistryError::Unreachable { why, may_pass: true, .. }) => why,
                done => return done,
            };
            thread::sleep(PAUSE * tries);
            // Perhaps no more than its answer was lost.
            if is_there().unwrap_or_default() {
                return Ok(());
            }
            if tries == UPLOADS_MAX {
                let (reference, size) = (self.reference.to_string(), bytes.len());
                return Err(RegistryError::NotUploaded { reference, size, tries, why });
            }
        }
    }

    fn upload(
        &self,
        digest: &Digest,
        bytes: &[u8],
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), RegistryError> {
        let begun = self.ask(&Ask::new(Method::POST, self.url("blobs/uploads/")).sending(b""))?;
        let begun = self.expect(begun, StatusCode::ACCEPTED)?;
        let location = begun.headers().get(header::LOCATION).and_then(|h| h.to_str().ok());
        let Some(location) = location else {
            return Err(self.answered("it does not say where to upload to"));
        };
        let location = self.located(location);
        let joint = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{joint}digest={}", escaped(digest.as_str()));
        let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
        let ask = Ask::new(Method::PUT, url).with(&headers).sending(bytes).telling(progress);
        self.expect(self.ask(&ask)?, StatusCode::CREATED).map(drop)
    }

    pub(crate) fn put_manifest(
        &self,
        tag: &str,
        manifest: &Manifest,
    ) -> Result<Digest, RegistryError> {
        let bytes = self.json(manifest)?;
        let headers = [(header::CONTENT_TYPE, MANIFEST)];
        let url = self.url(&format!("manifests/{tag}"));
        let done = self.ask(&Ask::new(Method::PUT, url).with(&headers).sending(&bytes))?;
        self.expect(done, StatusCode::CREATED)?;
        Ok(Digest::of(&bytes))
    }

    pub(crate) fn json(&self, value: &impl serde::Serialize) -> Result<Vec<u8>, RegistryError> {
        serde_json::to_vec(value).map_err(|e| self.answered(&e.to_string()))
    }

    fn expect(
        &self,
        answer: Response<Body>,
        status: StatusCode,
    ) -> Result<Response<Body>, RegistryError> {
        if answer.status() == status { Ok(answer) } else { Err(self.refusal(answer)) }
    }
}
