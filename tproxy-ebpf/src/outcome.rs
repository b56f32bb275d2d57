//! What a tc program makes of a packet, step by step: what is known of its flow, the rules for a first packet, and then
//! what the kernel is told.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT},
    cty::c_long,
};
use tproxy_common::{flow::Protocol, verdict::Reason};

use crate::maps::count;

/// One byte, which is what a BPF function can return.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The packet is its flow's first, as far as is known: the rules are to be asked.
    First(History),
    /// It is to be delivered to a socket of ours.
    Deliver,
    /// It is to be answered on behalf of its destination: a SYN with RST.
    Reset,
    /// The same for a datagram, with ICMP port unreachable.
    Unreachable,
    /// It goes on to other programs, and then into the stack.
    Next,
    /// It is discarded.
    Shot,
}

/// What is known of the same addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum History {
    Nothing,
    /// A decision about a connection is still remembered.
    Decided,
    /// A connection of ours is in TIME_WAIT.
    TimeWait,
}

/// TCX_NEXT, which is TC_ACT_UNSPEC.
pub(crate) const NEXT: i32 = -1;

/// Leaves the packet alone.
#[inline(always)]
pub(crate) fn pass(reason: Reason) -> Outcome {
    count(reason);
    Outcome::Next
}

/// Discards the packet.
#[inline(always)]
pub(crate) fn shot(reason: Reason) -> Outcome {
    count(reason);
    Outcome::Shot
}

/// Delivers the packet.
#[inline(always)]
pub(crate) fn deliver(reason: Reason) -> Outcome {
    count(reason);
    Outcome::Deliver
}

/// Refuses the flow.
#[inline(always)]
pub(crate) fn refuse(reason: Reason, protocol: Protocol) -> Outcome {
    count(reason);
    match protocol {
        Protocol::Tcp => Outcome::Reset,
        Protocol::Udp => Outcome::Unreachable,
    }
}

/// What `bpf_redirect` answered, as the program's answer.
#[inline(always)]
pub(crate) fn redirected(answer: c_long) -> i32 {
    if answer == c_long::from(TC_ACT_REDIRECT) { TC_ACT_REDIRECT } else { TC_ACT_SHOT }
}

impl Outcome {
    /// Across a function of external linkage, of which the verifier knows no more than that it returns a number.
    #[inline(always)]
    pub(crate) const fn to_number(self) -> u32 {
        match self {
            Self::First(History::Nothing) => 0,
            Self::First(History::Decided) => 1,
            Self::First(History::TimeWait) => 2,
            Self::Deliver => 3,
            Self::Reset => 4,
            Self::Unreachable => 5,
            Self::Next => 6,
            Self::Shot => 7,
        }
    }

    /// The reverse of [`Self::to_number`].
    #[inline(always)]
    pub(crate) const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::First(History::Nothing),
            1 => Self::First(History::Decided),
            2 => Self::First(History::TimeWait),
            3 => Self::Deliver,
            4 => Self::Reset,
            5 => Self::Unreachable,
            6 => Self::Next,
            _ => Self::Shot,
        }
    }
}
