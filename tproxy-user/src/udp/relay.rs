//! All that a worker knows of its sessions, and how they end.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    End, Memory, Setup, UdpCounters,
    channel::Offload,
    counters::add,
    errors::{self, Reporter},
    listener::Place,
    mapping::Mappings,
    raw::RawReplies,
    readiness::{Token, Watch},
    session::{Reply, Session, Upstream},
    table::{Flow, Limits, SessionId, Table},
};
use crate::{
    config::{Rule, Scope},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    live::Live,
    mark::Mark,
    socket::{IcmpSender, RawSender},
};

/// While draining, whoever is silent for this long is done.
const DRAINED: Duration = Duration::from_secs(1);

/// The sessions of a worker, and what they have in common.
pub(super) struct Relay {
    pub(super) bound: Arc<[SocketAddr]>,
    pub(super) rules: Arc<[Rule]>,
    pub(super) mark: Mark,
    pub(super) memory: Box<dyn Memory>,
    pub(super) counters: Arc<UdpCounters>,
    pub(super) table: Table<Session>,
    pub(super) mappings: Mappings,
    pub(super) offload: Offload,
    pub(super) raw: RawReplies,
    pub(super) reporter: Reporter,
    pub(super) watch: Watch,
    /// Sessions whose queries have all been answered, just now.
    pub(super) answered: Vec<SessionId>,
    live: Live,
}

impl Relay {
    pub(super) fn new(
        setup: Setup,
        senders: Vec<(Family, RawSender, IcmpSender)>,
        live: Live,
        watch: Watch,
    ) -> io::Result<Self> {
        let (raw, icmp) =
            senders.into_iter().map(|(family, raw, icmp)| ((family, raw), (family, icmp))).unzip();
        let limits = Limits {
            sessions: setup.sessions,
            one_way: setup.timeouts.udp,
            two_way: setup.timeouts.udp_stream,
        };
        Ok(Self {
            bound: setup.bound,
            rules: setup.rules,
            mark: setup.mark,
            memory: setup.memory,
            counters: setup.counters,
            table: Table::new(limits),
            mappings: Mappings::default(),
            offload: Offload::new()?,
            raw: RawReplies(raw),
            reporter: Reporter::new(icmp),
            watch,
            answered: Vec::new(),
            live,
        })
    }

    /// Enters a session of a flow that has none.
    pub(super) fn insert(&mut self, flow: Flow, session: Session, now: Instant) -> SessionId {
        let mapping = match session.upstream {
            Upstream::Shared(index) => self.mappings.get_mut(index),
            _ => None,
        };
        session.announce(&flow, &self.rules[session.record.rule.0], mapping.as_deref());
        add(&self.counters.sessions, 1);
        self.live.begin();
        self.table.insert(flow, session, now)
    }

    /// Ends a session, with its sockets. That it has ended before is no matter.
    pub(super) fn end(&mut self, id: SessionId, end: End, now: Instant) {
        let Some((flow, session)) = self.table.remove(id) else { return };
        let Session { reply, upstream, record, .. } = session;
        let rule = &self.rules[record.rule.0];
        match &upstream {
            Upstream::Shared(mapping) => self.mappings.release(*mapping),
            Upstream::Own(socket, peer) if rule.scope == Scope::Inbound => {
                // The datapath remembers a flow of ours to an application as such; later the client itself may come from
                // the same port.
                if let Ok(own) = socket.local_addr() {
                    self.memory.forget(ClientAddr(own), OriginalDst(*peer));
                }
            }
            Upstream::Own(..) | Upstream::Text(_) => {}
        }
        match reply {
            Reply::Raw => self.memory.forget(flow.client, flow.dst),
            // Before anything that takes time: what arrives until then is lost.
            Reply::Own(channel) => drop(channel),
        }
        drop(upstream);
        record.close(&flow, rule, end, now);
        self.counters.ended(end);
        self.live.end();
    }

    /// From now on the session's own socket is read.
    pub(super) fn take_over(&mut self, id: SessionId, place: Place) {
        let Some((_, session)) = self.table.get_mut(id) else { return };
        // Else it is another session in the same place.
        if session.waits_for != Some(place) {
            return;
        }
        session.waits_for = None;
        if let Reply::Own(channel) = &session.reply
            && let Err(error) = self.watch.add(&channel.socket, Token::Client(id))
        {
            self.unwatched(id, &error);
        }
    }

    /// A socket that cannot be watched is of no use.
    pub(super) fn unwatched(&mut self, id: SessionId, error: &io::Error) {
        tracing::debug!(%error, "cannot watch a socket");
        add(&self.counters.out_of_descriptors, 1);
        self.end(id, End::Evicted, Instant::now());
    }

    /// Ends one session that has been silent for too long, and says whether there was one.
    pub(super) fn sweep(&mut self, draining: bool, now: Instant) -> bool {
        if let Some(id) = self.table.idle(now) {
            self.end(id, End::Idle, now);
            return true;
        }
        let Some(id) = self.table.silent(DRAINED, now).filter(|_| draining) else { return false };
        self.end(id, End::Stopped, now);
        true
    }

    /// Passes on the errors of a socket.
    pub(super) fn look_at_errors(&mut self, token: Token, now: Instant) {
        let Self { table, mappings, reporter, counters, .. } = self;
        match token {
            Token::Upstream(id) => {
                let Some((flow, Session { upstream: Upstream::Own(socket, _), .. })) = table.get_mut(id)
                else {
                    return;
                };
                for error in errors::of(&socket.channel.socket) {
                    reporter.report(flow, &error, counters, now);
                }
            }
            Token::Mapping(index) => {
                let Some(mapping) = mappings.get_mut(index) else { return };
                for error in errors::of(&mapping.socket.channel.socket) {
                    let flow = Flow { client: mapping.sharing.client, dst: OriginalDst(error.peer) };
                    reporter.report(&flow, &error, counters, now);
                }
            }
            // Their errors are told where they are read.
            Token::Client(_) | Token::Listener(_) => {}
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.table.any() {
            self.end(id, End::Stopped, now);
        }
    }
}
