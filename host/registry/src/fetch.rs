//! How a component is looked at and downloaded.
//!
//! What can be refused is refused before the component's bytes are asked for: manifest and config are small.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::Body;
use ureq::http::{Method, Response, StatusCode, header};

use crate::artifact::{
    ComponentConfig, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Interfaces, MANIFEST,
    Manifest,
};
use crate::client::{Ask, words};
use crate::digest::Digest;
use crate::partial::Partial;
use crate::{Registry, RegistryError};

/// Longest manifest: ours have 600 bytes, one with many signatures some KiB each.
const MANIFEST_MAX: u64 = 1 << 20;
/// Longest config: a name of an interface has some 40 bytes.
const CONFIG_MAX: u64 = 1 << 20;
/// Tries of one download that bring nothing more.
const BARREN_MAX: u32 = 4;
/// Before such a try, as often as there were some.
const PAUSE: Duration = Duration::from_millis(500);
/// For a whole download: 64 MiB take as long at 40 KiB a second.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Read at once.
const CHUNK: usize = 64 << 10;

/// What a registry has under a reference.
#[derive(Debug)]
pub struct Offer {
    pub(crate) digest: Digest,
    layer: Descriptor,
    interfaces: Interfaces,
}

/// A manifest and its own digest; what is none of one artifact is said in words.
pub(crate) struct Found {
    digest: Digest,
    pub(crate) manifest: Result<Manifest, String>,
}

impl Offer {
    /// The manifest's digest: what a reference is pinned by.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.digest.as_str()
    }

    /// The interfaces that it imports, as its config says.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.interfaces.imports
    }

    /// The interfaces that it exports, as its config says.
    #[must_use]
    pub fn exports(&self) -> &[String] {
        &self.interfaces.exports
    }
}

impl Registry {
    /// What there is under the reference: a component of at most `max` bytes.
    ///
    /// # Errors
    /// There is none, or it is no component, or the registry does not answer.
    pub fn look(&self, max: u64) -> Result<Offer, RegistryError> {
        let at = self.reference.tag_or_digest();
        let Some(Found { digest, manifest }) = self.manifest(at)? else {
            return Err(RegistryError::Absent(self.reference.to_string()));
        };
        if self.reference.digest().is_some_and(|wanted| *wanted != digest) {
            return Err(self.mismatch("manifest"));
        }
        let kind = |what: String| RegistryError::NotAComponent(self.reference.to_string(), what);
        let manifest = manifest.map_err(kind)?;
        let layer = manifest.component().map_err(kind)?.clone();
        layer.at_most(max, "component", &self.reference)?;
        let config = self.blob(&manifest.config, "config", CONFIG_MAX)?;
        let config: ComponentConfig = self.parse(&config, "config")?;
        let Some(interfaces) = config.component else {
            return Err(kind("a core module".to_owned()));
        };
        Ok(Offer { digest, layer, interfaces })
    }

