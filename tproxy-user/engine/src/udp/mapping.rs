//! Upstream sockets that the sessions of one client endpoint share, so that every peer sees the same endpoint of ours
//! (endpoint-independent mapping, RFC 4787, 4.1).

use std::collections::HashMap;

use slab::Slab;

use super::session::UpstreamSocket;
use crate::{config::Source, flow::ClientAddr, socket::Egress};

/// Which sessions share a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sharing {
    pub(super) client: ClientAddr,
    /// Different rules may want different sources.
    pub(super) source: Source,
    /// By different ways, peers see different endpoints anyhow.
    pub(super) egress: Egress,
}

/// A socket, not connected, and how many sessions use it.
pub(super) struct Mapping {
    pub(super) sharing: Sharing,
    pub(super) socket: UpstreamSocket,
    sessions: usize,
}

/// The mappings of a worker.
#[derive(Default)]
pub(super) struct Mappings {
    mappings: Slab<Mapping>,
    by_sharing: HashMap<Sharing, u32>,
}

impl Mappings {
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
    pub(super) fn insert(&mut self, sharing: Sharing, socket: UpstreamSocket) -> u32 {
        let index = self.mappings.insert(Mapping { sharing, socket, sessions: 1 }) as u32;
        self.by_sharing.insert(sharing, index);
        index
    }

    /// One session fewer uses it; the last one takes it along.
    pub(super) fn release(&mut self, index: u32) {
        let mapping = &mut self.mappings[index as usize];
        mapping.sessions -= 1;
        if mapping.sessions == 0 {
            let mapping = self.mappings.remove(index as usize);
            self.by_sharing.remove(&mapping.sharing);
        }
    }
}
