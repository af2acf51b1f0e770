//! A file system that a server shares: `share=KIND:PEER` grants it.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::options::{self, MountOption};
use super::peer::{Peer, is_name};
use super::{denied, invalid};
use crate::name::Quoted;
use crate::path::PATH_MAX;
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
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (kind, peer) = text.split_once(':')?;
        let plain = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(Self { kind: kind.to_owned(), peer: peer.parse().ok()? }).filter(|_| plain)
    }
}

impl Share {
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), Fault> {
        let is_address = self.server.parse::<IpAddr>().is_ok();
        if !is_address && !is_name(&self.server) {
            let shown = Quoted::new(&self.server);
            return invalid(format!("server {shown} is no host name and no address"));
        }
        let odd = |c: char| c == ',' || c.is_control();
        if self.path.is_empty() || self.path.len() > PATH_MAX || self.path.contains(odd) {
            let shown = Quoted::new(&self.path);
            return invalid(format!(
                "{shown} is no path on a server: use no commas or control characters"
            ));
        }
        options::check(&self.options)?;
        // Whether the addresses of a name lie in a granted network is asked where it is resolved.
        let mut kinds = grants.shares.iter().filter(|grant| grant.kind == self.kind);
        let may = |grant: &ShareGrant| {
            grant.peer.is(&self.server) || (!is_address && matches!(grant.peer, Peer::Network(..)))
        };
        if !kinds.any(may) {
            return not_granted(&self.kind, &self.server);
        }
        self.make.map_or(Ok(()), Owner::check)
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
        not_granted(kind, &address.to_string())
    }
}

fn not_granted(kind: &str, server: &str) -> Result<(), Fault> {
    let kind = Quoted::new(kind).to_string();
    let kind = kind.trim_matches('`');
    denied(format!(
        "server `{server}` is not granted: load the driver again with `--grant share={kind}:{server}` or its network"
    ))
}
