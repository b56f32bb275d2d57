//! From the rules a user wrote to the tables the datapath looks up: one table a dimension, each giving the set of
//! rules that a value satisfies, so that the cost of a decision does not grow with the number of rules.

mod cgroup;
mod ports;
mod prefixes;
mod sets;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use cgroup::{Cgroup, CgroupError, FoundCgroups};
use ipnet::IpNet;
pub(crate) use prefixes::{is_nameable, roots};
pub use sets::Sets;
use tproxy_common::{
    abi::{PortBits, STRICT_SET, Unrestricted, scope_bit, scope_set},
    addr::Addr,
    flow::Protocol,
    policy::Lookups,
    rule::{ActionKind, RuleIndex, RuleSet, Scope, SetId},
};

use crate::config::{Accept, Action, Claim, Reach, Rule, Treatment};

/// One generation of the rules, compiled. Its [`Lookups`] give the answers that the datapath gives from its maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Every distinct set, by [`SetId`].
    pub sets: Vec<RuleSet>,
    /// By longest matching source prefix; both families' roots are always there.
    pub sources: BTreeMap<IpNet, SetId>,
    /// By longest matching destination prefix; both families' roots are always there.
    pub destinations: BTreeMap<IpNet, SetId>,
    /// By destination port; a port that is not here has [`Unrestricted::Port`].
    pub ports: BTreeMap<u16, SetId>,
    /// By interface index; one that is not here has [`Unrestricted::Interface`].
    pub interfaces: BTreeMap<u32, SetId>,
    /// By user id; one that is not here has [`Unrestricted::Uid`].
    pub uids: BTreeMap<u32, SetId>,
    /// By cgroup; each set includes the rules of the cgroups above.
    pub cgroups: BTreeMap<Cgroup, SetId>,
    /// By rule.
    pub actions: Vec<ActionKind>,
    /// By rule: what it is called.
    pub names: Vec<Arc<str>>,
    /// The ports that TCP connections of ours have on either end: rules' destination ports and those of upstreams.
    pub tcp_ports: Box<PortBits>,
    /// What the rules are about, as a whole.
    pub extent: Extent,
}

/// What rules are about, as a whole: what the datapath need not look for elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// The bits [`scope_bit`] of every scope and protocol that some rule has.
    pub scopes: u32,
    /// Whether some rule of scope `forwarded` has UDP upstream sockets that bear their clients' addresses.
    pub spoofs_datagrams: bool,
}

impl Extent {
    /// That of these rules.
    #[must_use]
    pub fn of<'a>(rules: impl IntoIterator<Item: Into<Claim<'a>>>) -> Self {
        let mut extent = Self::default();
        for Claim { reach, treatment } in rules.into_iter().map(Into::into) {
            let protocols = Protocol::ALL.into_iter().filter(|protocol| reach.protocols.include(*protocol));
            extent.scopes |= protocols.map(|protocol| scope_bit(reach.scope, protocol)).sum::<u32>();
            extent.spoofs_datagrams |= reach.scope == Scope::Forwarded
                && reach.protocols.include(Protocol::Udp)
                && treatment.is_spoofed();
        }
        extent
    }

    /// That of the rules of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            scopes: self.scopes | other.scopes,
            spoofs_datagrams: self.spoofs_datagrams || other.spoofs_datagrams,
        }
    }
}

