//! Distinct rule sets and their ids.

use std::collections::HashMap;

use tproxy_common::{
    abi::FIRST_FREE_SET,
    rule::{RuleSet, SetId},
};

/// Hands out one id for each distinct set, so that a hundred thousand prefixes of one rule share one.
#[derive(Debug)]
pub struct Sets {
    sets: Vec<RuleSet>,
    ids: HashMap<RuleSet, SetId>,
}

impl Sets {
    /// Holds the sets of fixed ids, empty.
    pub(super) fn new() -> Self {
        Self { sets: vec![RuleSet::EMPTY; FIRST_FREE_SET as usize], ids: HashMap::new() }
    }

    /// Gives a set of a fixed id its content.
    pub(super) fn fix(&mut self, id: SetId, set: RuleSet) {
        self.sets[id as usize] = set;
    }

    pub(super) fn get(&self, id: SetId) -> &RuleSet {
        &self.sets[id as usize]
    }

    pub(super) fn intern(&mut self, set: RuleSet) -> SetId {
        *self.ids.entry(set).or_insert_with(|| {
            self.sets.push(set);
            self.sets.len() as SetId - 1
        })
    }

    pub(super) fn into_vec(self) -> Vec<RuleSet> {
        self.sets
    }
}
