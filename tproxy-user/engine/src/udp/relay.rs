//! All that a worker knows of its sessions, and how they end.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    End, Memory, Setup, UdpCounters,
    batch::Batch,
    counters::add,
    errors::{self, Reporter},
    listener::Place,
    mapping::Mappings,
    rate::Rates,
    raw::RawReplies,
    readiness::{Token, Watch},
    session::{Reply, Session, Upstream},
    stray::Stray,
    table::{Flow, Limits, SessionId, Table},
};
use crate::{
    config::{Scope, SessionLimits, Timeouts},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows,
    generation::Generations,
    live::LiveCount,
    mark::Mark,
    socket::{IcmpSender, RawSender},
    way::Ways,
};

/// While draining, whoever is silent for this long is done.
const DRAINED: Duration = Duration::from_secs(1);

/// Answers of ours to one client in a second, over all workers.
const ANSWERS_PER_SECOND: u32 = 100;

/// Strangers to one client in a second, over all workers, whom it may answer by its mapping: what is noted for it takes the
/// place of other things.
const EXPECTED_PER_SECOND: u32 = 100;

/// The sessions of a worker, and what they have in common.
pub(super) struct Relay {
    pub(super) bound: Arc<[SocketAddr]>,
    pub(super) generations: Generations,
    workers: usize,
    pub(super) mark: Mark,
    pub(super) ways: Ways,
    /// Addresses that are the host's no more, as they were told of.
    pub(super) heard: Arc<BTreeSet<IpAddr>>,
    pub(super) gone: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// Sessions whose address is gone could not go on from another yet.
    pub(super) left: bool,
    /// How often it is yet to be looked for a better address.
    pub(super) looks: u32,
    pub(super) memory: Box<dyn Memory>,
    pub(super) counters: Arc<UdpCounters>,
    pub(super) flows: Arc<flows::FlowTable>,
    pub(super) table: Table<Session>,
    pub(super) mappings: Mappings,
    pub(super) raw: RawReplies,
    pub(super) reporter: Reporter,
    /// What is answered in place of an upstream.
    pub(super) answers: Rates,
    /// Answers of clients to strangers that are looked forward to.
    pub(super) expected: Rates,
    pub(super) watch: Watch,
    /// Sessions whose queries have all been answered, just now.
    pub(super) answered: Vec<SessionId>,
    /// What the kernel gave to the wrong session, just now.
    pub(super) strays: Vec<Stray>,
    live: LiveCount,
}

impl Relay {
    pub(super) fn new(
        setup: Setup,
        senders: Vec<(Family, RawSender, IcmpSender)>,
        live: LiveCount,
        watch: Watch,
    ) -> Self {
        let (raw, icmp) =
            senders.into_iter().map(|(family, raw, icmp)| ((family, raw), (family, icmp))).unzip();
        let limits = limits(&setup.generations, setup.workers);
        Self {
            bound: setup.bound,
            generations: setup.generations,
            workers: setup.workers,
            mark: setup.mark,
            heard: Arc::default(),
            gone: setup.routing.gone(),
            left: false,
            looks: 0,
            ways: Ways::new(setup.routing, setup.mark),
            memory: setup.memory,
            counters: setup.counters,
            flows: setup.flows,
            table: Table::new(limits),
            mappings: Mappings::new(setup.endpoints),
            raw: RawReplies(raw),
            reporter: Reporter::new(icmp),
            answers: Rates::new(ANSWERS_PER_SECOND.div_ceil(setup.workers as u32)),
            expected: Rates::new(EXPECTED_PER_SECOND.div_ceil(setup.workers as u32)),
            watch,
            answered: Vec::new(),
            strays: Vec::new(),
            live,
        }
    }

    /// Enters a session of a flow that has none.
    pub(super) fn insert(&mut self, flow: Flow, session: Session, now: Instant) -> SessionId {
        let mapping = match session.upstream {
            Upstream::Shared(index) => self.mappings.get_mut(index),
            _ => None,
        };
        session.announce(&flow, mapping.as_deref());
        add(&self.counters.sessions, 1);
        self.live.begin();
        self.table.insert(flow, session, now)
    }

    /// Ends a session, with its sockets. That it has ended before is no matter.
    pub(super) fn end(&mut self, id: SessionId, end: End, now: Instant) {
        let Some((flow, session)) = self.table.remove(id) else { return };
        let Session { reply, upstream, record, live, .. } = session;
        live.ended(end.name());
        match &upstream {
            Upstream::Shared(mapping) => self.mappings.release(*mapping),
            Upstream::Own(socket, peer) if record.rule.reach.scope == Scope::Inbound => {
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
        record.close(&flow, end, now);
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

    /// The latest generation's limits hold for all sessions.
    pub(super) fn adopt_limits(&mut self, now: Instant) {
        self.answers.forget_the_silent(now);
        self.expected.forget_the_silent(now);
        self.table.set_limits(limits(&self.generations, self.workers));
    }

    /// Ends one session that has been silent for too long, and says whether there was one.
    pub(super) fn sweep(&mut self, draining: bool, batch: &mut Batch, now: Instant) -> bool {
        let idle = self.table.idle(now).map(|id| (id, End::Idle));
        let drained = || self.table.silent(DRAINED, now).filter(|_| draining).map(|id| (id, End::Stopped));
        let Some((id, end)) = idle.or_else(drained) else { return false };
        self.end_unless_more(id, end, batch, now);
        true
    }

    /// Ends the sessions whose end somebody has asked for.
    pub(super) fn end_closing(&mut self, now: Instant) {
        for id in self.table.select(|session| session.live.is_closing()) {
            self.end(id, End::Closed, now);
        }
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
                reporter.report_all(mapping, None, counters, now);
            }
            // Their errors are told where they are read.
            Token::Client(_) | Token::Listener(_) => {}
        }
    }
}

/// What the latest generation allows one of `workers`. All sessions of a client endpoint are one worker's, but not all of a
/// client address.
fn limits(generations: &Generations, workers: usize) -> Limits {
    let latest = generations.latest();
    let SessionLimits { total, per_client } = latest.sessions();
    let Timeouts { udp, udp_stream, .. } = *latest.timeouts();
    Limits {
        sessions: SessionLimits { total: total.div_ceil(workers), per_client: per_client.div_ceil(workers) },
        one_way: udp,
        two_way: udp_stream,
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
