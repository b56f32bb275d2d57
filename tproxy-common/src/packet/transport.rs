//! What is in an IP packet: TCP, UDP, and the ICMP errors that quote them.

use super::{
    Fragmenting, Kind, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet, Piece, Reader, TCP_FLAGS, TCP_HEADER,
    ip::{Ip, parse_ip},
    tcp_flag,
};
use crate::{
    addr::Addr,
    flow::{Protocol, Tuple},
    verdict::Reason,
};

/// Most options of a TCP header looked at. Who signs does so before, or right after, the few that all others send.
const MAX_OPTIONS: usize = 16;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

#[inline(always)]
pub(super) const fn hidden(src: Addr, dst: Addr, l4: usize) -> Packet {
    let tuple = Tuple { src, dst, sport: [0, 0], dport: [0, 0] };
    Packet { tuple, kind: Kind::Hidden, l4, ..Packet::NOTHING }
}

/// With the ports, if at least those are there.
#[inline(always)]
pub(super) fn unreadable<R: Reader + ?Sized>(packet: &R, ip: &Ip, protocol: Protocol) -> Packet {
    const PORTS: usize = 4;
    let ports: Option<[u8; PORTS]> = if ip.has(packet, PORTS) { packet.read(ip.l4) } else { None };
    let [a, b, c, d] = ports.unwrap_or_default();
    let tuple = Tuple { src: ip.src, dst: ip.dst, sport: [a, b], dport: [c, d] };
    Packet { protocol, tuple, kind: Kind::Unreadable, piece: ip.piece, l4: ip.l4, hops: ip.hops }
}

#[inline(always)]
pub(super) const fn later_fragment(ip: &Ip) -> Packet {
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
pub(super) fn parse_tcp<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
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
pub(super) fn byte<R: Reader + ?Sized>(packet: &R, offset: usize) -> Option<u8> {
    let [even, odd] = packet.read(offset & !1)?;
    Some(if offset & 1 == 0 { even } else { odd })
}

#[inline(always)]
pub(super) fn parse_udp<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
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
pub(super) fn parse_icmp_error<R: Reader + ?Sized>(packet: &R, ip: &Ip) -> Result<Packet, Reason> {
    let [kind, _code] = packet.read(ip.l4).ok_or(Reason::Malformed)?;
    let is_error = match ip.protocol {
        PROTO_ICMP => matches!(kind, 3 | 11 | 12), // unreachable, time exceeded, parameter problem
        _ => matches!(kind, 1..=4),                // RFC 4443: unreachable, too big, time exceeded, parameter
    };
    // What a later fragment begins with is no header, whatever it looks like.
    if !is_error || matches!(ip.piece, Piece::Later { .. }) {
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
