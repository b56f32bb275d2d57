//! How full the maps are.

use std::{collections::BTreeMap, fmt, sync::Arc};

use aya::{Ebpf, Pod, maps::Map};
use tproxy_common::{
    abi::{Decision, FragmentKey, Memory, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, in_map, share};

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

/// How full the maps are, to be found out away from whoever has other things to do: where the programs fill a map, its
/// entries are counted one by one, a system call each.
#[derive(Default)]
pub struct Filling {
    known: Vec<MapUse>,
    to_count: Vec<(MapUse, Counting)>,
}

/// Counts the entries of a map, so many at most.
type Counting = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

/// The maps whose entries are to be counted, by name. They are opened once: whoever asks is answered where flows have all
/// descriptors, too.
pub(super) type Counted = [(&'static str, Counting); 4];

pub(super) fn counted(ebpf: &Ebpf) -> Result<Counted, DatapathError> {
    Ok([
        (map::DECISIONS, counting::<Tuple, Decision>(ebpf, map::DECISIONS)?),
        (map::MEMORY, counting::<Tuple, Memory>(ebpf, map::MEMORY)?),
        (map::HOST_FLOWS, counting::<Tuple, Memory>(ebpf, map::HOST_FLOWS)?),
        (map::FRAGMENTS, counting::<FragmentKey, u32>(ebpf, map::FRAGMENTS)?),
    ])
}

/// Others change the map at the same time: the kernel begins anew when the last one it named is gone.
fn counting<K: Pod + Send + Sync + 'static, V: Pod + Send + Sync + 'static>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<Counting, DatapathError> {
    let map = share::<K, V>(ebpf, name)?;
    Ok(Arc::new(move |most| map.keys().take(most as usize).map_while(Result::ok).count() as u64))
}

impl Filling {
    /// Counts what is to be counted.
    #[must_use]
    pub fn count(self) -> Vec<MapUse> {
        let counted =
            self.to_count.into_iter().map(|(map, count)| MapUse { entries: count(map.capacity), ..map });
        counted.chain(self.known).collect()
    }
}

impl From<Vec<MapUse>> for Filling {
    fn from(known: Vec<MapUse>) -> Self {
        Self { known, ..Self::default() }
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Datapath {
    /// How full the maps are whose entries come and go.
    #[must_use]
    pub fn filling(&self) -> Filling {
        let entries = |(name, entries)| MapUse { name, entries, capacity: self.capacity(name) };
        Filling {
            known: self.tables.entries().map(entries).into(),
            to_count: self.counted.clone().map(|(name, count)| (entries((name, 0)), count)).into(),
        }
    }

    pub(super) fn capacity(&self, name: &str) -> u64 {
        self.capacities.get(name).copied().unwrap_or_default()
    }
}
