//! What identifies a flow.

use crate::addr::Addr;

/// Source, destination, and ports of a packet. TCP, the only protocol that is intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, big-endian.
    pub sport: [u8; 2],
    /// Destination port, big-endian.
    pub dport: [u8; 2],
}

impl Tuple {
    /// The same flow as its other end sends it.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// What a rule is matched against: the flow's first packet and where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Addresses and ports of the first packet.
    pub tuple: Tuple,
    /// Interface the packet came in by (`forwarded`, `inbound`) or goes out by (`outbound`).
    pub ifindex: u32,
    /// The sender's user id; meaningful for `outbound` only.
    pub uid: u32,
}
