//! A packet on its way through the host, and what is told of it.

use super::{Origin, RuleNumber};
use crate::{flow::Tuple, rule::RuleIndex};

/// What `sk_lookup` has found out about a flow, and the program of the listener that it chose is to carry out if there
/// really is a packet. Whoever else has the kernel look for a socket (our own tc programs, other people's, XDP, sock_diag,
/// GRO) has none to show (`reuseport_select_sock`), and nothing comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Finding {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// The number of the `Reason`; 0 is none.
    pub reason: u32,
    /// The rule, in the slot that was active, or [`NO_RULE`].
    pub rule: RuleIndex,
    /// The same rule, over all generations.
    pub number: RuleNumber,
    /// The worker that gets the flow.
    pub worker: u32,
    /// Interface the packet came in by.
    pub ifindex: u32,
    /// Place of the rule in `HITS`.
    pub hits: u32,
    /// The ports of the flow whose socket our own tc program looks for at this moment, or 0.
    pub sought: u32,
    /// 1 when NAT has changed the destination since tc saw the packet, which is in `ENTERED`.
    pub entered: u32,
    /// 1 when user space is to connect to the application before the connection is accepted.
    pub held: u32,
}

/// Slots of `ENTERED`: as many packets as a CPU takes from a device at once (`NAPI_POLL_WEIGHT`) may be on their way on it.
pub const ENTERED_SLOTS: u32 = 64;

/// The slot of a packet with this source.
#[inline(always)]
#[must_use]
pub const fn entered_index(tuple: &Tuple) -> u32 {
    tuple.source_hash() % ENTERED_SLOTS
}

/// For how long a packet may be on its way from tc to a socket, in nanoseconds. On the same CPU it is microseconds; a fragment
/// waits for the others.
pub const ENTERING: u64 = 1_000_000_000;

/// A first packet that tc lets in, until its listener is chosen. NAT may give it another destination in between, and then
/// neither `sk_lookup` nor a worker would know it again but for its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Entered {
    /// When tc saw it, in nanoseconds since boot (`CLOCK_MONOTONIC`), to the tick; 0 when it has arrived.
    pub seen: u64,
    /// Addresses and ports as tc saw them.
    pub tuple: Tuple,
    /// The [`Protocol`](crate::flow::Protocol).
    pub protocol: u32,
    /// The rule, over all generations.
    pub number: RuleNumber,
    /// The worker that gets the flow.
    pub worker: u32,
    /// How it came.
    pub origin: Origin,
    /// As [`Memory::fragmenting`](super::Memory::fragmenting).
    pub fragmenting: u32,
    /// What a rule says of it if it is published: the number of the `Reason`. 0 where tc has counted it already.
    pub reason: u32,
    /// That rule, in the slot that was active, or [`NO_RULE`].
    pub rule: RuleIndex,
    /// Place of that rule in `HITS`.
    pub hits: u32,
}

/// A packet as it comes in, before NAT of this host changes its addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TranslationKey {
    /// Addresses and ports on the wire.
    pub tuple: Tuple,
    /// The [`Protocol`](crate::flow::Protocol).
    pub protocol: u32,
}

/// In [`Told::rule`] and answers: no rule decided.
pub const NO_RULE: RuleIndex = 0xffff;

/// What was decided about a flow's first packet, for whoever looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Told {
    /// When, in nanoseconds since boot (`CLOCK_MONOTONIC`), to the tick.
    pub seen: u64,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// The [`Protocol`](crate::flow::Protocol).
    pub protocol: u32,
    /// The [`Scope`](crate::rule::Scope) that it was seen in.
    pub scope: u32,
    /// Interface it came in by, or goes out by in scope `outbound`.
    pub ifindex: u32,
    /// The sender's user id, in scope `outbound`.
    pub uid: u32,
    /// The number of the `Reason`.
    pub reason: u32,
    /// The rule that decided, in the slot that was active, or [`NO_RULE`].
    pub rule: RuleIndex,
    /// Zero.
    pub rest: u32,
}
