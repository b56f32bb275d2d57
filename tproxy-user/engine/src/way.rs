//! By which way a flow's packets leave when they are relayed: the one that the client's own would have taken.

use std::num::NonZeroU32;

use tproxy_common::abi::Origin;

use crate::{
    config::{Action, Rule, Scope},
    mark::Mark,
    socket::Egress,
};

/// Number of `lo`.
const LOOPBACK: u32 = 1;

/// What a socket towards the upstream of a flow has of the packet that began the flow: its mark, its sender, and what the
/// sender's socket is bound to.
pub(crate) fn egress(rule: &Rule, origin: &Origin, mark: Mark) -> Egress {
    // A sender bound to `lo` has chosen how its packets get to us.
    let device = NonZeroU32::new(origin.device)
        .filter(|device| device.get() != LOOPBACK && rule.action == Action::Direct);
    Egress { mark, bits: origin.mark, uid: (rule.scope == Scope::Outbound).then_some(origin.uid), device }
}
