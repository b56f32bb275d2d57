//! What is known of one session, and the two lines that are written about it.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tproxy_common::{abi::Origin, packet::Fragmenting};

use super::{
    End,
    channel::Sent,
    mapping::Mapping,
    relay::{Pace, Watermark},
    table::Flow,
};
use crate::{
    config::Scope,
    flows::{FlowState, LiveEntry},
    generation::{ChosenRule, RuleNumber},
    socket::Egress,
};

/// A flow that is relayed or answered.
pub(super) struct Session {
    pub(super) reply: Reply,
    pub(super) upstream: Upstream,
    /// How what leaves by the upstream socket travels.
    pub(super) travel: Travel,
    /// The socket towards the client is not read yet.
    pub(super) waits_for: Option<Watermark>,
    /// What it was decided by.
    pub(super) decided: (RuleNumber, Origin),
    pub(super) pace: Pace,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// By a socket that has it, and that is connected to the client.
    Own,
    /// By the raw socket of the worker, as long as there is not much to send.
    Raw,
    /// By that in any case: somebody of this host holds the port, or it is somebody's.
    OnlyRaw,
}

/// Where the client's datagrams go.
pub(super) enum Upstream {
    /// By a socket connected to this address.
    Own(Outlet, SocketAddr),
    /// To the original destination, by the socket of this mapping.
    Shared(u32),
    /// To other code of this process.
    Taker,
    /// Nowhere: each is answered with this.
    Text(Arc<str>),
}

/// A socket towards upstreams, as others see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlet {
    pub(super) egress: Egress,
    /// Its address and port.
    pub(super) local: Option<SocketAddr>,
    /// Its address took the place of one that is gone; there may be a better one by now.
    pub(super) makeshift: bool,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Travel {
    /// Their TTL or hop limit.
    pub(super) ttl: u8,
    /// Whether they may be fragmented, if that is known.
    pub(super) fragmenting: Option<Fragmenting>,
}

impl Session {
    pub(super) fn new(
        rule: ChosenRule,
        decided: (RuleNumber, Origin),
        upstream: Upstream,
        travel: Travel,
        live: LiveEntry,
        now: Instant,
    ) -> Self {
        if let Upstream::Text(_) = upstream {
            live.set_state(FlowState::Answering);
        }
        // Of addresses of this host, ports are somebody's, or will be.
        let reply = if rule.reach.scope == Scope::Inbound { Reply::OnlyRaw } else { Reply::Raw };
        let (up, down) = (Traffic::default(), Traffic::default());
        let record = Record { rule, up, down, began: now };
        Self { reply, upstream, travel, waits_for: None, decided, pace: Pace::default(), record, live }
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
            Upstream::Own(outlet, peer) => (Some(*peer), outlet.local),
            Upstream::Shared(_) => (Some(flow.dst.0), mapping.and_then(|mapping| mapping.outlet.local)),
            Upstream::Taker | Upstream::Text(_) => (None, None),
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
