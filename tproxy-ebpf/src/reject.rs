//! Refusing a flow on behalf of its destination: the kernel itself answers from an address that is not its own only for a
//! transparent socket. A SYN becomes a RST, a datagram an ICMP error, in place.

mod reset;
mod unreachable;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use tproxy_common::{abi::FragmentCourse, packet::Packet, verdict::Reason};

pub(crate) use self::{reset::tproxy_turn_round, unreachable::tproxy_unreachable};
use crate::{
    fragments,
    maps::{self, count},
    outcome::{Outcome, pass, redirected, refuse},
    packet::{LinkLayer, Meta},
};

/// Rewrites a packet with a link-layer header of so many bytes; 0 when done.
type Turn = extern "C" fn(*mut __sk_buff, u32) -> u32;

/// Of the answer.
const TTL: u8 = 64;

/// A packet of a flow that a rule selects and nobody takes.
#[inline(always)]
pub(crate) fn unserved(parsed: &Packet, reason: Reason) -> Outcome {
    if maps::control().rejecting == 0 {
        return pass(reason);
    }
    fragments::follow(parsed, FragmentCourse::Drop);
    refuse(Reason::Unserved, parsed.protocol)
}

/// Turns a packet into its own refusal by `turn`, and sends that to where the packet came from: `direction` 0 is egress of
/// the same device, `BPF_F_INGRESS` is back into the host.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext, link: LinkLayer, turn: Turn, direction: u32) -> i32 {
    if turn(ctx.skb.skb, link.0 as u32) != 0 {
        count(Reason::KernelRefused);
        return TC_ACT_SHOT;
    }
    let ifindex = Meta::of(ctx).ifindex;
    // SAFETY: plain numbers.
    redirected(unsafe { bpf_redirect(ifindex, direction.into()) })
}
