//! Upstream sockets that the sessions of one client endpoint share, so that every peer sees the same endpoint of ours
//! (endpoint-independent mapping, RFC 4787, 4.1).

use std::{collections::HashMap, net::IpAddr};

use slab::Slab;
use tproxy_common::abi::Origin;

use super::{Endpoints, session::UpstreamSocket};
use crate::{
    config::Source,
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    socket::Egress,
};

/// Which sessions share a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sharing {
    pub(super) client: ClientAddr,
    /// Different rules may want different sources.
    pub(super) source: Source,
    pub(super) own: Option<IpAddr>,
    /// By different ways, peers see different endpoints anyhow.
    pub(super) egress: Egress,
}

/// A socket, not connected, and how many sessions use it.
pub(super) struct Mapping {
    pub(super) sharing: Sharing,
    pub(super) socket: UpstreamSocket,
    /// What its first session was decided by.
    pub(super) decided: (RuleNumber, Origin),
    /// Where that leads.
    pub(super) peer: OriginalDst,
    sessions: usize,
}

impl Mapping {
    /// The port of this host's that the client is seen with; none where it is seen with an address of its own.
    fn port(&self) -> Option<u16> {
        let local = self.socket.local_addr().ok().filter(|_| self.sharing.source == Source::Host);
        local.map(|local| local.port())
    }
}

/// The mappings of a worker.
pub(super) struct Mappings {
    mappings: Slab<Mapping>,
    by_sharing: HashMap<Sharing, u32>,
    /// Of all workers.
    pub(super) endpoints: Endpoints,
}

impl Mappings {
    pub(super) fn new(endpoints: Endpoints) -> Self {
        Self { mappings: Slab::new(), by_sharing: HashMap::new(), endpoints }
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Mapping> {
        self.mappings.get_mut(index as usize)
    }

    /// The mapping that one more session uses from now on, if there is one.
    pub(super) fn share(&mut self, sharing: &Sharing) -> Option<u32> {
        let index = *self.by_sharing.get(sharing)?;
        self.mappings[index as usize].sessions += 1;
        Some(index)
    }

    /// A new one, which one session uses.
    pub(super) fn insert(
        &mut self,
        sharing: Sharing,
        socket: UpstreamSocket,
        decided: (RuleNumber, Origin),
        peer: OriginalDst,
    ) -> u32 {
        let mapping = Mapping { sharing, socket, decided, peer, sessions: 1 };
        if let Some(port) = mapping.port() {
            self.endpoints.insert(sharing.client, port);
        }
        let index = self.mappings.insert(mapping) as u32;
        self.by_sharing.insert(sharing, index);
        index
    }

    /// One session fewer uses it; the last one takes it along.
    pub(super) fn release(&mut self, index: u32) {
        let mapping = &mut self.mappings[index as usize];
        mapping.sessions -= 1;
        if mapping.sessions == 0 {
            let mapping = self.mappings.remove(index as usize);
            if let Some(port) = mapping.port() {
                self.endpoints.remove(mapping.sharing.client, port);
            }
            self.by_sharing.remove(&mapping.sharing);
        }
    }
}
