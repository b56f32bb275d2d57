//! NAT of this host lies between the hooks and our sockets: it changes what tc ingress has seen before the stack looks for
//! a socket, and what a socket sends before tc egress sees it. Where the two differ, the tuple on the wire is written
//! down here with the one that the socket is known by, at the first packet that shows both: for what we send upstream as it
//! leaves, for what clients send as it arrives at a listener (see `entered`).

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    abi::TranslationKey,
    addr::Addr,
    flow::{Protocol, Tuple},
    packet::{Kind, Packet},
};

use crate::{
    maps, ownership,
    packet::{self, AF_INET, LinkLayer, v6},
};

/// As our socket knows the packet that is about to come in with `tuple`, if that is another.
#[inline(never)]
pub(crate) fn of(protocol: Protocol, tuple: &Tuple) -> Option<Tuple> {
    // SAFETY: the value is copied at once.
    unsafe { maps::TRANSLATIONS.get(key(protocol, tuple)) }.copied()
}

/// Writes down what NAT made of a packet that a socket of ours sends, for the replies. Each packet of such a socket says it
/// anew, so that no entry is missed for long when it was evicted.
#[inline(always)]
pub(crate) fn note(ctx: &TcContext, link: LinkLayer) {
    let Some(known) = sent_by(ctx) else { return };
    if let Some([sport, _]) = packet::ports_of_segment(ctx, link)
        && sport == known.sport
    {
        // Not a connection's first segment, whose destination may be another as well.
        return;
    }
    let Ok(Packet { protocol, tuple, kind, .. }) = packet::read(ctx, link) else { return };
    if !matches!(kind, Kind::Syn | Kind::Ack | Kind::Datagram) {
        return;
    }
    // A UDP socket that is not connected knows no destination.
    let to = if known.dport == [0, 0] { (tuple.dst, tuple.dport) } else { (known.dst, known.dport) };
    let known = Tuple { dst: to.0, dport: to.1, ..known };
    if tuple != known {
        // The replies are looked at for it.
        maps::add_tcp_port(tuple.dport);
        remember(protocol, &tuple.reversed(), &known.reversed());
    }
}

/// Has packets that come in with `wire` belong to the socket that is known by `known`.
#[inline(never)]
pub(crate) fn remember(protocol: Protocol, wire: &Tuple, known: &Tuple) {
    // It fails only when the map has no memory left.
    let _ = maps::TRANSLATIONS.insert(key(protocol, wire), *known, 0);
}

#[inline(always)]
fn key(protocol: Protocol, tuple: &Tuple) -> TranslationKey {
    TranslationKey { tuple: *tuple, protocol: protocol as u32 }
}

/// The tuple by which the socket is known that sends this packet; its destination is zero if it is not connected.
#[inline(never)]
fn sent_by(ctx: &TcContext) -> Option<Tuple> {
    let socket = ownership::sending_transport(ctx)?.as_ptr();
    // SAFETY: `sender` vouches for it. The accesses are checked by the verifier, which wants them one by one.
    unsafe {
        // All are read, whatever the family: the compiler would make one load of two, at an offset that varies.
        let v4 = |word: *const u32| Addr::from_v4(word.read_volatile().to_ne_bytes());
        let (src4, dst4) = (v4(&raw const (*socket).src_ip4), v4(&raw const (*socket).dst_ip4));
        let (src6, dst6) = (v6(&raw const (*socket).src_ip6), v6(&raw const (*socket).dst_ip6));
        let is_v4 = (&raw const (*socket).family).read_volatile() == AF_INET;
        let (src, dst) = if is_v4 { (src4, dst4) } else { (src6, dst6) };
        let sport = ((&raw const (*socket).src_port).read_volatile() as u16).to_be_bytes();
        let dport = (&raw const (*socket).dst_port).read_volatile().to_ne_bytes();
        Some(Tuple { src, dst, sport, dport })
    }
}
