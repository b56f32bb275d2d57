//! What a rule is to the datapath: a bit in a set for each dimension, and a kind of action.

use core::hint::black_box;

/// Most rules one instance can hold: 64 words of 64 bits.
pub const MAX_RULES: usize = 4096;
const WORDS: usize = MAX_RULES / 64;

/// Which traffic a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scope {
    /// Packets that arrive on a named interface for an address that is not the host's.
    Forwarded = 0,
    /// Packets that this host's own processes send.
    Outbound = 1,
    /// Connections to the host's own addresses, before the application's listener sees them.
    Inbound = 2,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forwarded, Self::Outbound, Self::Inbound];
}

/// What the datapath does with a flow that a rule selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ActionKind {
    /// Leave it alone.
    Pass = 0,
    /// Deliver it to a listener.
    Steer = 1,
    /// Answer with RST or ICMP port unreachable.
    Reject = 2,
    /// Discard it.
    Drop = 3,
    /// As `Steer`; of TCP, after the upstream is connected, unless the destination was reached lately.
    SteerReached = 4,
    /// As `Steer`; of TCP, after the upstream is connected.
    SteerConnected = 5,
}

impl ActionKind {
    /// Of the byte in a map; anything unknown passes.
    #[inline(always)]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Steer,
            2 => Self::Reject,
            3 => Self::Drop,
            4 => Self::SteerReached,
            5 => Self::SteerConnected,
            _ => Self::Pass,
        }
    }
}

/// Position of a rule in the order the user wrote; the lowest that matches wins.
pub type RuleIndex = u32;

/// Index of a [`RuleSet`] in the table of sets.
pub type SetId = u32;

/// A set of rules as an aggregated bit vector (Baboescu and Varghese, SIGCOMM 2001): bit `i` of `summary` is set
/// when word `i` is not zero, so that an intersection visits only words that can contribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RuleSet {
    summary: u64,
    words: [u64; WORDS],
}

impl RuleSet {
    /// No rule.
    pub const EMPTY: Self = Self { summary: 0, words: [0; WORDS] };

    /// Adds `rule`; one past [`MAX_RULES`] is not a rule and is left out.
    pub const fn insert(&mut self, rule: RuleIndex) {
        let word = rule as usize / 64;
        if word < WORDS {
            self.words[word] |= 1 << (rule % 64);
            self.summary |= 1 << word;
        }
    }

    /// Adds all rules of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (word, others) in self.words.iter_mut().zip(other.words) {
            *word |= others;
        }
        self.summary |= other.summary;
    }

    /// This set without the rules of `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::EMPTY;
        for (index, (word, others)) in self.words.iter().zip(other.words).enumerate() {
            rest.words[index] = word & !others;
            rest.summary |= u64::from(rest.words[index] != 0) << index;
        }
        rest
    }

    /// Whether `rule` is in the set.
    #[must_use]
    pub fn contains(&self, rule: RuleIndex) -> bool {
        // Opaque, so that the bound is checked where the compiler knows it, too: the verifier of Linux 6.1 does not.
        let word = black_box(rule as usize / 64);
        self.words.get(word).is_some_and(|word| word & (1 << (rule % 64)) != 0)
    }
}

/// The lowest rule that is in all of `sets`, looking at no more words than their summaries have in common.
#[inline(always)]
#[must_use]
pub fn first_common<const N: usize>(sets: &[&RuleSet; N]) -> Option<RuleIndex> {
    let mut candidates = u64::MAX;
    for set in sets {
        candidates &= set.summary;
    }
    // The count is a bound the verifier can see; the loop leaves as soon as no candidate word is left.
    for _ in 0..WORDS {
        if candidates == 0 {
            return None;
        }
        // The compiler knows that this is below 64 and would drop the mask; the verifier does not, and needs it.
        let word = black_box(candidates.trailing_zeros()) as usize & (WORDS - 1);
        let mut common = u64::MAX;
        for set in sets {
            common &= set.words[word];
        }
        if common != 0 {
            return Some(word as u32 * 64 + common.trailing_zeros());
        }
        candidates &= candidates - 1;
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn set(rules: &BTreeSet<u32>) -> RuleSet {
        let mut set = RuleSet::EMPTY;
        rules.iter().for_each(|rule| set.insert(*rule));
        set
    }

    proptest! {
        #[test]
        fn first_common_is_the_least_of_the_intersection(
            sets in prop::collection::vec(prop::collection::btree_set(0..MAX_RULES as u32, 0..200), 3)
        ) {
            let expected = sets[0].iter().find(|r| sets[1].contains(r) && sets[2].contains(r)).copied();
            let vectors: Vec<_> = sets.iter().map(set).collect();
            prop_assert_eq!(first_common(&[&vectors[0], &vectors[1], &vectors[2]]), expected);
        }

        #[test]
        fn a_set_contains_what_was_inserted(rules in prop::collection::btree_set(0..MAX_RULES as u32, 0..50), probe in 0..MAX_RULES as u32) {
            prop_assert_eq!(set(&rules).contains(probe), rules.contains(&probe));
        }
    }

    proptest! {
        #[test]
        fn union_and_difference(a in prop::collection::btree_set(0..MAX_RULES as u32, 0..80), b in prop::collection::btree_set(0..MAX_RULES as u32, 0..80)) {
            let mut union = set(&a);
            union.extend(&set(&b));
            prop_assert_eq!(union, set(&a.union(&b).copied().collect()));
            prop_assert_eq!(set(&a).without(&set(&b)), set(&a.difference(&b).copied().collect()));
        }
    }

    #[test]
    fn disjoint_rules_in_every_word_have_nothing_in_common() {
        let (even, odd) = (0..MAX_RULES as u32).partition(|r| r % 2 == 0);
        assert_eq!(first_common(&[&set(&even), &set(&odd)]), None);
    }
}
