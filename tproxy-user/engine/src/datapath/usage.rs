//! How full the maps are.

use std::collections::BTreeMap;

use aya::{Ebpf, Pod, maps::Map};
use tproxy_common::{
    abi::{Decision, FragmentKey, Memory, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, in_map};

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUse {
    /// Its name in the object.
    pub name: &'static str,
    /// How many it holds.
    pub entries: u64,
    /// How many it can hold.
    pub capacity: u64,
}

/// How many entries the maps can hold that entries come to and go from, by name.
pub(super) type Capacities = BTreeMap<String, u64>;

pub(super) fn capacities(ebpf: &Ebpf) -> Result<Capacities, DatapathError> {
    let mut capacities = Capacities::new();
    for (name, map) in ebpf.maps() {
        if let Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) = map {
            let info = data.info().map_err(in_map("with dynamic entries"))?;
            capacities.insert(name.to_owned(), info.max_entries().into());
        }
    }
    Ok(capacities)
}

impl Datapath {
    /// How full the maps are whose entries come and go. Of those that the programs fill the entries are counted one by
    /// one, a system call each.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn map_use(&self) -> Result<Vec<MapUse>, DatapathError> {
        let filled = [
            (map::DECISIONS, self.count::<Tuple, Decision>(map::DECISIONS)?),
            (map::MEMORY, self.count::<Tuple, Memory>(map::MEMORY)?),
            (map::FRAGMENTS, self.count::<FragmentKey, u32>(map::FRAGMENTS)?),
        ];
        let used = |(name, entries)| MapUse { name, entries, capacity: self.capacity(name) };
        Ok(filled.into_iter().chain(self.tables.entries()).map(used).collect())
    }

    /// Entries of a map that others change at the same time: the kernel begins anew when the last one it named is gone.
    fn count<K: Pod, V: Pod>(&self, name: &'static str) -> Result<u64, DatapathError> {
        let map = self.share::<K, V>(name)?;
        Ok(map.keys().take(self.capacity(name) as usize).map_while(Result::ok).count() as u64)
    }

    fn capacity(&self, name: &str) -> u64 {
        self.capacities.get(name).copied().unwrap_or_default()
    }
}
