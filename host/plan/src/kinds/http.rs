//! Hosts that a driver may speak HTTP with: `http=ORIGIN` grants one, `http=NETWORK` the addresses that a granted name may have beyond
//! the public ones.
//!
//! A name by itself is good for public addresses alone: who answers for it could make it lead to this machine, to its neighbours or to
//! a cloud's metadata. An address that is granted by itself is meant.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::peer::Peer;
use super::{denied, invalid};
use crate::grants::cure;
use crate::name::Quoted;
use crate::{DriverName, Fault};

/// Where a request goes: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// A name in lower case, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What `http=` grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HttpGrant {
    /// Requests to one origin.
    Origin(Origin),
    /// Addresses that names of granted origins may have: a network.
    Network(Peer),
}

impl Origin {
    /// Takes a request's parts; the port is the scheme's own if none is given.
    ///
    /// # Errors
    /// `Invalid` if the scheme is none of HTTP's or the host is none.
    pub fn new(scheme: &str, host: &str, port: Option<u16>) -> Result<Self, Fault> {
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return invalid(format!("{} is not `https` or `http`", Quoted::new(scheme))),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<Peer>() {
            Ok(Peer::Name(name)) => name,
            Ok(Peer::Network(address, _)) if !bare.contains('/') => address.to_string(),
            _ => return invalid(format!("{} is no host", Quoted::new(host))),
        };
        Ok(Self { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) })
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            // The colons of an address stand in brackets.
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (rest, None),
        };
        Self::new(scheme, host, port).ok()
    }

    /// The address, where the host is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let own = if self.tls { 443 } else { 80 };
        let is_v6 = matches!(self.address(), Some(IpAddr::V6(_)));
        let host = if is_v6 { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            port if port == own => write!(f, "{scheme}://{host}"),
            port => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl HttpGrant {
    /// What stands behind `http=`: an origin such as `https://api.example`, whose scheme may be left out, or a network.
    ///
    /// # Errors
    /// What may stand there.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.parse::<Peer>() {
            Ok(network @ Peer::Network(..)) if text.contains('/') => Ok(Self::Network(network)),
            _ => Origin::parse(text).map(Self::Origin).ok_or(
                "use `http=` with an origin, as in `https://api.example:8443`, or a network",
            ),
        }
    }
}

/// Says whether requests to an origin are granted to a driver.
///
/// # Errors
/// `Denied` names the grant to add.
pub fn check_origin(
    origin: &Origin,
    grants: &[HttpGrant],
    driver: &DriverName,
) -> Result<(), Fault> {
    let is_it =
        |grant: &HttpGrant| matches!(grant, HttpGrant::Origin(granted) if granted == origin);
    if grants.iter().any(is_it) {
        return Ok(());
    }
    let cure = cure(Some(driver), &format!("http={origin}"));
    denied(format!("`{origin}` is not granted: {cure}"))
}

/// Says whether a granted origin may be spoken with at this address, which its name was resolved to, and which is `own` if this machine
/// itself has it.
///
/// # Errors
/// `Denied` names the grant to add.
pub fn check_address(
    origin: &Origin,
    address: IpAddr,
    own: bool,
    grants: &[HttpGrant],
    driver: &DriverName,
) -> Result<(), Fault> {
    let has =
        |grant: &HttpGrant| matches!(grant, HttpGrant::Network(network) if network.has(address));
    let is_public = is_public(address);
    if is_public && !own || origin.address() == Some(address) || grants.iter().any(has) {
        return Ok(());
    }
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let cure = cure(Some(driver), &format!("http={address}/{bits}"));
    let why = if is_public { "this machine's own" } else { "not public" };
    denied(format!("`{origin}` has the address {address}, which is {why}: if it may be, {cure}"))
}

/// Whether an address is one of the public internet's, by IANA's registries of special addresses.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The one metadata service that has an address which no registry calls special: Azure's.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    if address == AZURE {
        return false;
    }
    let is_special = matches!(
        (first, second, third),
        (0 | 10 | 127, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, _, _)
    );
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    // 6to4, Teredo and what translates hide an IPv4 address; documentation leads nowhere.
    let is_special = matches!((first, second), (0x2001, 0..=0x01ff | 0x0db8) | (0x2002, _))
        || (first == 0x3fff && second < 0x1000);
    first & 0xe000 == 0x2000 && !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::parse(text).unwrap()
    }

    #[test]
    fn an_origin_is_written_in_several_ways_and_shown_in_one() {
        for (text, shown) in [
            ("api.example", "https://api.example"),
            ("HTTPS://x", ""),
            ("https://API.example:443/", "https://api.example"),
            ("http://api.example", "http://api.example"),
            ("http://10.0.0.5:9000", "http://10.0.0.5:9000"),
            ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
            ("https://[::1]", "https://[::1]"),
            ("ftp://api.example", ""),
            ("https://api.example/path", ""),
            ("https://user@api.example", ""),
            ("https://api.example:port", ""),
            ("", ""),
        ] {
            let parsed = Origin::parse(text).map(|origin| origin.to_string());
            assert_eq!(parsed.unwrap_or_default(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_granted_is_that_origin_and_no_other() {
        let grants = ["https://api.example", "http://10.0.0.5:9000", "10.1.0.0/16"]
            .map(|text| HttpGrant::parse(text).unwrap());
        let driver = DriverName::parse("ebs").unwrap();
        let check = |text: &str| check_origin(&origin(text), &grants, &driver).is_ok();
        assert!(check("https://api.example") && check("http://10.0.0.5:9000"));
        for other in [
            "http://api.example",
            "https://api.example:8443",
            "https://b.api.example",
            "https://10.1.0.1",
        ] {
            assert!(!check(other), "{other}");
        }
    }

    #[test]
    fn a_name_leads_to_public_addresses_unless_others_are_granted() {
        let grants = ["https://api.example", "10.1.0.0/16"].map(|t| HttpGrant::parse(t).unwrap());
        let driver = DriverName::parse("ebs").unwrap();
        let check = |host: &str, address: &str| {
            let address = address.parse().unwrap();
            check_address(&origin(host), address, false, &grants, &driver).is_ok()
        };
        for public in ["93.184.216.34", "2606:2800:220:1::1", "10.1.2.3", "::ffff:93.184.216.34"] {
            assert!(check("https://api.example", public), "{public}");
        }
        for private in [
            "127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!check("https://api.example", private), "{private}");
        }
        assert!(check("http://127.0.0.1:5000", "127.0.0.1"));
        assert!(!check("http://127.0.0.1:5000", "127.0.0.2"));
    }

    #[test]
    fn a_name_does_not_lead_to_this_machine_by_its_public_address_unless_that_is_granted() {
        let driver = DriverName::parse("ebs").unwrap();
        let own = "93.184.216.34".parse().unwrap();
        let check = |host: &str, grants: &[HttpGrant]| {
            check_address(&origin(host), own, true, grants, &driver)
        };
        let refused = check("https://api.example", &[]).unwrap_err().to_string();
        assert!(refused.contains("93.184.216.34, which is this machine's own"), "{refused}");
        assert!(refused.contains("wasmvol driver grant ebs 'http=93.184.216.34/32'"), "{refused}");
        check("https://api.example", &[HttpGrant::parse("93.184.216.0/24").unwrap()]).unwrap();
        check("https://93.184.216.34", &[]).unwrap();
    }
}
