//! `sk_lookup`: which listener receives a connection. For a flow that tc decided, the worker's of this CPU; in scope
//! `inbound` the rules are asked here. Also runs for lookups that tc itself makes (see `ownership`).

use aya_ebpf::{bindings::sk_action, programs::SkLookupContext};
use tproxy_common::{
    abi::{APPLICATION, Decision, Family, black_hole_index, listener_index},
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    policy::decide,
    rule::Scope,
    verdict::{Reason, Verdict},
};

use crate::{
    maps::{self, count},
    ownership::this_cpu_worker,
    tables::Tables,
};

const PASS: u32 = sk_action::SK_PASS;
/// The lookup finds no socket, and the kernel answers with RST.
const REFUSE: u32 = sk_action::SK_DROP;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

pub(crate) fn run(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context outlives the program's run; every field read becomes a checked context access.
    let lookup = unsafe { &*ctx.lookup };
    // Without an interface there is no packet: somebody asks sock_diag who would receive one.
    if lookup.protocol != IPPROTO_TCP || lookup.ingress_ifindex == 0 {
        return PASS;
    }
    let family = if lookup.family == AF_INET { Family::V4 } else { Family::V6 };
    let (src, dst) = match family {
        Family::V4 => {
            (Addr::from_v4(lookup.remote_ip4.to_ne_bytes()), Addr::from_v4(lookup.local_ip4.to_ne_bytes()))
        }
        Family::V6 => (v6(&raw const lookup.remote_ip6), v6(&raw const lookup.local_ip6)),
    };
    let tuple = Tuple {
        src,
        dst,
        sport: lookup.remote_port.to_ne_bytes(),
        dport: (lookup.local_port as u16).to_be_bytes(),
    };
    // SAFETY: the value is copied at once.
    match unsafe { maps::DECISIONS.get(tuple) }.copied() {
        Some(Decision { worker: APPLICATION, .. }) => return PASS,
        Some(Decision { worker, .. }) => return assign(ctx, listener_index(worker, Protocol::Tcp, family)),
        None => {}
    }
    let control = maps::control();
    if !control.has(Scope::Inbound, Protocol::Tcp) || control.deciding == 0 {
        return PASS;
    }
    let flow = Flow { protocol: Protocol::Tcp, tuple, ifindex: lookup.ingress_ifindex, uid: 0 };
    match decide(Scope::Inbound, &flow, &Tables { control, sender: None }) {
        Verdict::Pass(_) => PASS,
        Verdict::Steer(rule) => {
            let worker = this_cpu_worker();
            let _ = maps::DECISIONS.insert(tuple, Decision { rule, worker }, 0);
            count(Reason::RuleSteer);
            assign(ctx, listener_index(worker, Protocol::Tcp, family))
        }
        Verdict::Reject => {
            count(Reason::RuleReject);
            REFUSE
        }
        Verdict::Drop => {
            count(Reason::RuleDrop);
            assign(ctx, black_hole_index(Protocol::Tcp, family))
        }
    }
}

/// Four words of the context as an address. Volatile, because the verifier takes context accesses at constant offsets
/// only, and the compiler would compute a pointer to one of the two addresses first.
#[inline(always)]
fn v6(words: *const [u32; 4]) -> Addr {
    let words: *const u32 = words.cast();
    // SAFETY: the four words are fields of the context.
    let word = |index: usize| unsafe { words.add(index).read_volatile() }.to_ne_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (word(0), word(1));
    let ([i, j, k, l], [m, n, o, p]) = (word(2), word(3));
    Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, listener: u32) -> u32 {
    if maps::LISTENERS.redirect_sk_lookup(ctx, listener, 0).is_err() {
        count(Reason::ListenerGone);
    }
    PASS
}
