//! Addresses as people write them.

use super::exit::{Exit, Failure};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// An address no packet is sent to: only the route to it is asked for (RFC 5737).
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// What `flag` was given, `host:port`, to an address.
pub(crate) fn resolve(flag: &str, text: &str) -> Result<SocketAddr> {
    let refused = |reason: String| Failure::because(Exit::Network, format!("{flag} {text}: {reason}"));
    if !text.contains(':') {
        return Err(Failure::because(
            Exit::Usage,
            format!("{flag} {text}: the port is missing; write {text}:PORT as the server printed it"),
        ));
    }
    let mut addresses = text.to_socket_addrs().map_err(|error| refused(format!("{error}; check the name, or write the IP address")))?;
    addresses.next().ok_or_else(|| refused("the name has no address".into()))
}

/// The address at which other machines reach a server that listens at `listening`.
pub(crate) fn reachable_from_outside(listening: SocketAddr) -> SocketAddr {
    if !listening.ip().is_unspecified() {
        return listening;
    }
    SocketAddr::new(outward_address().unwrap_or(listening.ip()), listening.port())
}

/// This machine's address on the way to elsewhere.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an address without a port is explained. Method: with, without, nonsense.
    #[test]
    fn the_port_is_asked_for() {
        assert_eq!(resolve("--to", "127.0.0.1:4433").expect("an address").port(), 4433);
        assert!(resolve("--to", "127.0.0.1").expect_err("no port").to_string().contains("PORT"));
        assert!(resolve("--to", "127.0.0.1:x").is_err());
    }
}
