//! How a session begins: from a flow's first datagram, step by step, as answers come of what has to be asked and opened.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use rustix::io::Errno;
use tproxy_common::{abi::Origin, flow::Protocol};

use super::{
    super::{
        End, Selected,
        counters::add,
        mapping::Sharing,
        session::{Outlet, Session, Travel, Upstream},
        table::{Flow, SessionId},
    },
    Relay,
};
use crate::{
    config::{self, Action, Nat, Scope, Source},
    flows::Selection,
    generation::{ChosenRule, RuleNumber},
    socket::{Datagram, Egress, SocketError, TrafficClass},
    way::First,
};

/// Sessions that end, at most, for one to begin: with one of them a port or a descriptor need not be free, as sessions share
/// them.
const MOST_EVICTED: usize = 8;

/// What comes next on the way to a session.
pub(in super::super) enum Step {
    /// By which way the client's packets would have left: [`Relay::found_way`].
    FindWay(Beginning),
    /// Sockets, after the commands that there are: [`Relay::opened`], [`Relay::not_opened`].
    Open(Opening),
    /// There is none, and the datagram is sent on as it is.
    Carry,
    /// There is none.
    Refused,
}

/// A flow that is to have a session.
pub(in super::super) struct Beginning {
    flow: Flow,
    rule: ChosenRule,
    decided: (RuleNumber, Origin),
    class: TrafficClass,
    travel: Travel,
    /// NAT has redirected it to this host, whose applications see another address than its other peers do.
    is_redirected: bool,
}

/// One whose way is known.
pub(in super::super) struct Opening {
    beginning: Beginning,
    egress: Egress,
    wanted: Wanted,
    may_evict: usize,
}

/// What a session needs towards its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Wanted {
    /// A socket connected to this address.
    Peer(SocketAddr),
    /// One for a new mapping.
    Mapping(Sharing),
    /// None but that of this mapping.
    Shared(u32),
    /// None, but somebody else's code that takes it.
    Taker,
    /// None.
    Nothing,
}

