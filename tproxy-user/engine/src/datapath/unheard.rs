//! Flows that were steered and of which no worker has heard: what was decided and not taken out since.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tproxy_common::{
    abi::{Decision, Memory, map},
    addr::Addr,
    flow::{Protocol, Tuple},
    verdict::Reason,
};

use super::{Datapath, DatapathError, decisions::since, in_map};
use crate::arrivals::Unheard;

/// Entries of each map that are looked at. There are more under a flood, and some tell as much as all.
const MOST: usize = 4096;

/// What is younger may be on its way.
const YOUNGEST: Duration = Duration::from_millis(200);

/// What is older was given up by whoever sent it.
const OLDEST: Duration = Duration::from_secs(15);

impl Datapath {
    /// First packets that were steered, since the datapath was loaded.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn steered(&self) -> Result<u64, DatapathError> {
        let per_cpu = self.counters.get(&(Reason::RuleSteer as u32), 0).map_err(in_map(map::COUNTERS))?;
        Ok(per_cpu.iter().sum())
    }

    /// Some of the flows that were steered lately, and of which no worker has heard.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn unheard(&self) -> Result<Vec<Unheard>, DatapathError> {
        let now = Instant::now();
        let late = |seen| Some(since(seen)).filter(|age| (YOUNGEST..OLDEST).contains(age));
        let is_workers = |worker| worker < self.settings.workers;
        let mut found = Vec::new();
        // Others change the maps meanwhile: what is gone by now was heard of.
        for (tuple, Decision { seen, worker, origin, .. }) in
            self.share::<Tuple, Decision>(map::DECISIONS)?.iter().take(MOST).filter_map(Result::ok)
        {
            if let Some(age) = late(seen).filter(|_| is_workers(worker)) {
                found.push(unheard(origin.ifindex, Protocol::Tcp, &tuple, now - age));
            }
        }
        for (tuple, Memory { seen, worker, origin, fragmenting, .. }) in
            self.share::<Tuple, Memory>(map::MEMORY)?.iter().take(MOST).filter_map(Result::ok)
        {
            // What tc has not seen is expected, and was not steered.
            if let Some(age) = late(seen).filter(|_| is_workers(worker) && fragmenting != 0) {
                found.push(unheard(origin.ifindex, Protocol::Udp, &tuple, now - age));
            }
        }
        Ok(found)
    }
}

fn unheard(ifindex: u32, protocol: Protocol, tuple: &Tuple, seen: Instant) -> Unheard {
    let address = |addr: Addr, port| SocketAddr::new(IpAddr::from(addr), u16::from_be_bytes(port));
    let (client, dst) = (address(tuple.src, tuple.sport), address(tuple.dst, tuple.dport));
    Unheard::of(ifindex, protocol, client, dst, seen)
}
