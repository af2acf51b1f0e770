//! What lies in a registry: manifests and the two configurations, as JSON. The form of components is that of the CNCF's wasm artifacts.
//!
//! Fields that are not here are not looked at: a later version may have more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::RegistryError;
use crate::digest::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const COMPONENT_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const COMPONENT: &str = "application/wasm";
pub(crate) const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The operating system of a component's config: it names the line of WASI.
const OS: &str = "wasip2";
/// A component pushed twice shall have one digest, so its config tells no time.
const NO_TIME: &str = "1970-01-01T00:00:00Z";

/// A manifest of one artifact.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest says of something it is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The config of a component.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ComponentConfig {
    created: String,
    architecture: String,
    os: String,
    layer_digests: Vec<String>,
    /// Not there for a core module.
    pub(crate) component: Option<Interfaces>,
}

/// What a component imports and exports, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Interfaces {
    pub(crate) exports: Vec<String>,
    pub(crate) imports: Vec<String>,
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: Some(MANIFEST.to_owned()), config, layers }
    }

    /// The one layer of a component, or what the manifest is of instead.
    pub(crate) fn component(&self) -> Result<&Descriptor, String> {
        let Self { config, layers, .. } = self;
        match (config.media_type.as_str(), layers.as_slice()) {
            (COMPONENT_CONFIG, [layer]) if layer.media_type == COMPONENT => Ok(layer),
            (COMPONENT_CONFIG, layers) => Err(format!("an artifact of {} layers", layers.len())),
            (IMAGE_CONFIG | DOCKER_CONFIG, _) => Err("a container image".to_owned()),
            (other, _) => {
                Err(format!("an artifact of type {}", wasmvol_plan::name::Quoted::new(other)))
            }
        }
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }

    /// Refuses what is larger than `max` before it is downloaded.
    pub(crate) fn at_most(
        &self,
        max: u64,
        what: &'static str,
        reference: &dyn ToString,
    ) -> Result<(), RegistryError> {
        if self.size <= max {
            return Ok(());
        }
        let (reference, size) = (reference.to_string(), self.size);
        Err(RegistryError::TooLarge { reference, what, size, max })
    }
}

impl ComponentConfig {
    pub(crate) fn new(component: &Descriptor, interfaces: Interfaces) -> Self {
        Self {
            created: NO_TIME.to_owned(),
            architecture: "wasm".to_owned(),
            os: OS.to_owned(),
            layer_digests: vec![component.digest.to_string()],
            component: Some(interfaces),
        }
    }
}
