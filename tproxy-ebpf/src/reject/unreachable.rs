//! A datagram becomes the ICMP error that says "port unreachable" and quotes it: room is made in front of its IP header
//! for two more, and its payload is cut off.
//!
//! A packet whose checksum was left to the hardware (`CHECKSUM_PARTIAL`, from a local sender or over veth) keeps that
//! state. Whoever receives it in this host or over veth takes it as valid, and so does the other side of a card that a
//! hypervisor emulates (virtio). A real one would fill in the sum of the quoted datagram, but none brings such a packet.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    cty::c_long,
    helpers::bpf_skb_change_tail,
    programs::TcContext,
};
use tproxy_common::{addr::Addr, flow::Tuple, packet::Packet};

use super::TTL;
use crate::packet::{self, ETHERNET, LinkLayer};

const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// Words of the quotation at most: an IPv4 header with all its options needs 17, an IPv6 header with extensions any number.
const QUOTED_WORDS: u32 = 32;
const NO_SUM: u64 = u64::MAX;
/// "Internetwork control", as the kernel marks its errors (`icmp_send`).
const TOS: u8 = 0xc0;

/// Type and code of "port unreachable".
const V4_PORT_UNREACHABLE: [u8; 2] = [3, 3];
const V6_PORT_UNREACHABLE: [u8; 2] = [1, 4];

/// 0 when done. External linkage: see `first`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tproxy_unreachable(skb: *mut __sk_buff, link: u32) -> u32 {
    let (ctx, link) = (TcContext::new(skb), LinkLayer(link as usize));
    let answered = packet::read(&ctx, link).is_ok_and(|packet| answer(&ctx, link, &packet).is_ok());
    u32::from(!answered)
}

/// The kernel refused. Without a code, for a BPF function returns one word.
struct Refused;

impl From<c_long> for Refused {
    #[inline(always)]
    fn from(_code: c_long) -> Self {
        Self
    }
}

#[inline(always)]
fn answer(ctx: &TcContext, link: LinkLayer, packet: &Packet) -> Result<(), Refused> {
    let quoted = ((packet.l4 + UDP_HEADER - link.0) & 0x7fff) as u32;
    if quoted > QUOTED_WORDS * 4 {
        return Err(Refused);
    }
    let quotation = tproxy_sum(ctx.skb.skb, link.0 as u32, quoted);
    if quotation == NO_SUM {
        return Err(Refused);
    }
    let is_v4 = packet.tuple.dst.is_v4();
    let room = ICMP_HEADER + if is_v4 { V4_HEADER } else { V6_HEADER };
    // SAFETY: the context is a valid skb.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, link.0 as u32 + quoted, 0) } != 0 {
        return Err(Refused);
    }
    ctx.adjust_room(room as i32, BPF_ADJ_ROOM_MAC, 0)?;
    if link == ETHERNET {
        let [to, from]: [[u8; 6]; 2] = ctx.load(0)?;
        ctx.store(0, &[from, to], 0)?;
    }
    let length = (room as u32 + quoted) as u16;
    if is_v4 {
        write_v4(ctx, link, &packet.tuple, length)?;
        Ok(ctx.store(link.0 + V4_HEADER, &icmp_header(V4_PORT_UNREACHABLE, quotation), 0)?)
    } else {
        let payload = length - V6_HEADER as u16;
        write_v6(ctx, link, &packet.tuple, payload)?;
        let sum = quotation + pseudo_header(&packet.tuple, payload);
        Ok(ctx.store(link.0 + V6_HEADER, &icmp_header(V6_PORT_UNREACHABLE, sum), 0)?)
    }
}

/// Not inlined, for the sake of the stack.
#[inline(never)]
fn write_v4(ctx: &TcContext, link: LinkLayer, refused: &Tuple, length: u16) -> Result<(), Refused> {
    Ok(ctx.store(link.0, &v4_header(refused, length), 0)?)
}

/// As above.
#[inline(never)]
fn write_v6(ctx: &TcContext, link: LinkLayer, refused: &Tuple, payload: u16) -> Result<(), Refused> {
    Ok(ctx.store(link.0, &v6_header(refused, payload), 0)?)
}

#[inline(always)]
fn v4_header(refused: &Tuple, length: u16) -> [u8; V4_HEADER] {
    const DONT_FRAGMENT: u8 = 0x40;
    const ICMP: u8 = 1;
    let [l, m] = length.to_be_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (refused.dst.v4(), refused.src.v4());
    let mut header = [0x45, TOS, l, m, 0, 0, DONT_FRAGMENT, 0, TTL, ICMP, 0, 0, a, b, c, d, e, f, g, h];
    let mut sum = 0;
    for at in 0..V4_HEADER / 2 {
        sum += u64::from(u16::from_be_bytes([header[at * 2], header[at * 2 + 1]]));
    }
    [header[10], header[11]] = folded(sum).to_be_bytes();
    header
}

#[inline(always)]
fn v6_header(refused: &Tuple, payload: u16) -> [[u8; 4]; V6_HEADER / 4] {
    const ICMPV6: u8 = 58;
    let [l, m] = payload.to_be_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (words(&refused.dst), words(&refused.src));
    [[0x60 | TOS >> 4, TOS << 4, 0, 0], [l, m, ICMPV6, TTL], a, b, c, d, e, f, g, h]
}

#[inline(always)]
fn icmp_header([kind, code]: [u8; 2], sum_of_the_rest: u64) -> [u8; ICMP_HEADER] {
    let sum = sum_of_the_rest + u64::from(u16::from_be_bytes([kind, code]));
    let [a, b] = folded(sum).to_be_bytes();
    [kind, code, a, b, 0, 0, 0, 0]
}

/// RFC 8200, 8.1; of the answer.
#[inline(always)]
fn pseudo_header(refused: &Tuple, payload: u16) -> u64 {
    const ICMPV6: u64 = 58;
    let mut sum = u64::from(payload) + ICMPV6;
    let (from, to) = (words(&refused.dst), words(&refused.src));
    for at in 0..4 {
        sum += u64::from(u32::from_be_bytes(from[at])) + u64::from(u32::from_be_bytes(to[at]));
    }
    sum
}

#[inline(always)]
fn words(addr: &Addr) -> [[u8; 4]; 4] {
    let Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = *addr;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]]
}

/// The sum of `length` bytes, a multiple of four, in words of 32 bits, of which [`folded`] makes the Internet checksum; or
/// [`NO_SUM`]. External linkage has the verifier check the loop once, not for every way through the parser.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_sum(skb: *mut __sk_buff, from: u32, length: u32) -> u64 {
    let ctx = TcContext::new(skb);
    let mut sum = 0;
    for at in 0..QUOTED_WORDS {
        if at * 4 >= length {
            break;
        }
        match ctx.load::<[u8; 4]>((from + at * 4) as usize) {
            Ok(word) => sum += u64::from(u32::from_be_bytes(word)),
            Err(_) => return NO_SUM,
        }
    }
    sum
}

/// RFC 1071: the complement of the sum in words of 16 bits, each carry added in again.
#[inline(always)]
fn folded(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}
