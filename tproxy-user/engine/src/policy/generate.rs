//! Rules and addresses for tests, so few that rules overlap and flows hit them.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;
use proptest::prelude::*;
use tproxy_common::{flow::Protocol, rule::Scope};

use crate::config::{Accept, Action, Listed, NamedSet, Protocols, Reach, Rule, Selector, Treatment};

/// Any flow that is forwarded, `direct`. Nothing is held, since what becomes of that is up to user space.
pub(crate) fn rule() -> Rule {
    selecting(|_| {}, Action::Direct)
}

/// Of the flows that are forwarded those that `narrow` leaves.
pub(crate) fn selecting(narrow: impl FnOnce(&mut Selector), action: Action) -> Rule {
    let mut selector = Scope::Forwarded.into();
    narrow(&mut selector);
    Rule::new("r", selector, Treatment { accept: Accept::AtOnce, ..action.into() })
}

/// Prefixes that nest.
pub(crate) fn net() -> impl Strategy<Value = IpNet> {
    let v4 = (0u8..4, 0u8..4, prop::sample::select(vec![0u8, 6, 7, 8, 16, 30, 32]))
        .prop_map(|(a, d, len)| IpNet::new(IpAddr::from([a + 8, 0, 0, d]), len).unwrap());
    let v6 = (0u16..3, prop::sample::select(vec![0u8, 15, 16, 127, 128]))
        .prop_map(|(a, len)| IpNet::new(IpAddr::from([0x2000 + a, 0, 0, 0, 0, 0, 0, a]), len).unwrap());
    prop_oneof![v4, v6]
}

/// An address that such prefixes contain.
pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    net().prop_map(|net| net.addr())
}

/// A port that such rules name, or nearly.
pub(crate) fn port() -> impl Strategy<Value = u16> {
    0u16..9
}

pub(crate) const UIDS: std::ops::Range<u32> = 0..3;

/// Indices of interfaces, by which rules name them.
pub(crate) const INTERFACES: std::ops::Range<u32> = 20..23;

/// The interfaces that a rule is limited to, as [`super::Compiled::new`] asks for them.
pub(crate) fn interfaces(reach: &Reach) -> Option<BTreeSet<u32>> {
    (!reach.interfaces.is_empty())
        .then(|| reach.interfaces.iter().map(|name| name.parse().unwrap()).collect())
}

/// Of sets that rules share, mostly none.
fn shared() -> impl Strategy<Value = Vec<Arc<NamedSet<IpNet>>>> {
    static SETS: LazyLock<[Arc<NamedSet<IpNet>>; 3]> = LazyLock::new(|| {
        [
            ("empty", &[][..]),
            ("short", &["8.0.0.0/7", "2000::/15"]),
            ("long", &["10.0.0.1/32", "8.0.0.0/8", "2001::/16"]),
        ]
        .map(|(name, members)| {
            let members = members.iter().map(|text| text.parse().unwrap()).collect();
            Arc::new(NamedSet { name: name.into(), members })
        })
    });
    prop_oneof![3 => Just(vec![]), 1 => prop::sample::subsequence(SETS.to_vec(), 1..=2)]
}

pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    let nets = || {
        let own = prop_oneof![Just(vec![]), prop::collection::vec(net(), 1..3)];
        (own, shared()).prop_map(|(own, sets)| Listed { own, sets })
    };
    let ports = prop::collection::vec((0u16..6, 0u16..3).prop_map(|(from, more)| from..=from + more), 0..3);
    let scope = prop::sample::select(vec![Scope::Forwarded, Scope::Outbound, Scope::Inbound]);
    // Of no other scope is a sender known.
    let scope_and_uids = scope.prop_flat_map(|scope| {
        let most = if scope == Scope::Outbound { 2 } else { 1 };
        (Just(scope), prop::collection::vec(UIDS, 0..most))
    });
    let interfaces = prop_oneof![
        2 => Just(vec![]),
        1 => prop::collection::vec(INTERFACES.prop_map(|index| index.to_string()), 1..3),
    ];
    let action = prop::sample::select(vec![Action::Direct, Action::Reject, Action::Drop, Action::Pass]);
    let protocols = prop::sample::select(vec![Protocols::Tcp, Protocols::Udp, Protocols::Both]);
    (scope_and_uids, protocols, interfaces, nets(), nets(), nets(), ports, action).prop_map(
        |((scope, uids), protocols, interfaces, from, to, except, ports, action)| {
            let reach = Reach { scope, protocols, interfaces };
            let selector = Selector { reach, from, to, except, ports: ports.into(), uids, cgroups: vec![] };
            Rule { selector, ..selecting(|_| {}, action) }
        },
    )
}

/// Either.
pub(crate) fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(Protocol::ALL.to_vec())
}
