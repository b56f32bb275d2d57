//! Which sessions there are, in the order in which they were used, and which of them makes room for another.

mod exercise;
mod list;

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

pub use exercise::exercise_sessions;
use list::{Linked, Links, List};
use slab::Slab;

use crate::{
    config::SessionLimits,
    flow::{ClientAddr, ClientNetwork, OriginalDst},
};

/// The port of DNS, where an answer ends what a query began.
const DNS: u16 = 53;

/// What identifies a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) client: ClientAddr,
    pub(super) dst: OriginalDst,
}

/// The place of a session in the table, valid until it is removed; another may have it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SessionId(u32);

impl SessionId {
    pub(super) const fn new(index: u32) -> Self {
        Self(index)
    }

    pub(super) const fn index(self) -> u32 {
        self.0
    }
}

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableLimits {
    pub(super) sessions: SessionLimits,
    /// Of silence, as long as only one side has sent.
    pub(super) one_way: Duration,
    /// Of silence, once both sides have.
    pub(super) two_way: Duration,
}

/// Who sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// The client.
    Client,
    /// The upstream.
    Upstream,
    /// We, in place of an upstream: that does not tell a session that is used from a flood.
    Ourselves,
}

/// The order of use, of all sessions and of each client's. One-way ones are apart from two-way ones: a flood is made of
/// the former.
#[derive(Debug, Default)]
struct Orders {
    one_way: List,
    two_way: List,
}

impl Orders {
    /// The least recently used, and rather one that only one side has sent in.
    fn dispensable(&self) -> Option<SessionId> {
        self.one_way.first().or_else(|| self.two_way.first())
    }

    const fn list(&mut self, two_way: bool) -> &mut List {
        if two_way { &mut self.two_way } else { &mut self.one_way }
    }
}

/// Sessions, of whatever `T` they are.
#[derive(Debug)]
pub(super) struct Table<T> {
    limits: TableLimits,
    sessions: Slab<Session<T>>,
    by_flow: HashMap<Flow, SessionId>,
    all: Orders,
    clients: Slab<Client>,
    by_network: HashMap<ClientNetwork, usize>,
    /// How many sessions each client has, with its place: who has most is the last.
    ranks: BTreeSet<(usize, usize)>,
    /// The neighbours of each session: among all, and among its client's.
    links: [Vec<Links>; 2],
}

#[derive(Debug, Default)]
struct Client {
    sessions: usize,
    orders: Orders,
}

#[derive(Debug)]
struct Session<T> {
    value: T,
    flow: Flow,
    /// Its place in [`Table::clients`]: a session that is used need not look for it.
    client: usize,
    used: Instant,
    two_way: bool,
    /// Queries without an answer each, as long as all that was said is DNS.
    unanswered: Option<u32>,
}

