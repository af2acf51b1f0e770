//! This machine's own addresses, which no driver is led to by a name.
//!
//! Looked up by [`http`](super::http) for each connection: addresses come and go. Nothing is sent for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};

/// Where a socket would send to: any number would do, since nothing is sent.
const DISCARD: u16 = 9;

/// The addresses that interfaces have; none if that cannot be found out.
pub(crate) struct Own(Option<Vec<IpAddr>>);

impl Own {
    /// As they are now.
    pub(crate) fn look() -> Self {
        let of = |interface: InterfaceAddress| {
            let there = interface.address?;
            let v4 = there.as_sockaddr_in().map(|there| there.ip().into());
            v4.or_else(|| there.as_sockaddr_in6().map(|there| there.ip().into()))
        };
        Self(getifaddrs().ok().map(|interfaces| interfaces.filter_map(of).collect()))
    }

    /// Whether an address is this machine's: an interface has it, or what is sent there comes from the very same, as within a range that is
    /// routed here. What cannot be found out is a yes.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.0.as_ref().is_none_or(|own| own.contains(&address)) {
            return true;
        }
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = UdpSocket::bind((any, 0)) else { return true };
        // Where nothing leads to, this machine is not.
        let from = socket.connect((address, DISCARD)).and_then(|()| socket.local_addr());
        from.is_ok_and(|from| from.ip() == address)
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::Own;

    fn run(line: &str) {
        let status = std::process::Command::new("sh").args(["-ec", line]).status();
        assert!(status.is_ok_and(|status| status.success()), "{line}");
    }

    #[test]
    fn an_address_is_this_machines_own_whichever_of_its_addresses_that_is() {
        // This thread's alone.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for line in [
            "ip link add wan type veth peer name far",
            "for link in lo wan far; do ip link set $link up; done",
            "ip addr add 93.184.216.34/24 dev wan; ip addr add 93.184.216.35/24 dev wan",
            "ip addr add 2606:2800::34/64 dev wan nodad",
            "ip route add local 198.60.0.0/24 dev lo",
        ] {
            run(line);
        }
        let own = Own::look();
        for (address, is_own) in [
            ("93.184.216.34", true),
            ("93.184.216.35", true),
            ("::ffff:93.184.216.35", true),
            ("2606:2800::34", true),
            ("198.60.0.7", true),
            ("93.184.216.36", false),
            ("2606:2800::35", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(own.has(address.parse().unwrap()), is_own, "{address}");
        }
    }
}
