//! Where workers say that they go round: the datapath gives new flows to nobody who does not.

use aya::maps::{Array, Map, MapData};
use tproxy_common::abi::map;

use super::{Datapath, DatapathError, again, decisions::now, in_map};
use crate::worker::Beat;

/// A worker's own handle.
pub struct BeatMap {
    map: Array<MapData, u64>,
    worker: u32,
}

impl Datapath {
    /// The handle of a worker.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn beat(&self, worker: u32) -> Result<BeatMap, DatapathError> {
        let Some(Map::Array(data)) = self.ebpf.map(map::BEATS) else {
            unreachable!("it is an array, and never taken")
        };
        let map = again(data).and_then(|own| Array::try_from(Map::Array(own))).map_err(in_map(map::BEATS))?;
        Ok(BeatMap { map, worker })
    }
}

impl Beat for BeatMap {
    fn beat(&mut self) {
        // It does not fail for a place that there is.
        let _ = self.map.set(self.worker, now(), 0);
    }
}
