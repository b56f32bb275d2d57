//! What the datapath remembers of UDP flows, for the worker that makes sessions of them.

use std::os::fd::AsFd as _;

use aya::maps::{HashMap, Map, MapData, MapError};
use tproxy_common::{
    abi::{APPLICATION, Memory, PASSED, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, in_map};
use crate::{
    flow::{ClientAddr, OriginalDst},
    udp::{self, Selected},
    worker::RuleIndex,
};

/// A worker's own handle to the memory.
pub struct MemoryMap(HashMap<MapData, Tuple, Memory>);

impl Datapath {
    /// A further handle.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn memory(&self) -> Result<MemoryMap, DatapathError> {
        let shared = self.ebpf.map(map::MEMORY).expect("the map is never taken");
        let Map::LruHashMap(data) = shared else { unreachable!("MEMORY is an LRU hash") };
        let open = || {
            let own = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
            HashMap::try_from(Map::LruHashMap(MapData::from_fd(own)?))
        };
        open().map(MemoryMap).map_err(in_map(map::MEMORY))
    }
}

fn tuple(client: ClientAddr, dst: OriginalDst) -> Tuple {
    Tuple {
        src: client.0.ip().into(),
        dst: dst.0.ip().into(),
        sport: client.0.port().to_be_bytes(),
        dport: dst.0.port().to_be_bytes(),
    }
}

impl udp::Memory for MemoryMap {
    fn selected(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Selected> {
        let memory = self.0.get(&tuple(client, dst), 0).ok()?;
        (!matches!(memory.worker, APPLICATION | PASSED))
            .then_some(Selected::By(RuleIndex(memory.rule as usize)))
    }

    fn forget(&mut self, client: ClientAddr, dst: OriginalDst) {
        // Already evicted is as good as removed.
        let _ = self.0.remove(&tuple(client, dst));
    }
}
