//! The maps: their names, keys and values. Sizes are asserted, since the kernel compares bytes.

use crate::{
    addr::Addr,
    flow::{Protocol, Tuple},
    rule::{RuleIndex, RuleSet, Scope, SetId},
};

/// Name of a map in the object.
pub mod map {
    /// `Array<Control>`, one entry.
    pub const CONTROL: &str = "CONTROL";
    /// `PerCpuArray<u64>`, indexed by `Reason`.
    pub const COUNTERS: &str = "COUNTERS";
    /// `SockMap`, indexed by `listener_index` and `black_hole_index`.
    pub const LISTENERS: &str = "LISTENERS";
    /// `LruHashMap<Tuple, Decision>`, of TCP.
    pub const DECISIONS: &str = "DECISIONS";
    /// `LruHashMap<Tuple, Memory>`, of UDP.
    pub const MEMORY: &str = "MEMORY";
    /// `LruHashMap<FragmentKey, u32>`: the `FragmentCourse` of a datagram whose first fragment was seen.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `LpmTrie<Addr, u32>`: the host's own addresses.
    pub const HOST_ADDRESSES: &str = "HOST_ADDRESSES";
    /// `LpmTrie<SlotAddr, SetId>`.
    pub const SOURCES: &str = "SOURCES";
    /// `LpmTrie<SlotAddr, SetId>`.
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// `Array<PortBits>`, one entry: the ports that TCP connections of ours have on either end. None is ever taken out:
    /// connections outlive rules.
    pub const TCP_PORTS: &str = "TCP_PORTS";
    /// `Array<SetId>`, indexed by slot and destination port.
    pub const PORTS: &str = "PORTS";
    /// `HashMap<SlotKey, SetId>`, by interface index.
    pub const INTERFACES: &str = "INTERFACES";
    /// `HashMap<SlotKey, SetId>`, by user id.
    pub const UIDS: &str = "UIDS";
    /// `HashMap<CgroupKey, SetId>`.
    pub const CGROUPS: &str = "CGROUPS";
    /// `Array<RuleSet>`, indexed by slot and set.
    pub const SETS: &str = "SETS";
    /// `Array<u8>`: the `ActionKind` by slot and rule.
    pub const ACTIONS: &str = "ACTIONS";
}

/// Name of a program in the object.
pub mod program {
    /// tc ingress of a device with an Ethernet header.
    pub const INGRESS: &str = "tproxy_ingress";
    /// tc ingress of a device without a link-layer header.
    pub const INGRESS_L3: &str = "tproxy_ingress_l3";
    /// tc egress of a device with an Ethernet header (loopback included).
    pub const EGRESS: &str = "tproxy_egress";
    /// tc egress of a device without a link-layer header.
    pub const EGRESS_L3: &str = "tproxy_egress_l3";
    /// tc ingress of `lo`: what egress redirected.
    pub const LO_INGRESS: &str = "tproxy_lo";
    /// The listener lookup of the network namespace.
    pub const SK_LOOKUP: &str = "tproxy_lookup";
}

/// Name of a constant that the loader sets before the programs are verified.
pub mod global {
    /// `u32`: mark of a packet to be delivered locally.
    pub const STEER_MARK: &str = "STEER_MARK";
    /// `u32`: mark of our own sockets.
    pub const OWN_MARK: &str = "OWN_MARK";
    /// `u32`: the bits of both.
    pub const MARK_MASK: &str = "MARK_MASK";
    /// `u32`: number of workers.
    pub const WORKERS: &str = "WORKERS";
    /// `u8`: 1 when tc assigns sockets itself.
    pub const SK_ASSIGN: &str = "SK_ASSIGN";
    /// `u64`: nanoseconds for which a silent UDP flow is remembered.
    pub const MEMORY_LIFETIME: &str = "MEMORY_LIFETIME";
}

/// Rule tables exist twice; a reload fills the slot that is not active and then flips [`Control::slot`].
pub const SLOTS: u32 = 2;

/// What the loader can change while programs run. One aligned word each, so that a packet sees old or new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// Which slot of the rule tables is active.
    pub slot: u32,
    /// 1 while new flows are taken, 0 while draining.
    pub deciding: u32,
    /// Bit `n` set: some rule names a cgroup at depth `n` of the hierarchy.
    pub cgroup_depths: u32,
    /// The bit [`scope_bit`] is set of each scope and protocol that some rule has.
    pub scopes: u32,
    /// 1 when some rule spoofs UDP clients, whose replies then come in by any interface.
    pub spoofing: u32,
}

impl Control {
    /// What holds before the loader has spoken.
    pub const NOTHING: Self = Self { slot: 0, deciding: 0, cgroup_depths: 0, scopes: 0, spoofing: 0 };

    /// Whether some rule is about this scope and protocol.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, scope: Scope, protocol: Protocol) -> bool {
        self.scopes & scope_bit(scope, protocol) != 0
    }
}

/// Bit of [`Control::scopes`].
#[inline(always)]
#[must_use]
pub const fn scope_bit(scope: Scope, protocol: Protocol) -> u32 {
    1 << (scope as u32 * 2 + protocol as u32)
}

/// In [`Decision::worker`] and [`Memory::worker`]: no worker's, but a flow of our own to an application of this host.
pub const APPLICATION: u32 = u32::MAX;

