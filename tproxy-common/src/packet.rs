//! The packet parser: from a frame or an IP header to what the datapath decides by. One implementation for the verifier,
//! for tests and for fuzzing; it reads through [`Reader`] and never past what the headers claim.

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
/// Reserved (IANA): in [`Ip::protocol`], what it is was not found out.
const PROTO_HIDDEN: u8 = 255;
const TCP_HEADER: usize = 20;
/// Most options of a TCP header looked at. Who signs does so before, or right after, the few that all others send.
const MAX_OPTIONS: usize = 16;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

/// Most IPv6 extension headers looked at; as RFC 8200 orders them there are at most seven.
const MAX_EXTENSIONS: usize = 7;

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

/// An IP header, its extensions skipped.
struct Ip {
    src: Addr,
    dst: Addr,
    protocol: u8,
    hops: u8,
    piece: Piece,
    l4: usize,
    /// Where the packet ends by its own account, which may be before its last byte (link-layer padding).
    end: usize,
    /// From where on it counts.
    start: usize,
}

#[inline(always)]
fn parse_ip<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
    // Two bytes where one is wanted: from the comparison the compiler makes of a single byte's bound, the verifier
    // learns nothing.
    let [first, _] = packet.read(l3).ok_or(Reason::Malformed)?;
    match first >> 4 {
        4 => parse_v4(packet, l3),
        6 => parse_v6(packet, l3),
        _ => Err(Reason::OtherProtocol),
    }
}

impl Ip {
    /// Whether this many bytes from [`Self::l4`] on belong to the packet.
    ///
    /// One whose length field says 0 is of more than 64 KiB, as only the kernel itself makes them, and ends with its last byte
    /// (BIG TCP; `iph_totlen`, `ipv6_payload_len`).
    #[inline(always)]
    fn has<R: Reader + ?Sized>(&self, packet: &R, bytes: usize) -> bool {
        self.l4 + bytes <= self.end || self.end == self.start && self.l4 + bytes <= packet.size()
    }
}

#[inline(always)]
fn parse_v4<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
    let header: [u8; 20] = packet.read(l3).ok_or(Reason::Malformed)?;
    let header_len = ((header[0] & 0x0f) as usize) * 4;
    let total_len = u16::from_be_bytes([header[2], header[3]]) as usize;
    if header_len < 20 || total_len < header_len && total_len != 0 {
        return Err(Reason::Malformed);
    }
    let (more, offset) = (header[6] & 0x20 != 0, u16::from_be_bytes([header[6], header[7]]) & 0x1fff);
    Ok(Ip {
        src: Addr::from_v4([header[12], header[13], header[14], header[15]]),
        dst: Addr::from_v4([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        hops: header[8],
        piece: piece(more, offset, [header[4], header[5], 0, 0]),
        l4: l3 + header_len,
        end: l3 + total_len,
        start: l3,
    })
}

#[inline(always)]
fn parse_v6<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
    let lengths: [u8; 8] = packet.read(l3).ok_or(Reason::Malformed)?;
    let src = Addr(packet.read(l3 + 8).ok_or(Reason::Malformed)?);
    let dst = Addr(packet.read(l3 + 24).ok_or(Reason::Malformed)?);
    if src.is_v4() || dst.is_v4() {
        // An IPv4-mapped address never belongs on the wire (RFC 4942, 2.2), and would be taken for IPv4 here.
        return Err(Reason::Malformed);
    }
    let hidden = Payload { protocol: PROTO_HIDDEN, l4: l3 + 40, piece: Piece::Whole };
    let Payload { protocol, l4, piece } = packet.skip_extensions(lengths[6], l3 + 40).unwrap_or(hidden);
    let length = u16::from_be_bytes([lengths[4], lengths[5]]) as usize;
    let start = l3 + 40;
    Ok(Ip { src, dst, protocol, hops: lengths[7], piece, l4, start, end: start + length })
}

