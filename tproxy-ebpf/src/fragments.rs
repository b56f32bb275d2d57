//! Fragments: the first, which has the ports, decides for the packet, and the others follow it. sk_lookup chooses the
//! socket when the kernel has put them together again.

use aya_ebpf::bindings::BPF_NOEXIST;
use tproxy_common::{
    abi::FragmentCourse,
    packet::{Kind, Packet},
    verdict::Reason,
};

use crate::{
    maps, memory,
    outcome::{Outcome, deliver, pass},
    ownership,
};

/// What the fragments of the packet that `parsed` is one of do, as far as is known.
#[inline(never)]
pub(crate) fn course(parsed: &Packet) -> Option<FragmentCourse> {
    let key = parsed.fragment()?;
    // SAFETY: the value is copied at once.
    match unsafe { maps::FRAGMENTS.get(key) }.copied()? {
        0 => Some(FragmentCourse::Pass),
        1 => Some(FragmentCourse::Steer),
        _ => Some(FragmentCourse::Drop),
    }
}

/// What holds from now on, `course` if nothing did before. Other fragments may be on other CPUs right now, and all have to
/// go the same way.
#[inline(never)]
pub(crate) fn settle(parsed: &Packet, course: FragmentCourse) -> FragmentCourse {
    let Some(key) = parsed.fragment() else { return course };
    match maps::FRAGMENTS.insert(key, course as u32, BPF_NOEXIST.into()) {
        Ok(()) => course,
        Err(_) => self::course(parsed).unwrap_or(course),
    }
}

/// Leaves a packet alone. Where fragments of a datagram came before the first and were delivered, so is that: the whole
/// goes to a worker, who sends it on. What is for the host itself is delivered anyway, and `sk_lookup` still asks the rules
/// about it; sent on, it would come back here.
#[inline(always)]
pub(crate) fn leave_alone(parsed: &Packet, ifindex: u32, reason: Reason) -> Outcome {
    match settle(parsed, FragmentCourse::Pass) {
        FragmentCourse::Steer
            if parsed.kind == Kind::Datagram
                && !ownership::is_host_address(&parsed.tuple.dst)
                && ownership::is_served(parsed) =>
        {
            memory::carried(&parsed.tuple, ifindex);
            return deliver(Reason::Carried);
        }
        FragmentCourse::Pass => {}
        // An earlier packet with the same number left it.
        FragmentCourse::Steer | FragmentCourse::Drop => follow(parsed, FragmentCourse::Pass),
    }
    pass(reason)
}

/// Has the others follow; nothing, for a packet that is whole.
#[inline(never)]
pub(crate) fn follow(parsed: &Packet, course: FragmentCourse) {
    if let Some(key) = parsed.fragment() {
        // Where there is no room, they pass.
        let _ = maps::FRAGMENTS.insert(key, course as u32, 0);
    }
}
