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
use crate::config::{Listed, NamedSet, Rule};

/// What a list of prefixes says, or all that contain a prefix together: rules that name it, and rules that except it.
#[derive(Clone, Copy)]
struct Saying {
    named: RuleSet,
    excepted: RuleSet,
}

impl Saying {
    const NOTHING: Self = Self { named: RuleSet::EMPTY, excepted: RuleSet::EMPTY };

    fn side(&mut self, side: Side) -> &mut RuleSet {
        match side {
            Side::Named => &mut self.named,
            Side::Excepted => &mut self.excepted,
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Named,
    Excepted,
}

/// The distinct lists of prefixes. A set is one list, however many rules share it.
struct Lists<'a> {
    lists: Vec<(&'a [IpNet], Saying)>,
    sets: HashMap<*const NamedSet<IpNet>, usize>,
}

impl<'a> Lists<'a> {
    fn add(&mut self, rule: RuleIndex, side: Side, listed: &'a Listed<IpNet>) {
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
pub(super) fn roots() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ]
}

/// Compiles one dimension; `of` gives a rule's prefixes and exceptions, no prefix meaning any address.
pub(super) fn compile<'a>(
    rules: &'a [Rule],
    of: impl Fn(&'a Rule) -> (&'a Listed<IpNet>, Option<&'a Listed<IpNet>>),
    sets: &mut Sets,
) -> BTreeMap<IpNet, SetId> {
    let roots = roots();
    let mut lists = Lists { lists: vec![(&roots, Saying::NOTHING)], sets: HashMap::new() };
    for (rule, (named, excepted)) in (0..).zip(rules.iter().map(of)) {
        if named.is_any() {
            lists.lists[0].1.named.insert(rule);
        } else {
            lists.add(rule, Side::Named, named);
        }
        if let Some(excepted) = excepted {
            lists.add(rule, Side::Excepted, excepted);
        }
    }
    let mut path: Vec<(IpNet, Saying)> = Vec::new();
    let mut compiled = BTreeMap::new();
    for same in lists.prefixes().chunk_by(|(one, _), (other, _)| one == other) {
        let prefix = same[0].0;
        while path.last().is_some_and(|(above, _)| !above.contains(&prefix)) {
            path.pop();
        }
        let mut saying = path.last().map_or(Saying::NOTHING, |(_, above)| *above);
        for (_, list) in same {
            saying.named.extend(&lists.lists[*list].1.named);
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
