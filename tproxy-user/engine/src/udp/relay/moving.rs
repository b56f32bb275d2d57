//! Sessions whose address is the host's no more go on from another, as they would behind NAT.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    super::{
        counters::add,
        session::{Outlet, Upstream},
        table::{Flow, SessionId},
    },
    Relay,
};
use crate::{
    config::Scope,
    family::Family,
    flow::ClientAddr,
    generation::ChosenRule,
    socket::{Egress, Endpoint},
};

/// Seconds for which a better address is looked for: one of IPv6 is of use only when nobody else was found to have it.
const LOOKS: u32 = 5;

/// What is known of addresses that are gone.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Those that are the host's no more, as they were told of.
    gone: Arc<BTreeSet<IpAddr>>,
    /// Sessions whose address is gone could not go on from another yet.
    left: bool,
    /// How often it is yet to be looked for a better address.
    looks: u32,
}

/// A socket that has to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Stranded {
    /// Of this session.
    Own(SessionId),
    /// Of this mapping, with a session of it.
    Shared(u32, SessionId),
}

/// What is to be made of it.
pub(in super::super) struct Anew {
    pub(in super::super) to: Endpoint,
    pub(in super::super) client: ClientAddr,
    pub(in super::super) rule: ChosenRule,
    pub(in super::super) egress: Egress,
}

impl Relay {
    /// Takes word of addresses that are gone, or that there may be others by now.
    pub(in super::super) fn hear(&mut self, gone: Arc<BTreeSet<IpAddr>>) -> Vec<Stranded> {
        if !Arc::ptr_eq(&self.moving.gone, &gone) {
            self.moving = Moving { gone, looks: LOOKS, left: true };
        }
        if self.moving.left { self.stranded() } else { Vec::new() }
    }

    /// What could not be done before, or not well. To be called every second.
    pub(in super::super) fn look_again(&mut self) -> Vec<Stranded> {
        if !self.moving.left && self.moving.looks == 0 {
            return Vec::new();
        }
        self.moving.looks = self.moving.looks.saturating_sub(1);
        self.stranded()
    }

    fn stranded(&mut self) -> Vec<Stranded> {
        let gone = Arc::clone(&self.moving.gone);
        self.moving.left = false;
        let is_stranded = |outlet: &Outlet| {
            outlet.makeshift || outlet.local.is_some_and(|local| gone.contains(&local.ip()))
        };
        // Who asks an application of this host does so at its own address.
        let relays = self.table.select(|session| session.record.rule.reach.scope != Scope::Inbound);
        let mut own = Vec::new();
        let mut shared = BTreeMap::new();
        for id in relays {
            match self.table.get_mut(id).map(|(_, session)| &session.upstream) {
                Some(Upstream::Own(outlet, _)) if is_stranded(outlet) => own.push(Stranded::Own(id)),
                Some(Upstream::Shared(index)) => _ = shared.insert(*index, id),
                _ => {}
            }
        }
        shared
            .retain(|index, _| self.mappings.get(*index).is_some_and(|mapping| is_stranded(&mapping.outlet)));
        own.into_iter().chain(shared.into_iter().map(|(index, id)| Stranded::Shared(index, id))).collect()
    }

    /// What is to take the place of a socket.
    pub(in super::super) fn anew(&mut self, stranded: Stranded) -> Option<Anew> {
        let (Stranded::Own(id) | Stranded::Shared(_, id)) = stranded;
        let (flow, session) = self.table.get_mut(id)?;
        let Flow { client, dst } = *flow;
        let (to, egress) = match (stranded, &session.upstream) {
            (Stranded::Own(_), Upstream::Own(outlet, peer)) => (Endpoint::Peer(*peer), outlet.egress),
            (Stranded::Shared(index, _), _) => {
                (Endpoint::Any(Family::of(dst.0.ip())), self.mappings.get(index)?.outlet.egress)
            }
            (Stranded::Own(_), _) => return None,
        };
        Some(Anew { to, client, rule: session.record.rule.clone(), egress })
    }

    /// Whether a socket with this address is better than the one there is.
    pub(in super::super) fn is_better(&mut self, stranded: Stranded, local: Option<SocketAddr>) -> bool {
        let ip = |address: Option<SocketAddr>| address.map(|address| address.ip());
        self.outlet_of(stranded).is_some_and(|outlet| ip(outlet.local) != ip(local))
    }

    /// There is such a socket now.
    pub(in super::super) fn moved(&mut self, stranded: Stranded, local: Option<SocketAddr>) {
        let Some(outlet) = self.outlet_of(stranded) else { return };
        (outlet.local, outlet.makeshift) = (local, true);
        if let Stranded::Shared(index, _) = stranded {
            self.mappings.make_known(index);
        }
        add(&self.books.counters.moved, 1);
        let (Stranded::Own(id) | Stranded::Shared(_, id)) = stranded;
        if let Some((Flow { client, dst }, session)) = self.table.get_mut(id) {
            let (rule, source) = (&session.record.rule.name, local.map(tracing::field::display));
            tracing::info!(%client, %dst, %rule, source, "goes on from another address");
        }
    }

    /// Nothing can take the place of a socket now. It is tried again.
    pub(in super::super) const fn stays(&mut self) {
        self.moving.left = true;
    }

    fn outlet_of(&mut self, stranded: Stranded) -> Option<&mut Outlet> {
        match stranded {
            Stranded::Own(id) => match &mut self.table.get_mut(id)?.1.upstream {
                Upstream::Own(outlet, _) => Some(outlet),
                Upstream::Shared(_) | Upstream::Text(_) | Upstream::Taker => None,
            },
            Stranded::Shared(index, _) => self.mappings.get_mut(index).map(|mapping| &mut mapping.outlet),
        }
    }
}
