//! UDP flows of the host's own sockets, which the datapath notes where nothing evicts them: what has been silent for too long
//! is taken out here.

use std::time::Duration;

use aya::maps::{HashMap, MapData};
use tproxy_common::{
    abi::{Memory, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, memory::now_to_the_tick, nanoseconds};
use crate::worker::Upkeep;

/// A handle to them.
pub struct HostFlows {
    map: HashMap<MapData, Tuple, Memory>,
    lifetime: Duration,
    capacity: usize,
}

impl Datapath {
    /// A handle to those that are forgotten after so long a silence.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn host_flows(&self, lifetime: Duration) -> Result<HostFlows, DatapathError> {
        let capacity = self.capacity(map::HOST_FLOWS) as usize;
        Ok(HostFlows { map: self.share(map::HOST_FLOWS)?, lifetime, capacity })
    }
}

impl HostFlows {
    fn is_silent(&self, memory: &Memory) -> bool {
        now_to_the_tick().saturating_sub(memory.seen) > nanoseconds(self.lifetime)
    }

    /// Takes out the silent ones; how many are left.
    pub(crate) fn sweep(&mut self) -> usize {
        let mut noted = 0;
        // Nobody else takes any out, so that each is seen once; more may come meanwhile.
        let all = self.map.iter().map_while(Result::ok).take(self.capacity).inspect(|_| noted += 1);
        let silent: Vec<Tuple> =
            all.filter(|(_, memory)| self.is_silent(memory)).map(|(tuple, _)| tuple).collect();
        let mut left = noted;
        for tuple in silent {
            // It may have begun anew.
            if self.map.get(&tuple, 0).is_ok_and(|memory| self.is_silent(&memory))
                && self.map.remove(&tuple).is_ok()
            {
                left -= 1;
            }
        }
        left
    }
}

impl Upkeep for HostFlows {
    fn pause(&self) -> Duration {
        (self.lifetime / 2).max(Duration::from_secs(1))
    }

    fn run(&mut self) {
        let left = self.sweep();
        if left >= self.capacity && self.capacity > 1 {
            tracing::warn!(
                flows = left,
                "more UDP flows of this host's own sockets are live than are remembered for certain: replies may be taken for \
                 new flows (limits.udp_sessions makes room for as many)"
            );
        }
    }
}
