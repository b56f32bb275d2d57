//! The port dimension: for each port that any rule names, the set of rules that it satisfies.

use std::{collections::BTreeMap, ops::RangeInclusive};

use tproxy_common::{
    abi::Unrestricted,
    rule::{RuleIndex, RuleSet, SetId},
};

use super::Sets;
use crate::config::{Listed, Rule};

const PORTS: usize = 1 << 16;

/// Walks the ports once, and takes rules in and out where their ranges begin and end.
pub(super) fn compile(rules: &[Rule], sets: &mut Sets) -> BTreeMap<u16, SetId> {
    let unrestricted = Unrestricted::Port as SetId;
    let mut turns: Vec<Vec<RuleIndex>> = vec![Vec::new(); PORTS + 1];
    for (index, rule) in (0..).zip(rules) {
        for range in disjoint(&rule.selector.ports) {
            turns[usize::from(*range.start())].push(index);
            turns[usize::from(*range.end()) + 1].push(index);
        }
    }
    let mut compiled = BTreeMap::new();
    let mut satisfied = *sets.get(unrestricted);
    let mut id = unrestricted;
    for (port, turning) in (0..=u16::MAX).zip(&turns) {
        for rule in turning {
            let mut one = RuleSet::EMPTY;
            one.insert(*rule);
            if satisfied.contains(*rule) {
                satisfied = satisfied.without(&one);
            } else {
                satisfied.extend(&one);
            }
        }
        if !turning.is_empty() {
            id = if satisfied == *sets.get(unrestricted) { unrestricted } else { sets.intern(satisfied) };
        }
        if id != unrestricted {
            compiled.insert(port, id);
        }
    }
    compiled
}

/// The same ports in ranges of which no two touch.
fn disjoint(ports: &Listed<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<_> = ports.iter().cloned().collect();
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut disjoint: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match disjoint.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => disjoint.push(range),
        }
    }
    disjoint
}
