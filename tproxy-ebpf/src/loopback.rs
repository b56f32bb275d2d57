//! tc ingress of `lo`: packets that egress redirected, and those that our own flows send to applications of this host.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use tproxy_common::{
    abi::{APPLICATION, Decision, Origin},
    flow::Protocol,
    packet::{Kind, Packet, Piece},
    rule::Scope,
    verdict::Reason,
};

use crate::{
    hold,
    ingress::PACKET_HOST,
    maps::{self, count},
    memory::{self, Known},
    outcome::{NEXT, redirected},
    ownership::{self, Owner, Receiver},
    packet::{self, ETHERNET, Meta},
    settings,
};

pub(crate) fn run(ctx: &TcContext) -> i32 {
    let meta = Meta::of(ctx);
    if settings::is_own(meta.mark) {
        if remember_own(ctx) == Begins::Connection {
            // The application's TCP socket must not inherit the own mark, which it would with
            // `net.ipv4.tcp_fwmark_accept`: its replies would be taken for ours.
            ctx.set_mark(settings::unmarked(meta.mark));
        }
        count(Reason::OwnMark);
        return NEXT;
    }
    if maps::is_of_another(meta.mark) {
        // It is the other's to see to the mark.
        remember_own(ctx);
        count(Reason::OwnMark);
        return NEXT;
    }
    if !settings::is_steered(meta.mark) {
        return NEXT;
    }
    // Most segments say at a glance that they begin nothing.
    if packet::ports_of_segment(ctx, ETHERNET).is_none()
        && let Ok(Packet { tuple, kind: Kind::Syn, .. }) = &packet::read(ctx, ETHERNET)
    {
        // Redirected, for a sender who is told of a drop would think that the link is congested (`tcp_enter_cwr`).
        if hold::has(tuple) {
            return TC_ACT_SHOT;
        }
        // It was held, and comes in once more by the interface by which it did: there its way goes on.
        if let Some(Decision { origin: Origin { ifindex: ifindex @ 1.., mark, .. }, .. }) =
            maps::decision(tuple)
        {
            // By this mark it is told from one that was not held. To what is for this host, it would only do harm: under
            // `src_valid_mark` it would seem to be from this host, too.
            let is_for_host = ownership::is_host_address(&tuple.dst);
            ctx.set_mark(if is_for_host { mark } else { settings::steered(mark) });
            // SAFETY: plain numbers.
            return redirected(unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) });
        }
    }
    // Its Ethernet destination is the gateway it was sent to, so the stack takes it for somebody else's.
    if ctx.skb.change_type(PACKET_HOST).is_err() {
        count(Reason::KernelRefused);
        return TC_ACT_SHOT;
    }
    if settings::sk_assign()
        && let Ok(parsed) = packet::read(ctx, ETHERNET)
        && parsed.piece == Piece::Whole
    {
        assign_redirected(ctx, &parsed);
    }
    if maps::control().landing != 0 {
        ctx.set_mark(settings::landing(meta.mark));
    }
    NEXT
}

/// `sk_lookup` sees no mark, and a spoofed flow of ours to an application looks like a client's: it would be
/// intercepted again, without end; and a session's replies, in scope `outbound`, would pass for flows that others began. (Nor does the interface tell: for an IPv4 packet through `lo`, `inet_iif` is the
/// interface that has the address.)
///
/// What an earlier instance sends is as little anybody's to take.
#[inline(never)]
fn remember_own(ctx: &TcContext) -> Begins {
    let control = maps::control();
    let connections = control.has(Scope::Inbound, Protocol::Tcp);
    let datagrams = control.has(Scope::Inbound, Protocol::Udp) || control.has(Scope::Outbound, Protocol::Udp);
    if !connections && !datagrams {
        return Begins::Nothing;
    }
    match packet::read(ctx, ETHERNET) {
        Ok(Packet { tuple, kind: Kind::Syn, .. }) if connections => {
            maps::decided(&tuple, 0, APPLICATION, &Origin::default());
            return Begins::Connection;
        }
        // Sessions reply from the host's own addresses, and upstream sockets that are not spoofed send from them.
        Ok(Packet { tuple, kind: Kind::Datagram, .. })
            if datagrams
                && !ownership::is_host_address(&tuple.src)
                && memory::recall(&tuple) != Known::Application =>
        {
            memory::application(&tuple);
        }
        _ => {}
    }
    Begins::Nothing
}

/// What a packet of ours to an application begins.
#[derive(PartialEq, Eq)]
enum Begins {
    Connection,
    /// Or it is not to be seen.
    Nothing,
}

#[inline(always)]
fn assign_redirected(ctx: &TcContext, parsed: &Packet) {
    match parsed.protocol {
        Protocol::Tcp => match ownership::owner(ctx, &parsed.tuple) {
            Owner::Connection(socket) if socket.is_full() => {
                socket.assign(ctx);
            }
            Owner::Decision(listener) => {
                listener.assign(ctx);
            }
            _ => {}
        },
        Protocol::Udp => {
            if let Receiver::Ours(socket) = ownership::datagram_owner(ctx, &parsed.tuple) {
                socket.assign(ctx);
            }
        }
    }
}
