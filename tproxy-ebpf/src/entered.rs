//! First packets between tc ingress and their listener. NAT of this host (DNAT and REDIRECT in PREROUTING) may give one
//! another destination there, and then neither `sk_lookup` nor a worker knows the flow by what tc has decided: but its source
//! has stayed, and finds what is noted here. All of that happens on one CPU: what spreads packets (RSS, RPS) comes before tc.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use tproxy_common::{
    abi::{
        Control, Decision, Destination, ENTERING, Entered, Origin, PUBLISHED_FOR, RuleNumber, action_index,
        entered_index,
    },
    flow::{Protocol, Tuple},
    packet::{Kind, Packet},
    rule::{RuleIndex, Scope},
    verdict::Reason,
};

use crate::{
    hold, maps, memory,
    ownership::{self, is_served},
    packet::{self, LinkLayer},
};

/// Notes a packet that a rule steers. `what` is of its [`Protocol`], and eight bits above what [`Entered::fragmenting`] has.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
pub(crate) fn note(tuple: &Tuple, what: u32, number: RuleNumber, worker: u32, origin: &Origin) {
    let Some(entered) = maps::ENTERED.get_ptr_mut(entered_index(tuple)) else { return };
    // SAFETY: the slot is this CPU's own.
    unsafe {
        (*entered).seen = now();
        (*entered).tuple = *tuple;
        (*entered).protocol = what & 0xff;
        (*entered).fragmenting = what >> 8;
        (*entered).number = number;
        (*entered).worker = worker;
        (*entered).origin = *origin;
        (*entered).reason = 0;
    }
}

/// Notes a packet that was held and comes in once more.
#[inline(never)]
pub(crate) fn note_admitted(tuple: &Tuple) {
    if let Some(Decision { rule, worker, origin, .. }) = maps::decision(tuple) {
        note(tuple, Protocol::Tcp as u32, rule, worker, &origin);
    }
}

/// What the rules say of a published port, and which one, in one word.
#[inline(always)]
pub(crate) const fn what(reason: Reason, rule: RuleIndex) -> u32 {
    reason as u32 | rule << 8
}

/// Notes a packet for an address of this host that a rule of scope `forwarded` selects if NAT sends it elsewhere, and whether
/// it is to be let in so that this can be seen. `active` is that of the rules that were asked.
#[inline(never)]
pub(crate) fn note_published(
    ctx: &TcContext,
    link: LinkLayer,
    parsed: &Packet,
    what: u32,
    active: u32,
) -> bool {
    let control = Control { active, ..maps::control() };
    let (mut reason, rule) = (what & 0xff, what >> 8);
    let (worker, fragmenting) = match parsed.protocol {
        Protocol::Tcp => (ownership::worker_of_connection(), 0),
        Protocol::Udp => {
            let fragmenting = packet::fragmenting(ctx, link, parsed);
            (ownership::worker_of_client(&parsed.tuple), memory::fragmenting(fragmenting))
        }
    };
    if reason == Reason::RuleSteer as u32 {
        if parsed.kind == Kind::Syn && packet::is_signed(ctx, parsed) {
            return false;
        }
        if control.deciding == 0 || !is_served(parsed) || !maps::goes_round(worker) {
            if control.rejecting == 0 {
                return false;
            }
            reason = Reason::Unserved as u32;
        }
    }
    let origin = hold::origin(Scope::Forwarded, ctx);
    let what = parsed.protocol as u32 | fragmenting << 8;
    note(&parsed.tuple, what, control.number(rule), worker, &origin);
    if let Some(entered) = maps::ENTERED.get_ptr_mut(entered_index(&parsed.tuple)) {
        // SAFETY: the slot is this CPU's own.
        unsafe {
            (*entered).reason = reason;
            (*entered).rule = rule;
            (*entered).hits = action_index(control.slot(), rule);
        }
    }
    true
}

/// What tc has noted of a packet that reaches for a socket with this tuple, if NAT has given it that destination.
#[inline(never)]
pub(crate) fn translated(protocol: Protocol, tuple: &Tuple) -> Option<&'static mut Entered> {
    let entered = maps::ENTERED.get_ptr_mut(entered_index(tuple))?;
    // SAFETY: the slot is this CPU's own, and stays where it is.
    let entered = unsafe { &mut *entered };
    let seen = &entered.tuple;
    let is_same = entered.protocol == protocol as u32
        && now().wrapping_sub(entered.seen) < ENTERING
        && seen.sport == tuple.sport
        && seen.src == tuple.src;
    (is_same && (seen.dport != tuple.dport || seen.dst != tuple.dst)).then_some(entered)
}

/// Notes that NAT sends elsewhere what is for an address of this host, and that a rule refuses it.
#[inline(never)]
pub(crate) fn note_refused(protocol: Protocol, tuple: &Tuple) {
    // It fails only when the map has no memory left.
    let _ = maps::REACHED.insert(Destination::published(protocol, tuple), now() + PUBLISHED_FOR, 0);
}

/// Whether NAT sends elsewhere what is for this address, as far as is known.
#[inline(never)]
pub(crate) fn is_refused(protocol: Protocol, tuple: &Tuple) -> bool {
    let until = maps::REACHED.get_ptr_mut(Destination::published(protocol, tuple));
    // SAFETY: the entry stays readable while the program runs (RCU).
    until.is_some_and(|until| unsafe { *until } > now())
}

/// Forgets a packet that has arrived as tc saw it.
#[inline(always)]
pub(crate) fn arrived(tuple: &Tuple) {
    if let Some(entered) = maps::ENTERED.get_ptr_mut(entered_index(tuple)) {
        // SAFETY: the slot is this CPU's own.
        unsafe { (*entered).seen = 0 };
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no failure. To the tick is enough, and cheaper.
    unsafe { bpf_ktime_get_coarse_ns() }
}
