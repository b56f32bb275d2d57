//! Sessions whose address is the host's no more go on from another, as they would behind NAT.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    counters::add,
    readiness::Token,
    relay::Relay,
    session::{Upstream, UpstreamSocket},
    table::{Flow, SessionId},
};
use crate::{config::Scope, family::Family, generation::ChosenRule, socket::Endpoint};

/// A socket that has to be made anew.
enum Stranded {
    /// Of this session.
    Own(SessionId, SocketAddr),
    /// Of this mapping, with a session of it.
    Shared(u32, SessionId),
}

/// Seconds for which a better address is looked for: one of IPv6 is of use only when nobody else was found to have it.
const LOOKS: u32 = 5;

impl Relay {
    /// Takes word of addresses that are gone, or that there may be others by now.
    pub(super) fn hear(&mut self, gone: Arc<BTreeSet<IpAddr>>) {
        if !Arc::ptr_eq(&self.heard, &gone) {
            (self.heard, self.looks) = (gone, LOOKS);
            self.move_on();
        } else if self.left {
            self.move_on();
        }
    }

    /// Tries again what could not be done before, or not well. To be called every second.
    pub(super) fn look_again(&mut self) {
        if self.left || self.looks > 0 {
            self.looks = self.looks.saturating_sub(1);
            self.move_on();
        }
    }

    /// Has sockets made anew whose address is gone. Where there is no other yet, it is tried again.
    fn move_on(&mut self) {
        self.left = false;
        for stranded in self.stranded() {
            self.left |= self.make_anew(&stranded).is_none();
        }
    }

    fn stranded(&mut self) -> Vec<Stranded> {
        let gone = Arc::clone(&self.heard);
        let is_stranded = |socket: &UpstreamSocket| {
            socket.makeshift || socket.local_addr().is_ok_and(|local| gone.contains(&local.ip()))
        };
        // Who asks an application of this host does so at its own address.
        let relays = self.table.select(|session| session.record.rule.reach.scope != Scope::Inbound);
        let mut own = Vec::new();
        let mut shared = BTreeMap::new();
        for id in relays {
            match self.table.get_mut(id).map(|(_, session)| &session.upstream) {
                Some(Upstream::Own(socket, peer)) if is_stranded(socket) => {
                    own.push(Stranded::Own(id, *peer))
                }
                Some(Upstream::Shared(index)) => _ = shared.insert(*index, id),
                _ => {}
            }
        }
        shared.retain(|index, _| {
            self.mappings.get_mut(*index).is_some_and(|mapping| is_stranded(&mapping.socket))
        });
        own.into_iter().chain(shared.into_iter().map(|(index, id)| Stranded::Shared(index, id))).collect()
    }

    /// Nothing, if it cannot be done now.
    fn make_anew(&mut self, stranded: &Stranded) -> Option<()> {
        let (Stranded::Own(id, _) | Stranded::Shared(_, id)) = *stranded;
        let (flow, session) = self.table.get_mut(id)?;
        let (Flow { client, dst }, rule): (Flow, ChosenRule) = (*flow, session.record.rule.clone());
        let (to, token, old) = match (stranded, &session.upstream) {
            (Stranded::Own(id, peer), Upstream::Own(socket, _)) => {
                (Endpoint::Peer(*peer), Token::Upstream(*id), socket)
            }
            (Stranded::Shared(index, _), _) => {
                let socket = &self.mappings.get_mut(*index)?.socket;
                (Endpoint::Any(Family::of(dst.0.ip())), Token::Mapping(*index), socket)
            }
            (Stranded::Own(..), _) => return None,
        };
        let (egress, before) = (old.egress, old.local_addr().ok());
        let mut anew = self.upstream(to, client, &rule, egress).ok()?;
        let source = anew.local_addr().ok();
        // There is no better one.
        if before.map(|before| before.ip()) == source.map(|source| source.ip()) {
            return Some(());
        }
        anew.makeshift = true;
        self.watch.add(&anew.channel.socket, token).ok()?;
        match *stranded {
            Stranded::Own(id, peer) => self.table.get_mut(id)?.1.upstream = Upstream::Own(anew, peer),
            Stranded::Shared(index, _) => self.mappings.get_mut(index)?.socket = anew,
        }
        add(&self.counters.moved, 1);
        tracing::info!(%client, %dst, rule = %rule.name, source = source.map(tracing::field::display), "goes on from another address");
        Some(())
    }
}
