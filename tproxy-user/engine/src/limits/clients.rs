//! How many connections there are, and whose.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    config::ConnectionLimits,
    flow::{ClientAddr, ClientNetwork},
};

/// The connections of an instance, over all workers.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients(Arc<Mutex<ClientCounts>>);

#[derive(Debug, Default)]
struct ClientCounts {
    all: usize,
    by_network: HashMap<ClientNetwork, usize>,
}

/// A connection's place among those of its client, free again when this is dropped.
#[derive(Debug)]
pub(super) struct ClientPlace {
    clients: Clients,
    network: ClientNetwork,
}

/// Whether there is room for one more.
#[derive(Debug)]
pub(super) enum Room {
    /// There is.
    Free(ClientPlace),
    /// There is if whoever has most has one less.
    InsteadOf(ClientNetwork, ClientPlace),
    /// The client has as many as it may have, or as anybody.
    None,
}

impl Clients {
    /// Room for one more connection of a client.
    pub(super) fn room(&self, client: ClientAddr, limits: ConnectionLimits) -> Room {
        let network = client.network();
        let mut counts = self.counts();
        let own = counts.by_network.get(&network).copied().unwrap_or(0);
        if own >= limits.per_client {
            return Room::None;
        }
        let most = if counts.all < limits.total { None } else { counts.most() };
        if most.is_some_and(|(_, most)| most <= own + 1) {
            return Room::None;
        }
        counts.all += 1;
        counts.by_network.insert(network, own + 1);
        let place = ClientPlace { clients: self.clone(), network };
        match most {
            Some((other, _)) => Room::InsteadOf(other, place),
            None => Room::Free(place),
        }
    }

    fn counts(&self) -> MutexGuard<'_, ClientCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientCounts {
    fn most(&self) -> Option<(ClientNetwork, usize)> {
        self.by_network.iter().map(|(network, count)| (*network, *count)).max_by_key(|(_, count)| *count)
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut counts = self.clients.counts();
        counts.all -= 1;
        let own = counts.by_network.get_mut(&self.network).expect("it has this one");
        *own -= 1;
        if *own == 0 {
            counts.by_network.remove(&self.network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> ClientAddr {
        ClientAddr((address.parse::<std::net::IpAddr>().unwrap(), 1).into())
    }

    fn free(room: Room) -> ClientPlace {
        match room {
            Room::Free(place) => place,
            room => panic!("{room:?}"),
        }
    }

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let (clients, limits) = (Clients::default(), ConnectionLimits { total: 10, per_client: 2 });
        let places = ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|of| free(clients.room(client(of), limits)));
        assert!(matches!(clients.room(client("10.0.0.1"), limits), Room::None));
        drop(places);
        free(clients.room(client("10.0.0.1"), limits));
        assert!(clients.counts().by_network.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (clients, limits) = (Clients::default(), ConnectionLimits { total: 10, per_client: 1 });
        let _place = free(clients.room(client("2001:db8::1"), limits));
        assert!(matches!(clients.room(client("2001:db8::ffff:1"), limits), Room::None));
        free(clients.room(client("2001:db8:0:1::1"), limits));
    }

    #[test]
    fn who_has_most_makes_room_for_who_has_least() {
        let (clients, limits) = (Clients::default(), ConnectionLimits { total: 3, per_client: 3 });
        let many = client("10.0.0.1");
        let _places = [(); 3].map(|()| free(clients.room(many, limits)));
        let Room::InsteadOf(other, _place) = clients.room(client("10.0.0.2"), limits) else {
            panic!("no room")
        };
        assert_eq!(other, many.network());
        assert!(matches!(clients.room(many, limits), Room::None), "it has most itself");
    }
}
