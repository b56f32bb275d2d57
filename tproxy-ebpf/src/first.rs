//! A flow's first packet: the rules are asked, and the answer is remembered until the connection is accepted.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use tproxy_common::{
    abi::Decision,
    flow::{Flow, Protocol},
    packet::Packet,
    policy::decide,
    rule::Scope,
    verdict::{Reason, Verdict},
};

use crate::{
    maps,
    ownership::{self, Socket},
    packet::Meta,
    tables::Tables,
};

/// What is known of the same addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum History {
    Nothing,
    /// A decision is still remembered.
    Decided,
    /// A connection of ours is in TIME_WAIT.
    TimeWait,
}

/// What becomes of a flow that a rule selects.
pub(crate) enum First {
    /// Deliver it to this worker's listener.
    Steer(Socket),
    Reject,
    Drop,
}

/// Decides, or says why the flow is left alone. A decision that no longer holds is forgotten, lest `sk_lookup` follow it.
#[inline(always)]
pub(crate) fn first_packet(
    ctx: &TcContext,
    scope: Scope,
    meta: &Meta,
    parsed: &Packet,
    history: History,
) -> Result<First, Reason> {
    let first = ask_the_rules(ctx, scope, meta, parsed, history);
    if history == History::Decided && !matches!(first, Ok(First::Steer(_))) {
        let _ = maps::DECISIONS.remove(parsed.tuple);
    }
    first
}

#[inline(always)]
fn ask_the_rules(
    ctx: &TcContext,
    scope: Scope,
    meta: &Meta,
    parsed: &Packet,
    history: History,
) -> Result<First, Reason> {
    let control = maps::control();
    // A socket of ours in TIME_WAIT would swallow the packet if it passed: early demux attaches the socket to it, and
    // `ip_forward()` drops a packet that has one.
    if control.deciding == 0 && history != History::TimeWait {
        return Err(Reason::Draining);
    }
    let sender = matches!(scope, Scope::Outbound).then_some(ctx);
    let uid = sender.map_or(0, TcContext::get_socket_uid);
    let flow = Flow { protocol: Protocol::Tcp, tuple: parsed.tuple, ifindex: meta.ifindex, uid };
    match decide(scope, &flow, &Tables { control, sender }) {
        Verdict::Pass(reason) => Err(reason),
        Verdict::Reject => Ok(First::Reject),
        Verdict::Drop => Ok(First::Drop),
        Verdict::Steer(rule) => {
            let worker = ownership::this_cpu_worker();
            let family = ownership::family(&parsed.tuple.dst);
            let listener = Socket::listener(worker, family).ok_or(Reason::ListenerGone)?;
            debug!(ctx, "rule {} steers a flow to port {}", rule, u16::from_be_bytes(parsed.tuple.dport));
            let _ = maps::DECISIONS.insert(parsed.tuple, Decision { rule, worker }, 0);
            Ok(First::Steer(listener))
        }
    }
}