impl<T> Table<T> {
    pub(super) fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            sessions: Slab::new(),
            by_flow: HashMap::new(),
            all: Orders::default(),
            clients: Slab::new(),
            by_network: HashMap::new(),
            ranks: BTreeSet::new(),
            links: Default::default(),
        }
    }

    pub(super) const fn set_limits(&mut self, limits: TableLimits) {
        self.limits = limits;
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<SessionId> {
        self.by_flow.get(flow).copied()
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<(&Flow, &mut T)> {
        self.sessions.get_mut(id.0 as usize).map(|session| (&session.flow, &mut session.value))
    }

    /// Which session has to end before this client can have another, if one has to: at its own limit one of its own, else one
    /// of whoever has most.
    pub(super) fn in_the_way(&self, client: ClientAddr) -> Option<SessionId> {
        let SessionLimits { total, per_client } = self.limits.sessions;
        let own = self.by_network.get(&client.network()).map_or(0, |client| self.clients[*client].sessions);
        if own >= per_client {
            return self.dispensable_of(client);
        }
        if self.sessions.len() >= total { self.dispensable() } else { None }
    }

    /// Which session is to end for want of something that all have in common: the least recently used of whoever has most,
    /// whether that is used or not; and where nobody has more than one, of all.
    pub(super) fn dispensable(&self) -> Option<SessionId> {
        match self.ranks.last() {
            Some((2.., client)) => self.clients[*client].orders.dispensable(),
            _ => self.all.dispensable(),
        }
    }

    /// The same for want of something that a client's sessions alone have in common.
    pub(super) fn dispensable_of(&self, client: ClientAddr) -> Option<SessionId> {
        let client = self.by_network.get(&client.network())?;
        self.clients[*client].orders.dispensable()
    }

    /// Adds a session in which the client has yet to send. There is none of that flow, and none in the way.
    pub(super) fn insert(&mut self, flow: Flow, value: T, now: Instant) -> SessionId {
        let Self { by_network, clients, .. } = self;
        let client =
            *by_network.entry(flow.client.network()).or_insert_with(|| clients.insert(Client::default()));
        let others = clients[client].sessions;
        self.rank(client, others + 1);
        let unanswered = (flow.dst.0.port() == DNS).then_some(0);
        let session = Session { value, flow, client, used: now, two_way: false, unanswered };
        let id = SessionId(self.sessions.insert(session) as u32);
        for links in &mut self.links {
            links.resize(links.len().max(id.0 as usize + 1), Links::default());
        }
        self.by_flow.insert(flow, id);
        self.link(id);
        id
    }

    /// Notes that datagrams have passed.
    pub(super) fn used(&mut self, id: SessionId, sender: Sender, datagrams: u32, now: Instant) {
        self.unlink(id);
        let session = &mut self.sessions[id.0 as usize];
        session.used = now;
        session.two_way |= sender == Sender::Upstream;
        session.unanswered = session.unanswered.map(|unanswered| match sender {
            Sender::Client => unanswered.saturating_add(datagrams),
            Sender::Upstream | Sender::Ourselves => unanswered.saturating_sub(datagrams),
        });
        self.link(id);
    }

    /// Whether all that was said in a session may be DNS.
    pub(super) fn may_be_dns(&self, id: SessionId) -> bool {
        self.sessions.get(id.0 as usize).is_some_and(|session| session.unanswered.is_some())
    }

    /// Something was said that is no DNS: no answer ends the session.
    pub(super) fn is_no_dns(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(id.0 as usize) {
            session.unanswered = None;
        }
    }

    /// Whether a session is over, since all that was asked is answered.
    pub(super) fn is_answered(&self, id: SessionId) -> bool {
        let session = self.sessions.get(id.0 as usize);
        session.is_some_and(|session| session.unanswered == Some(0))
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<(Flow, T)> {
        self.sessions.get(id.0 as usize)?;
        self.unlink(id);
        let Session { flow, value, client, .. } = self.sessions.remove(id.0 as usize);
        self.by_flow.remove(&flow);
        let others = self.clients[client].sessions - 1;
        self.rank(client, others);
        if others == 0 {
            self.clients.remove(client);
            self.by_network.remove(&flow.client.network());
        }
        Some((flow, value))
    }

    /// A session that has been silent for too long.
    pub(super) fn idle(&self, now: Instant) -> Option<SessionId> {
        let TableLimits { one_way, two_way, .. } = self.limits;
        self.silent_for(&self.all.one_way, one_way, now)
            .or_else(|| self.silent_for(&self.all.two_way, two_way, now))
    }

    /// A session that has been silent for `time`.
    pub(super) fn silent(&self, time: Duration, now: Instant) -> Option<SessionId> {
        self.silent_for(&self.all.one_way, time, now)
            .or_else(|| self.silent_for(&self.all.two_way, time, now))
    }

    fn silent_for(&self, order: &List, time: Duration, now: Instant) -> Option<SessionId> {
        order.first().filter(|id| now.duration_since(self.sessions[id.0 as usize].used) >= time)
    }

    /// Those that are meant.
    pub(super) fn select(&self, is_meant: impl Fn(&T) -> bool) -> Vec<SessionId> {
        let meant = self.sessions.iter().filter(|(_, session)| is_meant(&session.value));
        meant.map(|(index, _)| SessionId(index as u32)).collect()
    }

    /// Any session, as long as there is one.
    pub(super) fn any(&self) -> Option<SessionId> {
        self.all.one_way.first().or(self.all.two_way.first())
    }

    /// A client has so many sessions from now on.
    fn rank(&mut self, client: usize, sessions: usize) {
        let before = std::mem::replace(&mut self.clients[client].sessions, sessions);
        self.ranks.remove(&(before, client));
        if sessions > 0 {
            self.ranks.insert((sessions, client));
        }
    }

    fn link(&mut self, id: SessionId) {
        let (mut all, mut own) = self.orders_of(id);
        all.push_back(id);
        own.push_back(id);
    }

    fn unlink(&mut self, id: SessionId) {
        let (mut all, mut own) = self.orders_of(id);
        all.remove(id);
        own.remove(id);
    }

    /// The order of all and that of the client's that this session has its place in.
    fn orders_of(&mut self, id: SessionId) -> (Linked<'_>, Linked<'_>) {
        let Session { client, two_way, .. } = &self.sessions[id.0 as usize];
        let client = &mut self.clients[*client];
        let [among_all, among_own] = &mut self.links;
        (
            Linked { list: self.all.list(*two_way), links: among_all },
            Linked { list: client.orders.list(*two_way), links: among_own },
        )
    }
}

#[cfg(test)]
mod tests;
