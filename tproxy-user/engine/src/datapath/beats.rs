//! Where workers say that they go round: the datapath gives new flows to nobody who does not.

use std::os::fd::AsFd as _;

use aya::maps::{Array, Map, MapData, MapError};
use tproxy_common::abi::map;

use super::{Datapath, DatapathError, decisions::now, in_map};
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
        let open = || {
            let own = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
            Array::try_from(Map::Array(MapData::from_fd(own)?))
        };
        Ok(BeatMap { map: open().map_err(in_map(map::BEATS))?, worker })
    }
}

impl Beat for BeatMap {
    fn beat(&mut self) {
        // It does not fail for a place that there is.
        let _ = self.map.set(self.worker, now(), 0);
    }
}
