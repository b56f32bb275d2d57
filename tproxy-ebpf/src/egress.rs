//! tc egress: packets of the host's own processes (scope `outbound`), and an application's replies to a client whose
//! address an upstream socket of ours bears (scope `inbound` with a spoofed source). Both are redirected to `lo`.
//! UDP flows that leave on their own are remembered, so that their replies are not taken for new ones.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::{bpf_redirect, bpf_skb_change_head},
    programs::TcContext,
};
use tproxy_common::{
    abi::FragmentCourse,
    flow::Protocol,
    packet::{Kind, Packet},
    policy::may_arrive_by,
    rule::Scope,
    verdict::Reason,
};

use crate::{
    cookie, first, fragments,
    maps::{self, count},
    memory::{self, Known},
    outcome::{History, Outcome, deliver, pass, redirected, shot},
    ownership::{self, Owner, Receiver, Socket},
    packet::{self, ETHERNET, LinkLayer, Meta, NO_LINK_LAYER},
    reject, settings,
    tables::Tables,
    translation,
};

const LOOPBACK_IFINDEX: u32 = 1;

/// Whether the packet leaves, as most do, whatever else there is to know about it.
#[inline(always)]
pub(crate) fn is_of_others(ctx: &TcContext, link: LinkLayer) -> bool {
    let meta = Meta::of(ctx);
    // What is steered as it leaves is a first packet that was held: user space sends it in by `lo`.
    if settings::is_steered(meta.mark) {
        return true;
    }
    !settings::is_own(meta.mark) && !meta.is_tagged && packet::is_of_others(ctx, link)
}

/// As on ingress; and what is forwarded is no flow of this host's processes.
///
/// Not inlined: its stack is then free for what comes after. The number is that of an [`Outcome`].
#[inline(never)]
pub(crate) fn known(ctx: &TcContext, link: LinkLayer) -> u32 {
    outcome(ctx, link).to_number()
}

#[inline(always)]
fn outcome(ctx: &TcContext, link: LinkLayer) -> Outcome {
    let meta = Meta::of(ctx);
    if settings::is_own(meta.mark) {
        translation::note(ctx, link);
        remember_own(ctx, link);
        return pass(Reason::OwnMark);
    }
    if maps::is_of_another(meta.mark) {
        return pass(Reason::OwnMark);
    }
    if meta.is_tagged {
        // Tagged by a VLAN device above this one; on `lo` nobody would take the tag off.
        return pass(Reason::NotForUs);
    }
    let parsed = match packet::read(ctx, link) {
        Ok(parsed) => parsed,
        Err(Reason::OtherProtocol) if leads_clients_past(ctx, link, &meta) => return shot(Reason::Redirect),
        Err(reason) => return pass(reason),
    };
    match (parsed.kind, parsed.protocol) {
        // An ICMP error that this host sends is about a packet it received, never about one of ours.
        (Kind::IcmpError, _) => pass(Reason::NotOurs),
        (Kind::LaterFragment, _) => later_fragment(&parsed),
        (Kind::Unreadable | Kind::Hidden, _) if was_sent_here(ctx, &meta, &parsed) => {
            first::unreadable(Scope::Outbound, Reason::Malformed)
        }
        (Kind::Unreadable | Kind::Hidden, _) => pass(Reason::Malformed),
        (_, Protocol::Tcp) => segment(ctx, &meta, &parsed),
        (_, Protocol::Udp) => datagram(ctx, &meta, &parsed),
    }
}

/// What passes and leaves by the interface that it came in by has the kernel tell the sender of a shorter way, by which it
/// would then send all that it has for that destination, what a rule selects included.
#[inline(always)]
fn leads_clients_past(ctx: &TcContext, link: LinkLayer, meta: &Meta) -> bool {
    meta.ingress_ifindex == 0 && packet::is_redirect(ctx, link) && has_clients(meta.ifindex)
}

/// Not inlined: its stack is then free for what comes after.
#[inline(never)]
fn has_clients(ifindex: u32) -> bool {
    let tables = Tables::of(maps::control(), None);
    Protocol::ALL.into_iter().any(|protocol| may_arrive_by(ifindex, protocol, &tables))
}

/// Turns the packet round: it enters the host again by `lo`, marked for local delivery.
#[inline(always)]
pub(crate) fn redirect_to_lo(ctx: &TcContext, link: LinkLayer) -> i32 {
    let meta = Meta::of(ctx);
    if link == NO_LINK_LAYER && push_ethernet(ctx, &meta).is_err() {
        count(Reason::KernelRefused);
        return TC_ACT_SHOT;
    }
    ctx.set_mark(settings::steered(meta.mark));
    // SAFETY: plain numbers.
    redirected(unsafe { bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS.into()) })
}

