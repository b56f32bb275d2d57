//! A flow's first packet: the rules are asked, and the answer is remembered; of TCP until the connection is accepted,
//! of UDP until a socket of the flow's own receives it.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::debug;
use tproxy_common::{
    abi::{Control, Decision, FragmentCourse, NO_RULE},
    flow::{Flow, Protocol},
    packet::{Kind, Packet, Piece},
    policy::{Readable, decide, decide_unreadable, is_strict},
    rule::{RuleIndex, Scope},
    verdict::{Reason, Verdict},
};

use crate::{
    entered, fragments, hold, maps, memory,
    outcome::{self, Course, History, Outcome, deliver, pass, refuse, shot},
    ownership::{self, Socket},
    packet::{self, LinkLayer, Meta},
    question, reject, settings,
    tables::Tables,
    trace,
};

/// What becomes of a packet, after the rules were asked if it is its flow's first.
#[inline(always)]
pub(crate) fn ask_if_first(ctx: &TcContext, link: LinkLayer, scope: Scope, known: u32) -> Outcome {
    match Outcome::from_number(known) {
        Outcome::First(_) => {}
        Outcome::Unreadable => {
            let outbound = u32::from(scope == Scope::Outbound);
            return Outcome::from_number(tproxy_unread(ctx.skb.skb, link.0 as u32, outbound));
        }
        settled => return settled,
    }
    let ask = |known| {
        let link = link.0 as u32;
        match scope {
            Scope::Outbound => tproxy_first_outbound(ctx.skb.skb, link, known),
            Scope::Forwarded | Scope::Inbound => tproxy_first_forwarded(ctx.skb.skb, link, known),
        }
    };
    let mut number = ask(known);
    // Not done where the rules are asked: together they would need more stack than there is.
    if let Outcome::Settled(Course::Hold, _, rule) = Outcome::from_number(number) {
        number = hold::hand_over(ctx, link, scope, rule);
        if let Outcome::First(_) = Outcome::from_number(number) {
            number = ask(known | AT_ONCE);
        }
    }
    Outcome::from_number(number)
}

/// In the number of what is known, which the history leaves free: a packet that cannot be held.
const AT_ONCE: u32 = 1 << 8;

