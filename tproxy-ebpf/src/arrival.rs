//! A packet arrives at a listener that `sk_lookup` chose: what it found out about the flow holds from now on. The kernel runs
//! this program for packets only, not for others who have it look for a socket (`reuseport_select_sock`).

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    programs::SkReuseportContext,
};
use tproxy_common::{
    abi::{Finding, NO_RULE, Origin},
    flow::Protocol,
    packet::{TCP_FLAGS, tcp_flag},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    lookup::is_refused,
    maps::{self, count_number},
    memory, trace,
};

/// Offset of the end of the ports.
const PORTS_END: usize = 4;

pub(crate) fn run(ctx: &SkReuseportContext) -> u32 {
    let Some(finding) = maps::FINDING.get_ptr_mut(0) else { return SK_PASS };
    // SAFETY: the slot is this CPU's own, and `sk_lookup` has just written it in the same softirq, or it is empty.
    let found = unsafe { &mut *finding };
    let reason = found.reason;
    if reason == 0 {
        return SK_PASS;
    }
    found.reason = 0;
    let protocol =
        if ctx.ip_protocol() == Protocol::Tcp.number().into() { Protocol::Tcp } else { Protocol::Udp };
    if begins(ctx, protocol, found) {
        carry_out(protocol, reason, found);
    }
    if is_refused(reason) { SK_DROP } else { SK_PASS }
}

/// Whether this is the flow's first packet. Who looks for a socket on behalf of a packet that is still on its way (netfilter)
/// shows it from its IP header on, and not from its ports on.
#[inline(always)]
fn begins(ctx: &SkReuseportContext, protocol: Protocol, found: &Finding) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + PORTS_END > end {
        return false;
    }
    // SAFETY: within the packet; headers begin at even addresses.
    let [a, b]: [u16; 2] = unsafe { *(start as *const [u16; 2]) };
    if [a.to_ne_bytes(), b.to_ne_bytes()] != [found.tuple.sport, found.tuple.dport] {
        return false;
    }
    if protocol == Protocol::Udp {
        return true;
    }
    if start + TCP_FLAGS + 1 > end {
        return false;
    }
    // SAFETY: as above.
    let flags = unsafe { *((start + TCP_FLAGS) as *const u8) };
    flags & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) == tcp_flag::SYN
}

#[inline(always)]
fn carry_out(protocol: Protocol, reason: u32, found: &Finding) {
    let Finding { ref tuple, rule, number, worker, ifindex, hits, .. } = *found;
    if reason == Reason::Decided as u32 {
        memory::recall(tuple);
        return;
    }
    if reason == Reason::RuleSteer as u32 {
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
    trace::tell(Scope::Inbound, protocol, tuple, || (ifindex, 0), reason, rule);
}