#[inline(always)]
const fn piece(more: bool, offset: u16, id: [u8; 4]) -> Piece {
    match (offset, more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First { id },
        _ => Piece::Later { id },
    }
}

/// What is behind the extension headers of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// IPv6's number of what it is.
    pub protocol: u8,
    /// Where it begins.
    pub l4: usize,
    /// Which piece of it is there.
    pub piece: Piece,
}

impl Payload {
    const NOTHING: u64 = u64::MAX;

    /// In one register, which is what a BPF function can return: the protocol, the piece, where it begins, the id.
    #[inline(always)]
    #[must_use]
    pub const fn to_number(payload: Option<Self>) -> u64 {
        let Some(Self { protocol, l4, piece }) = payload else { return Self::NOTHING };
        let (kind, id) = match piece {
            Piece::Whole => (0, [0; 4]),
            Piece::First { id } => (1, id),
            Piece::Later { id } => (2, id),
        };
        protocol as u64 | kind << 8 | (l4 as u64 & 0xffff) << 16 | (u32::from_ne_bytes(id) as u64) << 32
    }

    /// The reverse of [`Self::to_number`].
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        let id = ((number >> 32) as u32).to_ne_bytes();
        let piece = match number >> 8 & 0xff {
            0 => Piece::Whole,
            1 => Piece::First { id },
            2 => Piece::Later { id },
            _ => return None,
        };
        Some(Self { protocol: number as u8, l4: (number >> 16 & 0xffff) as usize, piece })
    }
}

/// What the extension headers that begin at `l4` with that of the kind `first` lead to; nothing, if there are too many of
/// them or too few bytes.
#[inline(always)]
pub fn skip_extensions<R: Reader + ?Sized>(packet: &R, first: u8, l4: usize) -> Option<Payload> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let (mut protocol, mut l4, mut piece) = (first, l4, Piece::Whole);
    for _ in 0..MAX_EXTENSIONS {
        let units = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => packet.read::<4>(l4)?,
            _ => return Some(Payload { protocol, l4, piece }),
        };
        l4 += match protocol {
            FRAGMENT => {
                let id = packet.read(l4 + 4)?;
                piece = self::piece(units[3] & 1 != 0, u16::from_be_bytes([units[2], units[3]]) & 0xfff8, id);
                8
            }
            AUTHENTICATION => (units[1] as usize + 2) * 4,
            _ => (units[1] as usize + 1) * 8,
        };
        protocol = units[0];
        if matches!(piece, Piece::Later { .. }) {
            // What follows is data, whatever it looks like.
            return Some(Payload { protocol, l4, piece });
        }
    }
    match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => None,
        _ => Some(Payload { protocol, l4, piece }),
    }
}

#[inline(always)]
const fn hidden(src: Addr, dst: Addr, l4: usize) -> Packet {
    let tuple = Tuple { src, dst, sport: [0, 0], dport: [0, 0] };
    Packet { tuple, kind: Kind::Hidden, l4, ..Packet::NOTHING }
}

/// With the ports, if at least those are there.
#[inline(always)]
fn unreadable<R: Reader + ?Sized>(packet: &R, ip: &Ip, protocol: Protocol) -> Packet {
    const PORTS: usize = 4;
    let ports: Option<[u8; PORTS]> = if ip.has(packet, PORTS) { packet.read(ip.l4) } else { None };
    let [a, b, c, d] = ports.unwrap_or_default();
    let tuple = Tuple { src: ip.src, dst: ip.dst, sport: [a, b], dport: [c, d] };
    Packet { protocol, tuple, kind: Kind::Unreadable, piece: ip.piece, l4: ip.l4, hops: ip.hops }
}

#[inline(always)]
const fn later_fragment(ip: &Ip) -> Packet {
    Packet {
        protocol: if ip.protocol == PROTO_TCP { Protocol::Tcp } else { Protocol::Udp },
        tuple: Tuple { src: ip.src, dst: ip.dst, sport: [0, 0], dport: [0, 0] },
        kind: Kind::LaterFragment,
        piece: ip.piece,
        l4: ip.l4,
        hops: ip.hops,
    }
}

