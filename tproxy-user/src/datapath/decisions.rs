//! What the datapath decided about a flow, for the worker that accepts its connection.

use aya::maps::{HashMap, MapData};
use tproxy_common::{
    abi::{Decision, map},
    flow::Tuple,
};

use super::{Datapath, DatapathError, tuple};
use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    tcp::Decisions,
};

/// A worker's own handle to the decisions.
pub struct DecisionMap(pub(super) HashMap<MapData, Tuple, Decision>);

impl Datapath {
    /// A further handle.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn decisions(&self) -> Result<DecisionMap, DatapathError> {
        self.share(map::DECISIONS).map(DecisionMap)
    }
}

impl Decisions for DecisionMap {
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<RuleNumber> {
        let tuple = tuple(client, dst);
        let decision = self.0.get(&tuple, 0).ok()?;
        // Already evicted is as good as removed.
        let _ = self.0.remove(&tuple);
        Some(RuleNumber(decision.rule))
    }
}
