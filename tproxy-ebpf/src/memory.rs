//! What is remembered of UDP flows. No datagram says that it is its flow's first, so this does: a flow is new when
//! neither it nor its replies were seen of late.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use tproxy_common::{
    abi::{APPLICATION, CARRY, Memory, PASSED, RuleNumber},
    flow::Tuple,
};

use crate::{maps, ownership, settings};

/// What became of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is new, or was silent for too long.
    Nothing,
    /// It was left alone.
    Passed,
    /// The same, but what of it was delivered this worker sends on.
    Carried(u32),
    /// It is our own, to an application of this host.
    Application,
    /// This worker's listener receives it.
    Steered(u32),
}

/// What is known of the flow that a datagram belongs to; from now on for as long as if it had been new.
#[inline(never)]
pub(crate) fn recall(tuple: &Tuple) -> Known {
    let Some(memory) = maps::MEMORY.get_ptr_mut(tuple) else { return Known::Nothing };
    let now = now();
    // SAFETY: the entry stays readable while the program runs (RCU). Another CPU may write `seen` at the same time, an
    // aligned word, and the same time as good as.
    let (rule, worker) = unsafe {
        if now.wrapping_sub((*memory).seen) > settings::memory_lifetime() {
            return Known::Nothing;
        }
        (*memory).seen = now;
        ((*memory).rule, (*memory).worker)
    };
    match (rule, worker) {
        (_, PASSED) => Known::Passed,
        (_, APPLICATION) => Known::Application,
        (CARRY, worker) => Known::Carried(worker),
        (_, worker) => Known::Steered(worker),
    }
}

/// Remembers that a flow is left alone.
#[inline(always)]
pub(crate) fn passed(tuple: &Tuple) {
    remember(tuple, 0, PASSED);
}

/// Remembers that a flow is left alone, although fragments of it were delivered.
#[inline(always)]
pub(crate) fn carried(tuple: &Tuple) {
    remember(tuple, CARRY, ownership::worker_of_client(tuple));
}

/// Remembers that a flow is our own, to an application of this host.
#[inline(always)]
pub(crate) fn application(tuple: &Tuple) {
    remember(tuple, 0, APPLICATION);
}

/// Remembers that a rule gave a flow to a worker.
#[inline(always)]
pub(crate) fn steered(tuple: &Tuple, rule: RuleNumber, worker: u32) {
    remember(tuple, rule, worker);
}

/// Whether a datagram replies to one that was left alone.
#[inline(never)]
pub(crate) fn answers(tuple: &Tuple) -> bool {
    matches!(recall(&tuple.reversed()), Known::Passed | Known::Carried(_))
}

/// The same; then it is remembered as well.
#[inline(never)]
pub(crate) fn is_reply(tuple: &Tuple) -> bool {
    let replies = answers(tuple);
    if replies {
        passed(tuple);
    }
    replies
}

#[inline(never)]
fn remember(tuple: &Tuple, rule: RuleNumber, worker: u32) {
    // It fails only when the map has no memory left; the flow is then asked about again.
    let _ = maps::MEMORY.insert(tuple, Memory { seen: now(), rule, worker }, 0);
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no failure. To the tick is enough, and cheaper.
    unsafe { bpf_ktime_get_coarse_ns() }
}
