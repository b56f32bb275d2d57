//! Limits of live connections: in all, by client and by rule.

mod clients;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use clients::{ClientPlace, Clients, Room};
use tproxy_common::rule::Scope;

use crate::{
    config::{Config, ConnectionLimits, Rule},
    flow::{ClientAddr, ClientNetwork},
    generation::KeptRule,
};

/// How many connections there are, over all workers, and may be. Of a rule without a limit nothing is counted.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    rules: Arc<[Option<Arc<Limit>>]>,
    connections: ConnectionLimits,
    clients: Clients,
}

#[derive(Debug)]
struct Limit {
    most: usize,
    live: Arc<AtomicUsize>,
}

/// Why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// Its rule has as many as it may have.
    #[error("the rule has all the connections it may have (limits.connections of the rule)")]
    Rule,
    /// Its client has, or there are as many as there may be and nobody has more of them than this client.
    #[error("the client has all the connections it may have (limits.connections_per_client)")]
    Client,
}

/// A connection's place under the limit of its rule.
#[derive(Debug)]
struct RulePlace(Arc<Limit>);

/// A connection's place under the limits, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _rule: Option<RulePlace>,
    _client: ClientPlace,
    instead_of: Option<ClientNetwork>,
}

impl Place {
    /// Whose connection has to end for it.
    pub(crate) const fn instead_of(&self) -> Option<ClientNetwork> {
        self.instead_of
    }
}

impl Limits {
    /// Those of `config`. A rule goes on counting where one of its name does among the `earlier` ones.
    pub(crate) fn of(config: &Config, earlier: Option<(&[KeptRule], &Self)>) -> Self {
        let rules = earlier.into_iter().flat_map(|(rules, limits)| rules.iter().zip(&*limits.rules));
        let counted: HashMap<&str, &Arc<Limit>> =
            rules.filter_map(|(rule, limit)| Some((&*rule.name, limit.as_ref()?))).collect();
        let limit = |rule: &Rule| {
            let most = rule.treatment.limits.connections?.get();
            let live = counted.get(&*rule.name).map(|limit| Arc::clone(&limit.live));
            Some(Arc::new(Limit { most, live: live.unwrap_or_default() }))
        };
        Self {
            rules: config.rules.iter().map(limit).collect(),
            connections: config.connections,
            clients: earlier.map(|(_, limits)| limits.clients.clone()).unwrap_or_default(),
        }
    }

    /// A place for one more connection of a client by the rule at `index`, which has this scope.
    pub(crate) fn place(&self, index: usize, scope: Scope, client: ClientAddr) -> Result<Place, Full> {
        let rule = self.rules[index].as_ref().map(RulePlace::new).transpose()?;
        let ConnectionLimits { total, per_client } = self.connections;
        // All clients of scope `outbound` are this host.
        let per_client = if scope == Scope::Outbound { total } else { per_client };
        let (client, instead_of) = match self.clients.room(client, ConnectionLimits { total, per_client }) {
            Room::Free(place) => (place, None),
            Room::InsteadOf(other, place) => (place, Some(other)),
            Room::None => return Err(Full::Client),
        };
        Ok(Place { _rule: rule, _client: client, instead_of })
    }
}

impl RulePlace {
    fn new(limit: &Arc<Limit>) -> Result<Self, Full> {
        let one_more = |live| (live < limit.most).then_some(live + 1);
        limit.live.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| Full::Rule)?;
        Ok(Self(Arc::clone(limit)))
    }
}

impl Drop for RulePlace {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}
