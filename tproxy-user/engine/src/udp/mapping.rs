//! Upstream sockets that the sessions of one client endpoint share, so that every peer sees the same endpoint of ours
//! (endpoint-independent mapping, RFC 4787, 4.1).

use std::{collections::HashMap, net::IpAddr};

use slab::Slab;
use tproxy_common::abi::Origin;

use super::{Endpoints, session::Outlet};
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
    pub(super) outlet: Outlet,
    /// What its first session was decided by.
    pub(super) decided: (RuleNumber, Origin),
    /// Where that leads.
    pub(super) peer: OriginalDst,
    sessions: usize,
    /// The port of this host's that the client is known to be seen with; none where it is seen with an address of its own.
    port: Option<u16>,
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

    pub(super) fn get(&self, index: u32) -> Option<&Mapping> {
        self.mappings.get(index as usize)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Mapping> {
        self.mappings.get_mut(index as usize)
    }

    pub(super) fn find(&self, sharing: &Sharing) -> Option<u32> {
        self.by_sharing.get(sharing).copied()
    }

    /// One session more uses it.
    pub(super) fn share(&mut self, index: u32) {
        self.mappings[index as usize].sessions += 1;
    }

    /// A new one, which one session uses.
    pub(super) fn insert(
        &mut self,
        sharing: Sharing,
        outlet: Outlet,
        decided: (RuleNumber, Origin),
        peer: OriginalDst,
    ) -> u32 {
        let mapping = Mapping { sharing, outlet, decided, peer, sessions: 1, port: None };
        let index = self.mappings.insert(mapping) as u32;
        self.by_sharing.insert(sharing, index);
        self.make_known(index);
        index
    }

    /// As it is seen now, with whatever address and port.
    pub(super) fn make_known(&mut self, index: u32) {
        let Mapping { sharing, outlet, port, .. } = &mut self.mappings[index as usize];
        if let Some(former) = port.take() {
            self.endpoints.remove(sharing.client, former);
        }
        *port = outlet.local.map(|local| local.port()).filter(|_| sharing.source == Source::Host);
        if let Some(port) = *port {
            self.endpoints.insert(sharing.client, port);
        }
    }

    /// One session fewer uses it; the last one takes it along, which is said.
    pub(super) fn release(&mut self, index: u32) -> bool {
        let mapping = &mut self.mappings[index as usize];
        mapping.sessions -= 1;
        if mapping.sessions > 0 {
            return false;
        }
        let mapping = self.mappings.remove(index as usize);
        if let Some(port) = mapping.port {
            self.endpoints.remove(mapping.sharing.client, port);
        }
        self.by_sharing.remove(&mapping.sharing);
        true
    }
}
