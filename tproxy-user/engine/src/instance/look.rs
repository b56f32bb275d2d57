//! How an instance is, for whoever asks.

use std::sync::Arc;

use tproxy_common::verdict::Reason;

use super::{Health, Instance, InstanceError, Loss};
use crate::{
    datapath::{Filling, RuleHits},
    generation::KeptRule,
    host::{Direction, Identity},
    tcp, udp,
    upstreams::Pool,
};

/// An instance at one moment.
#[derive(Debug)]
pub struct Look {
    /// What is its own on the host.
    pub identity: Identity,
    /// Whether it takes no new flow any more.
    pub draining: bool,
    /// Its threads that serve flows.
    pub workers: usize,
    /// Its rules, in order.
    pub rules: Arc<[KeptRule]>,
    /// The servers that they go by.
    pub upstreams: Vec<Arc<Pool>>,
    /// Interfaces, by name, and the side of each that a program sees.
    pub hooks: Vec<(String, Direction)>,
    /// What was counted about TCP.
    pub tcp: tcp::Snapshot,
    /// What was counted about UDP.
    pub udp: udp::Snapshot,
    /// Packets by what was decided, and why.
    pub packets: Vec<(Reason, u64)>,
    /// Flows by the rule that decided them.
    pub hits: RuleHits,
    /// Which generation of the rules holds, counted from 0.
    pub generation: u32,
    /// What is missing of what the rules need.
    pub health: Health,
    /// What is steered and does not arrive.
    pub losses: Vec<Loss>,
}

impl Instance {
    /// How it is.
    ///
    /// # Errors
    /// When the datapath cannot be asked.
    #[doc(hidden)]
    pub fn look(&self) -> Result<Look, InstanceError> {
        let mark = self.config.mark;
        let generation = self.generations.latest();
        Ok(Look {
            identity: Identity { mark, table: self.config.table, priority: self.config.priority },
            draining: self.draining,
            workers: self.workers.len(),
            rules: Arc::clone(generation.rules()),
            upstreams: generation.upstreams(),
            hooks: self.datapath.attached().into_iter().map(|(link, hook)| (link.name, hook)).collect(),
            tcp: self.tcp(),
            udp: self.udp(),
            packets: self.datapath.counters()?,
            hits: self.datapath.rule_hits()?,
            generation: generation.number(),
            health: self.health().clone(),
            losses: self.losses().cloned().collect(),
        })
    }

    /// How full the datapath's maps are, to be counted elsewhere.
    #[doc(hidden)]
    #[must_use]
    pub fn maps(&self) -> Filling {
        self.datapath.filling()
    }

    pub(super) fn tcp(&self) -> tcp::Snapshot {
        self.counters.iter().map(|counters| counters.tcp.snapshot()).sum()
    }

    pub(super) fn udp(&self) -> udp::Snapshot {
        self.counters.iter().map(|counters| counters.udp.snapshot()).sum()
    }
}
