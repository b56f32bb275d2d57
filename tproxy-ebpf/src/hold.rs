//! Connecting before accepting: a SYN is handed to user space whole, which connects to the upstream and then sends it in once
//! more (`maps::DECISIONS` has the flow by then), or answers it as the upstream would.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE,
        bpf_hdr_start_off::{BPF_HDR_START_MAC, BPF_HDR_START_NET},
    },
    helpers::{bpf_ktime_get_ns, bpf_ringbuf_query, bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
    maps::ring_buf::RingBufEntry,
    programs::{SkReuseportContext, TcContext},
};
use tproxy_common::{
    abi::{Control, Destination, Finding, HELD_FOR, HeldSyn, LONGEST_SYN, Origin, action_index},
    flow::{Protocol, Tuple},
    rule::{ActionKind, RuleIndex, Scope},
    verdict::Reason,
};

use crate::{
    maps,
    outcome::{Course, History, Outcome},
    ownership,
    packet::{self, ETHERNET, LinkLayer, Meta},
    settings, trace,
};

/// Whether the upstream is to be connected before a connection is accepted that a rule of the active slot selects. Which one
/// that is, NAT may still have to say.
#[inline(always)]
pub(crate) fn is_wanted(control: &Control, rule: RuleIndex, tuple: &Tuple) -> bool {
    let index = action_index(control.slot(), rule);
    let kind = maps::ACTIONS.get(index).map_or(ActionKind::Pass, |byte| ActionKind::from_byte(*byte));
    match kind {
        ActionKind::SteerReached => control.redirecting == 0 && !is_reached(tuple),
        ActionKind::SteerConnected => true,
        _ => false,
    }
}

/// The same in scope `inbound`, where NAT has spoken already: sent in once more, a packet of which it has changed the destination
/// would be of another flow. One that is held cannot be let in at once any more, so there has to be room for it.
#[inline(always)]
pub(crate) fn is_wanted_inbound(control: &Control, rule: RuleIndex, tuple: &Tuple) -> bool {
    control.redirecting == 0 && is_wanted(control, rule, tuple) && has_room()
}

/// Whether user space keeps up. Other CPUs may need room at the same time.
#[inline(always)]
fn has_room() -> bool {
    const ROOM: u64 = 16 * size_of::<HeldSyn>() as u64;
    let syns = ptr::from_ref(&maps::SYNS).cast_mut().cast();
    // SAFETY: the map is a ring.
    let (taken, size) = unsafe {
        (bpf_ringbuf_query(syns, BPF_RB_AVAIL_DATA.into()), bpf_ringbuf_query(syns, BPF_RB_RING_SIZE.into()))
    };
    taken + ROOM < size
}

/// Notes by which rule a packet is held, of the generation that was asked.
#[inline(always)]
pub(crate) fn note(control: &Control, rule: RuleIndex) {
    if let Some(finding) = maps::FINDING.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe {
            (*finding).number = control.number(rule);
            (*finding).hits = action_index(control.slot(), rule);
        }
    }
}

/// Hands a SYN to user space. The number is that of an [`Outcome`]: still to be decided where there is no room, or the packet
/// is too long.
#[inline(always)]
pub(crate) fn hand_over(ctx: &TcContext, link: LinkLayer, scope: Scope, rule: RuleIndex) -> u32 {
    tproxy_hold(ctx.skb.skb, link.0 as u32, scope as u32, rule)
}

/// External linkage: see `first`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_hold(skb: *mut __sk_buff, link: u32, scope: u32, rule: RuleIndex) -> u32 {
    let scope = if scope == Scope::Outbound as u32 { Scope::Outbound } else { Scope::Forwarded };
    hold(&TcContext::new(skb), LinkLayer(link as usize), scope, rule).to_number()
}

#[inline(always)]
fn hold(ctx: &TcContext, link: LinkLayer, scope: Scope, rule: RuleIndex) -> Outcome {
    const NOT_HELD: Outcome = Outcome::First(History::Nothing);
    let Ok(parsed) = packet::read(ctx, link) else { return NOT_HELD };
    let now = now();
    if is_held(&parsed.tuple, now) {
        return Outcome::Settled(Course::Hold, Reason::Held as u32, rule);
    }
    let Some(finding) = maps::FINDING.get_ptr_mut(0) else { return NOT_HELD };
    // SAFETY: the slot is this CPU's own, and `note` has filled it.
    let (number, hits) = unsafe { ((*finding).number, (*finding).hits) };
    let length = ctx.len();
    if length == 0 || length > LONGEST_SYN as u32 {
        return NOT_HELD;
    }
    // The mask and the addition are the bounds that the verifier sees, of Linux 6.1 as well.
    let length = (core::hint::black_box(length - 1) & LONGEST_SYN as u32) + 1;
    let Some(mut entry) = maps::SYNS.reserve(0) else { return NOT_HELD };
    let worker = ownership::worker_of_connection();
    let origin = origin(scope, ctx);
    let held = entry.as_mut_ptr();
    // SAFETY: `held` is memory for one that nobody else has until it is submitted. The helper writes at most `length` bytes,
    // of which `packet` has room for more.
    let loaded = unsafe {
        (*held).tuple = parsed.tuple;
        (*held).rule = number;
        (*held).worker = worker;
        (*held).origin = origin;
        (*held).l3 = link.0 as u32;
        (*held).l4 = parsed.l4 as u32;
        (*held).length = length;
        let packet = (&raw mut (*held).packet).cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, packet, length) == 0
    };
    if !settle(entry, &parsed.tuple, now, loaded) {
        return NOT_HELD;
    }
    maps::give(worker);
    maps::hit(hits);
    let place = || (Meta::of(ctx).ifindex, origin.uid);
    trace::tell(scope, Protocol::Tcp, &parsed.tuple, place, Reason::RuleSteer as u32, rule);
    Outcome::Settled(Course::Hold, Reason::RuleSteer as u32, rule)
}

