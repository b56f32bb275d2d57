//! What the datapath decided about a flow, for the worker that accepts its connection.

use std::os::fd::AsFd as _;

use aya::maps::{HashMap, Map, MapData, MapError};
use tproxy_common::{
    abi::{Decision, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, in_map};
use crate::{
    flow::{ClientAddr, OriginalDst},
    tcp::Decisions,
    worker::RuleIndex,
};

/// A worker's own handle to the decisions.
pub struct DecisionMap(pub(super) HashMap<MapData, Tuple, Decision>);

impl Datapath {
    /// A further handle.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn decisions(&self) -> Result<DecisionMap, DatapathError> {
        let shared = self.ebpf.map(map::DECISIONS).expect("the map is never taken");
        let Map::LruHashMap(data) = shared else { unreachable!("DECISIONS is an LRU hash") };
        let open = || {
            let own = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
            let own = MapData::from_fd(own)?;
            HashMap::try_from(Map::LruHashMap(own))
        };
        open().map(DecisionMap).map_err(in_map(map::DECISIONS))
    }
}

impl Decisions for DecisionMap {
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<RuleIndex> {
        let tuple = Tuple {
            src: client.0.ip().into(),
            dst: dst.0.ip().into(),
            sport: client.0.port().to_be_bytes(),
            dport: dst.0.port().to_be_bytes(),
        };
        let decision = self.0.get(&tuple, 0).ok()?;
        // Already evicted is as good as removed.
        let _ = self.0.remove(&tuple);
        Some(RuleIndex(decision.rule as usize))
    }
}
