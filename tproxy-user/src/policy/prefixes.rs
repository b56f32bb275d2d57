//! Prefix dimensions: at each prefix that any rule names, the set of rules that an address satisfies for which this
//! is the longest match.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_common::rule::{RuleIndex, RuleSet, SetId};

use super::Sets;
use crate::config::Rule;

/// What the prefixes down to here say: rules that name one of them, and rules that except one of them.
#[derive(Clone, Copy)]
struct Node {
    named: RuleSet,
    excepted: RuleSet,
}

/// Both families' roots: `0.0.0.0/0` and `::/0` are separate trees, so that `::/0` means IPv6 only.
pub(super) fn roots() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ]
}

/// Compiles one dimension; `of` gives a rule's prefixes and exceptions, no prefix meaning any address.
pub(super) fn compile<'a>(
    rules: &'a [Rule],
    of: impl Fn(&'a Rule) -> (&'a [IpNet], &'a [IpNet]),
    sets: &mut Sets,
) -> BTreeMap<IpNet, SetId> {
    let empty = Node { named: RuleSet::EMPTY, excepted: RuleSet::EMPTY };
    // Ordered so that a prefix comes after those that contain it.
    let mut nodes: BTreeMap<IpNet, Node> = roots().map(|root| (root, empty)).into();
    for (rule, (named, excepted)) in rules.iter().map(of).enumerate() {
        let rule = rule as RuleIndex;
        let any = roots();
        for prefix in if named.is_empty() { &any } else { named } {
            nodes.entry(prefix.trunc()).or_insert(empty).named.insert(rule);
        }
        for prefix in excepted {
            nodes.entry(prefix.trunc()).or_insert(empty).excepted.insert(rule);
        }
    }
    let mut path: Vec<(IpNet, Node)> = Vec::new();
    let mut compiled = BTreeMap::new();
    for (prefix, mut node) in nodes {
        while path.last().is_some_and(|(above, _)| !above.contains(&prefix)) {
            path.pop();
        }
        if let Some((_, above)) = path.last() {
            node.named.extend(&above.named);
            node.excepted.extend(&above.excepted);
        }
        compiled.insert(prefix, sets.intern(node.named.without(&node.excepted)));
        path.push((prefix, node));
    }
    compiled
}

/// What an LPM trie would find.
pub(super) fn longest_match(table: &BTreeMap<IpNet, SetId>, addr: IpAddr) -> Option<SetId> {
    let longest = IpNet::from(addr).prefix_len();
    (0..=longest).rev().find_map(|len| table.get(&IpNet::new(addr, len).ok()?.trunc()).copied())
}
