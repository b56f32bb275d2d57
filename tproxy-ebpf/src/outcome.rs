//! What a tc program makes of a packet, step by step: what is known of its flow, the rules for a first packet, and then
//! what the kernel is told.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT},
    cty::c_long,
    programs::TcContext,
};
use tproxy_common::{abi::NO_RULE, flow::Protocol, rule::RuleIndex, verdict::Reason};

use crate::{maps::count_number, question};

/// What is known of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is its flow's first, as far as is known: the rules are to be asked.
    First(History),
    /// Not all of it can be read: the rules are to be asked whether one is got round.
    Unreadable,
    /// What becomes of it, the number of the reason, and the rule that says so, or `NO_RULE`.
    Settled(Course, u32, RuleIndex),
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// It is to be delivered to a socket of ours.
    Deliver,
    /// It is to be answered on behalf of its destination: a SYN with RST.
    Reset,
    /// The same for a datagram, with ICMP port unreachable.
    Unreachable,
    /// User space has it, and sends it once more, or the sender does.
    Hold,
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
    /// A socket of the host's would receive the datagram, if it is for the host.
    Heard,
    /// The flow was steered as it came in by another interface: by this one it may come on its way there.
    Elsewhere,
}

/// TCX_NEXT, which is TC_ACT_UNSPEC.
pub(crate) const NEXT: i32 = -1;

/// Leaves the packet alone.
#[inline(always)]
pub(crate) fn pass(reason: Reason) -> Outcome {
    settled(Course::Next, reason)
}

/// Discards the packet.
#[inline(always)]
pub(crate) fn shot(reason: Reason) -> Outcome {
    settled(Course::Shot, reason)
}

/// Leaves the packet to user space, which has a copy.
#[inline(always)]
pub(crate) fn hold(reason: Reason) -> Outcome {
    settled(Course::Hold, reason)
}

/// Delivers the packet.
#[inline(always)]
pub(crate) fn deliver(reason: Reason) -> Outcome {
    settled(Course::Deliver, reason)
}

/// Refuses the flow.
#[inline(always)]
pub(crate) fn refuse(reason: Reason, protocol: Protocol) -> Outcome {
    let course = match protocol {
        Protocol::Tcp => Course::Reset,
        Protocol::Udp => Course::Unreachable,
    };
    settled(course, reason)
}

#[inline(always)]
const fn settled(course: Course, reason: Reason) -> Outcome {
    Outcome::Settled(course, reason as u32, NO_RULE)
}

/// Counts the packet, or answers who asks about one that does not exist, and says what is left to be done.
#[inline(always)]
pub(crate) fn settle(ctx: &TcContext, outcome: Outcome) -> Course {
    let Outcome::Settled(course, reason, rule) = outcome else { return Course::Next };
    if question::is_asked(ctx) {
        question::answer(ctx, reason, rule);
        return Course::Next;
    }
    count_number(reason);
    course
}

/// What `bpf_redirect` answered, as the program's answer.
#[inline(always)]
pub(crate) fn redirected(answer: c_long) -> i32 {
    if answer == c_long::from(TC_ACT_REDIRECT) { TC_ACT_REDIRECT } else { TC_ACT_SHOT }
}

impl Outcome {
    /// In one register, which is what a BPF function can return: the course, the reason, the rule. The histories come first, in
    /// order: so the compiler makes no branches of them, for each of which the verifier would go through all that follows.
    #[inline(always)]
    pub(crate) const fn to_number(self) -> u32 {
        let (course, reason, rule) = match self {
            Self::First(History::Nothing) => return 0,
            Self::First(History::Decided) => return 1,
            Self::First(History::TimeWait) => return 2,
            Self::First(History::Heard) => return 3,
            Self::First(History::Elsewhere) => return 4,
            Self::Unreadable => return 5,
            Self::Settled(Course::Deliver, reason, rule) => (6, reason, rule),
            Self::Settled(Course::Reset, reason, rule) => (7, reason, rule),
            Self::Settled(Course::Unreachable, reason, rule) => (8, reason, rule),
            Self::Settled(Course::Hold, reason, rule) => (9, reason, rule),
            Self::Settled(Course::Next, reason, rule) => (10, reason, rule),
            Self::Settled(Course::Shot, reason, rule) => (11, reason, rule),
        };
        course | (reason & 0xff) << 8 | rule << 16
    }

    /// The reverse of [`Self::to_number`].
    #[inline(always)]
    pub(crate) const fn from_number(number: u32) -> Self {
        let course = match number & 0xff {
            0 => return Self::First(History::Nothing),
            1 => return Self::First(History::Decided),
            2 => return Self::First(History::TimeWait),
            3 => return Self::First(History::Heard),
            4 => return Self::First(History::Elsewhere),
            5 => return Self::Unreadable,
            6 => Course::Deliver,
            7 => Course::Reset,
            8 => Course::Unreachable,
            9 => Course::Hold,
            10 => Course::Next,
            _ => Course::Shot,
        };
        Self::Settled(course, number >> 8 & 0xff, number >> 16)
    }
}
