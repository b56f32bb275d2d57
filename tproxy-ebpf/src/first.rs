//! A flow's first packet: the rules are asked, and the answer is remembered; of TCP until the connection is accepted,
//! of UDP until a socket of the flow's own receives it.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::debug;
use tproxy_common::{
    abi::{CARRY, Decision, FragmentCourse},
    flow::{Flow, Protocol, Tuple},
    packet::{Kind, Packet, Piece},
    policy::decide,
    rule::{RuleIndex, Scope},
    verdict::{Reason, Verdict},
};

use crate::{
    fragments, maps, memory,
    outcome::{History, Outcome, deliver, pass, refuse, shot},
    ownership::{self, Socket},
    packet::{self, LinkLayer, Meta},
    reject, settings,
    tables::Tables,
};

/// What becomes of a packet, after the rules were asked if it is its flow's first.
#[inline(always)]
pub(crate) fn ask_if_first(ctx: &TcContext, link: LinkLayer, scope: Scope, known: Outcome) -> Outcome {
    let Outcome::First(_) = known else { return known };
    let link = link.0 as u32;
    Outcome::from_number(match scope {
        Scope::Outbound => tproxy_first_outbound(ctx.skb.skb, link, known.to_number()),
        Scope::Forwarded | Scope::Inbound => tproxy_first_forwarded(ctx.skb.skb, link, known.to_number()),
    })
}

/// External linkage has the verifier check this function once, by itself, and with a stack of its own; the packet is parsed
/// anew, which is done for first packets only. Linux 6.1 would otherwise give up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_first_forwarded(skb: *mut __sk_buff, link: u32, known: u32) -> u32 {
    first(&TcContext::new(skb), LinkLayer(link as usize), Scope::Forwarded, known).to_number()
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_first_outbound(skb: *mut __sk_buff, link: u32, known: u32) -> u32 {
    first(&TcContext::new(skb), LinkLayer(link as usize), Scope::Outbound, known).to_number()
}

#[inline(always)]
fn first(ctx: &TcContext, link: LinkLayer, scope: Scope, known: u32) -> Outcome {
    let Outcome::First(history) = Outcome::from_number(known) else { return Outcome::Next };
    let meta = Meta::of(ctx);
    let parsed = match packet::read(ctx, link) {
        Ok(parsed) => parsed,
        Err(reason) => return pass(reason),
    };
    let verdict = match parsed.protocol {
        Protocol::Tcp => of_segment(ctx, scope, &meta, &parsed, history),
        Protocol::Udp => of_datagram(ctx, scope, &meta, &parsed),
    };
    match verdict {
        Verdict::Steer(rule) => steer(ctx, &parsed, rule, history),
        Verdict::Reject => {
            fragments::follow(&parsed, FragmentCourse::Drop);
            refuse(Reason::RuleReject, parsed.protocol)
        }
        Verdict::Drop => {
            fragments::follow(&parsed, FragmentCourse::Drop);
            shot(Reason::RuleDrop)
        }
        Verdict::Pass(_) if is_to_be_carried(&parsed) => {
            memory::steered(&parsed.tuple, CARRY, ownership::worker_of_client(&parsed.tuple));
            deliver(Reason::Carried)
        }
        Verdict::Pass(reason) => {
            fragments::follow(&parsed, FragmentCourse::Pass);
            pass(reason)
        }
    }
}

/// A decision that no longer holds is forgotten, lest `sk_lookup` follow it.
#[inline(always)]
fn of_segment(ctx: &TcContext, scope: Scope, meta: &Meta, parsed: &Packet, history: History) -> Verdict {
    // A socket of ours in TIME_WAIT would swallow the packet if it passed: early demux attaches the socket to it, and
    // `ip_forward()` drops a packet that has one.
    let verdict = if !maps::control().asks() && history != History::TimeWait {
        Verdict::Pass(Reason::Draining)
    } else {
        ask_the_rules(ctx, scope, meta, parsed)
    };
    if history == History::Decided && !matches!(verdict, Verdict::Steer(_)) {
        let _ = maps::DECISIONS.remove(parsed.tuple);
    }
    verdict
}

/// What passes is remembered, and so is that a flow only answers one that passed.
#[inline(always)]
fn of_datagram(ctx: &TcContext, scope: Scope, meta: &Meta, parsed: &Packet) -> Verdict {
    if memory::is_reply(&parsed.tuple) {
        return Verdict::Pass(Reason::Remembered);
    }
    if !maps::control().asks() {
        return Verdict::Pass(Reason::Draining);
    }
    let verdict = ask_the_rules(ctx, scope, meta, parsed);
    if matches!(verdict, Verdict::Pass(Reason::NoRule | Reason::RulePass)) {
        memory::passed(&parsed.tuple);
    }
    verdict
}

#[inline(always)]
fn ask_the_rules(ctx: &TcContext, scope: Scope, meta: &Meta, parsed: &Packet) -> Verdict {
    let sender = matches!(scope, Scope::Outbound).then_some(ctx);
    let uid = sender.map_or(0, TcContext::get_socket_uid);
    let flow = Flow { protocol: parsed.protocol, tuple: parsed.tuple, ifindex: meta.ifindex, uid };
    decide(scope, &flow, &Tables { control: maps::control(), sender })
}

#[inline(always)]
fn steer(ctx: &TcContext, parsed: &Packet, rule: RuleIndex, history: History) -> Outcome {
    let control = maps::control();
    if control.deciding == 0 && control.rejecting != 0 {
        return reject::unserved(parsed, Reason::Draining);
    }
    let worker = worker(parsed.protocol, &parsed.tuple);
    let family = ownership::family(&parsed.tuple.dst);
    let Some(listener) = Socket::listener(worker, parsed.protocol, family) else {
        return reject::unserved(parsed, Reason::ListenerGone);
    };
    // The kernel has to see a socket in TIME_WAIT first, to end it; a listener that is assigned hides it. One that is
    // assigned to a fragment is lost when the packet is put together.
    if settings::sk_assign() && history != History::TimeWait && parsed.piece == Piece::Whole {
        listener.assign(ctx);
    }
    drop(listener);
    debug!(ctx, "rule {} steers a flow to port {}", rule, u16::from_be_bytes(parsed.tuple.dport));
    match parsed.protocol {
        Protocol::Tcp => drop(maps::DECISIONS.insert(parsed.tuple, Decision { rule, worker }, 0)),
        Protocol::Udp => memory::steered(&parsed.tuple, rule, worker),
    }
    fragments::follow(parsed, FragmentCourse::Steer);
    deliver(Reason::RuleSteer)
}

/// The worker that gets a flow.
#[inline(always)]
fn worker(protocol: Protocol, tuple: &Tuple) -> u32 {
    match protocol {
        Protocol::Tcp => ownership::this_cpu_worker(),
        Protocol::Udp => ownership::worker_of_client(tuple),
    }
}

/// Other fragments of its datagram came before it and were delivered: the whole goes to a worker, who sends it on.
#[inline(always)]
fn is_to_be_carried(parsed: &Packet) -> bool {
    parsed.kind == Kind::Datagram && fragments::course(parsed) == Some(FragmentCourse::Steer)
}
