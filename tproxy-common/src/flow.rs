//! What identifies a flow.

use crate::addr::Addr;

/// A protocol that is intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// In an IP header.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Source, destination, and ports of a packet.
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

    /// The ports as one number: 0 of no packet, since none is for port 0.
    #[inline(always)]
    #[must_use]
    pub const fn ports(&self) -> u32 {
        let ([a, b], [c, d]) = (self.sport, self.dport);
        u32::from_ne_bytes([a, b, c, d])
    }

    /// A number that depends on the source address and port alone, and spreads well: all flows of one client endpoint
    /// meet the same worker, which then needs no other's word to give them one upstream socket.
    #[inline(always)]
    #[must_use]
    pub const fn source_hash(&self) -> u32 {
        /// 2^32 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4).
        const MULTIPLIER: u32 = 0x9e37_79b1;
        let Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = self.src;
        let words = [
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
            u32::from_be_bytes([i, j, k, l]),
            u32::from_be_bytes([m, n, o, p]),
        ];
        let mut hash = u16::from_be_bytes(self.sport) as u32;
        hash = (hash ^ words[0]).wrapping_mul(MULTIPLIER).rotate_left(15);
        hash = (hash ^ words[1]).wrapping_mul(MULTIPLIER).rotate_left(15);
        hash = (hash ^ words[2]).wrapping_mul(MULTIPLIER).rotate_left(15);
        hash = (hash ^ words[3]).wrapping_mul(MULTIPLIER);
        // The low bits of a product depend on the low bits of its factors only.
        hash ^ (hash >> 16)
    }
}

/// What a rule is matched against: the flow's first packet and where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// Addresses and ports of the first packet.
    pub tuple: Tuple,
    /// Interface the packet came in by (`forwarded`, `inbound`) or goes out by (`outbound`).
    pub ifindex: u32,
    /// The sender's user id; meaningful for `outbound` only.
    pub uid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_clients_are_spread_and_the_destination_does_not_matter() {
        const WORKERS: usize = 4;
        let mut share = [0_u32; WORKERS];
        for host in 0..16 {
            for port in 40_000_u16..40_256 {
                let mut tuple = Tuple {
                    src: Addr::from_v4([10, 0, 0, host]),
                    dst: Addr::from_v4([8, 8, 8, 8]),
                    sport: port.to_be_bytes(),
                    dport: [0, 53],
                };
                let worker = tuple.source_hash() as usize % WORKERS;
                share[worker] += 1;
                tuple.dst = Addr::from_v4([1, 1, 1, 1]);
                tuple.dport = [1, 187];
                assert_eq!(tuple.source_hash() as usize % WORKERS, worker);
            }
        }
        assert!(share.iter().all(|share| (900..1150).contains(share)), "{share:?}");
    }
}
