//! The two ends of an intercepted flow. Types, so that they cannot be mixed up.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// Who opened the flow: the source address and port of its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// Where the client wanted to go: the destination of its first packet,
/// which is what `getsockname()` says of an accepted socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// Whose share of anything a flow counts against: one address of IPv4; of IPv6 a /64, in which anybody has as many as
/// there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientNetwork(IpAddr);

impl ClientAddr {
    /// Whose share it counts against.
    #[must_use]
    pub const fn network(self) -> ClientNetwork {
        ClientNetwork(match self.0.ip() {
            IpAddr::V6(address) => {
                let prefix = address.to_bits() & !(u64::MAX as u128);
                IpAddr::V6(Ipv6Addr::from_bits(prefix))
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
