//! As whom clients are seen by others, for when one of them sends to another as the world sees it (RFC 4787, 6: hairpinning).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use crate::flow::ClientAddr;

/// The ports that mappings of clients have at this host's addresses. A handle: all workers share them.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(Arc<RwLock<HashMap<SocketAddr, u16>>>);

impl Endpoints {
    pub(super) fn insert(&self, client: ClientAddr, port: u16) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(client.0, port);
    }

    /// Unless it has another by now.
    pub(super) fn remove(&self, client: ClientAddr, port: u16) {
        let mut ports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if ports.get(&client.0) == Some(&port) {
            ports.remove(&client.0);
        }
    }

    /// The port of a client's mapping, if whoever this is has one.
    pub(super) fn port_of(&self, client: SocketAddr) -> Option<u16> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&client).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_its_latest_mapping() {
        let (endpoints, client) = (Endpoints::default(), ClientAddr(([10, 0, 0, 1], 7).into()));
        endpoints.insert(client, 1);
        endpoints.insert(client, 2);
        endpoints.remove(client, 1);
        assert_eq!(endpoints.port_of(client.0), Some(2));
        endpoints.remove(client, 2);
        assert_eq!(endpoints.port_of(client.0), None);
    }
}