impl Compiled {
    /// Compiles `rules`. `interfaces` says which interface indices a rule is limited to at the moment, `None` being
    /// any; `cgroups` are the rules' cgroups, resolved, in the rules' order.
    #[must_use]
    pub fn new(
        rules: &[Rule],
        interfaces: impl Fn(&Reach) -> Option<BTreeSet<u32>>,
        cgroups: &[Vec<Cgroup>],
    ) -> Self {
        let selectors = || (0..).zip(rules.iter().map(|rule| &rule.selector));
        let mut sets = Sets::new();
        sets.fix(Unrestricted::Port as SetId, select(rules, |rule| rule.selector.ports.is_any()));
        sets.fix(
            Unrestricted::Interface as SetId,
            select(rules, |rule| interfaces(&rule.selector.reach).is_none()),
        );
        sets.fix(Unrestricted::Uid as SetId, select(rules, |rule| rule.selector.uids.is_empty()));
        sets.fix(Unrestricted::Cgroup as SetId, select(rules, |rule| rule.selector.cgroups.is_empty()));
        for (scope, protocol) in scopes_and_protocols() {
            let is_about =
                |Reach { scope: of, protocols, .. }: &Reach| *of == scope && protocols.include(protocol);
            sets.fix(scope_set(scope, protocol), select(rules, |rule| is_about(&rule.selector.reach)));
        }
        sets.fix(STRICT_SET, select(rules, |rule| is_strict(&rule.treatment.action)));
        let limited = selectors().flat_map(|(index, selector)| {
            interfaces(&selector.reach).into_iter().flatten().map(move |ifindex| (ifindex, index))
        });
        let uids =
            selectors().flat_map(|(index, selector)| selector.uids.iter().map(move |uid| (*uid, index)));
        Self {
            sources: prefixes::compile(rules, |selector| (&selector.from, None), &mut sets),
            destinations: prefixes::compile(
                rules,
                |selector| (&selector.to, Some(&selector.except)),
                &mut sets,
            ),
            ports: ports::compile(rules, &mut sets),
            interfaces: by_value(limited, Unrestricted::Interface, &mut sets),
            uids: by_value(uids, Unrestricted::Uid, &mut sets),
            cgroups: cgroup::compile(cgroups, &mut sets),
            actions: rules.iter().map(|rule| kind(&rule.treatment)).collect(),
            names: rules.iter().map(|rule| Arc::clone(&rule.name)).collect(),
            extent: Extent::of(rules),
            tcp_ports: tcp_ports(rules),
            sets: sets.into_vec(),
        }
    }

    /// Bit `n` set: some rule names a cgroup that may be at depth `n`.
    #[must_use]
    pub fn cgroup_depths(&self) -> u32 {
        self.cgroups.keys().fold(0, |depths, cgroup| depths | cgroup.depths())
    }

    fn set(&self, id: SetId) -> Option<&RuleSet> {
        self.sets.get(id as usize)
    }
}

fn tcp_ports(rules: &[Rule]) -> Box<PortBits> {
    let mut bits = Box::new(PortBits::NONE);
    for rule in rules.iter().filter(|rule| rule.selector.reach.protocols.include(Protocol::Tcp)) {
        if rule.selector.ports.is_any() {
            *bits = PortBits::ALL;
        }
        let upstream = match &rule.treatment.action {
            Action::Upstream(upstream) => Some(upstream.ports()),
            _ => None,
        };
        let upstream = upstream.into_iter().flatten();
        rule.selector.ports.iter().cloned().flatten().chain(upstream).for_each(|port| bits.add(port));
    }
    bits
}

fn scopes_and_protocols() -> impl Iterator<Item = (Scope, Protocol)> {
    Scope::ALL.into_iter().flat_map(|scope| Protocol::ALL.map(|protocol| (scope, protocol)))
}

/// What the datapath does with the flows of a rule.
const fn kind(treatment: &Treatment) -> ActionKind {
    match (&treatment.action, treatment.accept) {
        (Action::Direct, Accept::Auto) => ActionKind::SteerReached,
        (Action::Direct | Action::Upstream(_), Accept::AfterConnect) => ActionKind::SteerConnected,
        (Action::Direct | Action::Upstream(_) | Action::Respond(_) | Action::HandOver(_), _) => {
            ActionKind::Steer
        }
        (Action::Reject, _) => ActionKind::Reject,
        (Action::Drop, _) => ActionKind::Drop,
        (Action::Pass, _) => ActionKind::Pass,
    }
}

