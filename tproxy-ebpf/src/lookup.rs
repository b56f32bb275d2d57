//! `sk_lookup`: which listener receives a flow. For one that tc decided, the worker's it chose; in scope `inbound` the
//! rules are asked here. It also runs where there is no packet (see [`Finding`]): what comes of its answer is for `arrival` to
//! carry out, and here is told and remembered only of what passes or finds no listener.

use aya_ebpf::{
    bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup, sk_action},
    programs::SkLookupContext,
};
use tproxy_common::{
    abi::{APPLICATION, Control, Decision, Finding, NO_RULE, black_hole_index, listener_index},
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    policy::decide,
    rule::{RuleIndex, Scope},
    verdict::{Reason, Verdict},
};

use crate::{
    entered, hold,
    maps::{self, count},
    memory::{self, Known},
    ownership::{family, is_host_address, worker_of_client, worker_of_connection},
    packet::{AF_INET, v6},
    settings,
    tables::Tables,
    trace,
};

const PASS: u32 = sk_action::SK_PASS;
/// The lookup finds no socket, and the kernel answers with RST or ICMP port unreachable.
const REFUSE: u32 = sk_action::SK_DROP;

/// The listener gets the packet without `arrival` being asked.
const NO_ARRIVAL: u64 = BPF_SK_LOOKUP_F_NO_REUSEPORT as u64;

const IPPROTO_TCP: u32 = Protocol::Tcp.number() as u32;
const IPPROTO_UDP: u32 = Protocol::Udp.number() as u32;

/// Not the number of one.
const NO_WORKER: u32 = u32::MAX;

/// Who receives the flow.
enum Receiver {
    /// This worker, to which it was given before.
    Worker(u32),
    /// This worker; it is for the packet to say so (see `arrival`).
    NewTo(u32),
    /// Nobody: the packet is discarded, or refused.
    BlackHole,
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
    let (false, Some(finding)) = (lookup.ingress_ifindex == 0, maps::FINDING.get_ptr_mut(0)) else {
        return PASS;
    };
    // SAFETY: the slot is this CPU's own. Where a softirq interrupts a look-up without a packet, what that one has written is
    // overwritten, and nobody asks for it.
    let finding = unsafe { &mut *finding };
    finding.reason = 0;
    let flow = Flow { protocol, tuple: tuple(lookup), ifindex: lookup.ingress_ifindex, uid: 0 };
    let sought = finding.sought == flow.tuple.ports();
    let receiver = match protocol {
        Protocol::Tcp => connection(&flow, finding, sought),
        // tc asks for sockets of a flow's own; a listener is none.
        Protocol::Udp if sought => Receiver::NotOurs,
        Protocol::Udp => datagram(&flow, finding),
    };
    let family = family(&flow.tuple.dst);
    match receiver {
        Receiver::NotOurs => PASS,
        Receiver::Worker(worker) => assign(ctx, listener_index(worker, protocol, family), NO_ARRIVAL, sought),
        Receiver::NewTo(worker) => assign(ctx, listener_index(worker, protocol, family), 0, sought),
        Receiver::BlackHole => {
            let refused = is_refused(finding.reason);
            let answer = assign(ctx, black_hole_index(protocol, family), 0, sought);
            if refused && finding.reason == 0 { REFUSE } else { answer }
        }
    }
}

/// Whether what arrives for this reason is refused and not only discarded.
#[inline(always)]
pub(crate) const fn is_refused(reason: u32) -> bool {
    reason == Reason::RuleReject as u32 || reason == Reason::Unserved as u32
}

#[inline(always)]
fn connection(flow: &Flow, finding: &mut Finding, sought: bool) -> Receiver {
    let control = maps::control();
    let asks = !sought && control.has(Scope::Inbound, Protocol::Tcp) && control.asks();
    let mut before = NO_WORKER;
    if let Some(Decision { worker, rule, .. }) = maps::decision(&flow.tuple) {
        if worker == APPLICATION {
            return Receiver::NotOurs;
        }
        // Of what is for the host itself, the rules that hold now decide; tc has asked them about all else.
        if !asks || control.is_latest(rule) || !is_host_address(&flow.tuple.dst) {
            return Receiver::Worker(worker);
        }
        before = worker;
    }
    if !sought && let Some(receiver) = translated(flow, finding) {
        return receiver;
    }
    if !asks {
        return Receiver::NotOurs;
    }
    ask_the_rules(control, flow, before, finding).unwrap_or(Receiver::NotOurs)
}

#[inline(always)]
fn datagram(flow: &Flow, finding: &mut Finding) -> Receiver {
    let known = memory::look_up(&flow.tuple);
    match known {
        Known::Passed | Known::Application | Known::Left | Known::Elsewhere => return Receiver::NotOurs,
        Known::Steered(worker) => {
            // It is renewed where the packet arrives.
            note(finding, flow, Reason::Decided as u32, NO_RULE, 0);
            return Receiver::NewTo(worker);
        }
        // Sent on, it would come back here if the address has become the host's since.
        Known::Carried(_) if is_host_address(&flow.tuple.dst) => return Receiver::NotOurs,
        Known::Carried(worker) => return Receiver::Worker(worker),
        Known::Heard | Known::Nothing => {}
    }
    if let Some(receiver) = translated(flow, finding) {
        return receiver;
    }
    let control = maps::control();
    if !control.has(Scope::Inbound, Protocol::Udp)
        || !control.asks()
        || memory::answers(&flow.tuple, flow.ifindex)
    {
        return Receiver::NotOurs;
    }
    match ask_the_rules(control, flow, NO_WORKER, finding) {
        Ok(receiver) => receiver,
        Err(Reason::HostAddress) => Receiver::NotOurs,
        Err(_) => {
            memory::left(&flow.tuple, known, flow.ifindex);
            Receiver::NotOurs
        }
    }
}

