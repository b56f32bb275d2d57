//! What is remembered of UDP flows. No datagram says that it is its flow's first, so this does: a flow is new when
//! neither it nor its replies were seen of late.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use tproxy_common::{
    abi::{
        APPLICATION, CARRY, Entered, FRAGMENTABLE, HEARD, LEFT, Memory, Origin, PASSED, RuleNumber, WHOLE,
    },
    flow::Tuple,
    packet::Fragmenting,
};

use crate::{maps, ownership, settings};

/// What became of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is new, or was silent for too long.
    Nothing,
    /// It was left alone.
    Passed,
    /// Scope `inbound` left it to the host's own sockets, perhaps asked by somebody who had no datagram to show.
    Left,
    /// It arrived for a socket of the host's, whatever scope `inbound` will make of it.
    Heard,
    /// It was left alone, but this worker sends on what of it was delivered.
    Carried(u32),
    /// It is our own, to an application of this host.
    Application,
    /// A worker's listener receives what of it comes in by another interface.
    Elsewhere,
    /// This worker's listener receives it.
    Steered(u32),
}

impl Known {
    /// In one register, which is what a BPF function can return: bit of [`Self::Carried`], beside the worker.
    const CARRIED: u32 = 1 << 30;
    const NOTHING: u32 = u32::MAX - 4;

    #[inline(always)]
    const fn from_number(number: u32) -> Self {
        match number {
            Self::NOTHING => Self::Nothing,
            PASSED => Self::Passed,
            LEFT => Self::Left,
            HEARD => Self::Heard,
            APPLICATION => Self::Application,
            worker if worker & Self::CARRIED != 0 => Self::Carried(worker & !Self::CARRIED),
            worker => Self::Steered(worker),
        }
    }
}

/// What is known of the flow that a datagram belongs to; from now on for as long as if it had been new.
#[inline(always)]
pub(crate) fn recall(tuple: &Tuple) -> Known {
    Known::from_number(numbers(tuple, 1) as u32)
}

/// What is known of it; not for a moment longer.
#[inline(always)]
pub(crate) fn look_up(tuple: &Tuple) -> Known {
    Known::from_number(numbers(tuple, 0) as u32)
}

/// What is known of the flow of a datagram that came in by an interface. What is known of it as it came in by another is not
/// said of this one: a bridge's port, where no rule selects it, sees it before the bridge does, where one may.
#[inline(always)]
pub(crate) fn recall_at(tuple: &Tuple, ifindex: u32) -> Known {
    let numbers = numbers(tuple, 1);
    let known = Known::from_number(numbers as u32);
    if (numbers >> 32) as u32 == ifindex {
        return known;
    }
    match known {
        Known::Passed | Known::Heard | Known::Carried(_) => Known::Nothing,
        Known::Steered(_) => Known::Elsewhere,
        known => known,
    }
}

/// The number of what is known, and above it the interface by which it came in.
#[inline(never)]
fn numbers(tuple: &Tuple, renew: u32) -> u64 {
    const NOTHING: u64 = Known::NOTHING as u64;
    match numbers_of(maps::MEMORY.get_ptr_mut(tuple), renew) {
        NOTHING => numbers_of(maps::HOST_FLOWS.get_ptr_mut(tuple), renew),
        numbers => numbers,
    }
}

#[inline(always)]
fn numbers_of(memory: Option<*mut Memory>, renew: u32) -> u64 {
    let Some(memory) = memory else { return Known::NOTHING.into() };
    let now = now();
    // SAFETY: the entry stays readable while the program runs (RCU). Another CPU may write `seen` at the same time, an
    // aligned word, and the same time as good as.
    unsafe {
        if now.wrapping_sub((*memory).seen) > settings::memory_lifetime() {
            return Known::NOTHING.into();
        }
        if renew != 0 {
            (*memory).seen = now;
        }
        let carried = if (*memory).rule == CARRY { Known::CARRIED } else { 0 };
        u64::from((*memory).origin.ifindex) << 32 | u64::from((*memory).worker | carried)
    }
}

/// Remembers that a flow that came in by an interface is left alone; 0 is none, and this host's.
#[inline(always)]
pub(crate) fn passed(tuple: &Tuple, ifindex: u32) {
    if ifindex == 0 {
        remember_hosts(tuple, PASSED, ifindex);
    } else {
        remember(tuple, 0, PASSED, ifindex);
    }
}

