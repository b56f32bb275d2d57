//! Steered packets that do not arrive: something on this host discards them between the hook and the listener, or routes
//! them elsewhere.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tproxy_common::flow::Protocol;

use super::{Instance, InstanceError};
use crate::{
    arrivals::{Entrance, Unheard},
    host::connections,
};

/// For how long nothing may arrive before that is said.
const PATIENCE: Duration = Duration::from_secs(3);

/// Flows that the kernel is asked about before it is believed that none has arrived.
const ASKED_ABOUT: usize = 8;

/// Flows that are steered, of which none arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Where they come from.
    pub entrance: Entrance,
    /// The name of the interface; `lo` for what this host's own processes send.
    pub interface: String,
    /// How many there were lately, of those that were looked at.
    pub flows: usize,
    /// Why, as far as is known.
    pub reason: Option<String>,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { entrance, interface, flows, reason } = self;
        write!(f, "what is steered from {interface} ({entrance}) does not arrive: flows={flows}")?;
        reason.as_ref().map_or(Ok(()), |reason| write!(f, "; {reason}"))
    }
}

/// What is watched of an entrance that has, or had, flows of which no worker has heard.
#[derive(Debug)]
struct WatchedEntrance {
    /// How many flows had arrived when it was looked last.
    arrived: u64,
    /// When there were more of them than before, if ever: what was seen earlier says nothing any more.
    arrived_at: Option<Instant>,
    /// Since when nothing arrives although something should.
    waiting: Option<Instant>,
    loss: Option<Loss>,
}

/// What is known of losses.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// First packets that had been steered when it was looked last.
    steered: u64,
    watched: BTreeMap<Entrance, WatchedEntrance>,
}

/// What a look has found.
#[derive(Debug, Default)]
struct LossesFound {
    /// Entrances from which nothing arrives, with the number of flows.
    lost: Vec<(Entrance, usize)>,
    /// Those from which something does again.
    again: Vec<Entrance>,
}

impl Losses {
    pub(super) fn all(&self) -> impl Iterator<Item = &Loss> {
        self.watched.values().filter_map(|watched| watched.loss.as_ref())
    }

    fn is_waiting(&self) -> bool {
        self.watched.values().any(|watched| watched.waiting.is_some() || watched.loss.is_some())
    }

    /// Takes note of what has not arrived yet. `arrived` counts what has, by entrance; `is_lost` asks the kernel about flows.
    fn look(
        &mut self,
        now: Instant,
        unheard: &[Unheard],
        arrived: impl Fn(&Entrance) -> u64,
        mut is_lost: impl FnMut(&[&Unheard]) -> bool,
    ) -> LossesFound {
        for flow in unheard {
            self.watched.entry(flow.entrance).or_insert_with(|| WatchedEntrance {
                arrived: arrived(&flow.entrance),
                arrived_at: None,
                waiting: None,
                loss: None,
            });
        }
        let mut found = LossesFound::default();
        for (entrance, watched) in &mut self.watched {
            let count = arrived(entrance);
            if watched.arrived != count {
                watched.arrived = count;
                watched.arrived_at = Some(now);
                watched.waiting = None;
                found.again.extend(watched.loss.take().map(|loss| loss.entrance));
            }
            let is_late = |flow: &&Unheard| {
                flow.entrance == *entrance && watched.arrived_at.is_none_or(|arrived| flow.seen > arrived)
            };
            let late: Vec<_> = unheard.iter().filter(is_late).collect();
            // What is said holds until something arrives.
            if watched.loss.is_some() {
                continue;
            }
            if late.is_empty() {
                watched.waiting = None;
                continue;
            }
            let waiting = *watched.waiting.get_or_insert(now);
            if now.duration_since(waiting) < PATIENCE {
                continue;
            }
            if is_lost(&late) {
                found.lost.push((*entrance, late.len()));
            } else {
                watched.waiting = Some(now);
            }
        }
        found
    }
}

