//! UDP flows, and the fragments of datagrams.

use super::{Origin, RuleNumber};
use crate::addr::Addr;

/// In [`Memory::rule`]: no rule selects the datagram, it is to be sent on as it is. Fragments of it were taken before the
/// first one, which says so, was seen.
pub const CARRY: RuleNumber = RuleNumber::MAX;

/// In [`Memory::fragmenting`]: routers might have fragmented the flow's first datagram. It is zero where tc has not seen that.
pub const FRAGMENTABLE: u32 = 1;

/// The same: they must not.
pub const WHOLE: u32 = 2;

/// In [`Memory::worker`]: nobody's, the flow was left alone.
pub const PASSED: u32 = u32::MAX - 1;

/// In [`Memory::worker`]: nobody's, scope `inbound` left the flow to the host's own sockets.
pub const LEFT: u32 = u32::MAX - 2;

/// In [`Memory::worker`]: nobody's yet, the flow arrived for a socket of the host's.
pub const HEARD: u32 = u32::MAX - 3;

/// What is remembered of a UDP flow, none of whose packets says that it is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Memory {
    /// When its last datagram was seen without a socket of its own, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub seen: u64,
    /// The rule that selected the flow.
    pub rule: RuleNumber,
    /// The worker whose listener receives it until a socket of its own does; [`PASSED`], [`LEFT`], [`HEARD`]; or
    /// [`APPLICATION`](super::APPLICATION).
    pub worker: u32,
    /// How the datagram came by which it was decided last.
    pub origin: Origin,
    /// [`FRAGMENTABLE`], [`WHOLE`], or zero where that is not known.
    pub fragmenting: u32,
    /// Zero.
    pub rest: u32,
}

/// What identifies the fragments of one datagram (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as it lies in the header; IPv4's 16 bits come first.
    pub id: [u8; 4],
    /// Number of the protocol; the rest is zero.
    pub protocol: [u8; 4],
}

/// What the fragments of a datagram do after its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FragmentCourse {
    /// They pass.
    Pass = 0,
    /// They are delivered locally, where the kernel puts them together. So is then the first, whatever its own course.
    Steer = 1,
    /// They are discarded: the datagram was dropped or rejected.
    Drop = 2,
}
