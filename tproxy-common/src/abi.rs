//! The maps: their names, keys and values. Sizes are asserted, since the kernel compares bytes.

use crate::{
    addr::Addr,
    flow::{Protocol, Tuple},
    rule::{MAX_RULES, RuleIndex, RuleSet, Scope, SetId},
};

/// Name of a map in the object.
pub mod map {
    /// `Array<Control>`, one entry.
    pub const CONTROL: &str = "CONTROL";
    /// `PerCpuArray<u64>`, indexed by `Reason`.
    pub const COUNTERS: &str = "COUNTERS";
    /// `SockMap`, indexed by `listener_index` and `black_hole_index`.
    pub const LISTENERS: &str = "LISTENERS";
    /// `Array<Others>` of one.
    pub const OTHERS: &str = "OTHERS";
    /// `Array<Given>`, indexed by worker.
    pub const GIVEN: &str = "GIVEN";
    /// `Array<u64>`, indexed by worker: when it went round last, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub const BEATS: &str = "BEATS";
    /// `LruHashMap<Tuple, Decision>`, of TCP.
    pub const DECISIONS: &str = "DECISIONS";
    /// `LruHashMap<Tuple, Memory>`, of UDP.
    pub const MEMORY: &str = "MEMORY";
    /// `LruHashMap<TranslationKey, Tuple>`: by which tuple a socket of ours knows a packet whose addresses NAT is about to change.
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
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
    /// `PerCpuArray<u64>`: flows that were decided by a rule, indexed as `ACTIONS`.
    pub const HITS: &str = "HITS";
    /// `RingBuf` of `HeldSyn`: first packets for user space, which connects to the upstream before it lets them in.
    pub const SYNS: &str = "SYNS";
    /// `LruHashMap<Tuple, u64>`: when the first packet of a connection was handed to user space, in nanoseconds since boot,
    /// until that is done with it.
    pub const HELD: &str = "HELD";
    /// `LruHashMap<Destination, u64>`: until when a destination is known to be reached, or to be published, in nanoseconds since
    /// boot.
    pub const REACHED: &str = "REACHED";
    /// `RingBuf` of `Told`: what was decided, while somebody looks.
    pub const TRACE: &str = "TRACE";
    /// `Array<u64>`, indexed by `watch`.
    pub const WATCH: &str = "WATCH";
    /// `PerCpuArray<Finding>`, one entry.
    pub const FINDING: &str = "FINDING";
    /// `PerCpuArray<Entered>`, indexed by `entered_index`.
    pub const ENTERED: &str = "ENTERED";
}

/// Places in `WATCH`.
pub mod watch {
    /// Until when somebody looks, in nanoseconds since boot (`CLOCK_MONOTONIC`). Whoever looks renews it, so that nothing
    /// is told any more once that process is gone.
    pub const UNTIL: u32 = 0;
    /// How much could not be told, since nobody took what was told before.
    pub const LOST: u32 = 1;
}

/// Words of `skb->cb` by which `BPF_PROG_TEST_RUN` asks a tc program what it would do with a packet. Asked so, a program
/// counts and remembers nothing, and leaves the packet alone.
pub mod question {
    /// The first two words. What the kernel keeps there of a real packet is lengths and offsets.
    pub const ASKED: [u32; 2] = [0x7470_726f, 0x7879_3f3f];
    /// The first word of an answer.
    pub const ANSWERED: u32 = 0x7470_7221;
    /// In a question, the sender's user id; in an answer, the number of the `Reason`.
    pub const UID_OR_REASON: usize = 2;
    /// In an answer, the rule that decided, or `NO_RULE`.
    pub const RULE: usize = 3;
    /// In an answer, the worker that would receive the flow, or what the question had there.
    pub const WORKER: usize = 4;
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
    /// tc ingress of `lo`: what egress redirected, what was held, and what our own sockets send to applications.
    pub const LO_INGRESS: &str = "tproxy_lo";
    /// Attached nowhere: has the packet of a `BPF_PROG_TEST_RUN` come in by the interface that is named there.
    pub const INJECT: &str = "tproxy_inject";
    /// The listener lookup of the network namespace.
    pub const SK_LOOKUP: &str = "tproxy_lookup";
    /// What a listener that was chosen there does with a packet (`SO_ATTACH_REUSEPORT_EBPF`).
    pub const ARRIVAL: &str = "tproxy_arrival";
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
    /// `u32`: where the kernel's packet leads to its connection; 0 if that is not known.
    pub const CONNECTION_OF_PACKET: &str = "CONNECTION_OF_PACKET";
    /// `u32`: where a connection tells what NAT does with it.
    pub const CONNECTION_STATUS: &str = "CONNECTION_STATUS";
}

