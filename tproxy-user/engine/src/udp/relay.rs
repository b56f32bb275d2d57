//! What a worker knows of its UDP sessions, and all that it decides about them: without a socket, a clock or a runtime.
//!
//! Whoever does the I/O says what has come, and when; is told where it goes, and says what became of it. What else there is
//! to do is a [`Command`]. A flow that has no session yet is taken there [`Step`] by step.

mod begin;
mod command;
mod course;
mod errors;
mod moving;
mod own;
mod queue;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) use begin::{Begun, Opening, Step, Wanted};
pub(super) use command::Command;
pub(super) use course::{Down, Stranger, Up};
use moving::Moving;
pub(super) use moving::Stranded;
use own::Owners;
pub(super) use own::Pace;
use queue::Queue;
pub(super) use queue::Watermark;

use super::{
    End, Endpoints, UdpCounters,
    counters::add,
    mapping::Mappings,
    rate::{Rate, Rates},
    session::{Outlet, Reply, Session, Upstream},
    table::{Flow, SessionId, Table, TableLimits},
};
use crate::{
    config::{Scope, SessionLimits, Timeouts},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows,
    generation::Generations,
    live::LiveCount,
};

/// While draining, whoever is silent for this long is done.
const DRAINED: Duration = Duration::from_secs(1);

/// ICMP errors to clients in one second.
const NOTICES_PER_SECOND: u32 = 1000;

/// Answers of ours to one client in a second, over all workers.
const ANSWERS_PER_SECOND: u32 = 100;

/// Strangers to one client in a second, over all workers, whom it may answer by its mapping: what is noted for it takes the
/// place of other things.
const EXPECTED_PER_SECOND: u32 = 100;

/// What a relay is given.
pub(super) struct Given {
    /// What all UDP listeners of the instance are bound to.
    pub(super) bound: Arc<[SocketAddr]>,
    pub(super) generations: Generations,
    /// How many share what there may be of sessions.
    pub(super) workers: usize,
    pub(super) endpoints: Endpoints,
    pub(super) books: Books,
}

/// Where it is written down what goes on, for others to see.
pub(super) struct Books {
    pub(super) counters: Arc<UdpCounters>,
    pub(super) flows: Arc<flows::FlowTable>,
    pub(super) live: LiveCount,
}

/// How much may be done in a second that somebody else might make us do.
struct Allowed {
    notices: Rate,
    /// What is answered in place of an upstream.
    answers: Rates,
    /// Answers of clients to strangers that are looked forward to.
    expected: Rates,
}

/// The sessions of a worker, and what they have in common.
pub(super) struct Relay {
    bound: Arc<[SocketAddr]>,
    generations: Generations,
    workers: usize,
    table: Table<Session>,
    mappings: Mappings,
    /// What is in the listeners, by family.
    queues: [Queue; 2],
    allowed: Allowed,
    moving: Moving,
    /// Sessions with a socket of their own towards the client.
    owners: Owners,
    books: Books,
    /// Sessions whose queries have all been answered, just now.
    answered: Vec<SessionId>,
    commands: VecDeque<Command>,
}

impl Relay {
    pub(super) fn new(given: Given, now: Instant) -> Self {
        let Given { bound, generations, workers, endpoints, books } = given;
        let share = |per_second: u32| per_second.div_ceil(workers as u32);
        Self {
            bound,
            table: Table::new(limits(&generations, workers)),
            generations,
            workers,
            mappings: Mappings::new(endpoints),
            queues: Default::default(),
            allowed: Allowed {
                notices: Rate::new(NOTICES_PER_SECOND, now),
                answers: Rates::new(share(ANSWERS_PER_SECOND)),
                expected: Rates::new(share(EXPECTED_PER_SECOND)),
            },
            moving: Moving::default(),
            owners: Owners::default(),
            books,
            answered: Vec::new(),
            commands: VecDeque::new(),
        }
    }

    /// What is to be done, in this order, before anything else is.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The session of a flow.
    pub(super) fn find(&self, flow: &Flow) -> Option<SessionId> {
        self.table.find(flow)
    }

    /// The latest generation's limits hold for all sessions. To be called every second.
    pub(super) fn adopt_limits(&mut self, now: Instant) {
        self.allowed.answers.forget_the_silent(now);
        self.allowed.expected.forget_the_silent(now);
        self.table.set_limits(limits(&self.generations, self.workers));
    }

