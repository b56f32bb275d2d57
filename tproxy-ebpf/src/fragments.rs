//! Fragments: the first, which has the ports, decides for the packet, and the others follow it. sk_lookup chooses the
//! socket when the kernel has put them together again.

use tproxy_common::{abi::FragmentCourse, packet::Packet};

use crate::maps;

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

/// Has the others follow; nothing, for a packet that is whole.
#[inline(never)]
pub(crate) fn follow(parsed: &Packet, course: FragmentCourse) {
    if let Some(key) = parsed.fragment() {
        // Where there is no room, they pass.
        let _ = maps::FRAGMENTS.insert(key, course as u32, 0);
    }
}
