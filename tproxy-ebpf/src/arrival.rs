//! A packet arrives at a listener that `sk_lookup` chose: what it found out about the flow holds from now on. The kernel runs
//! this program for packets only, not for others who have it look for a socket (`reuseport_select_sock`).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_hdr_start_off::BPF_HDR_START_NET,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::bpf_skb_load_bytes_relative,
    programs::SkReuseportContext,
};
use tproxy_common::{
    abi::{Finding, NO_RULE, Origin},
    addr::Addr,
    flow::{Protocol, Tuple},
    packet::{TCP_FLAGS, tcp_flag},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    entered, hold,
    lookup::is_refused,
    maps::{self, count_number},
    memory, settings, trace, translation,
};

/// `ETH_P_IP`, big-endian.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;

/// Offset of the end of the ports.
const PORTS_END: usize = 4;

pub(crate) fn run(ctx: &SkReuseportContext) -> u32 {
    let Some(finding) = maps::FINDING.get_ptr_mut(0) else { return SK_PASS };
    // SAFETY: the slot is this CPU's own, and `sk_lookup` has just written it in the same softirq, or it is empty.
    let found = unsafe { &mut *finding };
    let protocol =
        if ctx.ip_protocol() == Protocol::Tcp.number().into() { Protocol::Tcp } else { Protocol::Udp };
    if found.reason == 0 && !(settings::sk_assign() && find(ctx, protocol, found)) {
        return SK_PASS;
    }
    let reason = found.reason;
    found.reason = 0;
    match (sight(ctx, protocol, found), found.held) {
        (Sight::First, 0) => carry_out(protocol, reason, found),
        (Sight::First, _) => hold::hand_over_arrived(ctx, found),
        // A segment of a connection that is no more, for the kernel to refuse.
        (Sight::Later, 1..) => return SK_DROP,
        (Sight::Later, 0) | (Sight::Elsewhere, _) => {}
    }
    if is_refused(reason) { SK_DROP } else { SK_PASS }
}

/// A listener that tc has assigned receives the packet without `sk_lookup`: here is seen whether NAT has given it another
/// destination since.
#[inline(always)]
fn find(ctx: &SkReuseportContext, protocol: Protocol, found: &mut Finding) -> bool {
    if !read_tuple(ctx, &mut found.tuple) {
        return false;
    }
    if entered::translated(protocol, &found.tuple).is_none() {
        entered::arrived(&found.tuple);
        return false;
    }
    found.reason = Reason::Decided as u32;
    found.entered = 1;
    true
}

/// Reads addresses and ports as they are now.
#[inline(always)]
fn read_tuple(ctx: &SkReuseportContext, tuple: &mut Tuple) -> bool {
    const V4_ADDRESSES: u32 = 12;
    const V6_ADDRESSES: u32 = 8;
    let Some([sport, dport]) = ports(ctx) else { return false };
    (tuple.sport, tuple.dport) = (sport, dport);
    let load = |offset, to: *mut u8, len| {
        // SAFETY: `to` has room for `len` bytes.
        unsafe { bpf_skb_load_bytes_relative(ctx.as_ptr(), offset, to.cast(), len, BPF_HDR_START_NET) == 0 }
    };
    if ctx.eth_protocol() != ETH_P_IP {
        return load(V6_ADDRESSES, tuple.src.0.as_mut_ptr(), 16)
            && load(V6_ADDRESSES + 16, tuple.dst.0.as_mut_ptr(), 16);
    }
    let (mut src, mut dst) = ([0; 4], [0; 4]);
    if !load(V4_ADDRESSES, src.as_mut_ptr(), 4) || !load(V4_ADDRESSES + 4, dst.as_mut_ptr(), 4) {
        return false;
    }
    (tuple.src, tuple.dst) = (Addr::from_v4(src), Addr::from_v4(dst));
    true
}

/// The ports, big-endian.
#[inline(always)]
fn ports(ctx: &SkReuseportContext) -> Option<[[u8; 2]; 2]> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + PORTS_END > end {
        return None;
    }
    // SAFETY: within the packet; headers begin at even addresses.
    let [a, b]: [u16; 2] = unsafe { *(start as *const [u16; 2]) };
    Some([a.to_ne_bytes(), b.to_ne_bytes()])
}

/// What is seen of a packet.
enum Sight {
    /// It is its flow's first.
    First,
    /// It is none.
    Later,
    /// It is still on its way, and who looks for a socket on its behalf (netfilter) shows it from its IP header on, and not from
    /// its ports on.
    Elsewhere,
}

#[inline(always)]
fn sight(ctx: &SkReuseportContext, protocol: Protocol, found: &Finding) -> Sight {
    if ports(ctx) != Some([found.tuple.sport, found.tuple.dport]) {
        return Sight::Elsewhere;
    }
    if protocol == Protocol::Udp {
        return Sight::First;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + TCP_FLAGS + 1 > end {
        return Sight::Elsewhere;
    }
    // SAFETY: as above.
    let flags = unsafe { *((start + TCP_FLAGS) as *const u8) };
    let begins = flags & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) == tcp_flag::SYN;
    if begins { Sight::First } else { Sight::Later }
}

#[inline(always)]
fn carry_out(protocol: Protocol, reason: u32, found: &Finding) {
    let Finding { ref tuple, rule, number, worker, ifindex, hits, entered, .. } = *found;
    let scope = if entered == 0 { Scope::Inbound } else { Scope::Forwarded };
    if entered != 0 {
        arrive(protocol, reason, tuple);
        if reason == Reason::Decided as u32 {
            return;
        }
    } else if reason == Reason::Decided as u32 {
        memory::recall(tuple);
        entered::arrived(tuple);
        return;
    } else if reason == Reason::RuleSteer as u32 {
        match protocol {
            Protocol::Tcp => {
                maps::decided(tuple, number, worker, &Origin::default());
                maps::give(worker);
            }
            Protocol::Udp => memory::given(tuple, number, worker, ifindex),
        }
    }
    if rule != NO_RULE {
        maps::hit(hits);
    }
    count_number(reason);
    trace::tell(scope, protocol, tuple, || (ifindex, 0), reason, rule);
}

/// A packet arrives to which NAT has given this destination: the flow is known by it from now on, and its next packets will be
/// by what they come in with.
#[inline(always)]
fn arrive(protocol: Protocol, reason: u32, tuple: &Tuple) {
    let Some(entered) = entered::translated(protocol, tuple) else { return };
    entered.seen = 0;
    if reason == Reason::RuleReject as u32 {
        // The kernel refuses nothing in the name of an address that is not its own (`ip_send_unicast_reply`): the sender tries
        // again.
        return entered::note_refused(protocol, &entered.tuple);
    }
    if reason != Reason::Decided as u32 && reason != Reason::RuleSteer as u32 {
        return;
    }
    translation::remember(protocol, &entered.tuple, tuple);
    match protocol {
        Protocol::Tcp => maps::decided(tuple, entered.number, entered.worker, &entered.origin),
        Protocol::Udp => memory::translated(tuple, entered),
    }
}
