//! A packet as tc shows it.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use tproxy_common::{
    addr::Addr,
    packet::{
        self, ETHER_TYPE_TAG, Fragmenting, Packet, Payload, Reader, parse, parse_tagged, skip_extensions,
    },
    verdict::Reason,
};

use crate::maps;

/// Length of the link-layer header in front of the IP header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkLayer(pub(crate) usize);

/// Ethernet, without a VLAN tag (those are passed).
pub(crate) const ETHERNET: LinkLayer = LinkLayer(14);
/// tun, WireGuard, and other devices that carry IP packets.
pub(crate) const NO_LINK_LAYER: LinkLayer = LinkLayer(0);

/// In a tag: which VLAN.
const VLAN_ID: u32 = 0xfff;

/// Bytes that hold all headers of practically every packet.
const HEADERS: u32 = 256;

/// Bytes that are read two at a time: of an array without alignment the BPF backend makes single-byte loads, and spills
/// each of them to a stack of 512 bytes.
#[repr(C, align(2))]
struct Halfwords<const N: usize>([u8; N]);

/// The linear part of the packet, read in place.
struct Linear<'a>(&'a TcContext);

impl Reader for Linear<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // The mask is no limit (IPv6 extension headers end far below it), it is the bound that the verifier asks
        // of an offset before it is added to a packet pointer.
        let start = self.0.data() + (offset & 0x7fff);
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: `start .. start + N` is within the packet. Every header begins at an even offset from an even
        // address: link-layer headers are 14 bytes or none, all others multiples of four.
        Some(unsafe { &*(start as *const Halfwords<N>) }.0)
    }

    #[inline(always)]
    fn size(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn skip_extensions(&self, first: u8, l4: usize) -> Option<Payload> {
        Payload::from_number(tproxy_skip_extensions(self.0.skb.skb, first.into(), l4 as u32))
    }
}

/// [`Payload::to_number`] of what the extension headers lead to.
///
/// As [`tproxy_parse`]: the ways through them are as many as all others together, times two with those that ICMP quotes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_skip_extensions(skb: *mut __sk_buff, first: u32, l4: u32) -> u64 {
    Payload::to_number(skip_extensions(&Linear(&TcContext::new(skb)), first as u8, l4 as usize))
}

/// Parses the packet, after making its headers linear where a driver left them in fragments.
#[inline(always)]
pub(crate) fn read(ctx: &TcContext, link: LinkLayer) -> Result<Packet, Reason> {
    let mut packet = Packet::NOTHING;
    match read_to(ctx, link, &mut packet) {
        0 => Ok(packet),
        failed if failed == number(Reason::OtherProtocol) => Err(Reason::OtherProtocol),
        failed if failed == number(Reason::Fragment) => Err(Reason::Fragment),
        _ => Err(Reason::Malformed),
    }
}

/// The same, into a place that is there already; 0 when done.
#[inline(always)]
pub(crate) fn read_to(ctx: &TcContext, link: LinkLayer, packet: &mut Packet) -> u32 {
    tproxy_parse(ctx.skb.skb, link.0 as u32, packet)
}

/// The addresses of a packet behind tags of VLAN 0.
#[inline(always)]
pub(crate) fn read_tagged(ctx: &TcContext, link: LinkLayer, packet: &mut Packet) -> u32 {
    tproxy_parse_tagged(ctx.skb.skb, link.0 as u32, packet)
}

/// As [`tproxy_parse`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_parse_tagged(skb: *mut __sk_buff, link: u32, packet: *mut Packet) -> u32 {
    if packet.is_null() {
        return number(Reason::Malformed);
    }
    match parse_tagged(&Linear(&TcContext::new(skb)), link as usize) {
        // SAFETY: as in `tproxy_parse`.
        Ok(parsed) => unsafe { packet.write(parsed) },
        Err(reason) => return number(reason),
    }
    0
}

/// Whether this is a TCP segment of a connection that cannot be ours, as most packets are that pass: neither of its ports is
/// one that connections of ours have. Looking for its socket would take several times as long.
#[inline(always)]
pub(crate) fn is_of_others(ctx: &TcContext, link: LinkLayer) -> bool {
    let (Some([source, destination]), Some(ours)) = (ports_of_segment(ctx, link), maps::TCP_PORTS.get(0))
    else {
        return false;
    };
    !ours.has(u16::from_be_bytes(source)) && !ours.has(u16::from_be_bytes(destination))
}

/// The ports of a TCP segment with plain headers that does not begin a connection.
#[inline(always)]
pub(crate) fn ports_of_segment(ctx: &TcContext, link: LinkLayer) -> Option<[[u8; 2]; 2]> {
    packet::ports_of_segment(&Linear(ctx), link.0)
}

