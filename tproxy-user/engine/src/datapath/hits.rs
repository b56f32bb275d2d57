//! How many flows each rule has decided. The programs count by slot and rule; a rule keeps its count, by its name, when
//! the tables are filled anew.

use std::{collections::BTreeMap, mem, sync::Arc};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
};
use tproxy_common::{
    abi::{SLOTS, action_index, map},
    rule::RuleIndex,
};

use super::{Datapath, DatapathError, in_map, take};

/// Counts by the rules' names.
pub type RuleHits = BTreeMap<Arc<str>, u64>;

pub(super) struct Hits {
    map: PerCpuArray<MapData, u64>,
    /// The rules that each slot's counters are about.
    names: [Vec<Arc<str>>; SLOTS as usize],
    /// What was counted in slots that have been filled anew since.
    before: RuleHits,
}

impl Hits {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self { map: take(ebpf, map::HITS)?, names: Default::default(), before: RuleHits::new() })
    }

    /// The slot, which no packet has been looked up in for long, is about these rules from now on.
    pub(super) fn renew(&mut self, slot: u32, names: Vec<Arc<str>>) -> Result<(), DatapathError> {
        for (rule, name) in (0..).zip(mem::replace(&mut self.names[slot as usize], names)) {
            let per_cpu = self.read(slot, rule)?;
            let hits: u64 = per_cpu.iter().sum();
            if hits > 0 {
                *self.before.entry(name).or_default() += hits;
                let zeroes = PerCpuValues::try_from(vec![0; per_cpu.len()]).expect("one for each CPU");
                self.map.set(action_index(slot, rule), zeroes, 0).map_err(in_map(map::HITS))?;
            }
        }
        Ok(())
    }

    fn read(&self, slot: u32, rule: RuleIndex) -> Result<PerCpuValues<u64>, DatapathError> {
        self.map.get(&action_index(slot, rule), 0).map_err(in_map(map::HITS))
    }
}

impl Datapath {
    /// Flows that each rule has decided since the datapath was loaded, rules that are no more included.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn rule_hits(&self) -> Result<RuleHits, DatapathError> {
        let mut hits = self.hits.before.clone();
        for (slot, names) in (0..).zip(&self.hits.names) {
            for (rule, name) in (0..).zip(names) {
                *hits.entry(Arc::clone(name)).or_default() += self.hits.read(slot, rule)?.iter().sum::<u64>();
            }
        }
        Ok(hits)
    }
}