/// A packet of which not all can be read: the rules are asked if there are any of its scope; else it passes for this reason.
#[inline(always)]
pub(crate) fn unreadable(scope: Scope, reason: Reason) -> Outcome {
    let control = maps::control();
    let has = |protocol| control.has(scope, protocol);
    if control.asks() && (has(Protocol::Tcp) || has(Protocol::Udp)) {
        Outcome::Unreadable
    } else {
        pass(reason)
    }
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

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_unread(skb: *mut __sk_buff, link: u32, is_outbound: u32) -> u32 {
    let scope = if is_outbound == 0 { Scope::Forwarded } else { Scope::Outbound };
    unread(&TcContext::new(skb), LinkLayer(link as usize), scope).to_number()
}

#[inline(always)]
fn unread(ctx: &TcContext, link: LinkLayer, scope: Scope) -> Outcome {
    let mut parsed = Packet::NOTHING;
    let failed = if Meta::of(ctx).has_inner_tag() {
        packet::read_tagged(ctx, link, &mut parsed)
    } else {
        packet::read_to(ctx, link, &mut parsed)
    };
    if failed != 0 {
        return pass(Reason::OtherProtocol);
    }
    if !is_caught(ctx, &parsed, scope) {
        return pass(Reason::Malformed);
    }
    if !question::is_asked(ctx) {
        fragments::follow(&parsed, FragmentCourse::Drop);
    }
    shot(Reason::Unreadable)
}

/// Not inlined, for the sake of the stack.
#[inline(never)]
fn is_caught(ctx: &TcContext, parsed: &Packet, scope: Scope) -> bool {
    let (ifindex, uid) = (Meta::of(ctx).ifindex, uid(scope, ctx));
    let mut flow = Flow { protocol: parsed.protocol, tuple: parsed.tuple, ifindex, uid };
    let sender = if scope == Scope::Outbound { Some(ctx) } else { None };
    let tables = Tables::of(maps::control(), sender);
    decide_unreadable(scope, &mut flow, Readable::of(parsed), &tables) == Verdict::Unreadable
}

#[inline(always)]
fn first(ctx: &TcContext, link: LinkLayer, scope: Scope, known: u32) -> Outcome {
    let Outcome::First(history) = Outcome::from_number(known) else { return pass(Reason::NotOurs) };
    let mut parsed = Packet::NOTHING;
    if packet::read_to(ctx, link, &mut parsed) != 0 {
        return pass(Reason::Malformed);
    }
    let sender = matches!(scope, Scope::Outbound).then_some(ctx);
    let tables = Tables::of(maps::control(), sender);
    let verdict = match parsed.protocol {
        Protocol::Tcp => of_segment(scope, ctx, &parsed, &tables, history),
        Protocol::Udp => of_datagram(scope, ctx, &parsed, &tables),
    };
    if scope == Scope::Forwarded && is_published(&parsed, verdict, &tables) {
        return published(ctx, link, &parsed, verdict, &tables);
    }
    let outcome = match verdict {
        Verdict::Steer(rule) if scope == Scope::Outbound && ownership::is_translated(ctx, &parsed.tuple) => {
            translated(&parsed, rule, &tables)
        }
        Verdict::Steer(_) if parsed.kind == Kind::Syn && packet::is_signed(ctx, &parsed) => {
            pass(Reason::Signed)
        }
        Verdict::Steer(rule) => {
            steer(ctx, link, scope, &parsed, (&tables.control, rule), history, known & AT_ONCE != 0)
        }
        Verdict::Reject => {
            fragments::follow(&parsed, FragmentCourse::Drop);
            refuse(Reason::RuleReject, parsed.protocol)
        }
        Verdict::Drop => {
            fragments::follow(&parsed, FragmentCourse::Drop);
            shot(Reason::RuleDrop)
        }
        Verdict::Unreadable => {
            fragments::follow(&parsed, FragmentCourse::Drop);
            shot(Reason::Unreadable)
        }
        Verdict::Pass(reason) => fragments::leave_alone(&parsed, Meta::of(ctx).ifindex, reason),
    };
    let Outcome::Settled(course, reason, _) = outcome else { return outcome };
    let rule = tables.decided.get();
    // What is held is told of where it is.
    if course != Course::Hold && !question::is_asked(ctx) {
        if rule != NO_RULE {
            maps::hit(tables.hits());
        }
        remember(ctx, scope, &parsed, verdict, reason, history);
        // Asked for once more: what is kept meanwhile takes of the stack.
        let place = || (Meta::of(ctx).ifindex, uid(scope, ctx));
        trace::tell(scope, parsed.protocol, &parsed.tuple, place, reason, rule);
    }
    Outcome::Settled(course, reason, rule)
}

/// Whether the rules have said what becomes of a packet for this host if NAT sends it elsewhere. One that is refused can be
/// answered only here: once it is known that NAT does, it is.
#[inline(always)]
fn is_published(parsed: &Packet, verdict: Verdict, tables: &Tables<'_>) -> bool {
    !matches!(verdict, Verdict::Pass(_))
        && tables.control.is_publishing(parsed.protocol)
        && ownership::is_host_address(&parsed.tuple.dst)
        && !(verdict == Verdict::Reject && entered::is_refused(parsed.protocol, &parsed.tuple))
}

/// Lets it in like what is steered; where it arrives, `sk_lookup` sees whether it is still for this host.
#[inline(always)]
fn published(
    ctx: &TcContext,
    link: LinkLayer,
    parsed: &Packet,
    verdict: Verdict,
    tables: &Tables<'_>,
) -> Outcome {
    let rule = tables.decided.get();
    let what = entered::what(verdict.reason(), rule);
    let is_let_in =
        question::is_asked(ctx) || entered::note_published(ctx, link, parsed, what, tables.control.active);
    let course = if is_let_in { Course::Deliver } else { Course::Next };
    Outcome::Settled(course, Reason::HostAddress as u32, rule)
}

/// NAT of this host has changed what a process of it sends. On the way over `lo` connection tracking would see a flow of its own
/// in it, and the process replies from somebody to whom it sent nothing. Of UDP a process says with each datagram to whom; it may
/// not get round a rule by that.
#[inline(always)]
fn translated(parsed: &Packet, rule: RuleIndex, tables: &Tables<'_>) -> Outcome {
    if parsed.protocol == Protocol::Udp && is_strict(rule, tables) {
        refuse(Reason::Unserved, parsed.protocol)
    } else {
        pass(Reason::Translated)
    }
}

#[inline(always)]
fn of_segment(
    scope: Scope,
    ctx: &TcContext,
    parsed: &Packet,
    tables: &Tables<'_>,
    history: History,
) -> Verdict {
    // A socket of ours in TIME_WAIT would swallow the packet if it passed: early demux attaches the socket to it, and
    // `ip_forward()` drops a packet that has one.
    if !tables.control.asks() && history != History::TimeWait {
        return Verdict::Pass(Reason::Draining);
    }
    ask_the_rules(scope, ctx, parsed, tables)
}

/// What only answers a flow that passed passes.
#[inline(always)]
fn of_datagram(scope: Scope, ctx: &TcContext, parsed: &Packet, tables: &Tables<'_>) -> Verdict {
    if memory::answers(&parsed.tuple, arrived_by(scope, ctx)) {
        return Verdict::Pass(Reason::Remembered);
    }
    if !tables.control.asks() {
        return Verdict::Pass(Reason::Draining);
    }
    ask_the_rules(scope, ctx, parsed, tables)
}

/// The copy of addresses and ports that this makes does not outlive it: the stack is small.
#[inline(always)]
fn ask_the_rules(scope: Scope, ctx: &TcContext, parsed: &Packet, tables: &Tables<'_>) -> Verdict {
    let (ifindex, uid) = (Meta::of(ctx).ifindex, uid(scope, ctx));
    decide(scope, &Flow { protocol: parsed.protocol, tuple: parsed.tuple, ifindex, uid }, tables)
}

/// The interface that a packet came in by; 0 for one that this host sends.
#[inline(always)]
fn arrived_by(scope: Scope, ctx: &TcContext) -> u32 {
    match scope {
        Scope::Outbound => 0,
        Scope::Forwarded | Scope::Inbound => Meta::of(ctx).ifindex,
    }
}

/// The sender's; only egress knows it.
#[inline(always)]
fn uid(scope: Scope, ctx: &TcContext) -> u32 {
    match scope {
        Scope::Outbound if question::is_asked(ctx) => question::uid(ctx),
        Scope::Outbound => ctx.get_socket_uid(),
        Scope::Forwarded | Scope::Inbound => 0,
    }
}

/// A UDP flow that passes is remembered; of TCP, a decision that no longer holds is forgotten, lest `sk_lookup` follow it.
#[inline(always)]
fn remember(ctx: &TcContext, scope: Scope, parsed: &Packet, verdict: Verdict, reason: u32, history: History) {
    const PASSED: [u32; 4] = [
        Reason::NoRule as u32,
        Reason::RulePass as u32,
        Reason::Remembered as u32,
        Reason::Translated as u32,
    ];
    match parsed.protocol {
        // What was held in scope `inbound` comes in with a decision, and of what is for the host `sk_lookup` asks the rules.
        Protocol::Tcp
            if reason == Reason::HostAddress as u32 && maps::control().has(Scope::Inbound, Protocol::Tcp) => {
        }
        Protocol::Tcp if history == History::Decided && !matches!(verdict, Verdict::Steer(_)) => {
            let _ = maps::DECISIONS.remove(parsed.tuple);
        }
        Protocol::Udp if history == History::Elsewhere || parsed.kind != Kind::Datagram => {}
        Protocol::Udp if PASSED.contains(&reason) => memory::passed(&parsed.tuple, arrived_by(scope, ctx)),
        // Scope `outbound` must not take the replies for new flows.
        Protocol::Udp
            if history == History::Heard
                && reason == Reason::HostAddress as u32
                && maps::control().has(Scope::Outbound, Protocol::Udp)
                && ownership::is_host_address(&parsed.tuple.dst)
                && !memory::answers(&parsed.tuple, arrived_by(scope, ctx)) =>
        {
            memory::heard(&parsed.tuple, arrived_by(scope, ctx));
        }
        Protocol::Tcp | Protocol::Udp => {}
    }
}

#[inline(always)]
fn steer(
    ctx: &TcContext,
    link: LinkLayer,
    scope: Scope,
    parsed: &Packet,
    (control, rule): (&Control, RuleIndex),
    history: History,
    at_once: bool,
) -> Outcome {
    // By the word by which the rules were asked: meanwhile others may hold.
    let number = control.number(rule);
    if control.deciding == 0 && control.rejecting != 0 {
        return reject::unserved(parsed, Reason::Draining);
    }
    let (worker, is_new) = worker(parsed, history);
    let family = ownership::family(&parsed.tuple.dst);
    let Some(listener) = Socket::listener(worker, parsed.protocol, family) else {
        return reject::unserved(parsed, Reason::ListenerGone);
    };
    if !maps::goes_round(worker) {
        drop(listener);
        return reject::unserved(parsed, Reason::Stalled);
    }
    if question::is_asked(ctx) {
        question::note_worker(ctx, worker);
        return deliver(Reason::RuleSteer);
    }
    debug!(ctx, "rule {} steers a flow to port {}", rule, u16::from_be_bytes(parsed.tuple.dport));
    if parsed.protocol == Protocol::Tcp
        && history != History::Decided
        && !at_once
        && hold::is_wanted(control, rule, &parsed.tuple)
    {
        drop(listener);
        hold::note(control, rule);
        return outcome::hold(Reason::RuleSteer);
    }
    // The kernel has to see a socket in TIME_WAIT first, to end it; a listener that is assigned hides it. One that is
    // assigned to a fragment is lost when the packet is put together.
    if settings::sk_assign() && history != History::TimeWait && parsed.piece == Piece::Whole {
        listener.assign(ctx);
    }
    drop(listener);
    let origin = hold::origin(scope, ctx);
    let mut what = parsed.protocol as u32;
    match parsed.protocol {
        Protocol::Tcp => {
            maps::decided(&parsed.tuple, number, worker, &origin);
            if is_new {
                maps::give(worker);
            }
        }
        Protocol::Udp => {
            let fragmenting = memory::fragmenting(packet::fragmenting(ctx, link, parsed));
            what |= fragmenting << 8;
            memory::steered(&parsed.tuple, number, worker, &origin, fragmenting);
        }
    }
    if scope == Scope::Forwarded {
        entered::note(&parsed.tuple, what, number, worker, &origin);
    }
    fragments::follow(parsed, FragmentCourse::Steer);
    deliver(Reason::RuleSteer)
}

/// The worker that gets a flow, and whether it is new to it. A SYN that is repeated goes to who had the first: where that was
/// answered with a SYN cookie, another listener would not take the ACK (`tcp_synq_no_recent_overflow()`).
#[inline(always)]
fn worker(parsed: &Packet, history: History) -> (u32, bool) {
    match parsed.protocol {
        Protocol::Tcp => {
            if history == History::Decided
                && let Some(Decision { worker, .. }) = maps::decision(&parsed.tuple)
                && worker < settings::workers()
            {
                return (worker, false);
            }
            (ownership::worker_of_connection(), true)
        }
        Protocol::Udp => (ownership::worker_of_client(&parsed.tuple), true),
    }
}
