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
    packet::{self, ETHERNET, LinkLayer, skb},
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
    let parsed = match addressed_to_us(ctx).and_then(|()| packet::read(ctx, link)) {
        Ok(parsed) => parsed,
        Err(reason) => return pass(reason),
    };
    match course(ctx, &parsed) {
        Err(reason) => pass(reason),
        Ok(Course::DeliverAny(reason)) => steer(ctx, reason),
        Ok(Course::Deliver(socket)) => {
            if settings::sk_assign() && parsed.kind != Kind::IcmpError && socket.is_full() {
                socket.assign(ctx);
            }
            drop(socket);
            steer(ctx, if parsed.kind == Kind::IcmpError { Reason::IcmpError } else { Reason::SocketOwned })
        }
        Ok(Course::Begin(listener)) => {
            if settings::sk_assign() {
                listener.assign(ctx);
            }
            drop(listener);
            steer(ctx, Reason::RuleSteer)
        }
        Ok(Course::Reject) => reject::answer(ctx, link, &parsed, 0),
        Ok(Course::Drop) => shot(Reason::RuleDrop),
    }
}

/// On `lo`: the packet was decided at egress, and needs what only ingress can give it.
pub(crate) fn run_redirected(ctx: &TcContext) -> i32 {
    if !settings::is_steered(skb(ctx).mark) {
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
fn addressed_to_us(ctx: &TcContext) -> Result<(), Reason> {
    let skb = skb(ctx);
    if skb.pkt_type != PACKET_HOST || skb.vlan_present != 0 {
        return Err(Reason::NotForUs);
    }
    if settings::is_own(skb.mark) { Err(Reason::OwnMark) } else { Ok(()) }
}

#[inline(always)]
fn begin(ctx: &TcContext, parsed: &Packet, history: History) -> Result<Course, Reason> {
    Ok(match first_packet(ctx, Scope::Forwarded, parsed, history)? {
        First::Steer(listener) => Course::Begin(listener),
        First::Reject => Course::Reject,
        First::Drop => Course::Drop,
    })
}

/// SYN decides, sockets remember.
#[inline(always)]
fn course(ctx: &TcContext, parsed: &Packet) -> Result<Course, Reason> {
    match (ownership::owner(ctx, &parsed.tuple), parsed.kind) {
        (Owner::Connection(socket), _) => Ok(Course::Deliver(socket)),
        (Owner::Nobody | Owner::TimeWait, Kind::Syn) => begin(ctx, parsed, History::New),
        (Owner::Decision, Kind::Syn) => begin(ctx, parsed, History::Decided),
        (Owner::TimeWait, Kind::IcmpError) => Ok(Course::DeliverAny(Reason::IcmpError)),
        (Owner::TimeWait, _) => Ok(Course::DeliverAny(Reason::SocketOwned)),
        (Owner::Decision, Kind::Ack) => Ok(Course::DeliverAny(Reason::Decided)),
        (Owner::Nobody | Owner::Decision, _) => Err(Reason::NotOurs),
    }
}

#[inline(always)]
fn steer(ctx: &TcContext, reason: Reason) -> i32 {
    count(reason);
    ctx.set_mark(settings::steered(skb(ctx).mark));
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
