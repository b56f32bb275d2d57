//! What was decided about flows, told while somebody looks.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use tproxy_common::{
    abi::{Told, watch},
    flow::{Protocol, Tuple},
    rule::{RuleIndex, Scope},
};

use crate::maps;

/// Tells of a decision. Costs a look at one word while nobody looks; `place`, the interface and the sender's user id, is
/// found out only then.
#[inline(always)]
pub(crate) fn tell(
    scope: Scope,
    protocol: Protocol,
    tuple: &Tuple,
    place: impl FnOnce() -> (u32, u32),
    reason: u32,
    rule: RuleIndex,
) {
    let until = maps::WATCH.get(watch::UNTIL).copied().unwrap_or(0);
    if until != 0 {
        let (ifindex, uid) = place();
        write(until, tuple, ifindex, uid, scope as u32 | (protocol as u32) << 4 | reason << 8 | rule << 16);
    }
}

/// Five arguments are what a BPF function can have, so `what` is several: scope, protocol, reason and rule.
#[inline(never)]
fn write(until: u64, tuple: &Tuple, ifindex: u32, uid: u32, what: u32) {
    // SAFETY: no arguments, no failure.
    let seen = unsafe { bpf_ktime_get_coarse_ns() };
    if seen >= until {
        return;
    }
    let Some(mut told) = maps::TRACE.reserve(0) else {
        if let Some(lost) = maps::WATCH.get_ptr_mut(watch::LOST) {
            // SAFETY: an aligned word. Of losses on several CPUs at once one may not be counted.
            unsafe { *lost += 1 };
        }
        return;
    };
    told.write(Told {
        seen,
        tuple: *tuple,
        scope: what & 0xf,
        protocol: what >> 4 & 0xf,
        ifindex,
        uid,
        reason: what >> 8 & 0xff,
        rule: what >> 16,
        rest: 0,
    });
    told.submit(0);
}
