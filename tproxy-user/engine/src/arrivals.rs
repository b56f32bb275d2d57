//! What workers have heard of, by where it came from: whether first packets that were steered arrive.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tproxy_common::flow::Protocol;

use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::FlowProtocol,
};

/// Where flows come from, as far as it matters to what may lose steered packets before they arrive at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entrance {
    /// The interface that they come in by; 0 for what this host's own processes send.
    pub ifindex: u32,
    /// Theirs.
    pub family: Family,
    /// Theirs.
    pub protocol: Protocol,
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", FlowProtocol::from(self.protocol).name(), self.family)
    }
}

/// How many flows a worker has heard of.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<BTreeMap<Entrance, u64>>);

impl Arrivals {
    /// One more.
    pub(crate) fn note(&self, ifindex: u32, to: IpAddr, protocol: Protocol) {
        let entrance = Entrance { ifindex, family: Family::of(to), protocol };
        *self.counts().entry(entrance).or_default() += 1;
    }

    /// Through an entrance, since the beginning.
    pub(crate) fn through(&self, entrance: &Entrance) -> u64 {
        self.counts().get(entrance).copied().unwrap_or_default()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<Entrance, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flow whose first packet was steered, and of which no worker has heard yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unheard {
    /// Where it comes from.
    pub entrance: Entrance,
    /// Who began it.
    pub client: ClientAddr,
    /// Where it was going.
    pub dst: OriginalDst,
    /// When its last packet was seen that was steered.
    pub seen: Instant,
}

impl Unheard {
    pub(crate) fn of(
        ifindex: u32,
        protocol: Protocol,
        client: SocketAddr,
        dst: SocketAddr,
        seen: Instant,
    ) -> Self {
        let entrance = Entrance { ifindex, family: Family::of(dst.ip()), protocol };
        Self { entrance, client: ClientAddr(client), dst: OriginalDst(dst), seen }
    }
}
