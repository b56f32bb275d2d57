//! IP headers, with the extensions of IPv6.

use super::{PROTO_HIDDEN, Piece, Reader};
use crate::{addr::Addr, verdict::Reason};

/// Most IPv6 extension headers looked at; as RFC 8200 orders them there are at most seven.
const MAX_EXTENSIONS: usize = 7;

/// An IP header, its extensions skipped.
pub(super) struct Ip {
    pub(super) src: Addr,
    pub(super) dst: Addr,
    pub(super) protocol: u8,
    pub(super) hops: u8,
    pub(super) piece: Piece,
    pub(super) l4: usize,
    /// Where the packet ends by its own account, which may be before its last byte (link-layer padding).
    pub(super) end: usize,
    /// From where on it counts.
    pub(super) start: usize,
}

#[inline(always)]
pub(super) fn parse_ip<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
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
    pub(super) fn has<R: Reader + ?Sized>(&self, packet: &R, bytes: usize) -> bool {
        self.l4 + bytes <= self.end || self.end == self.start && self.l4 + bytes <= packet.size()
    }
}

#[inline(always)]
pub(super) fn parse_v4<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
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
pub(super) fn parse_v6<R: Reader + ?Sized>(packet: &R, l3: usize) -> Result<Ip, Reason> {
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
pub(super) const fn piece(more: bool, offset: u16, id: [u8; 4]) -> Piece {
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
