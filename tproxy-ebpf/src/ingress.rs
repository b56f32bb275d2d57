//! tc ingress: packets that arrive for others (scope `forwarded`), replies to spoofed upstream sockets, ICMP errors
//! about our flows.

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    abi::FragmentCourse,
    flow::{Flow, Protocol, Tuple},
    packet::{Kind, Packet, Piece},
    policy::{may_be_reply, may_select},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    cookie, entered, first, fragments, maps,
    memory::{self, Known},
    outcome::{History, NEXT, Outcome, deliver, pass, shot},
    ownership::{self, Owner, Receiver, Socket},
    packet::{self, ETHERNET, LinkLayer, Meta},
    reject, settings,
    tables::Tables,
    translation,
};

pub(crate) const PACKET_HOST: u32 = 0;

/// Whether the packet passes, as most do, whatever else there is to know about it.
#[inline(always)]
pub(crate) fn is_of_others(ctx: &TcContext, link: LinkLayer) -> bool {
    addressed_to_us(&Meta::of(ctx)).is_ok() && packet::is_of_others(ctx, link)
}

/// A packet that is not its flow's first is delivered if, and only if, a socket of ours owns the flow.
///
/// Not inlined: its stack is then free for what comes after. The number is that of an [`Outcome`].
#[inline(never)]
pub(crate) fn known(ctx: &TcContext, link: LinkLayer) -> u32 {
    outcome(ctx, link).to_number()
}

#[inline(always)]
fn outcome(ctx: &TcContext, link: LinkLayer) -> Outcome {
    let meta = Meta::of(ctx);
    let parsed = match addressed_to_us(&meta).and_then(|()| packet::read(ctx, link)) {
        Ok(parsed) => parsed,
        Err(Reason::OtherProtocol) if link == ETHERNET && meta.has_inner_tag() => {
            return first::unreadable(Scope::Forwarded, Reason::OtherProtocol);
        }
        Err(reason) => return pass(reason),
    };
    match (parsed.kind, parsed.protocol) {
        (Kind::LaterFragment, _) => later_fragment(&meta, &parsed),
        (Kind::Unreadable | Kind::Hidden, _) => first::unreadable(Scope::Forwarded, Reason::Malformed),
        (_, Protocol::Tcp) => segment(ctx, &parsed),
        (_, Protocol::Udp) => datagram(ctx, &meta, &parsed),
    }
}

/// Marks a packet so that policy routing delivers it locally.
#[inline(always)]
pub(crate) fn steer(ctx: &TcContext) -> i32 {
    let mark = Meta::of(ctx).mark;
    ctx.set_mark(settings::steered(mark));
    NEXT
}

/// Not for another host of the link, and not still tagged for a VLAN device above this one.
#[inline(always)]
fn addressed_to_us(meta: &Meta) -> Result<(), Reason> {
    if meta.pkt_type != PACKET_HOST || meta.is_tagged {
        return Err(Reason::NotForUs);
    }
    if settings::is_own(meta.mark) { Err(Reason::OwnMark) } else { Ok(()) }
}

/// SYN decides, sockets remember.
#[inline(always)]
fn segment(ctx: &TcContext, parsed: &Packet) -> Outcome {
    match (ownership::owner_of_incoming(ctx, &parsed.tuple), parsed.kind) {
        (Owner::Connection(_), _) if arrives_anyway(parsed) => pass(Reason::NotOurs),
        (Owner::Connection(socket), _) => deliver_to(ctx, parsed, socket),
        // Forwarding ends here; the kernel says so to the sender, who may be tracing the route.
        (Owner::Nobody, Kind::Syn) if parsed.hops <= 1 => pass(Reason::Expiring),
        (Owner::Nobody, Kind::Syn) => Outcome::First(History::Nothing),
        (Owner::TimeWait, Kind::Syn) => Outcome::First(History::TimeWait),
        // The rules were asked about it before it was held.
        (Owner::Decision(_), Kind::Syn) if settings::is_steered(Meta::of(ctx).mark) => {
            entered::note_admitted(&parsed.tuple);
            deliver(Reason::Decided)
        }
        (Owner::Decision(_), Kind::Syn) => Outcome::First(History::Decided),
        (Owner::TimeWait, Kind::IcmpError) => deliver(Reason::IcmpError),
        (Owner::TimeWait, _) => deliver(Reason::SocketOwned),
        (Owner::Decision(_), Kind::Ack) => deliver(Reason::Decided),
        (Owner::Nobody, Kind::Ack) if cookie::is_answered(ctx, Scope::Forwarded, parsed) => {
            deliver(Reason::Decided)
        }
        (Owner::Nobody | Owner::Decision(_), _) => pass(Reason::NotOurs),
    }
}

