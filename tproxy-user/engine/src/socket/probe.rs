//! A flow's first packet that is to arrive at a listener of ours, and that nobody answers: whether what is steered gets
//! through.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::Socket;
use tproxy_common::{flow::Protocol, packet::tcp_flag};

use super::{
    SocketError, bind_foreign,
    datagram::datagram_from_anybody,
    discard_all, get, os,
    raw::{checksum, pseudo_header},
    stream::marked,
};
use crate::{family::Family, mark::Mark};

/// A listener that counts what it is sent, and takes none of it.
#[derive(Debug)]
pub struct Counting(Socket);

impl Counting {
    /// At an address that need not be this host's, and a port of the kernel's choice.
    ///
    /// # Errors
    /// As [`super::stream::listener`].
    pub fn at(address: IpAddr, protocol: Protocol, mark: Mark) -> Result<Self, SocketError> {
        let family = Family::of(address);
        let socket = match protocol {
            Protocol::Tcp => marked(family, mark)?,
            Protocol::Udp => datagram_from_anybody(family, mark)?,
        };
        // Before the first packet can come: whoever sent it would be answered.
        discard_all(&socket)?;
        bind_foreign(&socket, family, SocketAddr::new(address, 0))?;
        if protocol == Protocol::Tcp {
            socket.listen(1).map_err(os("listen"))?;
        }
        Ok(Self(socket))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never, in fact.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// How many packets have arrived.
    ///
    /// # Errors
    /// Never, in fact.
    pub fn count(&self) -> io::Result<u32> {
        /// `SK_MEMINFO_DROPS` (linux/sock_diag.h): what its filter has discarded.
        const DROPS: usize = 8;
        let mut room = [0; 4 * (DROPS + 1)];
        let length = get(&self.0, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut room)?;
        let drops = room.get(..length).and_then(|words| words.last_chunk()).copied();
        drops.map(u32::from_ne_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// The packet that begins a flow, in an Ethernet frame to the interface with this hardware address.
#[must_use]
pub fn first_packet(
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
    hardware_address: [u8; 6],
) -> Vec<u8> {
    const TTL: u8 = 64;
    let number = protocol.number();
    let segment = match protocol {
        Protocol::Tcp => syn(from, to),
        Protocol::Udp => datagram(from, to),
    };
    let length = segment.len() as u8;
    let (ether_type, header) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, TTL, number, 0, 0];
            header.extend([from.octets(), to.octets()].concat());
            let sum = checksum([&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (0x0800_u16, header)
        }
        (from, to) => {
            let v6 = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut header = vec![0x60, 0, 0, 0, 0, length, number, TTL];
            header.extend([v6(from), v6(to)].concat());
            (0x86dd, header)
        }
    };
    // Nobody's address, of those that are given out locally.
    let sender = [2, 0, 0, 0, 0, 1];
    [&hardware_address[..], &sender, &ether_type.to_be_bytes(), &header, &segment].concat()
}

/// A SYN without options.
fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const HEADER: usize = 20;
    let mut segment = vec![0; HEADER];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[7] = 1;
    segment[12] = (HEADER as u8 / 4) << 4;
    segment[13] = tcp_flag::SYN;
    segment[14..16].fill(0xff);
    let pseudo = pseudo_header(from.ip(), to.ip(), Protocol::Tcp.number(), HEADER as u16);
    let sum = checksum([&pseudo[..], &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// One without a payload.
fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const HEADER: u16 = 8;
    let words = [from.port(), to.port(), HEADER, 0];
    let mut datagram: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
    let pseudo = pseudo_header(from.ip(), to.ip(), Protocol::Udp.number(), HEADER);
    // Zero would say that there is none (RFC 768).
    let sum = match checksum([&pseudo[..], &datagram]) {
        0 => u16::MAX,
        sum => sum,
    };
    datagram[6..].copy_from_slice(&sum.to_be_bytes());
    datagram
}
