//! tc ingress: packets that arrive for others (scope `forwarded`), replies to spoofed upstream sockets, ICMP errors
//! about our flows; and on `lo`, what egress redirected.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use tproxy_common::{
    packet::{Kind, Packet},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    first::{First, History, first_packet},
    maps::count,
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
        Ok(Course::Reject) => reject::answer(ctx, link, &meta, &parsed, 0),
        Ok(Course::Drop) => shot(Reason::RuleDrop),
    }
}

/// On `lo`: the packet was decided at egress, and needs what only ingress can give it.
pub(crate) fn run_redirected(ctx: &TcContext) -> i32 {
    if !settings::is_steered(Meta::of(ctx).mark) {
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

#[inline(always)]
fn assign_redirected(ctx: &TcContext, parsed: &Packet) {
    match ownership::owner(ctx, &parsed.tuple) {
        Owner::Connection(socket) if socket.is_full() => {
            socket.assign(ctx);
        }
        Owner::Decision if parsed.kind == Kind::Syn => {
            if let Some(listener) = Socket::listener(ownership::family(&parsed.tuple.dst)) {
                listener.assign(ctx);
            }
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
        (Owner::Nobody | Owner::TimeWait, Kind::Syn) => begin(ctx, meta, parsed, History::New),
        (Owner::Decision, Kind::Syn) => begin(ctx, meta, parsed, History::Decided),
        (Owner::TimeWait, Kind::IcmpError) => Ok(Course::DeliverAny(Reason::IcmpError)),
        (Owner::TimeWait, _) => Ok(Course::DeliverAny(Reason::SocketOwned)),
        (Owner::Decision, Kind::Ack) => Ok(Course::DeliverAny(Reason::Decided)),
        (Owner::Nobody | Owner::Decision, _) => Err(Reason::NotOurs),
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
