//! The policy's questions, answered from the maps.

use core::cell::Cell;

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::lpm_trie::Key,
    helpers::{bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id},
    programs::TcContext,
};
use tproxy_common::{
    abi::{
        CgroupKey, Control, NO_RULE, SLOT_BITS, STRICT_SET, SlotAddr, SlotKey, Unrestricted, action_index,
        active, port_index, scope_set, set_index,
    },
    addr::Addr,
    flow::{Flow, Protocol},
    policy::{Lookups, first_match_among},
    rule::{ActionKind, RuleIndex, RuleSet, Scope, SetId},
};

use crate::{
    maps::{self, PrefixTable},
    ownership,
};

/// Deepest cgroup that a rule can name.
const MAX_CGROUP_DEPTH: u32 = 31;

/// One generation of the rule tables; `sender` is there where a packet's sender can be asked for (tc egress).
pub(crate) struct Tables<'a> {
    pub(crate) control: Control,
    pub(crate) sender: Option<&'a TcContext>,
    /// The rule whose action was asked for, or `NO_RULE`.
    pub(crate) decided: Cell<RuleIndex>,
}

impl<'a> Tables<'a> {
    /// The generation that `control` says is active.
    #[inline(always)]
    pub(crate) const fn of(control: Control, sender: Option<&'a TcContext>) -> Self {
        Self { control, sender, decided: Cell::new(NO_RULE) }
    }

    /// Place in `HITS` of the rule that decided.
    #[inline(always)]
    pub(crate) fn hits(&self) -> u32 {
        action_index(self.control.slot(), self.decided.get())
    }

    #[inline(always)]
    fn set(&self, id: SetId) -> Option<&RuleSet> {
        maps::SETS.get(set_index(self.control.slot(), id))
    }

    #[inline(always)]
    fn number(&self, number: u32) -> SlotKey {
        SlotKey { slot: self.control.slot(), number }
    }
}

/// Not inlined: two such keys at once are a tenth of the stack.
#[inline(never)]
fn longest_match(table: &PrefixTable, slot: u32, addr: &Addr) -> Option<SetId> {
    let key = Key::new(SLOT_BITS + 128, SlotAddr { slot: slot.to_be_bytes(), addr: *addr });
    table.get(&key).copied()
}

