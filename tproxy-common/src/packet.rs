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
}

impl Reader for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
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
const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = Protocol::Tcp.number();
const PROTO_UDP: u8 = Protocol::Udp.number();
const PROTO_ICMPV6: u8 = 58;
const TCP_HEADER: usize = 20;
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
        _ => Err(Reason::OtherProtocol),
    }
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

#[inline(always)]
fn parse_v4<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
    let header: [u8; 20] = packet.read(l3).ok_or(Reason::Malformed)?;
    let header_len = ((header[0] & 0x0f) as usize) * 4;
    let total_len = u16::from_be_bytes([header[2], header[3]]) as usize;
    if header_len < 20 || total_len < header_len {
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
    let (protocol, l4, piece) = skip_extensions(packet, lengths[6], l3 + 40)?;
    let end = l3 + 40 + u16::from_be_bytes([lengths[4], lengths[5]]) as usize;
    Ok(Ip { src, dst, protocol, hops: lengths[7], piece, l4, end })
}

#[inline(always)]
const fn piece(more: bool, offset: u16, id: [u8; 4]) -> Piece {
    match (offset, more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First { id },
        _ => Piece::Later { id },
    }
}

#[inline(always)]
fn skip_extensions<R: Reader + ?Sized>(
    packet: &R,
    first: u8,
    l4: usize,
) -> Result<(u8, usize, Piece), Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let (mut protocol, mut offset, mut fragment) = (first, l4, Piece::Whole);
    for _ in 0..MAX_EXTENSIONS {
        let units = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
                packet.read::<4>(offset).ok_or(Reason::Malformed)?
            }
            _ => break,
        };
        offset += match protocol {
            FRAGMENT => {
                let id = packet.read(offset + 4).ok_or(Reason::Malformed)?;
                fragment = piece(units[3] & 1 != 0, u16::from_be_bytes([units[2], units[3]]) & 0xfff8, id);
                8
            }
            AUTHENTICATION => (units[1] as usize + 2) * 4,
            _ => (units[1] as usize + 1) * 8,
        };
        protocol = units[0];
        if matches!(fragment, Piece::Later { .. }) {
            // What follows is data, whatever it looks like.
            break;
        }
    }
    Ok((protocol, offset, fragment))
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
    let header: [u8; 14] = packet.read(ip.l4).ok_or(Reason::Malformed)?;
    let data_offset = ((header[12] >> 4) as usize) * 4;
    if data_offset < TCP_HEADER || ip.l4 + data_offset > ip.end {
        return Err(Reason::Malformed);
    }
    let tuple =
        Tuple { src: ip.src, dst: ip.dst, sport: [header[0], header[1]], dport: [header[2], header[3]] };
    let kind = match header[TCP_FLAGS] & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) {
        tcp_flag::SYN => Kind::Syn,
        tcp_flag::ACK => Kind::Ack,
        _ => Kind::Other,
    };
    Ok(Packet { protocol: Protocol::Tcp, tuple, kind, piece: ip.piece, l4: ip.l4, hops: ip.hops })
}

#[inline(always)]
fn parse_udp<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
    let header: [u8; UDP_HEADER] = packet.read(ip.l4).ok_or(Reason::Malformed)?;
    let length = u16::from_be_bytes([header[4], header[5]]) as usize;
    // A first fragment holds a part of what the length counts.
    let needed = if matches!(ip.piece, Piece::Whole) { length } else { UDP_HEADER };
    if length < UDP_HEADER || ip.l4 + needed > ip.end {
        return Err(Reason::Malformed);
    }
    let tuple =
        Tuple { src: ip.src, dst: ip.dst, sport: [header[0], header[1]], dport: [header[2], header[3]] };
    let kind = Kind::Datagram;
    Ok(Packet { protocol: Protocol::Udp, tuple, kind, piece: ip.piece, l4: ip.l4, hops: ip.hops })
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
    Ok(Packet { protocol, tuple, kind: Kind::IcmpError, piece: Piece::Whole, l4: ip.l4, hops: ip.hops })
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
    fn more_extension_headers_than_there_are_kinds_are_not_looked_through() {
        assert_eq!(behind_extensions(7).map(|packet| packet.l4), Ok(40 + 7 * 8));
        for count in [8, 9, 20] {
            assert_eq!(behind_extensions(count), Err(Reason::OtherProtocol), "{count}");
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
        assert_eq!(parse(&to_the_end[..], 0), Err(Reason::Malformed), "a header longer than the packet");
    }

    #[test]
    fn a_jumbogram_is_left_alone() {
        let mut jumbo = v6(6, &tcp(tcp_flag::SYN, 5));
        jumbo[4..6].copy_from_slice(&[0, 0]);
        assert_eq!(parse(&jumbo[..], 0), Err(Reason::Malformed));
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
            assert_eq!(parse(&v4(17, 0, &udp(length, payload))[..], 0), Err(Reason::Malformed), "{length}");
        }
    }

    #[test]
    fn a_first_fragment_holds_a_part_of_its_datagram() {
        let mut first = v4(17, 0, &udp(4008, 1472));
        assert_eq!(parse(&first[..], 0), Err(Reason::Malformed));
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
    fn headers_that_contradict_each_other() {
        let good = v4(6, 0, &tcp(tcp_flag::SYN, 5));
        let broken = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            parse(&packet[..], 0)
        };
        assert_eq!(broken(0, 0x44), Err(Reason::Malformed), "header shorter than 20 bytes");
        assert_eq!(broken(3, 19), Err(Reason::Malformed), "total length shorter than the header");
        assert_eq!(broken(3, 39), Err(Reason::Malformed), "TCP header past the total length");
        assert_eq!(broken(32, 0x40), Err(Reason::Malformed), "TCP header shorter than 20 bytes");
        assert_eq!(broken(0, 0x55), Err(Reason::OtherProtocol), "version 5");
        let mut mapped = v6(6, &tcp(tcp_flag::SYN, 5));
        mapped[8..24].copy_from_slice(&Addr::from_v4([10, 0, 0, 1]).0);
        assert_eq!(parse(&mapped[..], 0), Err(Reason::Malformed));
    }

    proptest! {
        #[test]
        fn truncation_is_never_a_packet(cut in 0usize..64, options in 0usize..10, v6_packet: bool) {
            let whole = if v6_packet { v6(6, &tcp(tcp_flag::SYN, 6)) } else { v4(6, options, &tcp(tcp_flag::SYN, 6)) };
            let ports_end = parse(&whole[..], 0).unwrap().l4 + TCP_FLAGS + 1;
            let parsed = parse(&whole[..cut.min(whole.len())], 0);
            prop_assert_eq!(parsed.is_ok(), cut >= ports_end);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), l3 in 0usize..20) {
            if let Ok(packet) = parse(&bytes[..], l3) {
                prop_assert!(packet.l4 <= bytes.len());
            }
        }
    }
}
