//! A file system that a server shares: `share=KIND:PEER` grants it.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::options::{self, MountOption, MountValue};
use super::peer::{Peer, is_name};
use super::{denied, invalid};
use crate::grants::cure;
use crate::name::Quoted;
use crate::path::{PATH_MAX, is_plain};
use crate::{Fault, Grants, Owner};

/// What a server shares, mounted by the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The file system type, as the kernel knows it: `nfs`, `nfs4`, `cifs`.
    pub kind: String,
    /// A host name or an address.
    pub server: String,
    /// What the server calls it: an export's path, a share's name.
    pub path: String,
    /// Options of the mount.
    pub options: Vec<MountOption>,
    /// The subpath is made where it is missing, with this owner.
    pub make: Option<Owner>,
}

/// What an option of a share may be set to. What is not here is not allowed: some options name another server, or a file of the host.
#[derive(Clone, Copy)]
enum Takes {
    /// Nothing: it is there.
    Nothing,
    Number,
    /// Permission bits, in octal.
    Mode,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
    Secret,
}

/// See nfs(5).
const NFS: &[(&[&str], Takes)] = &[
    (
        &[
            "soft",
            "softerr",
            "hard",
            "lock",
            "nolock",
            "ac",
            "noac",
            "cto",
            "nocto",
            "acl",
            "noacl",
            "rdirplus",
            "nordirplus",
            "resvport",
            "noresvport",
            "nosharecache",
        ],
        Takes::Nothing,
    ),
    (
        &[
            "timeo",
            "retrans",
            "rsize",
            "wsize",
            "port",
            "mountport",
            "nconnect",
            "actimeo",
            "acregmin",
            "acregmax",
            "acdirmin",
            "acdirmax",
        ],
        Takes::Number,
    ),
    (&["sec"], Takes::Word(&["sys", "none", "krb5", "krb5i", "krb5p"])),
    (&["proto"], Takes::Word(&["tcp", "tcp6", "udp", "udp6", "rdma", "rdma6"])),
];
const NFS_VERSIONS: Takes = Takes::Word(&["3"]);
const NFS4_VERSIONS: Takes = Takes::Word(&["4", "4.0", "4.1", "4.2"]);
/// See mount.cifs(8).
const CIFS: &[(&[&str], Takes)] = &[
    (
        &[
            "seal",
            "soft",
            "hard",
            "forceuid",
            "forcegid",
            "noperm",
            "nobrl",
            "mfsymlinks",
            "serverino",
            "noserverino",
            "nosharesock",
            "sfu",
        ],
        Takes::Nothing,
    ),
    (
        &[
            "uid",
            "gid",
            "port",
            "rsize",
            "wsize",
            "actimeo",
            "acregmax",
            "acdirmax",
            "echo_interval",
            "handletimeout",
        ],
        Takes::Number,
    ),
    (&["file_mode", "dir_mode"], Takes::Mode),
    (&["vers"], Takes::Word(&["2.1", "3", "3.0", "3.0.2", "3.02", "3.1.1", "3.11"])),
    (&["sec"], Takes::Word(&["none", "ntlmssp", "ntlmsspi", "krb5", "krb5i"])),
    (&["cache"], Takes::Word(&["none", "strict", "loose"])),
    (&["username", "domain", "iocharset"], Takes::Text),
    (&["password"], Takes::Secret),
];

/// Kind and peer of one `share=KIND:PEER`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareGrant {
    /// The file system type.
    pub kind: String,
    /// The servers.
    pub peer: Peer,
}

impl ShareGrant {
    /// Reads `KIND:PEER`.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let parse = || {
            let (kind, peer) = text.split_once(':')?;
            let plain = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
            Some(Self { kind: kind.to_owned(), peer: peer.parse().ok()? }).filter(|_| plain)
        };
        parse().ok_or("use `share=KIND:` with a host name, an address or a network")
    }
}

