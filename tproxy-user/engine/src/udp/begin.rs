//! How a session begins.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use tproxy_common::{abi::Origin, flow::Protocol};

use super::{
    End, Selected,
    batch::Run,
    channel::Channel,
    counters::add,
    listener::Place,
    mapping::Sharing,
    readiness::Token,
    relay::Relay,
    session::{Reply, Session, Travel, Upstream, UpstreamSocket},
    table::{Flow, SessionId},
};
use crate::{
    config::{Action, Nat, Scope, Source},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Selection,
    generation::{KeptRule, RuleNumber},
    host::connections,
    socket::{self, Datagram, Egress, Endpoint, SocketError},
    source::Sources,
    way::First,
};

/// Sessions that end, at most, for one to begin: with one of them a port or a descriptor need not be free, as sessions share
/// them.
const MOST_EVICTED: usize = 8;

/// What a flow's first datagram leads to.
enum Begun {
    Session(SessionId),
    Carried,
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

impl Relay {
    /// Takes a datagram off a listener. A session that has begun with it, and has a socket that takes over when the listener
    /// was read up to `place`, is named.
    pub(super) fn take(&mut self, datagram: &Datagram<'_>, place: Place, now: Instant) -> Option<SessionId> {
        let flow = Flow { client: datagram.client, dst: datagram.dst };
        let run = Run::of(datagram);
        if let Some(id) = self.table.find(&flow) {
            self.up(id, &run, now);
            return None;
        }
        match self.begin(flow, datagram, place, now) {
            Ok(Begun::Carried) => {
                self.carry(&flow, &run);
                None
            }
            Ok(Begun::Session(id)) => {
                self.up(id, &run, now);
                let (_, session) = self.table.get_mut(id)?;
                session.waits_for.map(|_| id)
            }
            Err(error) => {
                self.turn_away(&flow, &error, now);
                None
            }
        }
    }

    fn begin(
        &mut self,
        flow: Flow,
        datagram: &Datagram<'_>,
        place: Place,
        now: Instant,
    ) -> Result<Begun, Unbegun> {
        let Datagram { ttl, class, .. } = *datagram;
        if self.bound.contains(&flow.dst.0) {
            return Err(Unbegun::Loop);
        }
        let (number, origin, fragmenting) = match self.memory.selected(flow.client, flow.dst) {
            Some(Selected::By(number, origin, fragmenting)) => (number, origin, fragmenting),
            Some(Selected::Carry) => return Ok(Begun::Carried),
            None => return Err(Unbegun::Undecided),
        };
        let rule = self.generations.rule(number).ok_or(Unbegun::Undecided)?;
        if let Some(oldest) = self.table.in_the_way(flow.client) {
            self.end(oldest, End::Evicted, now);
        }
        let ttl = if rule.reach.scope == Scope::Forwarded { ttl.saturating_sub(1).max(1) } else { ttl };
        let Flow { client, dst } = flow;
        let first = First { protocol: Protocol::Udp, client, dst, origin: &origin, class };
        let egress = self.ways.egress(&rule, &first).map_err(Unbegun::Unreachable)?;
        let (reply, upstream) = self.sockets_with_room(&flow, &rule, (number, origin), egress, now)?;
        let live = self.flows.enter(Selection {
            protocol: Protocol::Udp,
            scope: rule.reach.scope,
            rule: Arc::clone(&rule.name),
            client: flow.client,
            dst: flow.dst,
        });
        let mut session = Session::new(rule, reply, upstream, Travel { ttl, fragmenting }, live, now);
        match session.reply {
            // The kernel's own lookup brings the flow's datagrams to it from now on.
            Reply::Own(_) => {
                self.memory.forget(flow.client, flow.dst);
                session.waits_for = Some(place);
            }
            Reply::Raw => add(&self.counters.reply_fallbacks, 1),
        }
        let id = self.insert(flow, session, now);
        let (_, session) = self.table.get_mut(id).expect("it was just inserted");
        if let Upstream::Own(socket, _) = &session.upstream
            && let Err(error) = self.watch.add(&socket.channel.socket, Token::Upstream(id))
        {
            self.unwatched(id, &error);
        }
        Ok(Begun::Session(id))
    }

    /// The sockets of a session. Where what they take is used up, others make room.
    fn sockets_with_room(
        &mut self,
        flow: &Flow,
        rule: &KeptRule,
        decided: (RuleNumber, Origin),
        egress: Egress,
        now: Instant,
    ) -> Result<(Reply, Upstream), Unbegun> {
        for _ in 0..MOST_EVICTED {
            let error = match self.sockets(flow, rule, decided, egress) {
                Err(Unbegun::Socket(error)) => error,
                sockets => return sockets,
            };
            let oldest = match lack(&error) {
                None => return Err(error.into()),
                Some(Lack::Descriptors) => {
                    add(&self.counters.out_of_descriptors, 1);
                    self.table.dispensable()
                }
                Some(Lack::Ports) => {
                    add(&self.counters.out_of_ports, 1);
                    match rule.treatment.source {
                        Source::Host => self.table.dispensable(),
                        // Ports of the client's own address.
                        Source::Client | Source::ClientPort => self.table.dispensable_of(flow.client),
                    }
                }
            };
            self.end(oldest.ok_or(error)?, End::Evicted, now);
        }
        self.sockets(flow, rule, decided, egress)
    }

