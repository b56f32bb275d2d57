//! ICMP errors about datagrams, as a router or a host on the way would send them.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
};

use socket2::{Protocol, Socket};

use super::{
    SocketError,
    control::SendControl,
    message::TrafficClass,
    raw::{checksum, raw, send},
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    mark::Mark,
};

const UDP: u8 = 17;

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens.
    PortUnreachable,
    /// The host does not answer.
    HostUnreachable,
    /// There is no route.
    NetUnreachable,
    /// A firewall forbids it.
    AdminProhibited,
    /// It is longer than a link takes.
    PacketTooBig {
        /// What the link takes, in bytes of the whole packet.
        mtu: u16,
    },
    /// It has passed too many routers.
    TimeExceeded,
}

impl IcmpError {
    /// Type, code, and what the second half of the header says (RFC 792, RFC 1191, RFC 1812).
    const fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::NetUnreachable => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::PacketTooBig { mtu } => (3, 4, mtu as u32),
            Self::AdminProhibited => (3, 13, 0),
            Self::TimeExceeded => (11, 0, 0),
        }
    }

    /// The same of ICMPv6 (RFC 4443).
    const fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::NetUnreachable => (1, 0, 0),
            Self::AdminProhibited => (1, 1, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::PacketTooBig { mtu } => (2, 0, mtu as u32),
            Self::TimeExceeded => (3, 0, 0),
        }
    }

    pub(super) fn too_big(mtu: u32) -> Self {
        Self::PacketTooBig { mtu: u16::try_from(mtu).unwrap_or(u16::MAX) }
    }

    pub(super) fn of_v4(kind: u8, code: u8, info: u32) -> Option<Self> {
        match (kind, code) {
            (3, 0 | 6 | 11) => Some(Self::NetUnreachable),
            (3, 1 | 7 | 12) => Some(Self::HostUnreachable),
            (3, 2 | 3) => Some(Self::PortUnreachable),
            (3, 4) => Some(Self::too_big(info)),
            (3, 9 | 10 | 13) => Some(Self::AdminProhibited),
            (11, 0) => Some(Self::TimeExceeded),
            _ => None,
        }
    }

    pub(super) fn of_v6(kind: u8, code: u8, info: u32) -> Option<Self> {
        match (kind, code) {
            (1, 0) => Some(Self::NetUnreachable),
            (1, 1 | 5 | 6) => Some(Self::AdminProhibited),
            (1, 3) => Some(Self::HostUnreachable),
            (1, 4) => Some(Self::PortUnreachable),
            (2, _) => Some(Self::too_big(info)),
            (3, 0) => Some(Self::TimeExceeded),
            _ => None,
        }
    }
}

/// Sends ICMP errors.
#[derive(Debug)]
pub struct IcmpSender(Socket);

impl IcmpSender {
    /// # Errors
    /// [`SocketError::Privilege`] without `CAP_NET_RAW` and `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
    pub fn new(family: Family, mark: Mark) -> Result<Self, SocketError> {
        let protocol = match family {
            Family::V4 => Protocol::ICMPV4,
            Family::V6 => Protocol::ICMPV6,
        };
        raw(family, protocol, mark).map(Self)
    }

    /// Tells `client` that a datagram of it to `dst` failed, as if `reporter`, of the same family, said so.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; else what the kernel says of the way to the client.
    pub fn send(
        &mut self,
        reporter: IpAddr,
        error: IcmpError,
        client: ClientAddr,
        dst: OriginalDst,
    ) -> io::Result<()> {
        let (quoted, length) = quote(client, dst);
        self.send_quoting(reporter, error, client, &quoted[..length])
    }

    /// Tells `client` that a packet of it failed, which begins with these bytes.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_quoting(
        &mut self,
        reporter: IpAddr,
        error: IcmpError,
        client: ClientAddr,
        packet: &[u8],
    ) -> io::Result<()> {
        let (kind, code, info) = match client.0.ip() {
            IpAddr::V4(_) => error.v4(),
            IpAddr::V6(_) => error.v6(),
        };
        let [a, b, c, d] = info.to_be_bytes();
        let mut header = [kind, code, 0, 0, a, b, c, d];
        if client.0.is_ipv4() {
            // That of ICMPv6 is the kernel's business (RFC 3542, 3.1).
            let sum = checksum([&header[..], packet]);
            header[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        send(&self.0, client.0.ip(), &SendControl::new(reporter, TrafficClass::default()), &parts)
    }
}

/// The headers of a datagram from `client` to `dst`, by which it finds the socket that sent it, and their length. Of the
/// rest of what it sent nothing is known here.
fn quote(client: ClientAddr, dst: OriginalDst) -> ([u8; 48], usize) {
    let mut quoted = [0; 48];
    let ip = match (client.0.ip(), dst.0.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            quoted[0] = 0x45;
            quoted[3] = 28;
            quoted[8] = 64;
            quoted[9] = UDP;
            quoted[12..16].copy_from_slice(&from.octets());
            quoted[16..20].copy_from_slice(&to.octets());
            let sum = checksum([&quoted[..20]]);
            quoted[10..12].copy_from_slice(&sum.to_be_bytes());
            20
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            quoted[0] = 0x60;
            quoted[5] = 8;
            quoted[6] = UDP;
            quoted[7] = 64;
            quoted[8..24].copy_from_slice(&from.octets());
            quoted[24..40].copy_from_slice(&to.octets());
            40
        }
        _ => unreachable!("a client and its original destination are of one family"),
    };
    quoted[ip..ip + 2].copy_from_slice(&client.0.port().to_be_bytes());
    quoted[ip + 2..ip + 4].copy_from_slice(&dst.0.port().to_be_bytes());
    quoted[ip + 5] = 8;
    (quoted, ip + 8)
}

#[cfg(test)]
mod tests;
