//! What a component is called in a registry: `HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]`.
//!
//! The host is never left out: a file's name and a reference are then two things, and nobody's default registry is asked.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use wasmvol_plan::name::Quoted;

use crate::RegistryError;
use crate::digest::Digest;

/// The tag of a reference that has neither tag nor digest.
const TAG: &str = "latest";
/// Longest repository and longest tag, as the distribution specification has them.
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;
/// Docker Hub is spoken to under another name than it is called by, and keeps what has no owner under `library`.
const HUB: [&str; 2] = ["docker.io", "index.docker.io"];
const HUB_SPEAKS: &str = "registry-1.docker.io";
/// What Docker keeps Hub's password under.
const HUB_LOGIN: &str = "index.docker.io";

/// A component's name in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    given: String,
    host: String,
    repository: String,
    tag: String,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, as the user named it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's last part: what a file of the component is called by itself.
    #[must_use]
    pub fn name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }

    /// The same repository at one manifest for ever.
    #[must_use]
    pub fn pinned(&self, digest: &str) -> String {
        format!("{}@{digest}", self.place())
    }

    /// Host and repository.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What its manifest is asked for by; where there are both, the digest is.
    pub(crate) fn tag_or_digest(&self) -> &str {
        self.digest.as_ref().map_or(&self.tag, Digest::as_str)
    }

    /// Whom to connect to.
    pub(crate) fn authority(&self) -> &str {
        if self.is_hub() { HUB_SPEAKS } else { &self.host }
    }

    /// What Docker keeps the registry's password under.
    pub(crate) fn login(&self) -> &str {
        if self.is_hub() { HUB_LOGIN } else { &self.host }
    }

    pub(crate) fn repository(&self) -> String {
        let prefix = if self.is_hub() && !self.repository.contains('/') { "library/" } else { "" };
        format!("{prefix}{}", self.repository)
    }

    /// Whether the registry is a name or an address of this machine, which Docker speaks plain HTTP to.
    pub(crate) fn is_loopback(&self) -> bool {
        let name = match self.host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
            _ => &self.host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    fn is_hub(&self) -> bool {
        HUB.contains(&self.host.as_str())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

impl FromStr for Reference {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let refused = |why| RegistryError::Reference(Quoted::new(text), why);
        let Some((host, rest)) = text.split_once('/').filter(|(host, _)| is_host(host)) else {
            return Err(refused("names no registry: say HOST/NAME:TAG or HOST/NAME@sha256:…"));
        };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (rest, None),
        };
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, TAG));
        if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_part) {
            return Err(refused(
                "has no repository's name: lower-case letters, digits and single `.`, `_` or `-` between them",
            ));
        }
        if !is_tag(tag) {
            return Err(refused("has no tag's name: letters, digits, `_`, `.` and `-`"));
        }
        let own = str::to_owned;
        let (given, host) = (own(text), own(host));
        Ok(Self { given, host, repository: own(repository), tag: own(tag), digest })
    }
}

/// As Docker tells a registry from the first part of a name: it has a dot or a port, or is this machine.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port),
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    let is_name = if host.starts_with('[') {
        name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6())
    } else {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                && !label.starts_with('-')
        };
        name.split('.').all(is_label)
    };
    let says_so = host.contains(['.', ':']) || host == "localhost";
    says_so && is_port && is_name
}

/// A part of a repository's name: words of lower-case letters and digits with a separator between each two.
fn is_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = part.split(is_word).filter(|between| !between.is_empty());
    part.starts_with(is_word)
        && part.ends_with(is_word)
        && separators.into_iter().all(|between| {
            matches!(between, "." | "_" | "__") || between.bytes().all(|c| c == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|c| is_word(c) || matches!(c, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parsed(text: &str) -> Reference {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_reference_names_host_repository_and_tag_or_digest() {
        for (text, host, repository, at, name) in [
            ("ghcr.io/me/drivers/nfs:1.0", "ghcr.io", "me/drivers/nfs", "1.0", "nfs"),
            ("localhost/nfs", "localhost", "nfs", "latest", "nfs"),
            ("localhost:5000/a_b/c--d.e:x_Y-1", "localhost:5000", "a_b/c--d.e", "x_Y-1", "c--d.e"),
            ("[::1]:5000/nfs", "[::1]:5000", "nfs", "latest", "nfs"),
            ("docker.io/nfs", "docker.io", "library/nfs", "latest", "nfs"),
            (&format!("r.example/nfs@{DIGEST}"), "r.example", "nfs", DIGEST, "nfs"),
            (&format!("r.example/nfs:1@{DIGEST}"), "r.example", "nfs", DIGEST, "nfs"),
        ] {
            let reference = parsed(text);
            let seen = (reference.host(), reference.repository(), reference.tag_or_digest());
            assert_eq!(seen, (host, repository.to_owned(), at), "{text}");
            assert_eq!((reference.name(), reference.to_string().as_str()), (name, text));
        }
    }

    #[test]
    fn what_names_no_registry_is_no_reference() {
        for text in [
            "nfs",
            "nfs.wasm",
            "nfs:1.0",
            "me/nfs:1.0",
            "/etc/nfs",
            "./nfs",
            "../a/b",
            "http://r.example/nfs",
            "r.example:x/nfs",
            "r..example/nfs",
            "[1.2.3.4]/nfs",
            "r.example:99999/nfs",
            "",
            "/",
            "-.x/nfs",
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("names no registry"), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_registry_would_not_take_is_refused_before_it_is_asked() {
        for text in [
            "r.example/",
            "r.example/NFS",
            "r.example/a//b",
            "r.example/-a",
            "r.example/a-",
            "r.example/a..b",
            "r.example/a___b",
            "r.example/a:",
            "r.example/a:.x",
            "r.example/a:x/y",
            "r.example/a b",
            "r.example/a@sha256:12",
            "r.example/a@md5:0123",
            "r.example/../v2",
            "r.example/a%2fb",
            "r.example/a?b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        let long = format!("r.example/a:{}", "x".repeat(TAG_MAX + 1));
        assert!(long.parse::<Reference>().is_err());
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for host in
            ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:80"]
        {
            assert!(parsed(&format!("{host}/a")).is_loopback(), "{host}");
        }
        for host in
            ["localhost.example", "10.0.0.1", "128.0.0.1:80", "[::2]:80", "127.0.0.1.example"]
        {
            assert!(!parsed(&format!("{host}/a")).is_loopback(), "{host}");
        }
    }
}
