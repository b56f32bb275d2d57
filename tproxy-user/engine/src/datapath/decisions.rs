//! What the datapath decided about a flow, for the worker that accepts its connection.

use std::{sync::Arc, time::Duration};

use aya::maps::{HashMap, MapData};
use tproxy_common::{
    abi::{APPLICATION, Decision, Destination, FORGOTTEN, map},
    flow::{Protocol, Tuple},
};

use rustix::time::{ClockId, clock_gettime};

use super::{Datapath, DatapathError, nanoseconds, tuple};
use crate::{
    arrivals::Arrivals,
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    latency::Latency,
    tcp::{Decided, Decisions, Syn},
};

/// A worker's own handle to the decisions.
pub struct DecisionMap {
    pub(super) map: HashMap<MapData, Tuple, Decision>,
    held: HashMap<MapData, Tuple, u64>,
    reached: HashMap<MapData, Destination, u64>,
    accept_latency: Arc<Latency>,
    arrivals: Arc<Arrivals>,
}

impl Datapath {
    /// A further handle, whose user counts how long connections have waited to be accepted, and where they came from.
    ///
    /// # Errors
    /// When the map cannot be opened once more.
    pub fn decisions(
        &self,
        accept_latency: Arc<Latency>,
        arrivals: Arc<Arrivals>,
    ) -> Result<DecisionMap, DatapathError> {
        Ok(DecisionMap {
            map: self.share(map::DECISIONS)?,
            held: self.share(map::HELD)?,
            reached: self.share(map::REACHED)?,
            accept_latency,
            arrivals,
        })
    }
}

impl Decisions for DecisionMap {
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Decided> {
        let tuple = tuple(client, dst);
        let decision = self.map.get(&tuple, 0).ok()?;
        // Already evicted is as good as removed.
        let _ = self.map.remove(&tuple);
        if decision.rule == FORGOTTEN {
            return None;
        }
        if decision.worker != APPLICATION {
            self.accept_latency.observe(since(decision.seen));
            self.arrivals.note(decision.origin.ifindex, dst.0.ip(), Protocol::Tcp);
        }
        Some(Decided { rule: RuleNumber(decision.rule), origin: decision.origin })
    }

    fn admit(&mut self, syn: &Syn) {
        self.note(syn, syn.worker);
    }

    fn leave_alone(&mut self, syn: &Syn) {
        self.note(syn, APPLICATION);
    }

    fn release(&mut self, client: ClientAddr, dst: OriginalDst) {
        // Already evicted is as good as removed.
        let _ = self.held.remove(&tuple(client, dst));
    }

    fn reached(&mut self, dst: OriginalDst, lasting: Duration) {
        // Without it the next connection is accepted a little later.
        let _ = self.reached.insert(destination(dst), now() + nanoseconds(lasting), 0);
    }

    fn unreached(&mut self, dst: OriginalDst) {
        let _ = self.reached.remove(&destination(dst));
    }
}

impl DecisionMap {
    fn note(&mut self, syn: &Syn, worker: u32) {
        let Syn { rule: RuleNumber(rule), origin, .. } = *syn;
        let decision = Decision { seen: now(), rule, worker, origin };
        // It fails only when the map has no memory left; the connection is then refused.
        let _ = self.map.insert(tuple(syn.client, syn.dst), decision, 0);
    }
}

fn destination(OriginalDst(dst): OriginalDst) -> Destination {
    let [high, low] = dst.port().to_be_bytes();
    Destination { addr: dst.ip().into(), port: [high, low, 0, 0] }
}

/// Since a time of `bpf_ktime_get_ns()`.
pub(super) fn since(seen: u64) -> Duration {
    Duration::from_nanos(now().saturating_sub(seen))
}

/// As `bpf_ktime_get_ns()` has it.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // It does not run backwards, and begins at zero.
    nanoseconds(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}
