//! Prefix dimensions: at each prefix that any rule names, the set of rules that an address satisfies for which this
//! is the longest match.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_common::rule::{RuleIndex, RuleSet, SetId};

use super::Sets;
use crate::config::{Listed, NamedSet, Rule, Selector};

/// What a list of prefixes says, or all that contain a prefix together: rules that name it, and rules that except it.
#[derive(Clone, Copy)]
struct Saying {
    named: RuleSet,
    excepted: RuleSet,
}

impl Saying {
    const NOTHING: Self = Self { named: RuleSet::EMPTY, excepted: RuleSet::EMPTY };

    fn side(&mut self, side: Naming) -> &mut RuleSet {
        match side {
            Naming::Named => &mut self.named,
            Naming::Excepted => &mut self.excepted,
        }
    }
}

#[derive(Clone, Copy)]
enum Naming {
    Named,
    Excepted,
}

/// The distinct lists of prefixes. A set is one list, however many rules share it.
struct Lists<'a> {
    lists: Vec<(&'a [IpNet], Saying)>,
    sets: HashMap<*const NamedSet<IpNet>, usize>,
}

impl<'a> Lists<'a> {
    fn add(&mut self, rule: RuleIndex, side: Naming, listed: &'a Listed<IpNet>) {
        let mut saying = Saying::NOTHING;
        saying.side(side).insert(rule);
        self.lists.push((&listed.own, saying));
        for set in &listed.sets {
            let list = *self.sets.entry(ptr::from_ref(&**set)).or_insert_with(|| {
                self.lists.push((&set.members, Saying::NOTHING));
                self.lists.len() - 1
            });
            self.lists[list].1.side(side).insert(rule);
        }
    }

    /// Every prefix with the list that it is in; a prefix comes after those that contain it.
    fn prefixes(&self) -> Vec<(IpNet, usize)> {
        let with_list = |(list, (prefixes, _)): (usize, &(&[IpNet], Saying))| {
            prefixes.iter().map(move |prefix| (prefix.trunc(), list)).collect::<Vec<_>>()
        };
        let mut prefixes: Vec<_> = self.lists.iter().enumerate().flat_map(with_list).collect();
        prefixes.sort_unstable();
        prefixes
    }
}

/// Both families' roots: `0.0.0.0/0` and `::/0` are separate trees, so that `::/0` means IPv6 only.
pub(crate) fn roots() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ]
}

/// What belongs to one link. As a destination only hosts of it can be selected, each by a rule that names it: a rule for
/// everything, or for the whole link, is not meant for neighbour to neighbour.
fn links() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into(),
    ]
}

/// Whether a rule selects packets to `prefix` because it, or one that contains it, is named.
pub(crate) fn is_nameable(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len() || !links().iter().any(|link| link.contains(prefix))
}

/// Compiles one dimension; `of` gives a rule's prefixes and exceptions, no prefix meaning any address. Only
/// destinations have exceptions.
pub(super) fn compile<'a>(
    rules: &'a [Rule],
    of: impl Fn(&'a Selector) -> (&'a Listed<IpNet>, Option<&'a Listed<IpNet>>),
    sets: &mut Sets,
) -> BTreeMap<IpNet, SetId> {
    let (roots, links) = (roots(), links());
    let mut lists = Lists { lists: vec![(&roots, Saying::NOTHING)], sets: HashMap::new() };
    for (rule, (named, excepted)) in (0..).zip(rules.iter().map(|rule| of(&rule.selector))) {
        if named.is_any() {
            lists.lists[0].1.named.insert(rule);
        } else {
            lists.add(rule, Naming::Named, named);
        }
        if let Some(excepted) = excepted {
            lists.add(rule, Naming::Excepted, excepted);
        }
    }
    let are_destinations = rules.first().is_some_and(|rule| of(&rule.selector).1.is_some());
    if are_destinations {
        lists.lists.push((&links, Saying::NOTHING));
    }
    let mut path: Vec<(IpNet, Saying)> = Vec::new();
    let mut compiled = BTreeMap::new();
    for same in lists.prefixes().chunk_by(|(one, _), (other, _)| one == other) {
        let prefix = same[0].0;
        while path.last().is_some_and(|(above, _)| !above.contains(&prefix)) {
            path.pop();
        }
        let mut saying = path.last().map_or(Saying::NOTHING, |(_, above)| *above);
        let is_of_a_link = are_destinations && links.iter().any(|link| link.contains(&prefix));
        if is_of_a_link {
            saying.named = RuleSet::EMPTY;
        }
        for (_, list) in same {
            if !is_of_a_link || is_nameable(&prefix) {
                saying.named.extend(&lists.lists[*list].1.named);
            }
            saying.excepted.extend(&lists.lists[*list].1.excepted);
        }
        compiled.insert(prefix, sets.intern(saying.named.without(&saying.excepted)));
        path.push((prefix, saying));
    }
    compiled
}

/// What an LPM trie would find.
pub(super) fn longest_match(table: &BTreeMap<IpNet, SetId>, addr: IpAddr) -> Option<SetId> {
    let longest = IpNet::from(addr).prefix_len();
    (0..=longest).rev().find_map(|len| table.get(&IpNet::new(addr, len).ok()?.trunc()).copied())
}
