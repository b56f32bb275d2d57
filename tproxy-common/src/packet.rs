//! The packet parser: from a frame or an IP header to what the datapath decides by. One implementation for the verifier,
//! for tests and for fuzzing; it reads through [`Reader`] and never past what the headers claim.

mod ip;
mod transport;

use ip::parse_ip;
pub use ip::{Payload, skip_extensions};
pub use transport::{fragmenting, is_signed};
use transport::{hidden, later_fragment, parse_icmp_error, parse_tcp, parse_udp};

use crate::{
    abi::FragmentKey,
    addr::Addr,
    flow::{Protocol, Tuple},
    verdict::Reason,
};

/// Bounds-checked access to a packet.
pub trait Reader {
    /// `N` bytes at `offset` from the packet's start, or `None` when it has no such bytes.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// How long it is, whatever can be read of it.
    fn size(&self) -> usize;

    /// [`skip_extensions`], which the datapath has verified by itself.
    #[inline(always)]
    fn skip_extensions(&self, first: u8, l4: usize) -> Option<Payload> {
        skip_extensions(self, first, l4)
    }
}

impl Reader for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn size(&self) -> usize {
        self.len()
    }
}

/// What a packet is to the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The flow's protocol.
    pub protocol: Protocol,
    /// The flow, in the direction of this packet. Of an ICMP error: the direction that leads to whoever sent
    /// the packet it quotes. Of a later fragment: without ports.
    pub tuple: Tuple,
    /// What it says about the flow.
    pub kind: Kind,
    /// Which piece of a packet it is.
    pub piece: Piece,
    /// Offset of the TCP, UDP or ICMP header from the packet's start.
    pub l4: usize,
    /// How many routers may still forward it: IPv4's TTL, IPv6's hop limit.
    pub hops: u8,
}

/// Whether a router may fragment a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragmenting {
    /// Of IPv4, one without DF; of IPv6, one that its sender fragmented, who would have to do it again.
    Allowed,
    /// Its sender is to be told what fits instead.
    Forbidden,
}

impl Packet {
    /// No packet: what is there before one is parsed.
    pub const NOTHING: Self = Self {
        protocol: Protocol::Tcp,
        tuple: Tuple { src: Addr([0; 16]), dst: Addr([0; 16]), sport: [0; 2], dport: [0; 2] },
        kind: Kind::Other,
        piece: Piece::Whole,
        l4: 0,
        hops: 0,
    };

    /// What the other fragments of the same packet have in common with this one, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn fragment(&self) -> Option<FragmentKey> {
        match self.piece {
            Piece::Whole => None,
            Piece::First { id } | Piece::Later { id } => {
                let Tuple { src, dst, .. } = self.tuple;
                Some(FragmentKey { src, dst, id, protocol: [0, 0, 0, self.protocol.number()] })
            }
        }
    }
}

/// Which piece of a packet a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first, which has the ports.
    First {
        /// As in [`FragmentKey`].
        id: [u8; 4],
    },
    /// Any other.
    Later {
        /// As in [`FragmentKey`].
        id: [u8; 4],
    },
}

/// What a packet says about its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYN without ACK: asks for a new connection.
    Syn,
    /// Has ACK, neither SYN nor RST: may complete a handshake that no socket remembers (SYN cookie).
    Ack,
    /// Any other TCP segment.
    Other,
    /// A UDP datagram. Whether it is its flow's first it does not say.
    Datagram,
    /// A fragment without a TCP or UDP header.
    LaterFragment,
    /// An ICMP error that quotes a packet of the flow.
    IcmpError,
    /// TCP or UDP, but not enough of its header can be read, or it contradicts itself. Its ports are zero where they cannot be
    /// read, either.
    Unreadable,
    /// It may be anything: what it is lies behind more headers than are looked at. It has no ports.
    Hidden,
}

/// Offset of the flags byte within a TCP header.
pub const TCP_FLAGS: usize = 13;
/// TCP flag bits in that byte.
pub mod tcp_flag {
    /// SYN
    pub const SYN: u8 = 0x02;
    /// RST
    pub const RST: u8 = 0x04;
    /// ACK
    pub const ACK: u8 = 0x10;
}

const ETHER_TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHER_TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// A VLAN tag, IEEE 802.1Q or 802.1ad.
pub const ETHER_TYPE_TAG: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = Protocol::Tcp.number();
const PROTO_UDP: u8 = Protocol::Udp.number();
const PROTO_ICMPV6: u8 = 58;
/// Reserved (IANA): in [`ip::Ip::protocol`], what it is was not found out.
const PROTO_HIDDEN: u8 = 255;
const TCP_HEADER: usize = 20;

