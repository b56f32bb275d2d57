//! Names in the object: of maps, programs and constants; and the words by which programs are asked.

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
    /// `HashMap<Tuple, Memory>`: UDP flows between sockets of the host's and others that are left alone. Nothing evicts them but
    /// time, which user space sees to.
    pub const HOST_FLOWS: &str = "HOST_FLOWS";
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
