//! TCP connections that are not accepted yet.

use super::RuleNumber;
use crate::{
    addr::Addr,
    flow::{Protocol, Tuple},
};

/// In [`Decision::worker`] and [`Memory::worker`](super::Memory::worker): no worker's, but a flow of our own to an application of this host.
pub const APPLICATION: u32 = u32::MAX;

/// In [`Decision::rule`]: some rule selected the flow, and which one it was is forgotten. User space asks them once more.
pub const FORGOTTEN: RuleNumber = RuleNumber::MAX - 1;

/// What the way of a flow's packets depends on beside their addresses, as its first packet was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(C)]
pub struct Origin {
    /// The packet's mark without our bits.
    pub mark: u32,
    /// The sender's user id, in scope `outbound`.
    pub uid: u32,
    /// The interface that it came in by, in scope `forwarded`.
    pub ifindex: u32,
    /// The interface that the sender's socket is bound to, in scope `outbound`; 0 is none.
    pub device: u32,
}

/// A flow was decided: its handshake belongs to a listener, its connection to this rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Decision {
    /// When the first packet was seen, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub seen: u64,
    /// The rule that selected the flow.
    pub rule: RuleNumber,
    /// The worker that gets it, or [`APPLICATION`]. The rest of the handshake has to meet the same listener: a SYN cookie is
    /// valid only for one that sent cookies lately (`tcp_synq_no_recent_overflow`).
    pub worker: u32,
    /// How its first packet came.
    pub origin: Origin,
}

/// The longest first packet that is held, with its link-layer header; a longer one has data and is steered at once.
pub const LONGEST_SYN: usize = 255;

/// The first packet of a connection whose upstream is to be connected before it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct HeldSyn {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// The rule that selected the flow.
    pub rule: RuleNumber,
    /// The worker that is to have it.
    pub worker: u32,
    /// How it came.
    pub origin: Origin,
    /// Where the IP header begins in `packet`.
    pub l3: u32,
    /// Where the TCP header begins in it.
    pub l4: u32,
    /// How much of `packet` was there to be read. What the IP header does not count is padding of the link.
    pub length: u32,
    /// From the link-layer header on, if it has one.
    pub packet: [u8; LONGEST_SYN + 1],
}

/// For how long a first packet that is sent again is not handed to user space once more, in nanoseconds.
pub const HELD_FOR: u64 = 5_000_000_000;

/// An original destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination {
    /// Its address.
    pub addr: Addr,
    /// Its port, big-endian; the rest is zero, or says that this is about NAT.
    pub port: [u8; 4],
}

/// For how long a destination is known to be published, in nanoseconds.
pub const PUBLISHED_FOR: u64 = 60_000_000_000;

impl Destination {
    /// That of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn of(tuple: &Tuple) -> Self {
        let [high, low] = tuple.dport;
        Self { addr: tuple.dst, port: [high, low, 0, 0] }
    }

    /// That of a flow for an address of this host which NAT sends elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn published(protocol: Protocol, tuple: &Tuple) -> Self {
        let [high, low] = tuple.dport;
        Self { addr: tuple.dst, port: [high, low, 1, protocol as u8] }
    }
}

/// For how long a [`Decision`] is obeyed, in nanoseconds: the kernel sends a SYN-ACK for 63 s (`net.ipv4.tcp_synack_retries`)
/// and takes the ACK of a SYN cookie for two minutes (`MAX_SYNCOOKIE_AGE`).
pub const HANDSHAKE: u64 = 120_000_000_000;

/// The same of one with [`APPLICATION`]: it is renewed with each SYN, and the ACK takes the way over `lo`.
pub const OWN_HANDSHAKE: u64 = 3_000_000_000;

impl Decision {
    /// Whether it is about a handshake that may still be under way at `now`. Clocks to the tick are late.
    #[inline(always)]
    #[must_use]
    pub const fn is_obeyed(&self, now: u64) -> bool {
        let lifetime = if self.worker == APPLICATION { OWN_HANDSHAKE } else { HANDSHAKE };
        now.saturating_sub(self.seen) <= lifetime
    }
}