/// Parses the packet whose IP header starts at `l3`, after an EtherType if it is preceded by a link-layer header.
///
/// # Errors
/// The reason why this packet is passed.
#[inline(always)]
pub fn parse<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Packet, Reason> {
    if let Some(at) = l3.checked_sub(2) {
        // A tagged frame is the business of a device above this one.
        let ether_type = packet.read(at).ok_or(Reason::Malformed)?;
        if !matches!(ether_type, ETHER_TYPE_IPV4 | ETHER_TYPE_IPV6) {
            return Err(Reason::OtherProtocol);
        }
    }
    let ip = parse_ip(packet, l3)?;
    match ip.protocol {
        PROTO_TCP | PROTO_UDP if matches!(ip.piece, Piece::Later { .. }) => Ok(later_fragment(&ip)),
        PROTO_TCP => parse_tcp(packet, &ip),
        PROTO_UDP => parse_udp(packet, &ip),
        PROTO_ICMP | PROTO_ICMPV6 => parse_icmp_error(packet, &ip),
        PROTO_HIDDEN => Ok(hidden(ip.src, ip.dst, ip.l4)),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The addresses behind tags of VLAN 0, which are none: the kernel takes off as many of them as there are
/// (`__netif_receive_skb_core`), the first of them before tc sees the packet. Other tags are the business of devices above.
///
/// `l3` is where the first tag has its VLAN.
///
/// # Errors
/// The reason why this packet is passed.
#[inline(always)]
pub fn parse_tagged<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Packet, Reason> {
    const MOST: usize = 3;
    let mut l3 = l3;
    for _ in 0..MOST {
        let [tci, ether_type]: [[u8; 2]; 2] =
            packet.read(l3).map(|[a, b, c, d]: [u8; 4]| [[a, b], [c, d]]).ok_or(Reason::Malformed)?;
        if u16::from_be_bytes(tci) & 0xfff != 0 {
            return Err(Reason::OtherProtocol);
        }
        l3 += 4;
        match ether_type {
            ETHER_TYPE_IPV4 => {
                let [src, dst]: [[u8; 4]; 2] = packet
                    .read(l3 + 12)
                    .map(|[a, b, c, d, e, f, g, h]: [u8; 8]| [[a, b, c, d], [e, f, g, h]])
                    .ok_or(Reason::Malformed)?;
                return Ok(hidden(Addr::from_v4(src), Addr::from_v4(dst), l3));
            }
            ETHER_TYPE_IPV6 => {
                let src = Addr(packet.read(l3 + 8).ok_or(Reason::Malformed)?);
                let dst = Addr(packet.read(l3 + 24).ok_or(Reason::Malformed)?);
                return Ok(hidden(src, dst, l3));
            }
            tag if ETHER_TYPE_TAG.contains(&tag) => {}
            _ => return Err(Reason::OtherProtocol),
        }
    }
    Err(Reason::OtherProtocol)
}

/// The ports of the commonest packets, without further ado: whole TCP segments, behind plain IP headers, that ask for no
/// connection. Of any other, and of one that lies about itself, it is for [`parse`] to say what it is.
#[inline(always)]
pub fn ports_of_segment<R: Reader + ?Sized>(packet: &R, l3: usize) -> Option<[[u8; 2]; 2]> {
    if let Some(at) = l3.checked_sub(2)
        && !matches!(packet.read(at)?, ETHER_TYPE_IPV4 | ETHER_TYPE_IPV6)
    {
        return None;
    }
    let [first, _] = packet.read(l3)?;
    let (l4, end) = match first {
        0x45 => {
            let header: [u8; 10] = packet.read(l3)?;
            if header[9] != PROTO_TCP || header[6] & 0x3f != 0 || header[7] != 0 {
                return None;
            }
            (l3 + 20, l3 + u16::from_be_bytes([header[2], header[3]]) as usize)
        }
        0x60..=0x6f => {
            let header: [u8; 8] = packet.read(l3)?;
            let (src, dst) = (Addr(packet.read(l3 + 8)?), Addr(packet.read(l3 + 24)?));
            if header[6] != PROTO_TCP || src.is_v4() || dst.is_v4() {
                return None;
            }
            (l3 + 40, l3 + 40 + u16::from_be_bytes([header[4], header[5]]) as usize)
        }
        _ => return None,
    };
    let header: [u8; 14] = packet.read(l4)?;
    let data_offset = ((header[12] >> 4) as usize) * 4;
    let asks = header[TCP_FLAGS] & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) == tcp_flag::SYN;
    if asks || data_offset < TCP_HEADER || l4 + data_offset > end {
        return None;
    }
    Some([[header[0], header[1]], [header[2], header[3]]])
}

/// Whether this is an ICMP redirect, as this host's kernel makes them: right behind a plain IP header.
#[inline(always)]
pub fn is_redirect<R: Reader + ?Sized>(packet: &R, l3: usize) -> bool {
    let Some(header) = packet.read::<10>(l3) else { return false };
    let (l4, redirect) = match header {
        [0x45, .., PROTO_ICMP] => (l3 + 20, 5),
        [0x60..=0x6f, _, _, _, _, _, PROTO_ICMPV6, ..] => (l3 + 40, 137),
        _ => return false,
    };
    matches!(packet.read(l4), Some([kind, _]) if kind == redirect)
}

#[cfg(test)]
mod tests;