/// Rule tables exist twice; whoever changes them fills the slot that is not active and then writes [`Control::active`].
pub const SLOTS: u32 = 2;

/// Generations of the rules are counted up to this, and then from 0 again. One less than there are numbers for: the last
/// has [`CARRY`].
pub const GENERATIONS: u32 = u32::MAX / MAX_RULES as u32;

/// What the loader can change while programs run. One aligned word each, so that a packet sees old or new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// Which generation of the rules holds, and which slot of the rule tables has it: see [`active`]. One word, so that a
    /// rule is never taken for another generation's.
    pub active: u32,
    /// 1 while new flows are taken, 0 while draining.
    pub deciding: u32,
    /// Bit `n` set: some rule names a cgroup at depth `n` of the hierarchy.
    pub cgroup_depths: u32,
    /// The bit [`scope_bit`] is set of each scope and protocol that some rule has.
    pub scopes: u32,
    /// 1 when some rule spoofs UDP clients, whose replies then come in by any interface.
    pub spoofing: u32,
    /// 1 when a flow that a rule selects is rejected where nobody takes it, while the instance stops and after its end;
    /// 0 when it passes.
    pub rejecting: u32,
    /// 1 when NAT of this host may send elsewhere what is for one of its addresses, and rules may be asked about it.
    pub publishing: u32,
    /// 1 when NAT of this host may change the destination of what comes in: where it asks to go is not where it would.
    pub redirecting: u32,
}

impl Control {
    /// What holds before the loader has spoken.
    pub const NOTHING: Self = Self {
        active: 0,
        deciding: 0,
        cgroup_depths: 0,
        scopes: 0,
        spoofing: 0,
        rejecting: 0,
        publishing: 0,
        redirecting: 0,
    };

    /// The slot of the rule tables that is active.
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.active % SLOTS
    }

    /// Whether a rule is of the generation that holds.
    #[inline(always)]
    #[must_use]
    pub const fn is_latest(&self, rule: RuleNumber) -> bool {
        rule / MAX_RULES as u32 == self.active / SLOTS
    }

    /// The number, over all generations, of a rule that the active slot selects.
    #[inline(always)]
    #[must_use]
    pub const fn number(&self, rule: RuleIndex) -> RuleNumber {
        rule_number(self.active / SLOTS, rule)
    }

    /// Whether a flow's first packet has the rules asked.
    #[inline(always)]
    #[must_use]
    pub const fn asks(&self) -> bool {
        self.deciding != 0 || self.rejecting != 0
    }

    /// Whether rules of scope `forwarded` select what NAT of this host sends elsewhere. Not beside those of scope `outbound` for
    /// UDP: what arrives for a socket of the host's is remembered for these, and may not be such a thing.
    #[inline(always)]
    #[must_use]
    pub const fn is_publishing(&self, protocol: Protocol) -> bool {
        self.publishing != 0 && !(matches!(protocol, Protocol::Udp) && self.has(Scope::Outbound, protocol))
    }

    /// Whether some rule is about this scope and protocol.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, scope: Scope, protocol: Protocol) -> bool {
        self.scopes & scope_bit(scope, protocol) != 0
    }
}

/// [`Control::active`] of a generation in a slot.
#[must_use]
pub const fn active(generation: u32, slot: u32) -> u32 {
    generation * SLOTS + slot
}

/// A rule, counted over all generations: what is remembered of a flow outlives a reload.
pub type RuleNumber = u32;