impl Instance {
    /// What is steered and does not arrive.
    #[doc(hidden)]
    pub fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.losses.all()
    }

    /// Says why something does not arrive, for the log and whoever asks.
    #[doc(hidden)]
    pub fn explain_loss(&mut self, entrance: Entrance, reason: String) {
        let watched = self.losses.watched.get_mut(&entrance);
        if let Some(loss) = watched.and_then(|watched| watched.loss.as_mut()) {
            loss.reason = Some(reason);
            tracing::warn!("{loss}");
        }
    }

    /// Looks for what does not arrive, and returns what was not known before.
    #[doc(hidden)]
    pub fn look_for_losses(&mut self) -> Vec<Loss> {
        match self.look_at_arrivals() {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!("it is not known whether steered packets arrive: {error}");
                Vec::new()
            }
        }
    }

    fn look_at_arrivals(&mut self) -> Result<Vec<Loss>, InstanceError> {
        let steered = self.datapath.steered()?;
        let is_as_before = std::mem::replace(&mut self.losses.steered, steered) == steered;
        if is_as_before && !self.losses.is_waiting() {
            return Ok(Vec::new());
        }
        let unheard = self.datapath.unheard()?;
        let counters = &self.counters;
        let arrived =
            |entrance: &Entrance| counters.iter().map(|own| own.arrivals.through(entrance)).sum::<u64>();
        let flows = &self.flows;
        let is_there = |flow: &Unheard| match flow.entrance.protocol {
            // A handshake that its client does not complete is no loss of ours, nor is a connection that waits to be accepted.
            Protocol::Tcp => connections::exists(Protocol::Tcp, flow.dst.0, flow.client.0).unwrap_or(true),
            // One without a socket of its own is remembered as long as it lives.
            Protocol::Udp => flows.has(Protocol::Udp, flow.client, flow.dst),
        };
        let found = self.losses.look(Instant::now(), &unheard, arrived, |flows| {
            !flows.iter().take(ASKED_ABOUT).any(|flow| is_there(flow))
        });
        for entrance in found.again {
            let from = self.name_of(entrance.ifindex);
            tracing::info!("what is steered from {from} ({entrance}) arrives again");
        }
        let mut new = Vec::new();
        for (entrance, flows) in found.lost {
            let loss = Loss { entrance, interface: self.name_of(entrance.ifindex), flows, reason: None };
            if let Some(watched) = self.losses.watched.get_mut(&entrance) {
                watched.loss = Some(loss.clone());
            }
            new.push(loss);
        }
        Ok(new)
    }

    /// What this host sends itself comes in by `lo`.
    fn name_of(&self, ifindex: u32) -> String {
        if ifindex == 0 { "lo".into() } else { self.surroundings.name_of(ifindex) }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::SocketAddr};

    use super::*;

    #[test]
    fn only_what_has_long_not_arrived_and_is_unknown_to_the_kernel_is_lost_and_said_once() {
        let (mut losses, arrived, is_lost) = (Losses::default(), Cell::new(0), Cell::new(true));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let flow = |ifindex, seen| {
            Unheard::of(ifindex, Protocol::Tcp, address("10.0.0.1:1"), address("10.0.0.2:80"), at(seen))
        };
        let mut look = |seconds, unheard: &[Unheard]| {
            let LossesFound { lost, again } =
                losses.look(at(seconds), unheard, |_| arrived.get(), |_| is_lost.get());
            for (entrance, flows) in &lost {
                let loss = Loss { entrance: *entrance, interface: "lan".into(), flows: *flows, reason: None };
                losses.watched.get_mut(entrance).unwrap().loss = Some(loss);
            }
            (lost.len(), losses.all().count(), again.len())
        };
        assert_eq!(look(10, &[flow(1, 9)]), (0, 0, 0), "it may be on its way");
        assert_eq!(look(14, &[]), (0, 0, 0), "it has arrived, or was given up");
        assert_eq!(look(15, &[flow(1, 14)]), (0, 0, 0), "patience begins anew");
        is_lost.set(false);
        assert_eq!(look(19, &[flow(1, 14)]), (0, 0, 0), "its client does not answer");
        is_lost.set(true);
        assert_eq!(look(23, &[flow(1, 22), flow(1, 21), flow(2, 22)]), (1, 1, 0));
        assert_eq!(look(24, &[flow(1, 22)]), (0, 1, 0), "it is said once");
        assert_eq!(look(25, &[]), (0, 1, 0), "and holds while nothing comes");
        arrived.set(1);
        assert_eq!(look(26, &[flow(1, 22)]), (0, 0, 1), "something has arrived");
        assert_eq!(look(30, &[flow(1, 22)]), (0, 0, 0), "what was lost before is not lost again");
        assert_eq!(look(31, &[flow(1, 30)]), (0, 0, 0));
        assert_eq!(look(35, &[flow(1, 34)]), (1, 1, 0), "but others may be");
    }
}