/// 0, or the [`number`] of the reason why the packet passes.
///
/// External linkage has the verifier check this function once, by itself: with each of the many ways through the headers
/// it would otherwise go through all that comes after. (Linux 6.1 gives up at a million instructions.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_parse(skb: *mut __sk_buff, link: u32, packet: *mut Packet) -> u32 {
    // The verifier asks for it: all it knows is the size of what is pointed to.
    if packet.is_null() {
        return number(Reason::Malformed);
    }
    match parse_linear(&TcContext::new(skb), link as usize) {
        // SAFETY: the one caller, `read_to`, hands over a packet of its own.
        Ok(parsed) => unsafe { packet.write(parsed) },
        Err(reason) => return number(reason),
    }
    0
}

/// Whether routers may fragment a packet.
#[inline(always)]
pub(crate) fn fragmenting(ctx: &TcContext, link: LinkLayer, parsed: &Packet) -> Fragmenting {
    packet::fragmenting(&Linear(ctx), link.0, parsed)
}

/// Whether a SYN is signed.
#[inline(always)]
pub(crate) fn is_signed(ctx: &TcContext, syn: &Packet) -> bool {
    tproxy_signed(ctx.skb.skb, syn.l4 as u32) != 0
}

/// Whether this is an ICMP redirect.
#[inline(always)]
pub(crate) fn is_redirect(ctx: &TcContext, link: LinkLayer) -> bool {
    packet::is_redirect(&Linear(ctx), link.0)
}

/// As [`is_signed`]: apart from the ways through the headers before.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_signed(skb: *mut __sk_buff, l4: u32) -> u32 {
    u32::from(packet::is_signed(&Linear(&TcContext::new(skb)), l4 as usize))
}

/// Not zero.
#[inline(always)]
const fn number(reason: Reason) -> u32 {
    reason as u32 + 1
}

#[inline(always)]
fn parse_linear(ctx: &TcContext, l3: usize) -> Result<Packet, Reason> {
    let readable = (ctx.data_end() - ctx.data()) as u32;
    if readable < HEADERS && readable < ctx.len() {
        ctx.pull_data(ctx.len().min(HEADERS)).map_err(|_| Reason::Malformed)?;
    }
    parse(&Linear(ctx), l3)
}

/// `AF_INET` (socket.h), as the kernel shows families.
pub(crate) const AF_INET: u32 = 2;

/// Four words of a context or a socket as an IPv6 address. Volatile, because the verifier takes such accesses at constant
/// offsets only, and the compiler would compute a pointer to one of two addresses first.
///
/// # Safety
/// The pointer is to a field of a context, or of a socket that is referred to.
#[inline(always)]
pub(crate) unsafe fn v6(words: *const [u32; 4]) -> Addr {
    // SAFETY: as demanded.
    let word = |index: usize| unsafe { words.cast::<u32>().add(index).read_volatile() }.to_ne_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (word(0), word(1));
    let ([i, j, k, l], [m, n, o, p]) = (word(2), word(3));
    Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

/// What the kernel says of a packet.
pub(crate) struct Meta {
    pub(crate) mark: u32,
    /// Interface of the hook.
    pub(crate) ifindex: u32,
    /// Interface the packet came in by; zero for one that this host sends.
    pub(crate) ingress_ifindex: u32,
    pub(crate) pkt_type: u32,
    /// With a tag; that of VLAN 0, which only tells of a priority, is none.
    pub(crate) is_tagged: bool,
    /// EtherType, as it lies in memory.
    pub(crate) protocol: u32,
}

impl Meta {
    /// Whether there is a tag within the packet, perhaps of VLAN 0.
    #[inline(always)]
    pub(crate) fn has_inner_tag(&self) -> bool {
        ETHER_TYPE_TAG.contains(&(self.protocol as u16).to_ne_bytes())
    }

    /// Read once, first thing, and volatile: the verifier takes context accesses at constant offsets only, and the
    /// compiler would otherwise compute a pointer to a field now and read it later.
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        macro_rules! field {
            ($name:ident) => {
                // SAFETY: the context outlives the program's run, and the access is checked by the verifier.
                unsafe { (&raw const (*ctx.skb.skb).$name).read_volatile() }
            };
        }
        Self {
            mark: field!(mark),
            ifindex: field!(ifindex),
            ingress_ifindex: field!(ingress_ifindex),
            pkt_type: field!(pkt_type),
            is_tagged: field!(vlan_present) != 0 && field!(vlan_tci) & VLAN_ID != 0,
            protocol: field!(protocol),
        }
    }
}