impl Lookups for Tables<'_> {
    #[inline(always)]
    fn is_host_address(&self, addr: &Addr) -> bool {
        ownership::is_host_address(addr)
    }

    #[inline(always)]
    fn is_publishing(&self, protocol: Protocol) -> bool {
        self.control.is_publishing(protocol)
    }

    #[inline(always)]
    fn by_scope(&self, scope: Scope, protocol: Protocol) -> Option<&RuleSet> {
        self.set(scope_set(scope, protocol))
    }

    #[inline(always)]
    fn by_source(&self, addr: &Addr) -> Option<&RuleSet> {
        self.set(longest_match(&maps::SOURCES, self.control.slot(), addr)?)
    }

    #[inline(always)]
    fn by_destination(&self, addr: &Addr) -> Option<&RuleSet> {
        self.set(longest_match(&maps::DESTINATIONS, self.control.slot(), addr)?)
    }

    #[inline(always)]
    fn by_port(&self, port: u16) -> Option<&RuleSet> {
        // Unset entries are zero, which is `Unrestricted::Port`.
        self.set(*maps::PORTS.get(port_index(self.control.slot(), port))?)
    }

    #[inline(always)]
    fn by_interface(&self, ifindex: u32) -> Option<&RuleSet> {
        // SAFETY: the value is copied at once; entries of the active slot are not removed while it is active.
        let set = unsafe { maps::INTERFACES.get(self.number(ifindex)) }.copied();
        self.set(set.unwrap_or(Unrestricted::Interface as SetId))
    }

    #[inline(always)]
    fn by_uid(&self, uid: u32) -> Option<&RuleSet> {
        // SAFETY: as above.
        let set = unsafe { maps::UIDS.get(self.number(uid)) }.copied();
        self.set(set.unwrap_or(Unrestricted::Uid as SetId))
    }

    /// The deepest cgroup of the sender that a rule names decides; its set includes the rules of those above it.
    #[inline(always)]
    fn by_cgroup(&self) -> Option<&RuleSet> {
        let mut set = Unrestricted::Cgroup as SetId;
        let depths = self.control.cgroup_depths;
        if let (Some(ctx), true) = (self.sender, depths != 0) {
            // SAFETY: the context is a valid skb; zero means that the packet has no socket.
            if unsafe { bpf_skb_cgroup_id(ctx.skb.skb) } != 0 {
                for depth in 0..=MAX_CGROUP_DEPTH {
                    if depths & (1 << depth) == 0 {
                        continue;
                    }
                    // SAFETY: as above; zero means that the sender is not that deep.
                    let id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, depth as i32) };
                    let key = CgroupKey { id, slot: self.control.slot().into() };
                    // SAFETY: the value is copied at once.
                    let named = unsafe { maps::CGROUPS.get(key) }.copied();
                    set = named.unwrap_or(set);
                }
            }
        }
        self.set(set)
    }

    #[inline(always)]
    fn for_any_port(&self) -> Option<&RuleSet> {
        self.set(Unrestricted::Port as SetId)
    }

    #[inline(always)]
    fn strict(&self) -> Option<&RuleSet> {
        self.set(STRICT_SET)
    }

    /// Asked once, of the rule that decides a flow.
    #[inline(always)]
    fn action(&self, rule: RuleIndex) -> ActionKind {
        let index = action_index(self.control.slot(), rule);
        self.decided.set(rule);
        maps::ACTIONS.get(index).map_or(ActionKind::Pass, |byte| ActionKind::from_byte(*byte))
    }

    #[inline(always)]
    fn first_match_among(&self, scope: Scope, flow: &Flow, port: &RuleSet) -> Option<RuleIndex> {
        let slot = self.control.slot();
        let rule = match self.sender {
            Some(ctx) => tproxy_match_sent(ctx.skb.skb, flow, port, slot, self.control.cgroup_depths),
            None => tproxy_match(flow, port, slot, scope as u32),
        };
        (rule != NO_RULE).then_some(rule)
    }
}

/// What matches in the scopes without a sender, or `NO_RULE`.
///
/// External linkage has the verifier check this function once, by itself: the loop over a set's words is its longest way, and
/// what cannot be read whole is looked up several times.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_match(flow: *const Flow, port: *const RuleSet, slot: u32, scope: u32) -> RuleIndex {
    let scope = if scope == Scope::Inbound as u32 { Scope::Inbound } else { Scope::Forwarded };
    let tables = Tables::of(Control { active: active(0, slot), ..Control::NOTHING }, None);
    // SAFETY: the one caller hands over references; the verifier asks for the comparison with null.
    match unsafe { (flow.as_ref(), port.as_ref()) } {
        (Some(flow), Some(port)) => first_match_among(scope, flow, &tables, port).unwrap_or(NO_RULE),
        _ => NO_RULE,
    }
}

/// The same in scope `outbound`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_match_sent(
    skb: *mut __sk_buff,
    flow: *const Flow,
    port: *const RuleSet,
    slot: u32,
    cgroup_depths: u32,
) -> RuleIndex {
    let ctx = TcContext::new(skb);
    let control = Control { active: active(0, slot), cgroup_depths, ..Control::NOTHING };
    let tables = Tables::of(control, Some(&ctx));
    // SAFETY: as above.
    match unsafe { (flow.as_ref(), port.as_ref()) } {
        (Some(flow), Some(port)) => {
            first_match_among(Scope::Outbound, flow, &tables, port).unwrap_or(NO_RULE)
        }
        _ => NO_RULE,
    }
}