/// The first datagram decides; then the flow is remembered, until a socket of its own does.
#[inline(always)]
fn datagram(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> Outcome {
    let mut new = History::Nothing;
    if parsed.kind == Kind::Datagram {
        match memory::recall_at(&parsed.tuple, meta.ifindex) {
            Known::Passed | Known::Left | Known::Heard | Known::Carried(_) | Known::Application => {
                return fragments::leave_alone(parsed, meta.ifindex, Reason::Remembered);
            }
            // The socket of its own may be there already, and the kernel looks for that first.
            Known::Steered(worker) => {
                let listener = Socket::listener(worker, Protocol::Udp, ownership::family(&parsed.tuple.dst));
                if listener.is_none() {
                    return reject::unserved(parsed, Reason::ListenerGone);
                }
                fragments::follow(parsed, FragmentCourse::Steer);
                return deliver(Reason::Decided);
            }
            Known::Elsewhere => new = History::Elsewhere,
            Known::Nothing => {}
        }
    }
    match (ownership::owner_of_incoming_datagram(ctx, &parsed.tuple), parsed.kind) {
        (Receiver::Ours(_), _) if arrives_anyway(parsed) => pass(Reason::NotOurs),
        (Receiver::Ours(socket), _) => deliver_to(ctx, parsed, socket),
        (_, Kind::IcmpError) => pass(Reason::NotOurs),
        (_, _) if new == History::Nothing && is_awaited(&parsed.tuple) => {
            fragments::follow(parsed, FragmentCourse::Steer);
            deliver(Reason::Decided)
        }
        // Forwarding ends here; the kernel says so to the sender, who may be tracing the route.
        (_, _) if parsed.hops <= 1 && !ownership::is_host_address(&parsed.tuple.dst) => {
            pass(Reason::Expiring)
        }
        (Receiver::Others, _) if new == History::Nothing => Outcome::First(History::Heard),
        (Receiver::Others | Receiver::Nobody, _) => Outcome::First(new),
    }
}

/// Whether a worker's listener receives a datagram when NAT has given it another destination.
#[inline(always)]
fn is_awaited(tuple: &Tuple) -> bool {
    translation::of(Protocol::Udp, tuple)
        .is_some_and(|known| matches!(memory::recall(&known), Known::Steered(_)))
}

/// Whether a packet is for an address of the host's, as are the replies to what scope `outbound` sends upstream: it needs no
/// mark, and under `src_valid_mark` the mark would have `fib_validate_source()` take its sender for a local one. Translated
/// ones are for such an address only until NAT has seen them.
#[inline(always)]
fn arrives_anyway(parsed: &Packet) -> bool {
    let control = maps::control();
    (control.has(Scope::Outbound, Protocol::Tcp) || control.has(Scope::Outbound, Protocol::Udp))
        && ownership::is_host_address(&parsed.tuple.dst)
        && translation::of(parsed.protocol, &parsed.tuple).is_none()
}

#[inline(always)]
fn deliver_to(ctx: &TcContext, parsed: &Packet, socket: Socket) -> Outcome {
    fragments::follow(parsed, FragmentCourse::Steer);
    if parsed.kind == Kind::IcmpError {
        return deliver(Reason::IcmpError);
    }
    // One that is assigned to a fragment is lost when the packet is put together.
    if settings::sk_assign() && socket.is_full() && parsed.piece == Piece::Whole {
        socket.assign(ctx);
    }
    deliver(Reason::SocketOwned)
}

/// Without ports, it can only do what the first one did. When that has not come yet and a rule may select the datagram, it
/// is delivered: the kernel keeps it until the others are there.
#[inline(always)]
fn later_fragment(meta: &Meta, parsed: &Packet) -> Outcome {
    let course = fragments::course(parsed).unwrap_or_else(|| {
        let delivered = parsed.protocol == Protocol::Udp && may_be_ours(meta, parsed);
        fragments::settle(parsed, if delivered { FragmentCourse::Steer } else { FragmentCourse::Pass })
    });
    match course {
        FragmentCourse::Pass => pass(Reason::Fragment),
        FragmentCourse::Steer => deliver(Reason::SteerFragment),
        FragmentCourse::Drop => shot(Reason::DropFragment),
    }
}

#[inline(always)]
fn may_be_ours(meta: &Meta, parsed: &Packet) -> bool {
    let control = maps::control();
    let tables = Tables::of(control, None);
    let flow = Flow { protocol: Protocol::Udp, tuple: parsed.tuple, ifindex: meta.ifindex, uid: 0 };
    let is_ours = may_select(&flow, &tables) || control.spoofing != 0 && may_be_reply(&flow, &tables);
    is_ours && ownership::is_served(parsed)
}
