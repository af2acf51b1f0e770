//! Peers: the machines that a grant or a secret is good for. A name stands for itself alone; whether a name's addresses lie in a
//! network is asked by who resolves it.

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest host name in bytes, as DNS has it.
const NAME_MAX: usize = 253;

/// A host by name, or a network of addresses: one address is the smallest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// A host name in lower case.
    Name(String),
    /// A network: its first address and the bits that all of its addresses share.
    Network(IpAddr, u8),
}

/// A text is no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use a host name, an address, or a network such as 10.0.0.0/8")]
pub struct NoPeer;

impl FromStr for Peer {
    type Err = NoPeer;

    fn from_str(text: &str) -> Result<Self, NoPeer> {
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| NoPeer)?;
            let bits: u8 = bits.parse().map_err(|_| NoPeer)?;
            let is_network = bits <= width(address) && masked(address, bits) == number(address);
            return if is_network { Ok(Self::Network(address, bits)) } else { Err(NoPeer) };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address, width(address)));
        }
        if is_name(text) { Ok(Self::Name(text.to_ascii_lowercase())) } else { Err(NoPeer) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Network(address, bits) if *bits == width(*address) => write!(f, "{address}"),
            Self::Network(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

impl Peer {
    /// Whether this is the host that is written so: the same name, or a network with that address in it.
    pub fn is(&self, host: &str) -> bool {
        match (self, host.parse()) {
            (Self::Name(name), _) => name.eq_ignore_ascii_case(host),
            (Self::Network(..), Ok(address)) => self.has(address),
            (Self::Network(..), Err(_)) => false,
        }
    }

    /// Whether an address lies in this network; a name has none.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        matches!(self, Self::Network(network, bits)
            if network.is_ipv4() == address.is_ipv4() && masked(address, *bits) == number(*network))
    }
}

/// Whether a text is a host name: labels of letters, digits and inner dashes. What looks like an address is none.
pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= NAME_MAX
        && text.split('.').all(label)
        && text.rsplit('.').next().is_some_and(|last| !numeric(last))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An address as a number whose first bits are its own.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    }
}

fn masked(address: IpAddr, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    number(address) & mask
}