/// A session, for whoever has its sockets.
pub(in super::super) struct Begun {
    pub(in super::super) flow: Flow,
    /// The name of its rule.
    pub(in super::super) rule: Arc<str>,
    pub(in super::super) mapping: Option<u32>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum Unbegun {
    #[error("a listener of ours")]
    Loop,
    #[error("the datapath has no record of it")]
    Undecided,
    #[error("no way leads there for the client: {0}")]
    Unreachable(io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl Beginning {
    pub(in super::super) fn rule(&self) -> &ChosenRule {
        &self.rule
    }

    /// What began the flow.
    pub(in super::super) fn first(&self) -> First<'_> {
        let Flow { client, dst } = self.flow;
        let to = self.rule.treatment.action.peer(dst);
        First { protocol: Protocol::Udp, client, dst, to, origin: &self.decided.1, class: self.class }
    }
}

impl Opening {
    pub(in super::super) const fn flow(&self) -> &Flow {
        &self.beginning.flow
    }

    pub(in super::super) const fn rule(&self) -> &ChosenRule {
        &self.beginning.rule
    }

    pub(in super::super) const fn egress(&self) -> Egress {
        self.egress
    }

    pub(in super::super) const fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

impl Relay {
    /// A datagram has come of a flow that has no session, and that was selected for this reason.
    pub(in super::super) fn begin(
        &mut self,
        datagram: &Datagram<'_>,
        selected: Option<Selected>,
        now: Instant,
    ) -> Step {
        let flow = Flow { client: datagram.client, dst: datagram.dst };
        match self.beginning(flow, datagram, selected) {
            Ok(Some(beginning)) => {
                if let Some(oldest) = self.table.in_the_way(flow.client) {
                    self.end(oldest, End::Evicted, now);
                }
                Step::FindWay(beginning)
            }
            Ok(None) => Step::Carry,
            Err(error) => self.turn_away(&flow, &error, now),
        }
    }

    fn beginning(
        &self,
        flow: Flow,
        datagram: &Datagram<'_>,
        selected: Option<Selected>,
    ) -> Result<Option<Beginning>, Unbegun> {
        if self.bound.contains(&flow.dst.0) {
            return Err(Unbegun::Loop);
        }
        let (number, origin, fragmenting) = match selected {
            Some(Selected::By(number, origin, fragmenting)) => (number, origin, fragmenting),
            Some(Selected::Carry) => return Ok(None),
            None => return Err(Unbegun::Undecided),
        };
        let rule = self.generations.rule(number).ok_or(Unbegun::Undecided)?;
        match &rule.treatment.action {
            Action::Direct
            | Action::Upstream(config::Upstream::Address(_))
            | Action::Respond(_)
            | Action::HandOver(_) => {}
            // The datapath does these without us; and a group carries no datagrams.
            Action::Upstream(config::Upstream::Group(_)) | Action::Reject | Action::Drop | Action::Pass => {
                return Err(Unbegun::Undecided);
            }
        }
        let Datagram { ttl, class, .. } = *datagram;
        let ttl = if rule.reach.scope == Scope::Forwarded { ttl.saturating_sub(1).max(1) } else { ttl };
        let travel = Travel { ttl, fragmenting };
        Ok(Some(Beginning { flow, rule, decided: (number, origin), class, travel, is_redirected: false }))
    }

    /// The client's packets would have left this way, or not at all; and whether it leads to this host itself.
    pub(in super::super) fn found_way(
        &mut self,
        mut beginning: Beginning,
        way: io::Result<Egress>,
        is_redirected: bool,
        now: Instant,
    ) -> Step {
        beginning.is_redirected = is_redirected;
        match way {
            Ok(egress) => Step::Open(self.opening(beginning, egress, MOST_EVICTED)),
            Err(error) => self.turn_away(&beginning.flow, &Unbegun::Unreachable(error), now),
        }
    }

    fn opening(&self, beginning: Beginning, egress: Egress, may_evict: usize) -> Opening {
        let Beginning { flow, rule, is_redirected, .. } = &beginning;
        // What an application of this host sees as a client's endpoint is one towards that application only.
        let mirrored =
            rule.treatment.source != Source::Host && (rule.reach.scope == Scope::Inbound || *is_redirected);
        let wanted = match (&rule.treatment.action, rule.treatment.nat) {
            (Action::Direct, Nat::EndpointIndependent) if !mirrored => {
                let sharing = Sharing {
                    client: flow.client,
                    source: rule.treatment.source,
                    own: rule.treatment.egress.source,
                    egress,
                };
                self.mappings.find(&sharing).map_or(Wanted::Mapping(sharing), Wanted::Shared)
            }
            (Action::Direct, _) => Wanted::Peer(flow.dst.0),
            (Action::Upstream(config::Upstream::Address(address)), _) => Wanted::Peer(*address),
            (Action::HandOver(_), _) => Wanted::Taker,
            _ => Wanted::Nothing,
        };
        Opening { beginning, egress, wanted, may_evict }
    }

    /// All that was wanted is there, for this session; what was opened has this address and port.
    pub(in super::super) fn opened(
        &mut self,
        opening: Opening,
        local: Option<SocketAddr>,
        now: Instant,
    ) -> SessionId {
        let Opening { beginning: Beginning { flow, rule, decided, travel, .. }, egress, wanted, .. } =
            opening;
        let outlet = Outlet { egress, local, makeshift: false };
        let upstream = match wanted {
            Wanted::Peer(peer) => Upstream::Own(outlet, peer),
            Wanted::Mapping(sharing) => {
                Upstream::Shared(self.mappings.insert(sharing, outlet, decided, flow.dst))
            }
            Wanted::Shared(index) => {
                self.mappings.share(index);
                Upstream::Shared(index)
            }
            Wanted::Taker => Upstream::Taker,
            Wanted::Nothing => match &rule.treatment.action {
                Action::Respond(text) => Upstream::Text(Arc::clone(text)),
                action => unreachable!("{action} leads to an upstream"),
            },
        };
        let live = self.books.flows.enter(Selection {
            protocol: Protocol::Udp,
            scope: rule.reach.scope,
            rule: Arc::clone(&rule.name),
            client: flow.client,
            dst: flow.dst,
        });
        let session = Session::new(rule, decided, upstream, travel, live, now);
        let mapping = match session.upstream {
            Upstream::Shared(index) => self.mappings.get(index),
            Upstream::Own(..) | Upstream::Text(_) | Upstream::Taker => None,
        };
        session.announce(&flow, mapping);
        add(&self.books.counters.sessions, 1);
        self.books.live.begin();
        self.table.insert(flow, session, now)
    }

    /// What there is to know of a session for whoever has its sockets.
    pub(in super::super) fn begun(&mut self, id: SessionId) -> Option<Begun> {
        let mapping = self.mapping_of(id);
        let (flow, session) = self.table.get_mut(id)?;
        Some(Begun { flow: *flow, rule: Arc::clone(&session.record.rule.name), mapping })
    }

    /// The mapping that a session uses.
    pub(super) fn mapping_of(&mut self, id: SessionId) -> Option<u32> {
        match self.table.get_mut(id)?.1.upstream {
            Upstream::Shared(index) => Some(index),
            Upstream::Own(..) | Upstream::Text(_) | Upstream::Taker => None,
        }
    }

    /// Something that was wanted cannot be had. Where what it takes is used up, others make room.
    pub(in super::super) fn not_opened(
        &mut self,
        opening: Opening,
        error: SocketError,
        now: Instant,
    ) -> Step {
        let Opening { beginning, egress, may_evict, .. } = opening;
        let client = beginning.flow.client;
        let oldest = match lack(&error).filter(|_| may_evict > 0) {
            None => None,
            Some(Lack::Descriptors) => {
                add(&self.books.counters.out_of_descriptors, 1);
                self.table.dispensable()
            }
            Some(Lack::Ports) => {
                add(&self.books.counters.out_of_ports, 1);
                match beginning.rule.treatment.source {
                    Source::Host => self.table.dispensable(),
                    // Ports of the client's own address.
                    Source::Client | Source::ClientPort => self.table.dispensable_of(client),
                }
            }
        };
        let Some(oldest) = oldest else { return self.turn_away(&beginning.flow, &error.into(), now) };
        self.end(oldest, End::Evicted, now);
        Step::Open(self.opening(beginning, egress, may_evict - 1))
    }

    /// A datagram that no session takes. Anybody can send many of them, so its line is not for everyday logs.
    fn turn_away(&mut self, flow: &Flow, error: &Unbegun, now: Instant) -> Step {
        tracing::debug!(client = %flow.client, dst = %flow.dst, %error, "refused");
        let counters = &self.books.counters;
        let counter = match error {
            Unbegun::Loop => &counters.to_ourselves,
            Unbegun::Undecided => &counters.undecided,
            Unbegun::Unreachable(_) | Unbegun::Socket(_) => &counters.no_upstream,
        };
        add(counter, 1);
        // It may be decided anew, with its next datagram.
        self.forget(*flow);
        if let Unbegun::Unreachable(source) | Unbegun::Socket(SocketError::Os { source, .. }) = error {
            self.failed(flow, source, now);
        }
        Step::Refused
    }
}

/// What there is no more of.
enum Lack {
    /// Descriptors, or memory.
    Descriptors,
    /// Local ports.
    Ports,
}

fn lack(error: &SocketError) -> Option<Lack> {
    const EXHAUSTED: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    match error {
        // Any would have done.
        SocketError::Taken { address } if address.port() == 0 => Some(Lack::Ports),
        SocketError::Os { source, .. } => {
            Errno::from_io_error(source).filter(|errno| EXHAUSTED.contains(errno)).map(|_| Lack::Descriptors)
        }
        _ => None,
    }
}