/// In [`Memory::rule`]: no rule selects the datagram, it is to be sent on as it is. Fragments of it were taken before the
/// first one, which says so, was seen.
pub const CARRY: RuleIndex = RuleIndex::MAX;

/// In [`Memory::worker`]: nobody's, the flow was left alone.
pub const PASSED: u32 = u32::MAX - 1;

/// A flow was decided: its handshake belongs to a listener, its connection to this rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Decision {
    /// The rule, in the slot that was active.
    pub rule: RuleIndex,
    /// The worker of the CPU that saw the first packet. The rest of the handshake has to meet the same listener: a SYN
    /// cookie is valid only for one that sent cookies lately (`tcp_synq_no_recent_overflow`).
    pub worker: u32,
}

/// What is remembered of a UDP flow, none of whose packets says that it is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Memory {
    /// When its last datagram was seen without a socket of its own, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub seen: u64,
    /// The rule, in the slot that was active.
    pub rule: RuleIndex,
    /// The worker whose listener receives it until a socket of its own does; [`PASSED`]; or [`APPLICATION`].
    pub worker: u32,
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

/// A set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PortBits([u64; 1024]);

impl PortBits {
    /// None.
    pub const NONE: Self = Self([0; 1024]);
    /// All of them.
    pub const ALL: Self = Self([u64::MAX; 1024]);

    /// Whether it has a port.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, port: u16) -> bool {
        self.0[(port >> 6) as usize] & 1 << (port & 63) != 0
    }

    /// Adds a port.
    pub const fn add(&mut self, port: u16) {
        self.0[(port >> 6) as usize] |= 1 << (port & 63);
    }

    /// Adds those of another set.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.0.iter_mut().zip(&other.0) {
            *own |= others;
        }
    }
}

/// An address within a slot of the rule tables, the data of an LPM key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotAddr {
    /// Big-endian, because an LPM trie matches from the first bit on.
    pub slot: [u8; 4],
    /// The address or the prefix's first address.
    pub addr: Addr,
}

/// Bits of [`SlotAddr::slot`], to be added to the length of a prefix.
pub const SLOT_BITS: u32 = 32;

/// A number within a slot: an interface index or a user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// Slot of the rule tables.
    pub slot: u32,
    /// Host byte order.
    pub number: u32,
}

/// A cgroup within a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CgroupKey {
    /// The cgroup's id: the inode number of its directory.
    pub id: u64,
    /// Slot of the rule tables.
    pub slot: u64,
}

/// A set that stands for "this dimension says nothing": rules that do not restrict it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Unrestricted {
    /// Rules for any port.
    Port = 0,
    /// Rules for any interface.
    Interface = 1,
    /// Rules for any user id.
    Uid = 2,
    /// Rules for any cgroup.
    Cgroup = 3,
}

/// The set of the rules of a scope and protocol. Ids below [`FIRST_FREE_SET`] have fixed meanings.
#[inline(always)]
#[must_use]
pub const fn scope_set(scope: Scope, protocol: Protocol) -> SetId {
    4 + scope as u32 * 2 + protocol as u32
}

/// First id that a compiled table may use freely.
pub const FIRST_FREE_SET: SetId = 10;

/// Sets there is room for in each slot, unless the loader makes the map larger. The slots are interleaved so that
/// a larger map needs no other index.
pub const MAX_SETS: u32 = 1024;

/// Place of a set in `SETS`.
#[inline(always)]
#[must_use]
pub const fn set_index(slot: u32, set: SetId) -> u32 {
    set * SLOTS + slot
}

/// Place of a port (host byte order) in `PORTS`.
#[inline(always)]
#[must_use]
pub const fn port_index(slot: u32, port: u16) -> u32 {
    port as u32 * SLOTS + slot
}

/// Place of a rule in `ACTIONS`.
#[inline(always)]
#[must_use]
pub const fn action_index(slot: u32, rule: RuleIndex) -> u32 {
    rule * SLOTS + slot
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

/// The listener that swallows what scope `inbound` drops.
#[inline(always)]
#[must_use]
pub const fn black_hole_index(protocol: Protocol, family: Family) -> u32 {
    protocol as u32 * 2 + family as u32
}

/// Size of `LISTENERS`.
pub const MAX_LISTENERS: u32 = (1 + MAX_WORKERS) * 4;

const _: () = {
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Decision>() == 8);
    assert!(size_of::<Memory>() == 16);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<SlotAddr>() == 20);
    assert!(size_of::<SlotKey>() == 8);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<Control>() == 20);
    assert!(size_of::<RuleSet>() == 520);
    assert!(size_of::<PortBits>() == 8192);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Addr, CgroupKey, Control, Decision, FragmentKey, Memory, PortBits, RuleSet, SlotAddr, SlotKey, Tuple,
    };

    macro_rules! pod {
        ($($type:ty)*) => {$(
            // SAFETY: `repr(C)`, built of integers and byte arrays only, and the sizes asserted above leave no padding.
            unsafe impl aya::Pod for $type {}
        )*};
    }

    pod! { Addr CgroupKey Control Decision FragmentKey Memory PortBits RuleSet SlotAddr SlotKey Tuple }
}