    /// Downloads the component of an offer. One that broke off before goes on from there. `progress` hears how many bytes there are,
    /// and how many there will be.
    ///
    /// # Errors
    /// The registry does not have it any more, or has other bytes, or does not bring them.
    pub fn fetch(
        &self,
        offer: &Offer,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<u8>, RegistryError> {
        let (digest, size) = (&offer.layer.digest, offer.layer.size);
        let mut partial = Partial::open(digest, size)?;
        let has_old = !partial.bytes.is_empty();
        self.download(offer, &mut partial, progress)?;
        if has_old && Digest::of(&partial.bytes) != *digest {
            // What an earlier try left may be at fault.
            partial.clear()?;
            self.download(offer, &mut partial, progress)?;
        }
        if Digest::of(&partial.bytes) != *digest {
            partial.finish();
            return Err(self.mismatch("component"));
        }
        Ok(partial.finish())
    }

    fn download(
        &self,
        offer: &Offer,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), RegistryError> {
        let (size, until) = (offer.layer.size, Instant::now() + DOWNLOAD_DEADLINE);
        let mut barren = 0;
        loop {
            let before = partial.bytes.len() as u64;
            progress(before, size);
            if before == size {
                return Ok(());
            }
            let why = match self.go_on(offer, partial, until, progress) {
                Ok(why) => why,
                Err(RegistryError::Unreachable { why, may_pass: true, .. }) => why,
                Err(e) => return Err(e),
            };
            let done = partial.bytes.len() as u64;
            if done == size {
                continue;
            }
            barren = if done > before { 0 } else { barren + 1 };
            if barren == BARREN_MAX || Instant::now() > until {
                let reference = self.reference.to_string();
                return Err(RegistryError::BrokeOff { reference, done, size, why });
            }
            std::thread::sleep(PAUSE * barren);
        }
    }

    /// One request for what is not there yet; answers why it ended where it did.
    fn go_on(
        &self,
        offer: &Offer,
        partial: &mut Partial,
        until: Instant,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<String, RegistryError> {
        let (from, size) = (partial.bytes.len() as u64, offer.layer.size);
        let range = format!("bytes={from}-");
        let headers = [(header::RANGE, range.as_str())];
        let mut ask = Ask::new(Method::GET, self.blob_url(&offer.layer.digest));
        ask.is_long = true;
        let ask = if from > 0 { ask.with(&headers) } else { ask };
        let answer = self.ask(&ask)?;
        match answer.status() {
            StatusCode::OK if from > 0 => partial.clear()?,
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if starts_at(&answer) == Some(from) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                partial.clear()?;
                return Ok("the registry sent another part".to_owned());
            }
            _ => return Err(self.refusal(answer)),
        }
        let mut body = answer.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let left = size - partial.bytes.len() as u64;
            if left == 0 {
                return Ok(String::new());
            }
            if Instant::now() > until {
                return Ok(format!("it took over {} min", DOWNLOAD_DEADLINE.as_secs() / 60));
            }
            // What is behind the last byte that was said is not read: the digest tells.
            match (&mut body).take(left).read(&mut chunk) {
                Ok(0) => return Ok("the registry sent no more".to_owned()),
                Ok(count) => partial.push(chunk.get(..count).unwrap_or_default())?,
                Err(e) => return Ok(words(&ureq::Error::from(e))),
            }
            progress(partial.bytes.len() as u64, size);
        }
    }

    /// What lies under a tag or digest.
    pub(crate) fn manifest(&self, at: &str) -> Result<Option<Found>, RegistryError> {
        let Some((bytes, is_index)) = self.manifest_bytes(at)? else { return Ok(None) };
        let manifest = match is_index {
            true => Err("a container image for several platforms".to_owned()),
            false => Ok(self.parse(&bytes, "manifest")?),
        };
        Ok(Some(Found { digest: Digest::of(&bytes), manifest }))
    }

    /// The same as it came, and whether it is an index.
    pub(crate) fn manifest_bytes(
        &self,
        at: &str,
    ) -> Result<Option<(Vec<u8>, bool)>, RegistryError> {
        let accepted = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
        let headers = [(header::ACCEPT, accepted.as_str())];
        let url = self.url(&format!("manifests/{at}"));
        let answer = self.ask(&Ask::new(Method::GET, url).with(&headers))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.refusal(answer)),
        }
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok());
        let is_index =
            kind.is_some_and(|kind| kind.starts_with(INDEX) || kind.starts_with(DOCKER_INDEX));
        Ok(Some((self.read(answer, "manifest", MANIFEST_MAX)?, is_index)))
    }

    /// The bytes that a descriptor stands for, if there are at most `max`.
    pub(crate) fn blob(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
        max: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        descriptor.at_most(max, what, &self.reference)?;
        let answer = self.ask(&Ask::new(Method::GET, self.blob_url(&descriptor.digest)))?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer));
        }
        let bytes = self.read(answer, what, descriptor.size)?;
        if Digest::of(&bytes) != descriptor.digest {
            return Err(self.mismatch(what));
        }
        Ok(bytes)
    }

    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        self.url(&format!("blobs/{digest}"))
    }

    fn mismatch(&self, what: &'static str) -> RegistryError {
        RegistryError::Mismatch(self.reference.to_string(), what)
    }
}

/// The first byte of a part, as its answer says.
fn starts_at(answer: &Response<Body>) -> Option<u64> {
    let range = answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
