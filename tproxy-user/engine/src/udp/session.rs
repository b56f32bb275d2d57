//! What is known of one session, and the two lines that are written about it.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use tproxy_common::packet::Fragmenting;

use super::{
    End,
    batch::Run,
    channel::{Channel, Sent},
    listener::Place,
    mapping::Mapping,
    table::Flow,
};
use crate::{
    family::Family,
    flows::{FlowState, LiveEntry},
    generation::ChosenRule,
    socket::{self, Egress, Pieces},
};

/// A flow that is relayed or answered.
pub(super) struct Session {
    pub(super) reply: Reply,
    pub(super) upstream: Upstream,
    /// How what leaves by the upstream socket travels.
    pub(super) travel: Travel,
    /// The socket towards the client is not read yet.
    pub(super) waits_for: Option<Place>,
    pub(super) record: Record,
    pub(super) live: LiveEntry,
}

/// What is left to say of a session when its sockets are closed.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) rule: ChosenRule,
    /// client → upstream
    pub(super) up: Traffic,
    /// upstream → client
    pub(super) down: Traffic,
    began: Instant,
}

/// How datagrams get to the client, with the original destination as their source.
pub(super) enum Reply {
    /// By a socket that has it, and that is connected to the client.
    Own(Channel),
    /// By the raw socket of the worker: somebody of this host holds the port.
    Raw,
}

/// Where the client's datagrams go.
pub(super) enum Upstream {
    /// By a socket connected to this address.
    Own(UpstreamSocket, SocketAddr),
    /// To the original destination, by the socket of this mapping.
    Shared(u32),
    /// Nowhere: each is answered with this.
    Text(Arc<str>),
}

/// What has passed in one direction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

impl Traffic {
    fn add(&mut self, more: Self) {
        self.datagrams += more.datagrams;
        self.bytes += more.bytes;
    }
}

impl From<&Sent> for Traffic {
    fn from(sent: &Sent) -> Self {
        Self { datagrams: sent.datagrams, bytes: sent.bytes }
    }
}

/// How datagrams to an upstream travel, as the client's first one did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Travel {
    /// Their TTL or hop limit.
    pub(super) ttl: u8,
    /// Whether they may be fragmented, if that is known.
    pub(super) fragmenting: Option<Fragmenting>,
}

/// A socket towards an upstream, with what was set last for it.
pub(super) struct UpstreamSocket {
    pub(super) channel: Channel,
    pub(super) egress: Egress,
    /// Its address took the place of one that is gone; there may be a better one by now.
    pub(super) makeshift: bool,
    ttl: Option<u8>,
    fragmenting: Option<Fragmenting>,
}

impl UpstreamSocket {
    pub(super) const fn new(channel: Channel, egress: Egress) -> Self {
        Self { channel, egress, makeshift: false, ttl: None, fragmenting: None }
    }

    pub(super) fn send(&mut self, run: &Run<'_>, to: SocketAddr, travel: Travel) -> Sent {
        let family = Family::of(to.ip());
        if self.ttl != Some(travel.ttl) {
            // Without it the datagram lives longer or shorter than it should, and arrives all the same.
            let _ = socket::set_ttl(&self.channel.socket, family, travel.ttl);
            self.ttl = Some(travel.ttl);
        }
        // What the client itself had to fragment nobody can ask it to make shorter.
        let fragmenting = match run.pieces {
            Pieces::One => travel.fragmenting,
            Pieces::Many => Some(Fragmenting::Allowed),
        };
        if let Some(wanted) = fragmenting.filter(|wanted| self.fragmenting != Some(*wanted)) {
            // The kernel has an opinion of its own otherwise, which is to fragment what does not fit.
            let _ = socket::set_fragmenting(&self.channel.socket, family, wanted);
            self.fragmenting = Some(wanted);
        }
        self.channel.send(run, to)
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        let local = self.channel.socket.local_addr()?;
        local.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

impl Session {
    pub(super) fn new(
        rule: ChosenRule,
        reply: Reply,
        upstream: Upstream,
        travel: Travel,
        live: LiveEntry,
        now: Instant,
    ) -> Self {
        let (up, down) = (Traffic::default(), Traffic::default());
        if let Upstream::Text(_) = upstream {
            live.set_state(FlowState::Answering);
        }
        Self { reply, upstream, travel, waits_for: None, record: Record { rule, up, down, began: now }, live }
    }

    /// Counts what was sent to the upstream.
    pub(super) fn count_up(&mut self, sent: Traffic) {
        self.record.up.add(sent);
        self.show_bytes();
    }

    /// Counts what was sent to the client.
    pub(super) fn count_down(&mut self, sent: Traffic) {
        self.record.down.add(sent);
        self.show_bytes();
        if !matches!(self.upstream, Upstream::Text(_)) {
            self.live.set_state(FlowState::TwoWay);
        }
    }

    fn show_bytes(&self) {
        self.live.set_bytes(self.record.up.bytes, self.record.down.bytes);
    }

    /// Writes the first line.
    pub(super) fn announce(&self, flow: &Flow, mapping: Option<&Mapping>) {
        let (upstream, source) = match &self.upstream {
            Upstream::Own(socket, peer) => (Some(*peer), socket.local_addr().ok()),
            Upstream::Shared(_) => {
                (Some(flow.dst.0), mapping.and_then(|mapping| mapping.socket.local_addr().ok()))
            }
            Upstream::Text(_) => (None, None),
        };
        if let Some(upstream) = upstream {
            self.live.leads_to(upstream);
        }
        tracing::info!(
            client = %flow.client,
            dst = %flow.dst,
            rule = %self.record.rule.name,
            action = %self.record.rule.treatment.action,
            upstream = upstream.map(tracing::field::display),
            source = source.map(tracing::field::display),
            "accepted"
        );
    }
}

impl Record {
    /// Writes the last line.
    pub(super) fn close(&self, flow: &Flow, end: End, now: Instant) {
        tracing::info!(
            client = %flow.client,
            dst = %flow.dst,
            rule = %self.rule.name,
            datagrams_up = self.up.datagrams,
            datagrams_down = self.down.datagrams,
            bytes_up = self.up.bytes,
            bytes_down = self.down.bytes,
            duration = ?now.duration_since(self.began),
            %end,
            "closed"
        );
    }
}
