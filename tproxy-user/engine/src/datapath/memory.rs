//! What the datapath remembers of UDP flows, for the workers whose listeners receive them.

use aya::maps::{HashMap, MapData};
use tproxy_common::{
    abi::{CARRY, FRAGMENTABLE, HEARD, Memory, WHOLE, map},
    flow::Tuple,
    packet::Fragmenting,
};

use super::{Datapath, DatapathError, tuple};
use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    udp::{self, Selected},
};

/// A worker's own handle to the memory.
pub struct MemoryMap(pub(super) HashMap<MapData, Tuple, Memory>);

impl Datapath {
    /// A further handle.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn memory(&self) -> Result<MemoryMap, DatapathError> {
        self.share(map::MEMORY).map(MemoryMap)
    }
}

impl udp::Memory for MemoryMap {
    fn selected(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Selected> {
        match self.0.get(&tuple(client, dst), 0).ok()? {
            // From there on are those that no worker has.
            Memory { worker: HEARD.., .. } => None,
            Memory { rule: CARRY, .. } => Some(Selected::Carry),
            Memory { rule, origin, fragmenting, .. } => {
                let fragmenting = match fragmenting {
                    FRAGMENTABLE => Some(Fragmenting::Allowed),
                    WHOLE => Some(Fragmenting::Forbidden),
                    _ => None,
                };
                Some(Selected::By(RuleNumber(rule), origin, fragmenting))
            }
        }
    }

    fn forget(&mut self, client: ClientAddr, dst: OriginalDst) {
        // Evicted already is as good as removed.
        let _ = self.0.remove(&tuple(client, dst));
    }
}
