//! tc ingress: packets that arrive for others (scope `forwarded`), replies to spoofed upstream sockets, ICMP errors
//! about our flows; and on `lo`, what egress redirected and what we send ourselves.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use tproxy_common::{
    abi::{APPLICATION, Decision},
    flow::Protocol,
    packet::{Kind, Packet},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    first::{First, History, first_packet},
    maps::{self, count},
    ownership::{self, Owner, Socket},
    packet::{self, ETHERNET, LinkLayer, Meta},
    reject, settings,
};

/// TCX_NEXT, which is TC_ACT_UNSPEC: the packet goes on to other programs, and then into the stack.
pub(crate) const NEXT: i32 = -1;

const PACKET_HOST: u32 = 0;

/// What to do with a packet, and why.
enum Course {
    /// Deliver it to the connection that owns it.
    Deliver(Socket),
    /// Deliver it locally; the kernel finds the socket.
    DeliverAny(Reason),
    /// Deliver a first packet to this listener.
    Begin(Socket),
    Reject,
    Drop,
}

pub(crate) fn run(ctx: &TcContext, link: LinkLayer) -> i32 {
    let meta = Meta::of(ctx);
    let parsed = match addressed_to_us(&meta).and_then(|()| packet::read(ctx, link)) {
        Ok(parsed) => parsed,
        Err(reason) => return pass(reason),
    };
    match course(ctx, &meta, &parsed) {
        Err(reason) => pass(reason),
        Ok(Course::DeliverAny(reason)) => steer(ctx, &meta, reason),
        Ok(Course::Deliver(socket)) => {
            if settings::sk_assign() && parsed.kind != Kind::IcmpError && socket.is_full() {
                socket.assign(ctx);
            }
            drop(socket);
            steer(
                ctx,
                &meta,
                if parsed.kind == Kind::IcmpError { Reason::IcmpError } else { Reason::SocketOwned },
            )
        }
        Ok(Course::Begin(listener)) => {
            if settings::sk_assign() {
                listener.assign(ctx);
            }
            drop(listener);
            steer(ctx, &meta, Reason::RuleSteer)
        }
        Ok(Course::Reject) => reject::answer(ctx, link, &meta, 0),
        Ok(Course::Drop) => shot(Reason::RuleDrop),
    }
}

/// On `lo`: packets that egress redirected, and those of our own connections to applications of this host.
pub(crate) fn run_loopback(ctx: &TcContext) -> i32 {
    let meta = Meta::of(ctx);
    if settings::is_own(meta.mark) {
        remember_own(ctx, &meta);
        return pass(Reason::OwnMark);
    }
    if !settings::is_steered(meta.mark) {
        return NEXT;
    }
    // Its Ethernet destination is the gateway it was sent to, so the stack takes it for somebody else's.
    if ctx.skb.change_type(PACKET_HOST).is_err() {
        return shot(Reason::KernelRefused);
    }
    if settings::sk_assign()
        && let Ok(parsed) = packet::read(ctx, ETHERNET)
    {
        assign_redirected(ctx, &parsed);
    }
    NEXT
}

/// `sk_lookup` sees no mark, and a spoofed connection of ours to an application looks like a client's: it would be
/// intercepted again, without end. (Nor does the interface tell: for an IPv4 packet through `lo`, `inet_iif` is the
/// interface that has the address.) The application's socket must not inherit the own mark, either, which it would with
/// `net.ipv4.tcp_fwmark_accept`: its replies would be taken for ours.
#[inline(always)]
fn remember_own(ctx: &TcContext, meta: &Meta) {
    if !maps::control().has(Scope::Inbound, Protocol::Tcp) {
        return;
    }
    if let Ok(Packet { tuple, kind: Kind::Syn, .. }) = packet::read(ctx, ETHERNET) {
        let _ = maps::DECISIONS.insert(tuple, Decision { rule: 0, worker: APPLICATION }, 0);
        ctx.set_mark(settings::unmarked(meta.mark));
    }
}

#[inline(always)]
fn assign_redirected(ctx: &TcContext, parsed: &Packet) {
    match ownership::owner(ctx, &parsed.tuple) {
        Owner::Connection(socket) if socket.is_full() => {
            socket.assign(ctx);
        }
        Owner::Decision(listener) => {
            listener.assign(ctx);
        }
        _ => {}
    }
}

/// Not for another host of the link, and not still tagged for a VLAN device above this one.
#[inline(always)]
fn addressed_to_us(meta: &Meta) -> Result<(), Reason> {
    if meta.pkt_type != PACKET_HOST || meta.vlan_present != 0 {
        return Err(Reason::NotForUs);
    }
    if settings::is_own(meta.mark) { Err(Reason::OwnMark) } else { Ok(()) }
}

#[inline(always)]
fn begin(ctx: &TcContext, meta: &Meta, parsed: &Packet, history: History) -> Result<Course, Reason> {
    Ok(match first_packet(ctx, Scope::Forwarded, meta, parsed, history)? {
        // The kernel has to see the socket in TIME_WAIT first, to end it; a listener that is assigned hides it.
        First::Steer(_) if history == History::TimeWait => Course::DeliverAny(Reason::RuleSteer),
        First::Steer(listener) => Course::Begin(listener),
        First::Reject => Course::Reject,
        First::Drop => Course::Drop,
    })
}

/// SYN decides, sockets remember.
#[inline(always)]
fn course(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> Result<Course, Reason> {
    match (ownership::owner(ctx, &parsed.tuple), parsed.kind) {
        (Owner::Connection(socket), _) => Ok(Course::Deliver(socket)),
        (Owner::Nobody, Kind::Syn) => begin(ctx, meta, parsed, History::Nothing),
        (Owner::TimeWait, Kind::Syn) => begin(ctx, meta, parsed, History::TimeWait),
        (Owner::Decision(_), Kind::Syn) => begin(ctx, meta, parsed, History::Decided),
        (Owner::TimeWait, Kind::IcmpError) => Ok(Course::DeliverAny(Reason::IcmpError)),
        (Owner::TimeWait, _) => Ok(Course::DeliverAny(Reason::SocketOwned)),
        (Owner::Decision(_), Kind::Ack) => Ok(Course::DeliverAny(Reason::Decided)),
        (Owner::Nobody | Owner::Decision(_), _) => Err(Reason::NotOurs),
    }
}

#[inline(always)]
fn steer(ctx: &TcContext, meta: &Meta, reason: Reason) -> i32 {
    count(reason);
    ctx.set_mark(settings::steered(meta.mark));
    NEXT
}

#[inline(always)]
pub(crate) fn pass(reason: Reason) -> i32 {
    count(reason);
    NEXT
}

#[inline(always)]
pub(crate) fn shot(reason: Reason) -> i32 {
    count(reason);
    TC_ACT_SHOT
}