    fn sockets(
        &mut self,
        flow: &Flow,
        rule: &KeptRule,
        decided: (RuleNumber, Origin),
        egress: Egress,
    ) -> Result<(Reply, Upstream), Unbegun> {
        let to = match &rule.treatment.action {
            Action::Direct => flow.dst.0,
            Action::Upstream(address) => *address,
            Action::Respond(text) => {
                let text = Upstream::Text(Arc::clone(text));
                return Ok((self.reply(flow)?, text));
            }
            // The datapath does these without us.
            Action::HandOver(_) | Action::Reject | Action::Drop | Action::Pass => {
                return Err(Unbegun::Undecided);
            }
        };
        let reply = self.reply(flow)?;
        // What an application of this host sees as a client's endpoint is one towards that application only.
        let mirrored = rule.reach.scope == Scope::Inbound && rule.treatment.source != Source::Host;
        let upstream = match (&rule.treatment.action, rule.treatment.nat) {
            (Action::Direct, Nat::EndpointIndependent) if !mirrored => {
                Upstream::Shared(self.mapping(flow, Family::of(to.ip()), rule, decided, egress)?)
            }
            _ => Upstream::Own(self.upstream(Endpoint::Peer(to), flow.client, rule, egress)?, to),
        };
        Ok((reply, upstream))
    }

    fn reply(&self, flow: &Flow) -> Result<Reply, SocketError> {
        match socket::session(flow.dst, flow.client, self.mark) {
            Ok(socket) => Ok(Reply::Own(Channel::new(socket))),
            Err(SocketError::Taken { .. }) => Ok(Reply::Raw),
            Err(error) => Err(error),
        }
    }

    fn mapping(
        &mut self,
        flow: &Flow,
        family: Family,
        rule: &KeptRule,
        decided: (RuleNumber, Origin),
        egress: Egress,
    ) -> Result<u32, SocketError> {
        let client = flow.client;
        let sharing =
            Sharing { client, source: rule.treatment.source, own: rule.treatment.egress.source, egress };
        if let Some(index) = self.mappings.share(&sharing) {
            return Ok(index);
        }
        let socket = self.upstream(Endpoint::Any(family), client, rule, egress)?;
        let index = self.mappings.insert(sharing, socket, decided, flow.dst);
        let added = match self.mappings.get_mut(index) {
            Some(mapping) => self.watch.add(&mapping.socket.channel.socket, Token::Mapping(index)),
            None => Ok(()),
        };
        added.map(|()| index).map_err(|source| {
            self.mappings.release(index);
            SocketError::Os { step: "epoll_ctl", source }
        })
    }

    pub(super) fn upstream(
        &mut self,
        to: Endpoint,
        client: ClientAddr,
        rule: &KeptRule,
        egress: Egress,
    ) -> Result<UpstreamSocket, SocketError> {
        let memory = &mut self.memory;
        // Or another session's of ours: of two sockets with the same addresses and ports, one would get what is the other's.
        // Where the kernel cannot say, the odds are what they are.
        let mut is_clients = |theirs: SocketAddr| match to {
            Endpoint::Peer(upstream) => {
                memory.selected(ClientAddr(theirs), OriginalDst(upstream)).is_some()
                    || connections::exists(Protocol::Udp, theirs, upstream).unwrap_or(false)
            }
            Endpoint::Any(_) => false,
        };
        let mut sources = Sources::of(rule, client);
        let mut source = sources.first(&mut is_clients);
        loop {
            match socket::datagram_upstream(to, source, egress) {
                Err(error @ (SocketError::Taken { .. } | SocketError::NotOwn { .. })) => {
                    source = sources.next(&self.counters.source_fallbacks, &mut is_clients).ok_or(error)?;
                }
                socket => return socket.map(|socket| UpstreamSocket::new(Channel::new(socket), egress)),
            }
        }
    }

    /// Sends a datagram on as it is, from its sender to its destination.
    fn carry(&mut self, flow: &Flow, run: &Run<'_>) {
        let sent = self.raw.send(OriginalDst(flow.client.0), ClientAddr(flow.dst.0), run);
        add(&self.counters.carried, sent.datagrams);
        add(&self.counters.send_errors, sent.lost);
    }

    /// A datagram that no session takes. Anybody can send many of them, so its line is not for everyday logs.
    fn turn_away(&mut self, flow: &Flow, error: &Unbegun, now: Instant) {
        tracing::debug!(client = %flow.client, dst = %flow.dst, %error, "refused");
        let counter = match error {
            Unbegun::Loop => &self.counters.to_ourselves,
            Unbegun::Undecided => &self.counters.undecided,
            Unbegun::Unreachable(_) | Unbegun::Socket(_) => &self.counters.no_upstream,
        };
        add(counter, 1);
        // It may be decided anew, with its next datagram.
        self.memory.forget(flow.client, flow.dst);
        if let Unbegun::Unreachable(source) | Unbegun::Socket(SocketError::Os { source, .. }) = error {
            self.reporter.report_failure(flow, source, &self.counters, now);
        }
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
    const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    match error {
        // Any would have done.
        SocketError::Taken { address } if address.port() == 0 => Some(Lack::Ports),
        SocketError::Os { source, .. } => {
            source.raw_os_error().filter(|errno| EXHAUSTED.contains(errno)).map(|_| Lack::Descriptors)
        }
        _ => None,
    }
}
