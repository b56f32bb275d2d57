//! The maps, as `tproxy_common::abi` describes them, and what is asked of them and counted in them by more than one program.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::btf_map,
};
use tproxy_common::{
    abi::{
        self, CgroupKey, Control, Decision, Destination, ENTERED_SLOTS, Entered, Finding, FragmentKey, Given,
        HeldSyn, MAX_LISTENERS, MAX_WORKERS, Memory, Origin, Others, PortBits, SLOTS, SlotAddr, SlotKey,
        Told, TranslationKey,
    },
    addr::Addr,
    capacity,
    flow::Tuple,
    rule::{MAX_RULES, RuleIndex, RuleSet, SetId},
    verdict::Reason,
};

#[btf_map]
pub(crate) static CONTROL: Array<Control, 1> = Array::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();
#[btf_map]
pub(crate) static LISTENERS: SockMap<{ MAX_LISTENERS as usize }> = SockMap::new();
#[btf_map]
pub(crate) static OTHERS: Array<Others, 1> = Array::new();
#[btf_map]
pub(crate) static GIVEN: Array<Given, { MAX_WORKERS as usize }> = Array::new();
#[btf_map]
pub(crate) static BEATS: Array<u64, { MAX_WORKERS as usize }> = Array::new();
#[btf_map]
pub(crate) static DECISIONS: LruHashMap<Tuple, Decision, { capacity::DECISIONS as usize }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static MEMORY: LruHashMap<Tuple, Memory, { capacity::MEMORY as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static HOST_FLOWS: HashMap<
    Tuple,
    Memory,
    { capacity::HOST_FLOWS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, u32, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static TRANSLATIONS: LruHashMap<TranslationKey, Tuple, { capacity::TRANSLATIONS as usize }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static HOST_ADDRESSES: LpmTrie<Addr, u32, { capacity::HOST_ADDRESSES as usize }> = LpmTrie::new();
/// A table of what rules name. Only the loader fills it, so its entries take memory when there are any.
type Named<K, const MAX_ENTRIES: usize> = HashMap<K, SetId, MAX_ENTRIES, { BPF_F_NO_PREALLOC as usize }>;
/// A table by longest prefix.
pub(crate) type PrefixTable = LpmTrie<SlotAddr, SetId, { capacity::PREFIXES as usize }>;

#[btf_map]
pub(crate) static SOURCES: PrefixTable = LpmTrie::new();
#[btf_map]
pub(crate) static DESTINATIONS: PrefixTable = LpmTrie::new();
#[btf_map]
pub(crate) static PORTS: Array<SetId, { 65_536 * SLOTS as usize }> = Array::new();
#[btf_map]
pub(crate) static TCP_PORTS: Array<PortBits, 1> = Array::new();
#[btf_map]
pub(crate) static INTERFACES: Named<SlotKey, { capacity::INTERFACES as usize }> = Named::new();
#[btf_map]
pub(crate) static UIDS: Named<SlotKey, { capacity::SENDERS as usize }> = Named::new();
#[btf_map]
pub(crate) static CGROUPS: Named<CgroupKey, { capacity::SENDERS as usize }> = Named::new();
#[btf_map]
pub(crate) static SETS: Array<RuleSet, { (capacity::SETS * SLOTS) as usize }> = Array::new();
#[btf_map]
pub(crate) static ACTIONS: Array<u8, { MAX_RULES * SLOTS as usize }> = Array::new();
#[btf_map]
pub(crate) static HITS: PerCpuArray<u64, { MAX_RULES * SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SYNS: RingBuf<HeldSyn, { capacity::SYNS as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static HELD: LruHashMap<Tuple, u64, { capacity::HELD as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static REACHED: LruHashMap<Destination, u64, { capacity::REACHED as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static TRACE: RingBuf<Told, { capacity::TRACE as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static WATCH: Array<u64, 2> = Array::new();
#[btf_map]
pub(crate) static FINDING: PerCpuArray<Finding, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static ENTERED: PerCpuArray<Entered, { ENTERED_SLOTS as usize }> = PerCpuArray::new();

/// The loader's word, read once a packet.
#[inline(always)]
pub(crate) fn control() -> Control {
    CONTROL.get(0).copied().unwrap_or(Control::NOTHING)
}

/// Who gets a connection whose first packet was seen before, unless it is long ago.
#[inline(always)]
pub(crate) fn decision(tuple: &Tuple) -> Option<Decision> {
    // SAFETY: the value is copied at once; and no arguments, no failure.
    let (decision, now) = unsafe { (DECISIONS.get(tuple).copied()?, bpf_ktime_get_coarse_ns()) };
    decision.is_obeyed(now).then_some(decision)
}

/// Notes who gets a connection whose first packet this is.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
pub(crate) fn decided(tuple: &Tuple, rule: RuleIndex, worker: u32, origin: &Origin) {
    // SAFETY: no arguments, no failure.
    let seen = unsafe { bpf_ktime_get_ns() };
    // It fails only when the map has no memory left; user space then decides once more.
    let _ = DECISIONS.insert(tuple, Decision { seen, rule, worker, origin: *origin }, 0);
}

/// Has segments looked at that have this port (big-endian) on either end.
#[inline(always)]
pub(crate) fn add_tcp_port(port: [u8; 2]) {
    if let Some(ports) = TCP_PORTS.get_ptr_mut(0) {
        // SAFETY: the value stays where it is. A bit that another CPU adds to the same word at the same time may be lost;
        // whoever needs it adds it again.
        unsafe { (*ports).add(u16::from_be_bytes(port)) };
    }
}

/// Whether another instance of this host sends a packet with this mark.
#[inline(always)]
pub(crate) fn is_of_another(mark: u32) -> bool {
    OTHERS.get(0).is_some_and(|others| others.sent(mark))
}

/// Whether a worker goes round: it may hang, and its process may be stopped.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
pub(crate) fn goes_round(worker: u32) -> bool {
    // SAFETY: no arguments, no failure.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    abi::goes_round(BEATS.get(worker).copied().unwrap_or(0), now)
}

/// How many connections a worker was given.
#[inline(always)]
pub(crate) fn given(worker: u32) -> u32 {
    GIVEN.get(worker).map_or(0, |given| given.connections)
}

/// Counts a connection for a worker.
#[inline(always)]
pub(crate) fn give(worker: u32) {
    if let Some(given) = GIVEN.get_ptr_mut(worker) {
        // SAFETY: the slot stays where it is. When another CPU writes it at the same time, one of the counts is lost.
        unsafe { (*given).connections = (*given).connections.wrapping_add(1) };
    }
}

/// Counts a packet under its reason.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    count_number(reason as u32);
}

/// Counts a packet under the reason of this number.
#[inline(always)]
pub(crate) fn count_number(reason: u32) {
    increment(COUNTERS.get_ptr_mut(reason));
}

/// Counts a flow under the rule that decides it, which is at this place of `ACTIONS`.
#[inline(always)]
pub(crate) fn hit(action: u32) {
    increment(HITS.get_ptr_mut(action));
}

#[inline(always)]
fn increment(counter: Option<*mut u64>) {
    if let Some(counter) = counter {
        // SAFETY: the slot is this CPU's own. Where a packet interrupts a look-up without one (sock_diag), one of two counts
        // may be lost.
        unsafe { *counter += 1 };
    }
}
