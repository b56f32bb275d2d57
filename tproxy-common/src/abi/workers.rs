//! The workers: their listeners, how much they were given, and whether they go round; and the instances beside this one.

use crate::flow::Protocol;

/// Most other instances whose marks are known.
pub const MAX_OTHERS: usize = 8;

/// The own marks of the instances that were there before this one: what they send upstream is not taken, or each would take
/// what the other sends, without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Others {
    /// Each one's bits, and the mask under which they count; a mask of zero is none.
    pub marks: [[u32; 2]; MAX_OTHERS],
}

impl Others {
    /// Whether a packet with this mark is one of theirs.
    #[inline(always)]
    #[must_use]
    pub fn sent(&self, mark: u32) -> bool {
        self.marks.iter().any(|[bits, mask]| *mask != 0 && mark & mask == *bits)
    }
}

/// How many connections a worker was given, counted up to the largest number and then from 0 again. In a cache line of its
/// own: each CPU mostly counts for one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Given {
    /// A count that two CPUs make at the same time may be one.
    pub connections: u32,
}

/// For how long a worker may not have gone round before it is given no new flow, in nanoseconds: longer than any thread waits
/// for a CPU that has others to run.
pub const LONGEST_PAUSE: u64 = 3_000_000_000;

/// Whether a worker goes round, of which it is known when it last did (zero where nobody says).
#[inline(always)]
#[must_use]
pub const fn goes_round(beat: u64, now: u64) -> bool {
    beat == 0 || now.saturating_sub(beat) < LONGEST_PAUSE
}

/// Address family of a listener; half of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// Most workers that can be addressed.
pub const MAX_WORKERS: u32 = 1024;

/// A worker's listener: a socket that listens, or for UDP one that is not connected.
#[inline(always)]
#[must_use]
pub const fn listener_index(worker: u32, protocol: Protocol, family: Family) -> u32 {
    (1 + worker) * 4 + protocol as u32 * 2 + family as u32
}

/// The listener that swallows what is dropped or refused where `sk_lookup` asks the rules, or carries out what tc has noted.
#[inline(always)]
#[must_use]
pub const fn black_hole_index(protocol: Protocol, family: Family) -> u32 {
    protocol as u32 * 2 + family as u32
}

/// Size of `LISTENERS`.
pub const MAX_LISTENERS: u32 = (1 + MAX_WORKERS) * 4;
