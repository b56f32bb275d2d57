//! What the loader can change while programs run, and how rules are counted.

use crate::{
    flow::Protocol,
    rule::{MAX_RULES, RuleIndex, Scope},
};

/// Rule tables exist twice; whoever changes them fills the slot that is not active and then writes [`Control::active`].
pub const SLOTS: u32 = 2;

/// Generations of the rules are counted up to this, and then from 0 again. One less than there are numbers for: the last
/// has [`CARRY`](super::CARRY).
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
    /// 1 when what lands on `lo` gets a mark of its own, since reverse lookups would take the steer mark for it.
    pub landing: u32,
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
        landing: 0,
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
