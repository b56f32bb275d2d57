//! The sockets of a worker's sessions, each in its session's or mapping's place, and what else is reached by system calls.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::mpsc;
use tproxy_common::flow::Protocol;

use super::{
    Memory, UdpCounters,
    batch::{Most, Run},
    channel::{Channel, Sent, UpstreamSocket},
    counters::add,
    raw::RawReplies,
    readiness::{Interest, Token},
    relay::{Begun, Command, Opening, Wanted},
    table::{Flow, SessionId},
};
use crate::{
    config::Action,
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::KeptRule,
    host::connections,
    intercept::{Handing, Said, TakenSession, Ticket},
    mark::Mark,
    socket::{self, Egress, Endpoint, IcmpSender, SocketError, UpstreamSource, Visibility},
    source::Sources,
    way::Ways,
};

/// For senders that take one datagram at a time.
pub(super) const SINGLY: Most = Most { datagrams: 1, size: 0 };

/// The sockets, and what else it takes.
pub(super) struct Io {
    pub(super) memory: Box<dyn Memory>,
    pub(super) ways: Ways,
    pub(super) raw: RawReplies,
    mark: Mark,
    icmp: Vec<(Family, IcmpSender)>,
    watch: Interest,
    counters: Arc<UdpCounters>,
    sessions: Vec<Ends>,
    mappings: Vec<Option<UpstreamSocket>>,
    /// Where those who have taken sessions say what is to become of them.
    takers: mpsc::Sender<Said>,
    /// Sessions handed over, ever.
    handed: u64,
}

/// The sockets of one session.
#[derive(Default)]
pub(super) struct Ends {
    /// Bound to the original destination, and connected to the client.
    client: Option<Channel>,
    /// Connected to the upstream, if no mapping has it.
    upstream: Option<UpstreamSocket>,
    /// Whoever has taken it.
    taker: Option<Box<TakenSession>>,
}

/// What a session that is about to begin has towards its upstream.
#[derive(Default)]
pub(super) struct OpenSockets {
    /// The session's own or that of a new mapping.
    upstream: Option<UpstreamSocket>,
    taker: Option<Handing>,
}

impl OpenSockets {
    /// The address and port of the socket.
    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.upstream.as_ref().and_then(UpstreamSocket::local_addr)
    }
}

impl Io {
    pub(super) fn new(
        memory: Box<dyn Memory>,
        ways: Ways,
        raw: RawReplies,
        icmp: Vec<(Family, IcmpSender)>,
        watch: Interest,
        (mark, counters): (Mark, Arc<UdpCounters>),
        takers: mpsc::Sender<Said>,
    ) -> Self {
        let (sessions, mappings) = (Vec::new(), Vec::new());
        Self { memory, ways, raw, mark, icmp, watch, counters, sessions, mappings, takers, handed: 0 }
    }

    /// Makes what a session needs towards its upstream.
    ///
    /// # Errors
    /// What is missing for one of them.
    pub(super) fn open(&mut self, opening: &Opening) -> Result<OpenSockets, SocketError> {
        let flow = *opening.flow();
        let to = match *opening.wanted() {
            Wanted::Peer(peer) => Endpoint::Peer(peer),
            Wanted::Mapping(_) => Endpoint::Any(Family::of(flow.dst.0.ip())),
            Wanted::Shared(_) | Wanted::Nothing => return Ok(OpenSockets::default()),
            Wanted::Taker => {
                let taker = taker(opening.rule())?;
                return Ok(OpenSockets { upstream: None, taker: Some(taker) });
            }
        };
        let upstream = self.upstream(to, flow.client, opening.rule(), opening.egress())?;
        Ok(OpenSockets { upstream: Some(upstream), taker: None })
    }

