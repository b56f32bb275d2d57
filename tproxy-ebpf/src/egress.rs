//! tc egress: packets of the host's own processes (scope `outbound`), and an application's replies to a client whose
//! address an upstream socket of ours bears (scope `inbound` with a spoofed source). Both are redirected to `lo`.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_skb_change_head},
    programs::TcContext,
};
use tproxy_common::{
    packet::{Kind, Packet},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    first::{First, History, first_packet},
    ingress::{pass, shot},
    maps::count,
    ownership::{self, Owner},
    packet::{self, ETHERNET, LinkLayer, Meta, NO_LINK_LAYER},
    reject, settings,
};

const LOOPBACK_IFINDEX: u32 = 1;

enum Course {
    Redirect(Reason),
    Reject,
    Drop,
}

pub(crate) fn run(ctx: &TcContext, link: LinkLayer) -> i32 {
    let meta = Meta::of(ctx);
    if settings::is_own(meta.mark) {
        return pass(Reason::OwnMark);
    }
    if meta.vlan_present != 0 {
        // Tagged by a VLAN device above this one; on `lo` nobody would take the tag off.
        return pass(Reason::NotForUs);
    }
    let parsed = match packet::read(ctx, link) {
        Ok(parsed) => parsed,
        Err(reason) => return pass(reason),
    };
    match course(ctx, &meta, &parsed) {
        Err(reason) => pass(reason),
        Ok(Course::Redirect(reason)) => redirect_to_lo(ctx, link, &meta, reason),
        Ok(Course::Reject) => reject::answer(ctx, link, &meta, BPF_F_INGRESS.into()),
        Ok(Course::Drop) => shot(Reason::RuleDrop),
    }
}

/// SYN decides, sockets remember.
#[inline(always)]
fn course(ctx: &TcContext, meta: &Meta, parsed: &Packet) -> Result<Course, Reason> {
    match (ownership::owner(ctx, &parsed.tuple), parsed.kind) {
        // An ICMP error that this host sends is about a packet it received, never about one of ours.
        (_, Kind::IcmpError) => Err(Reason::NotOurs),
        (Owner::Connection(_), _) => Ok(Course::Redirect(Reason::SocketOwned)),
        (Owner::Nobody, Kind::Syn) => begin(ctx, meta, parsed, History::Nothing),
        (Owner::TimeWait, Kind::Syn) => begin(ctx, meta, parsed, History::TimeWait),
        (Owner::Decision(_), Kind::Syn) => begin(ctx, meta, parsed, History::Decided),
        (Owner::TimeWait, _) => Ok(Course::Redirect(Reason::SocketOwned)),
        (Owner::Decision(_), Kind::Ack) => Ok(Course::Redirect(Reason::Decided)),
        (Owner::Nobody | Owner::Decision(_), _) => Err(Reason::NotOurs),
    }
}

#[inline(always)]
fn begin(ctx: &TcContext, meta: &Meta, parsed: &Packet, history: History) -> Result<Course, Reason> {
    if meta.ingress_ifindex != 0 {
        // Forwarded: it came in by another interface, and no process of this host sent it.
        return Err(Reason::NotOurs);
    }
    Ok(match first_packet(ctx, Scope::Outbound, meta, parsed, history)? {
        First::Steer(_) => Course::Redirect(Reason::RuleSteer),
        First::Reject => Course::Reject,
        First::Drop => Course::Drop,
    })
}

/// Turns the packet round: it enters the host again by `lo`, marked for local delivery.
#[inline(always)]
fn redirect_to_lo(ctx: &TcContext, link: LinkLayer, meta: &Meta, reason: Reason) -> i32 {
    if link == NO_LINK_LAYER && push_ethernet(ctx, meta).is_err() {
        return shot(Reason::KernelRefused);
    }
    ctx.set_mark(settings::steered(meta.mark));
    count(reason);
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS.into()) as i32 }
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