/// Remembers that a flow has arrived for a socket of the host's: what that sends back is no new flow of scope `outbound`.
#[inline(always)]
pub(crate) fn heard(tuple: &Tuple, ifindex: u32) {
    remember_hosts(tuple, HEARD, ifindex);
}

/// Remembers that scope `inbound` leaves a flow alone of which this is known.
#[inline(always)]
pub(crate) fn left(tuple: &Tuple, known: Known, ifindex: u32) {
    if known == Known::Heard {
        remember_hosts(tuple, PASSED, ifindex);
    } else {
        remember(tuple, 0, LEFT, ifindex);
    }
}

/// Remembers that a flow is left alone, although fragments of it were delivered.
#[inline(always)]
pub(crate) fn carried(tuple: &Tuple, ifindex: u32) {
    remember(tuple, CARRY, ownership::worker_of_client(tuple), ifindex);
}

/// Remembers that a flow is our own, to an application of this host.
#[inline(always)]
pub(crate) fn application(tuple: &Tuple) {
    remember(tuple, 0, APPLICATION, 0);
}

/// As [`Memory::fragmenting`] has it.
#[inline(always)]
pub(crate) fn fragmenting(first: Fragmenting) -> u32 {
    match first {
        Fragmenting::Allowed => FRAGMENTABLE,
        Fragmenting::Forbidden => WHOLE,
    }
}

/// Remembers a flow that a rule gave to a worker under the destination that NAT has given it since.
#[inline(always)]
pub(crate) fn translated(tuple: &Tuple, entered: &Entered) {
    let _ = maps::MEMORY.remove(entered.tuple);
    steered(tuple, entered.number, entered.worker, &entered.origin, entered.fragmenting);
}

/// Remembers that a rule of scope `inbound` gave a flow to a worker.
#[inline(always)]
pub(crate) fn given(tuple: &Tuple, rule: RuleNumber, worker: u32, ifindex: u32) {
    remember(tuple, rule, worker, ifindex);
}

/// Whether a datagram that came in by an interface, or that this host sends (0), replies to one that was left alone. That one
/// came in by another: who is at this interface cannot speak for who is beyond it, and might for a neighbour.
#[inline(never)]
pub(crate) fn answers(tuple: &Tuple, ifindex: u32) -> bool {
    let numbers = numbers(&tuple.reversed(), 1);
    let is_elsewhere = (numbers >> 32) as u32 != ifindex;
    is_elsewhere
        && matches!(Known::from_number(numbers as u32), Known::Passed | Known::Heard | Known::Carried(_))
}

#[inline(always)]
fn remember(tuple: &Tuple, rule: RuleNumber, worker: u32, ifindex: u32) {
    steered(tuple, rule, worker, &Origin { ifindex, ..Origin::default() }, 0);
}

/// Remembers that a rule gave a flow to a worker, and whether its first datagram could be fragmented.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
pub(crate) fn steered(tuple: &Tuple, rule: RuleNumber, worker: u32, origin: &Origin, fragmenting: u32) {
    let memory = Memory { seen: now(), rule, worker, origin: *origin, fragmenting, rest: 0 };
    // It fails only when the map has no memory left; the flow is then asked about again.
    let _ = maps::MEMORY.insert(tuple, memory, 0);
}

/// Remembers a flow between a socket of the host's and somebody else, which is left alone. Were that forgotten, a reply would be
/// taken for a new flow: so it is not where others' flows could evict it, but where that has no room.
///
/// Not inlined, for the sake of the stack.
#[inline(never)]
fn remember_hosts(tuple: &Tuple, worker: u32, ifindex: u32) {
    let origin = Origin { ifindex, ..Origin::default() };
    let memory = Memory { seen: now(), rule: 0, worker, origin, fragmenting: 0, rest: 0 };
    if maps::HOST_FLOWS.insert(tuple, memory, 0).is_err() {
        let _ = maps::MEMORY.insert(tuple, memory, 0);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no failure. To the tick is enough, and cheaper.
    unsafe { bpf_ktime_get_coarse_ns() }
}