/// Hands over a SYN that arrives for an application of this host. One that cannot be is decided, and accepted when the client
/// sends it again.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
pub(crate) fn hand_over_arrived(ctx: &SkReuseportContext, found: &Finding) {
    let now = now();
    if is_held(&found.tuple, now) {
        return maps::count(Reason::Held);
    }
    if !hold_arrived(ctx, found, now) {
        maps::decided(&found.tuple, found.number, found.worker, &Origin::default());
    }
    maps::give(found.worker);
    maps::hit(found.hits);
    maps::count(Reason::RuleSteer);
    let place = || (found.ifindex, 0);
    trace::tell(Scope::Inbound, Protocol::Tcp, &found.tuple, place, Reason::RuleSteer as u32, found.rule);
}

/// Whether user space has the SYN now.
#[inline(always)]
fn hold_arrived(ctx: &SkReuseportContext, found: &Finding, now: u64) -> bool {
    /// A SYN with all options that there is room for is no longer, over either family.
    const LONGEST: u32 = 128;
    let load = |start, to: *mut u8, length: u32| {
        // SAFETY: `to` has room for `length` bytes.
        unsafe { bpf_skb_load_bytes_relative(ctx.as_ptr(), 0, to.cast(), length, start) == 0 }
    };
    let mut header = [0_u8; 8];
    if !load(BPF_HDR_START_NET, header.as_mut_ptr(), header.len() as u32) {
        return false;
    }
    let [version, _, total_high, total_low, payload_high, payload_low, ..] = header;
    let total = match version >> 4 {
        4 => u32::from(u16::from_be_bytes([total_high, total_low])),
        _ => 40 + u32::from(u16::from_be_bytes([payload_high, payload_low])),
    };
    let segment = ctx.len() as u32;
    if total > LONGEST || segment == 0 || segment >= total {
        return false;
    }
    // The mask and the addition are the bounds that the verifier sees, of Linux 6.1 as well.
    let length = (core::hint::black_box(total - 1) & (LONGEST - 1)) + 1;
    let Some(mut entry) = maps::SYNS.reserve(0) else { return false };
    let held = entry.as_mut_ptr();
    // SAFETY: `held` is memory for one that nobody else has until it is submitted, and `packet` has room for either header.
    let loaded = unsafe {
        (*held).tuple = found.tuple;
        (*held).rule = found.number;
        (*held).worker = found.worker;
        (*held).origin = Origin { ifindex: found.ifindex, ..Origin::default() };
        (*held).l3 = ETHERNET.0 as u32;
        (*held).l4 = ETHERNET.0 as u32 + (total - segment);
        (*held).length = ETHERNET.0 as u32 + length;
        let packet = (&raw mut (*held).packet).cast::<u8>();
        // Of a device without such headers it is anything, and is taken off again; but `lo` reads the protocol there.
        load(BPF_HDR_START_MAC, packet, ETHERNET.0 as u32);
        packet.add(12).cast::<[u8; 2]>().write((ctx.eth_protocol() as u16).to_ne_bytes());
        load(BPF_HDR_START_NET, packet.add(ETHERNET.0), length)
    };
    settle(entry, &found.tuple, now, loaded)
}

/// Gives user space a SYN that was loaded, or its place back; says whether it has it.
#[inline(always)]
fn settle(entry: RingBufEntry<HeldSyn>, tuple: &Tuple, now: u64, loaded: bool) -> bool {
    // Before user space can be done with it.
    if !loaded || maps::HELD.insert(tuple, now, 0).is_err() {
        entry.discard(0);
        return false;
    }
    entry.submit(0);
    true
}

/// Whether user space has the first packet of a connection.
#[inline(always)]
pub(crate) fn has(tuple: &Tuple) -> bool {
    is_held(tuple, now())
}

#[inline(always)]
fn is_held(tuple: &Tuple, now: u64) -> bool {
    // SAFETY: the value is copied at once.
    unsafe { maps::HELD.get(tuple) }.is_some_and(|since| now.wrapping_sub(*since) < HELD_FOR)
}

/// Not inlined, for the sake of the stack.
#[inline(never)]
fn is_reached(tuple: &Tuple) -> bool {
    // SAFETY: as above.
    unsafe { maps::REACHED.get(Destination::of(tuple)) }.is_some_and(|until| now() < *until)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no failure.
    unsafe { bpf_ktime_get_ns() }
}

/// What the way of the packet depends on beside its addresses.
#[inline(always)]
pub(crate) fn origin(scope: Scope, ctx: &TcContext) -> Origin {
    let meta = Meta::of(ctx);
    let mark = settings::unmarked(meta.mark);
    match scope {
        Scope::Outbound => {
            Origin { mark, uid: ctx.get_socket_uid(), ifindex: 0, device: ownership::device_of_sender(ctx) }
        }
        Scope::Forwarded | Scope::Inbound => Origin { mark, uid: 0, ifindex: meta.ifindex, device: 0 },
    }
}
