//! What the datapath decided about a flow, for the worker that accepts its connection.

use std::{sync::Arc, time::Duration};

use aya::maps::{HashMap, MapData};
use tproxy_common::{
    abi::{APPLICATION, Decision, map},
    flow::Tuple,
};

use rustix::time::{ClockId, clock_gettime};

use super::{Datapath, DatapathError, tuple};
use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    latency::Latency,
    tcp::Decisions,
};

/// A worker's own handle to the decisions.
pub struct DecisionMap {
    pub(super) map: HashMap<MapData, Tuple, Decision>,
    accept_latency: Arc<Latency>,
}

impl Datapath {
    /// A further handle, whose user counts how long connections have waited to be accepted.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn decisions(&self, accept_latency: Arc<Latency>) -> Result<DecisionMap, DatapathError> {
        Ok(DecisionMap { map: self.share(map::DECISIONS)?, accept_latency })
    }
}

impl Decisions for DecisionMap {
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<RuleNumber> {
        let tuple = tuple(client, dst);
        let decision = self.map.get(&tuple, 0).ok()?;
        // Already evicted is as good as removed.
        let _ = self.map.remove(&tuple);
        if decision.worker != APPLICATION {
            self.accept_latency.observe(since(decision.seen));
        }
        Some(RuleNumber(decision.rule))
    }
}

/// Since a time of `bpf_ktime_get_ns()`.
fn since(nanoseconds: u64) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // It does not run backwards, and begins at zero.
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    now.saturating_sub(Duration::from_nanos(nanoseconds))
}