    /// A session that has been silent for too long, and how it ends unless there is more of it.
    pub(super) fn next_silent(&self, draining: bool, now: Instant) -> Option<(SessionId, End)> {
        let idle = self.table.idle(now).map(|id| (id, End::Idle));
        idle.or_else(|| self.table.silent(DRAINED, now).filter(|_| draining).map(|id| (id, End::Stopped)))
    }

    /// A session that was found to be answered, unless its client has asked more meanwhile.
    pub(super) fn next_answered(&mut self) -> Option<SessionId> {
        while let Some(id) = self.answered.pop() {
            if self.table.is_answered(id) {
                return Some(id);
            }
        }
        None
    }

    /// Ends a session. That it has ended before is no matter.
    pub(super) fn end(&mut self, id: SessionId, end: End, now: Instant) {
        let Some((flow, session)) = self.table.remove(id) else { return };
        let Session { reply, upstream, record, live, .. } = session;
        live.ended(end.name());
        // Before anything that takes time: what arrives until then is lost.
        self.commands.push_back(Command::Close(id));
        if reply != Reply::Own {
            self.forget(flow);
        }
        if let Upstream::Own(Outlet { local: Some(own), .. }, peer) = upstream
            && record.rule.reach.scope == Scope::Inbound
        {
            // The datapath remembers a flow of ours to an application as such; later the client itself may come from the same
            // port.
            self.forget(Flow { client: ClientAddr(own), dst: OriginalDst(peer) });
        }
        if let Upstream::Shared(mapping) = upstream
            && self.mappings.release(mapping)
        {
            self.commands.push_back(Command::CloseMapping(mapping));
        }
        self.commands.push_back(Command::WriteDown { flow, record, end, at: now });
        self.books.counters.ended(end);
        self.books.live.end();
    }

    /// Ends the sessions whose end somebody has asked for.
    pub(super) fn end_closing(&mut self, now: Instant) {
        for id in self.table.select(|session| session.live.is_closing()) {
            self.end(id, End::Closed, now);
        }
    }

    /// Ends all sessions.
    pub(super) fn end_all(&mut self, now: Instant) {
        while let Some(id) = self.table.any() {
            self.end(id, End::Stopped, now);
        }
    }

    /// A socket of a session cannot be watched, and is of no use.
    pub(super) fn unwatched(&mut self, id: SessionId, now: Instant) {
        add(&self.books.counters.out_of_descriptors, 1);
        self.end(id, End::Evicted, now);
    }

    /// A listener can hold so many bytes.
    pub(super) const fn listens(&mut self, family: Family, room: usize) {
        self.queues[family as usize].room = room as u64;
    }

    /// A datagram of so many bytes has been taken off the listener.
    pub(super) fn has_read(&mut self, family: Family, bytes: usize) {
        self.queues[family as usize].has_read(bytes);
    }

    /// Whether sessions wait for what is in a listener. It may have nothing, and nobody says so then.
    pub(super) fn waits_for(&self, family: Family) -> bool {
        self.queues[family as usize].is_waited_for()
    }

    /// A listener was read for a while, or to its end: sockets are read of which it holds nothing any more.
    pub(super) fn take_over(&mut self, family: Family, is_empty: bool) {
        while let Some((id, place)) = self.queues[family as usize].next_read(is_empty) {
            // Else it is another session in the same place.
            if let Some((_, session)) = self.table.get_mut(id)
                && session.waits_for == Some(place)
            {
                session.waits_for = None;
                self.commands.push_back(Command::Read(id));
            }
        }
    }

    /// Whether the listener may still have datagrams of a session that has a socket of its own.
    pub(super) fn is_waiting(&mut self, id: SessionId) -> bool {
        self.table.get_mut(id).is_some_and(|(_, session)| session.waits_for.is_some())
    }

    fn forget(&mut self, flow: Flow) {
        self.commands.push_back(Command::Forget(flow));
    }
}

/// What the latest generation allows one of `workers`. All sessions of a client endpoint are one worker's, but not all of a
/// client address.
fn limits(generations: &Generations, workers: usize) -> TableLimits {
    let latest = generations.latest();
    let SessionLimits { total, per_client } = latest.sessions();
    let Timeouts { udp, udp_stream, .. } = *latest.timeouts();
    TableLimits {
        sessions: SessionLimits { total: total.div_ceil(workers), per_client: per_client.div_ceil(workers) },
        one_way: udp,
        two_way: udp_stream,
    }
}

#[cfg(test)]
mod tests;