/// The number of a generation's rule.
#[inline(always)]
#[must_use]
pub const fn rule_number(generation: u32, rule: RuleIndex) -> RuleNumber {
    generation * MAX_RULES as u32 + rule
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

/// Size of `SYNS` in bytes: some hundred of them. When it is full, connections are accepted at once.
pub const SYNS_SIZE: u32 = 256 * 1024;

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
    /// The [`Protocol`].
    pub protocol: u32,
    /// The rule, over all generations.
    pub number: RuleNumber,
    /// The worker that gets the flow.
    pub worker: u32,
    /// How it came.
    pub origin: Origin,
    /// As [`Memory::fragmenting`].
    pub fragmenting: u32,
    /// What a rule says of it if it is published: the number of the `Reason`. 0 where tc has counted it already.
    pub reason: u32,
    /// That rule, in the slot that was active, or [`NO_RULE`].
    pub rule: RuleIndex,
    /// Place of that rule in `HITS`.
    pub hits: u32,
}

/// What is remembered of a UDP flow, none of whose packets says that it is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Memory {
    /// When its last datagram was seen without a socket of its own, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub seen: u64,
    /// The rule that selected the flow.
    pub rule: RuleNumber,
    /// The worker whose listener receives it until a socket of its own does; [`PASSED`], [`LEFT`], [`HEARD`]; or
    /// [`APPLICATION`].
    pub worker: u32,
    /// How the datagram came by which it was decided last.
    pub origin: Origin,
    /// [`FRAGMENTABLE`], [`WHOLE`], or zero where that is not known.
    pub fragmenting: u32,
    /// Zero.
    pub rest: u32,
}

/// A packet as it comes in, before NAT of this host changes its addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TranslationKey {
    /// Addresses and ports on the wire.
    pub tuple: Tuple,
    /// The [`Protocol`].
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
    /// The [`Protocol`].
    pub protocol: u32,
    /// The [`Scope`] that it was seen in.
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

/// Size of `TRACE` in bytes: some thousand flows.
pub const TRACE_SIZE: u32 = 128 * 1024;

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

/// The set of the rules whose flows must not get by: whatever they do, it is not what the sender asked for.
pub const STRICT_SET: SetId = 10;

/// First id that a compiled table may use freely.
pub const FIRST_FREE_SET: SetId = 11;

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

/// Place of a rule in `ACTIONS` and `HITS`.
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

/// The listener that swallows what is dropped or refused where `sk_lookup` asks the rules, or carries out what tc has noted.
#[inline(always)]
#[must_use]
pub const fn black_hole_index(protocol: Protocol, family: Family) -> u32 {
    protocol as u32 * 2 + family as u32
}

/// Size of `LISTENERS`.
pub const MAX_LISTENERS: u32 = (1 + MAX_WORKERS) * 4;

const _: () = {
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Origin>() == 16);
    assert!(size_of::<Decision>() == 32);
    assert!(size_of::<HeldSyn>() == 328);
    assert!(size_of::<Destination>() == 20);
    assert!(size_of::<Finding>() == 72);
    assert!(size_of::<Entered>() == 88);
    assert!(size_of::<Memory>() == 40);
    assert!(size_of::<TranslationKey>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Told>() == 72);
    assert!(size_of::<SlotAddr>() == 20);
    assert!(size_of::<SlotKey>() == 8);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<Control>() == 32);
    assert!(size_of::<RuleSet>() == 520);
    assert!(size_of::<PortBits>() == 8192);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Addr, CgroupKey, Control, Decision, Destination, FragmentKey, Memory, Others, PortBits, RuleSet,
        SlotAddr, SlotKey, Told, Tuple,
    };

    macro_rules! pod {
        ($($type:ty)*) => {$(
            // SAFETY: `repr(C)`, built of integers and byte arrays only, and the sizes asserted above leave no padding.
            unsafe impl aya::Pod for $type {}
        )*};
    }

    pod! { Addr CgroupKey Control Decision Destination FragmentKey Memory Others PortBits RuleSet SlotAddr SlotKey Told Tuple }
}