impl Share {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        let is_address = self.server.parse::<IpAddr>().is_ok();
        if !is_address && !is_name(&self.server) {
            let shown = Quoted::new(&self.server);
            return invalid(format!("server {shown} is no host name and no address"));
        }
        let path = match self.kind.as_str() {
            "nfs" | "nfs4" if self.path == "/" => Some("export"),
            "nfs" | "nfs4" => self.path.strip_prefix('/'),
            "cifs" => Some(self.path.as_str()),
            other => {
                let kind = Quoted::new(other);
                return invalid(format!("no share is of kind {kind}: use nfs, nfs4 or cifs"));
            }
        };
        let odd =
            |path: &&str| !is_plain(path) || path.contains([',', '\\']) || path.len() > PATH_MAX;
        if path.filter(|path| !odd(path)).is_none() {
            let shown = Quoted::new(&self.path);
            return invalid(format!(
                "{shown} is nothing that a server of kind {kind} shares: use {example} without `.`, `..` and commas",
                kind = self.kind,
                example = if self.kind == "cifs" { "`share`" } else { "`/export`" },
            ));
        }
        options::check(&self.options)?;
        self.options.iter().try_for_each(|option| self.takes(option))?;
        // Whether the addresses of a name lie in a granted network is asked where it is resolved.
        let mut kinds = grants.shares.iter().filter(|grant| grant.kind == self.kind);
        let may = |grant: &ShareGrant| {
            grant.peer.is(&self.server) || (!is_address && matches!(grant.peer, Peer::Network(..)))
        };
        if !kinds.any(may) {
            return not_granted(grants, &self.kind, &self.server);
        }
        self.make.map_or(Ok(()), Owner::check)
    }
}

impl Share {
    /// What is mounted, as mountinfo shows it.
    pub fn source(&self) -> String {
        let Self { server, path, .. } = self;
        match self.kind.as_str() {
            "cifs" => format!("//{server}/{path}"),
            _ if server.contains(':') => format!("[{server}]:{path}"),
            _ => format!("{server}:{path}"),
        }
    }

    fn takes(&self, option: &MountOption) -> Result<(), Fault> {
        let MountOption { key, value } = option;
        let named = |list: &[(&[&str], Takes)]| {
            list.iter().find(|(keys, _)| keys.contains(&key.as_str())).map(|(_, takes)| *takes)
        };
        let found = match (self.kind.as_str(), key.as_str()) {
            ("cifs", _) => named(CIFS),
            ("nfs", "vers") => Some(NFS_VERSIONS),
            (_, "vers") => Some(NFS4_VERSIONS),
            _ => named(NFS),
        };
        let Some(takes) = found else {
            return invalid(format!("shares of kind {} take no mount option `{key}`", self.kind));
        };
        let wants = match (takes, value) {
            (Takes::Nothing, MountValue::Present)
            | (Takes::Number, MountValue::Number(_))
            | (Takes::Secret, MountValue::Secret(_)) => return Ok(()),
            (Takes::Text, MountValue::Text(text)) if !text.is_empty() => return Ok(()),
            (Takes::Word(words), MountValue::Text(text)) if words.contains(&text.as_str()) => {
                return Ok(());
            }
            (Takes::Mode, MountValue::Text(text))
                if u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777) =>
            {
                return Ok(());
            }
            (Takes::Nothing, _) => "no value".to_owned(),
            (Takes::Number, _) => "a number".to_owned(),
            (Takes::Secret, _) => "the name of a secret".to_owned(),
            (Takes::Text, _) => "a text".to_owned(),
            (Takes::Mode, _) => "an octal mode".to_owned(),
            (Takes::Word(words), _) => format!("one of {}", words.join(", ")),
        };
        invalid(format!("mount option `{key}` takes {wants}"))
    }
}

impl Grants {
    /// Says whether a share on `server`, whose name stands for `address`, is granted.
    ///
    /// # Errors
    /// `Denied` names the grant to add.
    pub fn share(&self, kind: &str, server: &str, address: IpAddr) -> Result<(), Fault> {
        let mut kinds = self.shares.iter().filter(|grant| grant.kind == kind);
        if kinds.any(|grant| grant.peer.is(server) || grant.peer.has(address)) {
            return Ok(());
        }
        not_granted(self, kind, &address.to_string())
    }
}

fn not_granted(grants: &Grants, kind: &str, server: &str) -> Result<(), Fault> {
    let kind = Quoted::new(kind).to_string();
    let kind = kind.trim_matches('`');
    let cure = cure(grants.driver.as_ref(), &format!("share={kind}:{server}"));
    denied(format!("server `{server}` is not granted: {cure}, or its network"))
}