#[inline(always)]
fn parse_tcp<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
    const FLAGS_END: usize = TCP_FLAGS + 1;
    let Some(header) = packet.read::<FLAGS_END>(ip.l4) else {
        return Ok(unreadable(packet, ip, Protocol::Tcp));
    };
    let data_offset = ((header[12] >> 4) as usize) * 4;
    // Of a first fragment the flags do: the rest of the header may come with the next.
    let needed = if matches!(ip.piece, Piece::Whole) { data_offset } else { FLAGS_END };
    if data_offset < TCP_HEADER || !ip.has(packet, needed) {
        return Ok(unreadable(packet, ip, Protocol::Tcp));
    }
    let tuple =
        Tuple { src: ip.src, dst: ip.dst, sport: [header[0], header[1]], dport: [header[2], header[3]] };
    let kind = match header[TCP_FLAGS] & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) {
        tcp_flag::SYN => Kind::Syn,
        tcp_flag::ACK => Kind::Ack,
        _ => Kind::Other,
    };
    let Ip { piece, l4, hops, .. } = *ip;
    Ok(Packet { protocol: Protocol::Tcp, tuple, kind, piece, l4, hops })
}

/// Whether routers may fragment a parsed packet whose IP header starts at `l3`.
#[inline(always)]
pub fn fragmenting<R: Reader + ?Sized>(packet: &R, l3: usize, parsed: &Packet) -> Fragmenting {
    const DF: u8 = 0x40;
    let forbidden = if parsed.tuple.dst.is_v4() {
        matches!(packet.read(l3 + 6), Some([flags, _]) if flags & DF != 0)
    } else {
        matches!(parsed.piece, Piece::Whole)
    };
    if forbidden { Fragmenting::Forbidden } else { Fragmenting::Allowed }
}

/// Whether the TCP segment whose header starts at `l4` is signed with a key that only its two ends have (RFC 2385,
/// RFC 5925): nobody can take their place.
#[inline(always)]
pub fn is_signed<R: Reader + ?Sized>(packet: &R, l4: usize) -> bool {
    let Some([data_offset, _]) = packet.read::<2>(l4 + 12) else { return false };
    let (start, end) = (l4 + TCP_HEADER, l4 + ((data_offset >> 4) as usize) * 4);
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MD5: u8 = 19;
    const AUTHENTICATION: u8 = 29;
    let mut offset = start;
    for _ in 0..MAX_OPTIONS {
        if offset >= end {
            return false;
        }
        offset += match byte(packet, offset) {
            Some(MD5 | AUTHENTICATION) => return true,
            None | Some(END) => return false,
            Some(NO_OPERATION) => 1,
            Some(_) => match byte(packet, offset + 1) {
                Some(length @ 2..) => length as usize,
                _ => return false,
            },
        };
    }
    false
}

/// One byte of a header, by way of the two that begin at an even offset, as headers do.
#[inline(always)]
fn byte<R: Reader + ?Sized>(packet: &R, offset: usize) -> Option<u8> {
    let [even, odd] = packet.read(offset & !1)?;
    Some(if offset & 1 == 0 { even } else { odd })
}

#[inline(always)]
fn parse_udp<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
    let Some(header) = packet.read::<UDP_HEADER>(ip.l4) else {
        return Ok(unreadable(packet, ip, Protocol::Udp));
    };
    let length = match u16::from_be_bytes([header[4], header[5]]) {
        // All there is (RFC 2675, 4), which receivers do not ask a jumbogram for (`__udp6_lib_rcv`).
        0 if !ip.src.is_v4() => UDP_HEADER,
        length => length as usize,
    };
    // A first fragment holds a part of what the length counts.
    let needed = if matches!(ip.piece, Piece::Whole) { length } else { UDP_HEADER };
    if length < UDP_HEADER || !ip.has(packet, needed) {
        return Ok(unreadable(packet, ip, Protocol::Udp));
    }
    let tuple =
        Tuple { src: ip.src, dst: ip.dst, sport: [header[0], header[1]], dport: [header[2], header[3]] };
    let Ip { piece, l4, hops, .. } = *ip;
    let kind = Kind::Datagram;
    Ok(Packet { protocol: Protocol::Udp, tuple, kind, piece, l4, hops })
}