/// What an upstream socket of ours sends that is not connected has replies that scope `inbound` would take for new flows.
/// (A connected one is found before `sk_lookup` is asked; and a session's replies must not be remembered, lest the next
/// datagram of its client pass for an answer.)
#[inline(always)]
fn remember_own(ctx: &TcContext, link: LinkLayer) {
    if maps::control().has(Scope::Inbound, Protocol::Udp)
        && let Ok(Packet { tuple, kind: Kind::Datagram, .. }) = packet::read(ctx, link)
        && ownership::sender_is_unconnected(ctx)
        && memory::recall(&tuple) == Known::Nothing
    {
        memory::passed(&tuple, 0);
    }
}

/// SYN decides, sockets remember.
#[inline(always)]
fn segment(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> Outcome {
    let begin = |history| {
        if was_sent_here(ctx, meta, parsed) { Outcome::First(history) } else { pass(Reason::NotOurs) }
    };
    match (ownership::owner(ctx, &parsed.tuple), parsed.kind) {
        (Owner::Connection(_), _) => deliver(Reason::SocketOwned),
        (Owner::Nobody, Kind::Syn) => begin(History::Nothing),
        (Owner::TimeWait, Kind::Syn) => begin(History::TimeWait),
        (Owner::Decision(_), Kind::Syn) => begin(History::Decided),
        (Owner::TimeWait, _) => deliver(Reason::SocketOwned),
        (Owner::Decision(_), Kind::Ack) => deliver(Reason::Decided),
        (Owner::Nobody, Kind::Ack) if cookie::is_answered(ctx, Scope::Outbound, parsed) => {
            deliver(Reason::Decided)
        }
        (Owner::Nobody | Owner::Decision(_), _) => pass(Reason::NotOurs),
    }
}

/// The first datagram decides; then the flow is remembered, until a socket of its own does.
#[inline(always)]
fn datagram(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> Outcome {
    match memory::recall(&parsed.tuple) {
        Known::Passed | Known::Carried(_) | Known::Application => {
            fragments::follow(parsed, FragmentCourse::Pass);
            return pass(Reason::Remembered);
        }
        Known::Steered(worker) if was_sent_here(ctx, meta, parsed) => {
            let listener = Socket::listener(worker, Protocol::Udp, ownership::family(&parsed.tuple.dst));
            if listener.is_none() {
                return reject::unserved(parsed, Reason::ListenerGone);
            }
            fragments::follow(parsed, FragmentCourse::Steer);
            return deliver(Reason::Decided);
        }
        Known::Steered(_) | Known::Elsewhere | Known::Left | Known::Heard | Known::Nothing => {}
    }
    if matches!(ownership::datagram_owner(ctx, &parsed.tuple), Receiver::Ours(_)) {
        fragments::follow(parsed, FragmentCourse::Steer);
        return deliver(Reason::SocketOwned);
    }
    if was_sent_here(ctx, meta, parsed) {
        return Outcome::First(History::Nothing);
    }
    memory::passed(&parsed.tuple, meta.ingress_ifindex);
    fragments::follow(parsed, FragmentCourse::Pass);
    pass(Reason::NotOurs)
}

/// This host fragments what it sends itself in order: the first was seen.
#[inline(always)]
fn later_fragment(parsed: &Packet) -> Outcome {
    match fragments::course(parsed) {
        Some(FragmentCourse::Steer) => deliver(Reason::SteerFragment),
        Some(FragmentCourse::Drop) => shot(Reason::DropFragment),
        Some(FragmentCourse::Pass) | None => pass(Reason::Fragment),
    }
}

/// What is forwarded came in by another interface, and no process of this host sent it; nor did one send what a tunnel device
/// does.
#[inline(always)]
fn was_sent_here(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> bool {
    meta.ingress_ifindex == 0 && ownership::is_of_its_sender(ctx, parsed)
}

/// `lo` is a device with Ethernet headers, and `bpf_redirect` to such a one frees a packet that has none.
#[inline(always)]
fn push_ethernet(ctx: &TcContext, meta: &Meta) -> Result<(), aya_ebpf::cty::c_long> {
    let protocol = (meta.protocol as u16).to_ne_bytes();
    // SAFETY: the context is a valid skb.
    match unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET.0 as u32, 0) } {
        0 => {
            let mut header = [0; ETHERNET.0];
            header[12] = protocol[0];
            header[13] = protocol[1];
            ctx.store(0, &header, 0)
        }
        error => Err(error),
    }
}