/// Whether what the rule is for is lost when a flow gets by: it reaches whom it should not.
const fn is_strict(action: &Action) -> bool {
    match action {
        Action::Upstream(_) | Action::Respond(_) | Action::Reject | Action::Drop | Action::HandOver(_) => {
            true
        }
        Action::Direct | Action::Pass => false,
    }
}

fn select(rules: &[Rule], satisfied: impl Fn(&Rule) -> bool) -> RuleSet {
    let mut set = RuleSet::EMPTY;
    (0..).zip(rules).filter(|(_, rule)| satisfied(rule)).for_each(|(index, _)| set.insert(index));
    set
}

/// A table for values that are matched exactly: rules that name the value, and those that do not care.
fn by_value<T: Ord>(
    named: impl Iterator<Item = (T, RuleIndex)>,
    unrestricted: Unrestricted,
    sets: &mut Sets,
) -> BTreeMap<T, SetId> {
    let base = *sets.get(unrestricted as SetId);
    let mut by_value: BTreeMap<T, RuleSet> = BTreeMap::new();
    for (value, rule) in named {
        by_value.entry(value).or_insert(base).insert(rule);
    }
    by_value.into_iter().map(|(value, set)| (value, sets.intern(set))).collect()
}

/// [`Compiled`] as the policy asks it, with what only a running host knows.
pub struct HostLookups<'a> {
    /// The rules.
    pub compiled: &'a Compiled,
    /// Whether an address is one of the host's own.
    pub is_host_address: &'a dyn Fn(&Addr) -> bool,
    /// Whether NAT of this host sends elsewhere what is for one of its addresses: only a running instance looks for it.
    pub is_publishing: bool,
    /// The sender's cgroups, from the deepest up.
    pub sender_cgroups: &'a [Cgroup],
}

impl Lookups for HostLookups<'_> {
    fn is_host_address(&self, addr: &Addr) -> bool {
        (self.is_host_address)(addr)
    }

    fn is_publishing(&self, _: Protocol) -> bool {
        self.is_publishing
    }

    fn by_scope(&self, scope: Scope, protocol: Protocol) -> Option<&RuleSet> {
        self.compiled.set(scope_set(scope, protocol))
    }

    fn by_source(&self, addr: &Addr) -> Option<&RuleSet> {
        self.compiled.set(prefixes::longest_match(&self.compiled.sources, (*addr).into())?)
    }

    fn by_destination(&self, addr: &Addr) -> Option<&RuleSet> {
        self.compiled.set(prefixes::longest_match(&self.compiled.destinations, (*addr).into())?)
    }

    fn by_port(&self, port: u16) -> Option<&RuleSet> {
        self.compiled.set(self.compiled.ports.get(&port).copied().unwrap_or(Unrestricted::Port as SetId))
    }

    fn by_interface(&self, ifindex: u32) -> Option<&RuleSet> {
        let set = self.compiled.interfaces.get(&ifindex).copied();
        self.compiled.set(set.unwrap_or(Unrestricted::Interface as SetId))
    }

    fn by_uid(&self, uid: u32) -> Option<&RuleSet> {
        self.compiled.set(self.compiled.uids.get(&uid).copied().unwrap_or(Unrestricted::Uid as SetId))
    }

    fn by_cgroup(&self) -> Option<&RuleSet> {
        let named = self.sender_cgroups.iter().find_map(|cgroup| self.compiled.cgroups.get(cgroup));
        self.compiled.set(named.copied().unwrap_or(Unrestricted::Cgroup as SetId))
    }

    fn for_any_port(&self) -> Option<&RuleSet> {
        self.compiled.set(Unrestricted::Port as SetId)
    }

    fn strict(&self) -> Option<&RuleSet> {
        self.compiled.set(STRICT_SET)
    }

    fn action(&self, rule: RuleIndex) -> ActionKind {
        self.compiled.actions.get(rule as usize).copied().unwrap_or(ActionKind::Pass)
    }
}

#[cfg(test)]
pub(crate) mod generate;
#[cfg(test)]
mod tests;