#[inline(always)]
fn parse_icmp_error<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
    let [kind, _code] = packet.read(ip.l4).ok_or(Reason::Malformed)?;
    let is_error = match ip.protocol {
        PROTO_ICMP => matches!(kind, 3 | 11 | 12), // unreachable, time exceeded, parameter problem
        _ => matches!(kind, 1..=4),                // RFC 4443: unreachable, too big, time exceeded, parameter
    };
    if !is_error {
        return Err(Reason::OtherProtocol);
    }
    let quoted = parse_ip(packet, ip.l4 + ICMP_HEADER)?;
    let protocol = match (quoted.protocol, quoted.piece) {
        (_, Piece::Later { .. }) => return Err(Reason::Fragment),
        (PROTO_TCP, _) => Protocol::Tcp,
        (PROTO_UDP, _) => Protocol::Udp,
        _ => return Err(Reason::OtherProtocol),
    };
    // Only the first eight bytes of the quoted TCP header are certain to be there (RFC 792).
    let ports: [u8; 4] = packet.read(quoted.l4).ok_or(Reason::Malformed)?;
    let sent =
        Tuple { src: quoted.src, dst: quoted.dst, sport: [ports[0], ports[1]], dport: [ports[2], ports[3]] };
    let tuple = sent.reversed();
    let Ip { l4, hops, .. } = *ip;
    Ok(Packet { protocol, tuple, kind: Kind::IcmpError, piece: Piece::Whole, l4, hops })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        let total = 20 + options * 4 + payload.len();
        let mut p =
            vec![0x45 + options as u8, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        p.extend([10, 0, 0, 1, 8, 8, 8, 8]);
        p.extend(vec![1; options * 4]);
        p.extend(payload);
        p
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, (payload.len() >> 8) as u8, payload.len() as u8, next, 64];
        p.extend("2001:db8::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
        p.extend("2001:db8::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
        p.extend(payload);
        p
    }

    fn tcp(flags: u8, words: u8) -> Vec<u8> {
        let mut p = vec![0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0, 0, 0, 0, 0, 0];
        p.resize(words.max(5) as usize * 4, 1);
        p
    }

    #[test]
    fn a_syn_with_ip_and_tcp_options() {
        let packet = parse(&v4(6, 3, &tcp(tcp_flag::SYN, 10))[..], 0).unwrap();
        assert_eq!(packet.kind, Kind::Syn);
        assert_eq!(packet.l4, 32);
        assert_eq!(IpAddr::from(packet.tuple.dst), "8.8.8.8".parse::<IpAddr>().unwrap());
        assert_eq!((packet.tuple.sport, packet.tuple.dport), ([0x30, 0x39], [0, 80]));
    }

    #[test]
    fn a_signed_syn_wherever_the_signature_is() {
        let signed = |options: &[u8]| {
            let mut segment = tcp(tcp_flag::SYN, 5 + options.len().div_ceil(4) as u8);
            segment[20..20 + options.len()].copy_from_slice(options);
            [(v4(6, 0, &segment), 20), (v6(6, &segment), 40)].map(|(packet, l4)| is_signed(&packet[..], l4))
        };
        let md5 = [[19, 18].as_slice(), &[7; 16]].concat();
        let ao = [[29, 16].as_slice(), &[7; 14]].concat();
        for signature in [md5, ao] {
            let usual = [2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2];
            let after = |before: &[u8]| [before, &signature].concat();
            for options in [after(&[]), after(&[1, 1]), after(&[1]), after(&usual), after(&[1; 15])] {
                assert_eq!(signed(&options), [true; 2], "{options:?}");
            }
            assert_eq!(signed(&after(&[0])), [false; 2], "what follows the end is none");
        }
        assert_eq!(signed(&[2, 4, 19, 18, 8, 10, 29, 29, 19, 18, 19, 18]), [false; 2], "values of others");
        assert_eq!(signed(&[3, 0, 19, 18]), [false; 2], "no length");
        assert_eq!(signed(&[1, 1, 1, 3]), [false; 2], "a length that is not there");
    }

    #[test]
    fn who_may_fragment_it() {
        let mut packet = v4(17, 0, &[0, 1, 0, 2, 0, 8, 0, 0]);
        assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Forbidden);
        packet[6] = 0;
        assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Allowed);
        let packet = v6(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
        assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Forbidden);
        let packet = v6(44, &[17, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 2, 0, 16, 0, 0]);
        assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Allowed);
    }

    #[test]
    fn kinds_of_segments() {
        for (flags, kind) in [
            (0x02, Kind::Syn),
            (0x12, Kind::Other),
            (0x10, Kind::Ack),
            (0x18, Kind::Ack),
            (0x11, Kind::Ack),
            (0x14, Kind::Other),
            (0xc2, Kind::Syn),
            (0, Kind::Other),
        ] {
            assert_eq!(parse(&v4(6, 0, &tcp(flags, 5))[..], 0).unwrap().kind, kind, "{flags:#x}");
        }
    }

    #[test]
    fn extension_headers_are_skipped() {
        let mut payload = vec![60, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop, then destination options
        payload.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend(tcp(tcp_flag::SYN, 5));
        let packet = parse(&v6(0, &payload)[..], 0).unwrap();
        assert_eq!((packet.kind, packet.l4), (Kind::Syn, 64));
    }

    /// `count` headers of eight bytes in front of a SYN.
    fn behind_extensions(count: usize) -> Result<Packet, Reason> {
        let mut payload: Vec<u8> =
            (1..=count).flat_map(|at| [if at == count { 6 } else { 60 }, 0, 0, 0, 0, 0, 0, 0]).collect();
        payload.extend(tcp(tcp_flag::SYN, 5));
        parse(&v6(60, &payload)[..], 0)
    }

    #[test]
    fn what_is_behind_more_extension_headers_than_there_are_kinds_is_hidden() {
        let of = |count| behind_extensions(count).map(|packet| (packet.kind, packet.l4));
        assert_eq!(of(7), Ok((Kind::Syn, 40 + 7 * 8)));
        for count in [8, 9, 20] {
            assert_eq!(of(count), Ok((Kind::Hidden, 40)), "{count}");
        }
    }

    #[test]
    fn every_kind_of_extension_header_has_its_length() {
        for (kind, length, size) in
            [(0, 2, 24), (43, 2, 24), (60, 2, 24), (51, 4, 24), (51, 1, 12), (44, 0, 8)]
        {
            let mut payload = vec![0; size];
            payload[..2].copy_from_slice(&[6, length]);
            payload.extend(tcp(tcp_flag::SYN, 5));
            let packet = parse(&v6(kind, &payload)[..], 0);
            assert_eq!(packet.map(|packet| packet.l4), Ok(40 + size), "{kind}");
        }
        let to_the_end = v6(43, &[6, 255, 0, 0]);
        let unreadable = parse(&to_the_end[..], 0).map(|packet| packet.kind);
        assert_eq!(unreadable, Ok(Kind::Unreadable), "TCP that would begin after the packet's end");
    }

    #[test]
    fn a_packet_without_a_length_is_as_long_as_it_is() {
        let (mut four, mut six) = (v4(6, 2, &tcp(tcp_flag::SYN, 5)), v6(6, &tcp(tcp_flag::SYN, 5)));
        let whole = (parse(&four[..], 0).unwrap(), parse(&six[..], 0).unwrap());
        four[2..4].copy_from_slice(&[0, 0]);
        six[4..6].copy_from_slice(&[0, 0]);
        assert_eq!((parse(&four[..], 0).unwrap(), parse(&six[..], 0).unwrap()), whole);
        for cut in [four, six] {
            assert_eq!(parse(&cut[..cut.len() - 1], 0).unwrap().kind, Kind::Unreadable);
        }
    }

    #[test]
    fn a_datagram_without_a_length_is_one_in_ipv6_only() {
        assert_eq!(parse(&v6(17, &udp(0, 9))[..], 0).unwrap().kind, Kind::Datagram);
        assert_eq!(parse(&v4(17, 0, &udp(0, 9))[..], 0).unwrap().kind, Kind::Unreadable);
    }

    #[test]
    fn a_first_fragment_without_the_flags_is_not_read() {
        let header = tcp(tcp_flag::SYN, 6);
        for (length, kind) in [(2, Kind::Unreadable), (8, Kind::Unreadable), (16, Kind::Syn), (24, Kind::Syn)]
        {
            let mut four = v4(6, 0, &header[..length]);
            four[6] = 0x20;
            let mut six = vec![6, 0, 0, 0x01, 0, 0, 0, 1];
            six.extend(&header[..length]);
            for packet in [four, v6(44, &six)] {
                let parsed = parse(&packet[..], 0).unwrap();
                let port = if length < 4 { [0, 0] } else { [0, 80] };
                assert_eq!((parsed.kind, parsed.tuple.dport), (kind, port), "{length}");
                assert!(parsed.fragment().is_some());
            }
        }
    }

    #[test]
    fn a_tag_of_vlan_0_is_none() {
        let tagged = |tags: &[[u8; 4]]| {
            let mut frame = vec![0; 12];
            frame.extend(tags.concat());
            frame.extend([0x08, 0x00]);
            frame.extend(v4(6, 0, &tcp(tcp_flag::SYN, 5)));
            assert_eq!(parse(&frame[..], 14), Err(Reason::OtherProtocol));
            parse_tagged(&frame[..], 14).map(|packet| (packet.kind, packet.tuple.dst.v4()))
        };
        let hidden = Ok((Kind::Hidden, [8, 8, 8, 8]));
        assert_eq!(tagged(&[[0x81, 0, 0xe0, 0]]), hidden);
        assert_eq!(tagged(&[[0x88, 0xa8, 0, 0], [0x81, 0, 0, 0]]), hidden);
        assert_eq!(tagged(&[[0x81, 0, 0, 5]]), Err(Reason::OtherProtocol));
        assert_eq!(tagged(&[[0x81, 0, 0, 0], [0x81, 0, 0, 5]]), Err(Reason::OtherProtocol));
    }

    #[test]
    fn a_length_that_promises_more_than_there_is_hides_no_header() {
        for mut packet in [v4(6, 2, &tcp(tcp_flag::SYN, 5)), v6(6, &tcp(tcp_flag::SYN, 5))] {
            let whole = parse(&packet[..], 0);
            let length_at = if packet[0] >> 4 == 4 { 2 } else { 4 };
            packet[length_at..length_at + 2].copy_from_slice(&[0xff, 0xff]);
            assert!(whole.is_ok());
            assert_eq!(parse(&packet[..], 0), whole);
        }
    }

    #[test]
    fn only_untagged_frames_with_ip_are_looked_into() {
        let framed = |ether_type: u16| {
            let mut frame = vec![0; 12];
            frame.extend(ether_type.to_be_bytes());
            frame.extend(v4(6, 0, &tcp(tcp_flag::SYN, 5)));
            parse(&frame[..], 14).map(|packet| packet.l4)
        };
        assert_eq!(framed(0x0800), Ok(34));
        for (ether_type, what) in [(0x8100, "VLAN"), (0x88a8, "QinQ"), (0x8847, "MPLS"), (0x0806, "ARP")] {
            assert_eq!(framed(ether_type), Err(Reason::OtherProtocol), "{what}");
        }
        assert_eq!(parse(&[0; 13][..], 14), Err(Reason::Malformed));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut first = v4(6, 0, &tcp(tcp_flag::SYN, 5));
        first[6] = 0x20; // more fragments
        assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Syn);
        let key = parse(&first[..], 0).unwrap().fragment();
        assert!(key.is_some());
        first[7] = 1;
        let later = parse(&first[..], 0).unwrap();
        assert_eq!((later.kind, later.fragment()), (Kind::LaterFragment, key));
        assert_eq!((later.tuple.sport, later.tuple.dport), ([0, 0], [0, 0]));
        let mut first = vec![6, 0, 0, 0x01, 0, 0, 0, 1]; // more fragments
        first.extend(tcp(tcp_flag::SYN, 5));
        let first = parse(&v6(44, &first)[..], 0).unwrap();
        assert_eq!(first.kind, Kind::Syn);
        let later = parse(&v6(44, &[6, 0, 0, 0x08, 0, 0, 0, 1])[..], 0).unwrap();
        assert_eq!((later.kind, later.fragment()), (Kind::LaterFragment, first.fragment()));
        let mut atomic = vec![6, 0, 0, 0, 0, 0, 0, 1]; // RFC 6946: neither offset nor more
        atomic.extend(tcp(tcp_flag::SYN, 5));
        assert_eq!(parse(&v6(44, &atomic)[..], 0).unwrap().piece, Piece::Whole);
        // What a later fragment begins with is no extension header.
        let data = v6(44, &[60, 0, 0, 0x08, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse(&data[..], 0), Err(Reason::OtherProtocol));
    }

    fn udp(length: u16, payload: usize) -> Vec<u8> {
        let mut p = vec![0x30, 0x39, 0, 53, (length >> 8) as u8, length as u8, 0, 0];
        p.resize(8 + payload, 7);
        p
    }

    #[test]
    fn a_datagram_with_its_hops() {
        for payload in [0, 1, 100] {
            for packet in
                [v4(17, 2, &udp(8 + payload, payload.into())), v6(17, &udp(8 + payload, payload.into()))]
            {
                let parsed = parse(&packet[..], 0).unwrap();
                assert_eq!((parsed.protocol, parsed.kind, parsed.hops), (Protocol::Udp, Kind::Datagram, 64));
                assert_eq!((parsed.tuple.sport, parsed.tuple.dport), ([0x30, 0x39], [0, 53]));
            }
        }
        for (length, payload) in [(7, 10), (0, 10), (19, 10), (0xffff, 10)] {
            let packet = parse(&v4(17, 0, &udp(length, payload))[..], 0).unwrap();
            assert_eq!((packet.kind, packet.tuple.dport), (Kind::Unreadable, [0, 53]), "{length}");
        }
    }

    #[test]
    fn a_first_fragment_holds_a_part_of_its_datagram() {
        let mut first = v4(17, 0, &udp(4008, 1472));
        assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Unreadable);
        first[6] = 0x20;
        assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Datagram);
    }

    #[test]
    fn an_icmp_error_quotes_tcp_or_udp() {
        let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
        error.extend(v4(17, 0, &udp(8, 0)));
        let packet = parse(&v4(1, 0, &error)[..], 0).unwrap();
        assert_eq!((packet.protocol, packet.kind), (Protocol::Udp, Kind::IcmpError));
        assert_eq!(packet.tuple.sport, [0, 53]);
        error[8 + 9] = 47;
        assert_eq!(parse(&v4(1, 0, &error)[..], 0), Err(Reason::OtherProtocol), "GRE");
    }

    #[test]
    fn an_icmp_error_leads_to_whoever_sent_the_quoted_packet() {
        let mut error = vec![3, 4, 0, 0, 0, 0, 0x05, 0xdc];
        error.extend(&v4(6, 0, &tcp(tcp_flag::ACK, 5))[..28]);
        let packet = parse(&v4(1, 0, &error)[..], 0).unwrap();
        assert_eq!(packet.kind, Kind::IcmpError);
        assert_eq!(IpAddr::from(packet.tuple.dst), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.tuple.dport, [0x30, 0x39]);
        let mut too_big = vec![2, 0, 0, 0, 0, 0, 0x05, 0];
        too_big.extend(&v6(6, &tcp(tcp_flag::ACK, 5))[..48]);
        assert_eq!(parse(&v6(58, &too_big)[..], 0).unwrap().kind, Kind::IcmpError);
        assert_eq!(
            parse(&v4(1, 0, &[8, 0, 0, 0, 0, 0, 0, 0])[..], 0),
            Err(Reason::OtherProtocol),
            "echo request"
        );
    }

    #[test]
    fn a_redirect_is_told_from_other_icmp() {
        let body = |kind: u8| [kind, 1, 0, 0, 10, 0, 0, 1];
        for (packet, is) in [
            (v4(1, 0, &body(5)), true),
            (v4(1, 0, &body(3)), false),
            (v4(17, 0, &body(5)), false),
            (v6(58, &body(137)), true),
            (v6(58, &body(136)), false),
            (v6(17, &body(137)), false),
        ] {
            assert_eq!(is_redirect(&packet[..], 0), is, "{packet:?}");
            assert!(!is_redirect(&packet[..15], 0));
        }
    }

    #[test]
    fn headers_that_contradict_each_other() {
        let good = v4(6, 0, &tcp(tcp_flag::SYN, 5));
        let broken = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            parse(&packet[..], 0).map(|packet| packet.kind)
        };
        assert_eq!(broken(0, 0x44), Err(Reason::Malformed), "header shorter than 20 bytes");
        assert_eq!(broken(3, 19), Err(Reason::Malformed), "total length shorter than the header");
        assert_eq!(broken(3, 39), Ok(Kind::Unreadable), "TCP header past the total length");
        assert_eq!(broken(32, 0x40), Ok(Kind::Unreadable), "TCP header shorter than 20 bytes");
        assert_eq!(broken(0, 0x55), Err(Reason::OtherProtocol), "version 5");
        let mut mapped = v6(6, &tcp(tcp_flag::SYN, 5));
        mapped[8..24].copy_from_slice(&Addr::from_v4([10, 0, 0, 1]).0);
        assert_eq!(parse(&mapped[..], 0), Err(Reason::Malformed));
    }

    proptest! {
        #[test]
        fn a_payload_goes_through_one_register(protocol: u8, l4: u16, id: [u8; 4]) {
            for piece in [Piece::Whole, Piece::First { id }, Piece::Later { id }] {
                let payload = Payload { protocol, l4: l4.into(), piece };
                prop_assert_eq!(Payload::from_number(Payload::to_number(Some(payload))), Some(payload));
            }
            prop_assert_eq!(Payload::from_number(Payload::to_number(None)), None);
        }

        #[test]
        fn truncation_is_never_a_packet(cut in 0usize..64, options in 0usize..10, v6_packet: bool) {
            let whole = if v6_packet { v6(6, &tcp(tcp_flag::SYN, 6)) } else { v4(6, options, &tcp(tcp_flag::SYN, 6)) };
            let ports_end = parse(&whole[..], 0).unwrap().l4 + TCP_FLAGS + 1;
            let parsed = parse(&whole[..cut.min(whole.len())], 0);
            prop_assert_eq!(parsed.is_ok_and(|packet| packet.kind == Kind::Syn), cut >= ports_end);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), l3 in 0usize..20) {
            if let Ok(packet) = parse(&bytes[..], l3) {
                prop_assert!(packet.l4 <= bytes.len());
            }
        }
    }
}