/// One that tc has decided as it came in, before NAT gave it this destination. What is for the host all the same is none that a
/// rule for published ports is about.
#[inline(always)]
fn translated(flow: &Flow, finding: &mut Finding) -> Option<Receiver> {
    let entered = entered::translated(flow.protocol, &flow.tuple)?;
    let reason = entered.reason;
    if reason != 0 && is_host_address(&flow.tuple.dst) {
        return None;
    }
    note(
        finding,
        flow,
        if reason == 0 { Reason::Decided as u32 } else { reason },
        entered.rule,
        entered.hits,
    );
    finding.entered = 1;
    let is_steered = reason == 0 || reason == Reason::RuleSteer as u32;
    Some(if is_steered { Receiver::NewTo(entered.worker) } else { Receiver::BlackHole })
}

/// What the rules say is noted in `finding`, for the packet to carry out. Only what passes has no listener of ours to arrive
/// at, and is told of and counted here.
#[inline(always)]
fn ask_the_rules(
    control: Control,
    flow: &Flow,
    before: u32,
    finding: &mut Finding,
) -> Result<Receiver, Reason> {
    let tables = Tables::of(control, None);
    let verdict = decide(Scope::Inbound, flow, &tables);
    let rule = tables.decided.get();
    let worker = match (verdict, flow.protocol, before) {
        // A SYN that is repeated goes to who had the first: see `first`.
        (Verdict::Steer(_), Protocol::Tcp, worker) if worker < settings::workers() => worker,
        (Verdict::Steer(_), Protocol::Tcp, _) => worker_of_connection(),
        (Verdict::Steer(_), Protocol::Udp, _) => worker_of_client(&flow.tuple),
        _ => NO_WORKER,
    };
    let stalls = worker != NO_WORKER && !maps::goes_round(worker);
    let verdict = if stalls && control.rejecting == 0 { Verdict::Pass(Reason::Stalled) } else { verdict };
    let mut is_held = false;
    let (reason, receiver) = match verdict {
        Verdict::Pass(reason) => {
            // What is for others is tc's to tell of.
            if reason != Reason::HostAddress {
                if rule != NO_RULE {
                    maps::hit(tables.hits());
                }
                let place = || (flow.ifindex, 0);
                trace::tell(Scope::Inbound, flow.protocol, &flow.tuple, place, reason as u32, rule);
            }
            return Err(reason);
        }
        Verdict::Steer(_) if stalls => (Reason::Unserved, Receiver::BlackHole),
        Verdict::Steer(_) | Verdict::Drop if control.deciding == 0 => (Reason::Unserved, Receiver::BlackHole),
        Verdict::Steer(rule) => {
            finding.number = control.number(rule);
            finding.worker = worker;
            // One that was decided before is not held once more.
            is_held = flow.protocol == Protocol::Tcp
                && before == NO_WORKER
                && hold::is_wanted_inbound(&control, rule, &flow.tuple);
            let receiver = if is_held { Receiver::BlackHole } else { Receiver::NewTo(worker) };
            (Reason::RuleSteer, receiver)
        }
        Verdict::Reject => (Reason::RuleReject, Receiver::BlackHole),
        Verdict::Drop => (Reason::RuleDrop, Receiver::BlackHole),
        Verdict::Unreadable => (Reason::Unreadable, Receiver::BlackHole),
    };
    note(finding, flow, reason as u32, rule, tables.hits());
    finding.held = is_held.into();
    Ok(receiver)
}

#[inline(always)]
fn note(finding: &mut Finding, flow: &Flow, reason: u32, rule: RuleIndex, hits: u32) {
    finding.tuple = flow.tuple;
    finding.ifindex = flow.ifindex;
    finding.rule = rule;
    finding.hits = hits;
    finding.reason = reason;
    finding.entered = 0;
    finding.held = 0;
}

/// The packet's addresses and ports.
#[inline(always)]
fn tuple(lookup: &bpf_sk_lookup) -> Tuple {
    let (src, dst) = if lookup.family == AF_INET {
        (Addr::from_v4(lookup.remote_ip4.to_ne_bytes()), Addr::from_v4(lookup.local_ip4.to_ne_bytes()))
    } else {
        // SAFETY: fields of the context.
        unsafe { (v6(&raw const lookup.remote_ip6), v6(&raw const lookup.local_ip6)) }
    };
    let (sport, dport) = (lookup.remote_port.to_ne_bytes(), (lookup.local_port as u16).to_be_bytes());
    Tuple { src, dst, sport, dport }
}

/// `PASS`; where the listener is gone and flows are to be refused without it, `REFUSE`. What was found out then has nobody to
/// arrive at. What tc only seeks, it tells of itself.
#[inline(always)]
fn assign(ctx: &SkLookupContext, listener: u32, flags: u64, sought: bool) -> u32 {
    if maps::LISTENERS.redirect_sk_lookup(ctx, listener, flags).is_ok() {
        return PASS;
    }
    if let Some(finding) = maps::FINDING.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe { (*finding).reason = 0 };
    }
    if sought {
        return PASS;
    }
    if maps::control().rejecting == 0 {
        count(Reason::ListenerGone);
        return PASS;
    }
    count(Reason::Unserved);
    REFUSE
}