    /// Makes a socket towards an upstream.
    ///
    /// # Errors
    /// What is missing for it, or that it can have none of the addresses and ports that it may have.
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
        let peer = match to {
            Endpoint::Peer(peer) => Some(peer.ip()),
            Endpoint::Any(_) => None,
        };
        let mut sources = Sources::towards(peer, rule, client, &self.ways, &self.counters.source_fallbacks);
        let mut source = sources.first(&mut is_clients);
        loop {
            match socket::datagram_upstream(to, source, egress) {
                Err(error @ (SocketError::Taken { .. } | SocketError::NotOwn { .. })) => {
                    source = sources.next(&self.counters.source_fallbacks, &mut is_clients).ok_or(error)?;
                }
                socket => return socket.map(|socket| UpstreamSocket::new(Channel::new(socket))),
            }
        }
    }

    /// A session, and its mapping if that is new, have these sockets from now on.
    ///
    /// # Errors
    /// When one of them cannot be watched.
    pub(super) fn adopt(&mut self, id: SessionId, begun: Begun, sockets: OpenSockets) -> io::Result<()> {
        let OpenSockets { upstream, taker } = sockets;
        let Begun { flow, rule, mapping } = begun;
        let taker = taker.map(|taker| {
            self.handed += 1;
            let ticket = Ticket { place: id.index(), number: self.handed };
            Box::new(taker.hand_over((flow.client, flow.dst), rule, ticket, self.takers.clone()))
        });
        let place = id.index() as usize;
        if self.sessions.len() <= place {
            self.sessions.resize_with(place + 1, Ends::default);
        }
        self.sessions[place] = Ends { client: None, upstream: None, taker };
        match (upstream, mapping) {
            (None, _) => Ok(()),
            (Some(socket), None) => self.set_upstream(id, socket),
            (Some(socket), Some(index)) => self.set_mapping(index, socket),
        }
    }

    /// Makes a session's own socket towards the client.
    ///
    /// # Errors
    /// Somebody holds the port, or something is missing.
    pub(super) fn open_client(&mut self, id: SessionId, flow: &Flow) -> Result<(), SocketError> {
        let socket = socket::session(flow.dst, flow.client, self.mark)?;
        if let Some(ends) = self.sessions.get_mut(id.index() as usize) {
            ends.client = Some(Channel::new(socket));
        }
        Ok(())
    }

    /// Closes it.
    pub(super) fn close_client(&mut self, id: SessionId) {
        if let Some(ends) = self.sessions.get_mut(id.index() as usize) {
            ends.client = None;
        }
    }

    /// A session's upstream socket is this from now on.
    pub(super) fn set_upstream(&mut self, id: SessionId, socket: UpstreamSocket) -> io::Result<()> {
        self.watch.add(&socket.channel.socket, Token::Upstream(id))?;
        self.sessions[id.index() as usize].upstream = Some(socket);
        Ok(())
    }

    /// A mapping's is.
    pub(super) fn set_mapping(&mut self, index: u32, socket: UpstreamSocket) -> io::Result<()> {
        self.watch.add(&socket.channel.socket, Token::Mapping(index))?;
        let place = index as usize;
        if self.mappings.len() <= place {
            self.mappings.resize_with(place + 1, || None);
        }
        self.mappings[place] = Some(socket);
        Ok(())
    }

    /// Does what a relay asks for.
    ///
    /// # Errors
    /// The session whose socket cannot be watched.
    pub(super) fn carry_out(&mut self, command: Command) -> Result<(), SessionId> {
        match command {
            Command::Close(id) => {
                if let Some(ends) = self.sessions.get_mut(id.index() as usize) {
                    *ends = Ends::default();
                }
            }
            Command::CloseMapping(index) => {
                if let Some(socket) = self.mappings.get_mut(index as usize) {
                    *socket = None;
                }
            }
            // It matters what comes of it: see `Forwarder::carry_out`.
            Command::Own(..) => {}
            Command::Read(id) => {
                if let Some(channel) =
                    self.sessions.get(id.index() as usize).and_then(|ends| ends.client.as_ref())
                    && let Err(error) = self.watch.add(&channel.socket, Token::Client(id))
                {
                    tracing::debug!(%error, "cannot watch a socket");
                    return Err(id);
                }
            }
            Command::Notify { reporter, error, flow } => {
                let family = Family::of(flow.client.0.ip());
                let sender = self.icmp.iter_mut().find(|(of, _)| *of == family);
                match sender.map(|(_, sender)| sender.send(reporter, error, flow.client, flow.dst)) {
                    Some(Ok(())) => add(&self.counters.icmp_sent, 1),
                    Some(Err(_)) | None => add(&self.counters.send_errors, 1),
                }
            }
            Command::Forget(Flow { client, dst }) => self.memory.forget(client, dst),
            Command::Expect { flow: Flow { client, dst }, rule, origin } => {
                self.memory.expect(client, dst, rule, &origin);
            }
            Command::WriteDown { flow, record, end, at } => record.close(&flow, end, at),
        }
        Ok(())
    }

    /// A session's socket towards the client.
    pub(super) fn client(&mut self, id: SessionId) -> Option<&mut Channel> {
        self.sessions.get_mut(id.index() as usize)?.client.as_mut()
    }

    /// A session's own socket towards its upstream.
    pub(super) fn own(&mut self, id: SessionId) -> Option<&mut UpstreamSocket> {
        self.sessions.get_mut(id.index() as usize)?.upstream.as_mut()
    }

    /// Gives datagrams to whoever has taken a session. Without anybody, they have not gone anywhere.
    pub(super) fn give(&mut self, id: SessionId, run: &Run<'_>) -> Option<Sent> {
        let taker = self.sessions.get(id.index() as usize)?.taker.as_ref()?;
        let mut sent = Sent::default();
        for datagram in run.datagrams() {
            sent.count(1, datagram.len(), taker.give(datagram));
        }
        Some(sent)
    }

    /// The session that somebody has taken, if it is still the same.
    pub(super) fn taken(&self, ticket: Ticket) -> Option<SessionId> {
        let ends = self.sessions.get(ticket.place as usize)?;
        ends.taker.as_ref().filter(|taker| taker.ticket == ticket).map(|_| SessionId::new(ticket.place))
    }

    /// A mapping's socket.
    pub(super) fn shared(&mut self, index: u32) -> Option<&mut UpstreamSocket> {
        self.mappings.get_mut(index as usize)?.as_mut()
    }

    /// Says whether packets find a session's socket towards the client.
    pub(super) fn set_visibility(&mut self, id: SessionId, visibility: Visibility) {
        let Some(channel) = self.client(id) else { return };
        if let Err(error) = socket::set_visibility(&channel.socket, visibility) {
            tracing::debug!(%error, ?visibility, "cannot set whether packets find a socket");
        }
    }

    /// This host's address towards a peer, by the way that a mapping goes.
    pub(super) fn address_towards(peer: SocketAddr, egress: Egress) -> Option<IpAddr> {
        let towards = socket::datagram_upstream(Endpoint::Peer(peer), UpstreamSource::Host, egress).ok()?;
        Some(towards.local_addr().ok()?.as_socket()?.ip())
    }
}

/// A place with whoever takes a rule's sessions.
fn taker(rule: &KeptRule) -> Result<Handing, SocketError> {
    let taken = match &rule.treatment.action {
        Action::HandOver(taker) => taker.place(),
        action => unreachable!("{action} hands nothing over"),
    };
    taken.map_err(|source| SocketError::Os { step: "hand over", source })
}
