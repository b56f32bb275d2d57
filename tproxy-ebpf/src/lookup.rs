//! `sk_lookup`: which listener receives a flow. For one that tc decided, the worker's it chose; in scope `inbound` the
//! rules are asked here. Also runs for lookups that tc itself makes (see `ownership`).

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    programs::SkLookupContext,
};
use tproxy_common::{
    abi::{APPLICATION, Control, Decision, black_hole_index, listener_index},
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    policy::decide,
    rule::Scope,
    verdict::{Reason, Verdict},
};

use crate::{
    maps::{self, count},
    memory::{self, Known},
    ownership::{family, is_host_address, worker_of_client, worker_of_connection},
    tables::Tables,
    trace,
};

const PASS: u32 = sk_action::SK_PASS;
/// The lookup finds no socket, and the kernel answers with RST or ICMP port unreachable.
const REFUSE: u32 = sk_action::SK_DROP;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = Protocol::Tcp.number() as u32;
const IPPROTO_UDP: u32 = Protocol::Udp.number() as u32;

/// Who receives the flow.
enum Receiver {
    Worker(u32),
    BlackHole,
    Nobody,
    /// Whoever would without us.
    NotOurs,
}

pub(crate) fn run(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context outlives the program's run; every field read becomes a checked context access.
    let lookup = unsafe { &*ctx.lookup };
    let protocol = match lookup.protocol {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return PASS,
    };
    // Without an interface there is no packet: somebody asks sock_diag who would receive one.
    if lookup.ingress_ifindex == 0 {
        return PASS;
    }
    let flow = Flow { protocol, tuple: tuple(lookup), ifindex: lookup.ingress_ifindex, uid: 0 };
    let receiver = match protocol {
        Protocol::Tcp => connection(&flow),
        Protocol::Udp => datagram(&flow),
    };
    let family = family(&flow.tuple.dst);
    match receiver {
        Receiver::NotOurs => PASS,
        Receiver::Nobody => REFUSE,
        Receiver::Worker(worker) => assign(ctx, listener_index(worker, protocol, family)),
        Receiver::BlackHole => assign(ctx, black_hole_index(protocol, family)),
    }
}

#[inline(always)]
fn connection(flow: &Flow) -> Receiver {
    match maps::decision(&flow.tuple) {
        Some(Decision { worker: APPLICATION, .. }) => return Receiver::NotOurs,
        Some(Decision { worker, .. }) => return Receiver::Worker(worker),
        None => {}
    }
    let control = maps::control();
    if !control.has(Scope::Inbound, Protocol::Tcp) || !control.asks() {
        return Receiver::NotOurs;
    }
    ask_the_rules(control, flow).unwrap_or(Receiver::NotOurs)
}

#[inline(always)]
fn datagram(flow: &Flow) -> Receiver {
    match memory::recall(&flow.tuple) {
        Known::Passed | Known::Application => return Receiver::NotOurs,
        Known::Steered(worker) => return Receiver::Worker(worker),
        // Sent on, it would come back here if the address has become the host's since.
        Known::Carried(_) if is_host_address(&flow.tuple.dst) => return Receiver::NotOurs,
        Known::Carried(worker) => return Receiver::Worker(worker),
        Known::Nothing => {}
    }
    let control = maps::control();
    let inbound = control.has(Scope::Inbound, Protocol::Udp);
    if !inbound && !control.has(Scope::Outbound, Protocol::Udp) || memory::is_reply(&flow.tuple) {
        return Receiver::NotOurs;
    }
    if inbound
        && control.asks()
        && let Ok(receiver) = ask_the_rules(control, flow)
    {
        return receiver;
    }
    // What the host's own sockets receive; scope `outbound` must not take their replies for new flows. tc's own lookups are
    // about other addresses.
    if is_host_address(&flow.tuple.dst) {
        memory::passed(&flow.tuple);
    }
    Receiver::NotOurs
}

#[inline(always)]
fn ask_the_rules(control: Control, flow: &Flow) -> Result<Receiver, Reason> {
    let tables = Tables::of(control, None);
    let verdict = decide(Scope::Inbound, flow, &tables);
    // What is for others is tc's to tell of, whose own lookups come here.
    if verdict != Verdict::Pass(Reason::HostAddress) {
        let (reason, rule) = (verdict.reason() as u32, tables.decided.get());
        trace::tell(Scope::Inbound, flow.protocol, &flow.tuple, || (flow.ifindex, 0), reason, rule);
    }
    match verdict {
        Verdict::Pass(reason) => Err(reason),
        Verdict::Steer(_) | Verdict::Drop if control.deciding == 0 => {
            count(Reason::Unserved);
            Ok(Receiver::Nobody)
        }
        Verdict::Steer(rule) => {
            let rule = control.number(rule);
            let worker = match flow.protocol {
                Protocol::Tcp => {
                    let worker = worker_of_connection();
                    maps::decided(&flow.tuple, rule, worker);
                    maps::give(worker);
                    worker
                }
                Protocol::Udp => {
                    let worker = worker_of_client(&flow.tuple);
                    memory::steered(&flow.tuple, rule, worker);
                    worker
                }
            };
            count(Reason::RuleSteer);
            Ok(Receiver::Worker(worker))
        }
        Verdict::Reject => {
            count(Reason::RuleReject);
            Ok(Receiver::Nobody)
        }
        Verdict::Drop => {
            count(Reason::RuleDrop);
            Ok(Receiver::BlackHole)
        }
    }
}

/// The packet's addresses and ports.
#[inline(always)]
fn tuple(lookup: &bpf_sk_lookup) -> Tuple {
    let (src, dst) = if lookup.family == AF_INET {
        (Addr::from_v4(lookup.remote_ip4.to_ne_bytes()), Addr::from_v4(lookup.local_ip4.to_ne_bytes()))
    } else {
        (v6(&raw const lookup.remote_ip6), v6(&raw const lookup.local_ip6))
    };
    let (sport, dport) = (lookup.remote_port.to_ne_bytes(), (lookup.local_port as u16).to_be_bytes());
    Tuple { src, dst, sport, dport }
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
    if maps::LISTENERS.redirect_sk_lookup(ctx, listener, 0).is_ok() {
        return PASS;
    }
    if maps::control().rejecting == 0 {
        count(Reason::ListenerGone);
        return PASS;
    }
    count(Reason::Unserved);
    REFUSE
}
