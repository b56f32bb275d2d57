//! What the datapath remembers of UDP flows, for the workers whose listeners receive them.

use std::{sync::Arc, time::Duration};

use aya::maps::{HashMap, MapData};
use rustix::time::{ClockId, clock_gettime};
use tproxy_common::{
    abi::{CARRY, FRAGMENTABLE, HEARD, Memory, Origin, WHOLE, map},
    flow::{Protocol, Tuple},
    packet::Fragmenting,
};

use super::{Datapath, DatapathError, nanoseconds, tuple};
use crate::{
    arrivals::Arrivals,
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    udp::{self, Selected},
};

/// `linux/bpf.h`
const BPF_NOEXIST: u64 = 1;

/// A worker's own handle to the memory.
pub struct MemoryMap {
    map: HashMap<MapData, Tuple, Memory>,
    worker: u32,
    arrivals: Arc<Arrivals>,
}

impl Datapath {
    /// A further handle, for this worker, which counts where flows came from.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn memory(&self, worker: u32, arrivals: Arc<Arrivals>) -> Result<MemoryMap, DatapathError> {
        Ok(MemoryMap { map: self.share(map::MEMORY)?, worker, arrivals })
    }
}

/// As `bpf_ktime_get_coarse_ns()` has it: a time that is still to come is one that is long past to the datapath.
pub(super) fn now_to_the_tick() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    // It does not run backwards, and begins at zero.
    nanoseconds(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}

impl udp::Memory for MemoryMap {
    fn selected(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Selected> {
        match self.map.get(&tuple(client, dst), 0).ok()? {
            // From there on are those that no worker has.
            Memory { worker: HEARD.., .. } => None,
            Memory { rule: CARRY, .. } => Some(Selected::Carry),
            Memory { rule, origin, fragmenting, .. } => {
                let fragmenting = match fragmenting {
                    FRAGMENTABLE => Some(Fragmenting::Allowed),
                    WHOLE => Some(Fragmenting::Forbidden),
                    _ => None,
                };
                self.arrivals.note(origin.ifindex, dst.0.ip(), Protocol::Udp);
                Some(Selected::By(RuleNumber(rule), origin, fragmenting))
            }
        }
    }

    fn expect(
        &mut self,
        client: ClientAddr,
        peer: OriginalDst,
        RuleNumber(rule): RuleNumber,
        origin: &Origin,
    ) {
        let memory = Memory {
            seen: now_to_the_tick(),
            rule,
            worker: self.worker,
            origin: *origin,
            fragmenting: 0,
            rest: 0,
        };
        // What is remembered already counts; and without memory it is asked about as any other flow.
        let _ = self.map.insert(tuple(client, peer), memory, BPF_NOEXIST);
    }

    fn forget(&mut self, client: ClientAddr, dst: OriginalDst) {
        // Evicted already is as good as removed.
        let _ = self.map.remove(&tuple(client, dst));
    }
}
