//! Moving datagrams.

use std::{io, time::Instant};

use super::{
    End,
    batch::{Batch, Most, Run},
    counters::add,
    relay::Relay,
    session::{Reply, Session, Traffic, Upstream},
    stray::Stray,
    table::{Flow, Sender, SessionId},
};
use crate::{
    flow::{ClientAddr, OriginalDst},
    socket::{self, Visibility},
};

/// For senders that take one datagram at a time.
const SINGLY: Most = Most { datagrams: 1, size: 0 };

impl Relay {
    /// Relays what the socket towards a client has.
    pub(super) fn read_client(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        if self.receive_from_client(id, batch, now) {
            self.all_up(id, batch, now);
        }
    }

    /// Says whether there was anything.
    fn receive_from_client(&mut self, id: SessionId, batch: &mut Batch, now: Instant) -> bool {
        // If so, this is another session's event, from before this one had its place.
        if self.is_waiting(id) {
            return false;
        }
        let Some((_, Session { reply: Reply::Own(channel), .. })) = self.table.get_mut(id) else {
            return false;
        };
        match self.offload.receive(&channel.socket, batch) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.end(id, End::ClientRefused, now);
                }
                false
            }
        }
    }

    fn all_up(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        let Some((Flow { client, dst }, session)) = self.table.get_mut(id) else { return };
        let (client, dst, ttl) = (*client, *dst, session.ttl);
        while let Some(run) = batch.next_run(self.most_up(id)) {
            if run.from == client.0 {
                self.up(id, &run, now);
            } else {
                self.strays.extend(run.datagrams().map(|payload| Stray::new(&run, dst, ttl, payload)));
            }
        }
    }

    /// Relays what a session's own upstream socket has.
    pub(super) fn read_upstream(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        let Some((_, Session { upstream: Upstream::Own(socket, peer), .. })) = self.table.get_mut(id) else {
            return;
        };
        // An error was one that the error queue tells, too; reading has cleared it.
        if self.offload.receive(&socket.channel.socket, batch).is_err() {
            return;
        }
        let peer = *peer;
        while let Some(run) = batch.next_run(self.most_down(id)) {
            if run.from == peer {
                self.down(id, &run, now);
            } else {
                // Another peer's, whom this mapping is to keep out; see `Stray`.
                add(&self.counters.not_from_peer, u64::from(run.count()));
            }
        }
    }

    /// Relays what the socket of a mapping has, each datagram by the session with its sender.
    pub(super) fn read_mapping(&mut self, index: u32, batch: &mut Batch, now: Instant) {
        let Some(mapping) = self.mappings.get_mut(index) else { return };
        if self.offload.receive(&mapping.socket.channel.socket, batch).is_err() {
            return;
        }
        let client = mapping.sharing.client;
        while let Some(from) = batch.next_from() {
            let flow = Flow { client, dst: OriginalDst(from) };
            let session = self.table.find(&flow);
            let most = session.map_or(SINGLY, |id| self.most_down(id));
            let Some(run) = batch.next_run(most) else { return };
            match session {
                Some(id) => self.down(id, &run, now),
                None => self.unsolicited(client, &run),
            }
        }
    }

    /// Ends sessions that were found to be answered, unless the client has asked more meanwhile.
    pub(super) fn end_answered(&mut self, batch: &mut Batch, now: Instant) {
        for _ in 0..self.answered.len() {
            let Some(id) = self.answered.pop() else { return };
            if self.table.is_answered(id) {
                self.end_unless_more(id, End::Answered, batch, now);
            }
        }
    }

    /// Ends a session that seems to be over. If its client has sent more, that is relayed and the session goes on.
    pub(super) fn end_unless_more(&mut self, id: SessionId, end: End, batch: &mut Batch, now: Instant) {
        if self.is_waiting(id) {
            return;
        }
        // What came between a last look and the end would be lost. From here on it is the listener's, who has it decided.
        self.set_visibility(id, Visibility::Hidden);
        if self.receive_from_client(id, batch, now) {
            self.set_visibility(id, Visibility::Found);
            self.all_up(id, batch, now);
        } else {
            self.end(id, end, now);
        }
    }

    fn set_visibility(&mut self, id: SessionId, visibility: Visibility) {
        let Some((_, Session { reply: Reply::Own(channel), .. })) = self.table.get_mut(id) else { return };
        if let Err(error) = socket::set_visibility(&channel.socket, visibility) {
            tracing::debug!(%error, ?visibility, "cannot set whether packets find a socket");
        }
    }

    /// Whether the listener may still have datagrams of a session that has a socket of its own.
    fn is_waiting(&mut self, id: SessionId) -> bool {
        self.table.get_mut(id).is_some_and(|(_, session)| session.waits_for.is_some())
    }

    /// Datagrams from a client to where its session leads.
    pub(super) fn up(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Self { table, mappings, offload, counters, reporter, .. } = self;
        let Some((flow, session)) = table.get_mut(id) else { return };
        let ttl = session.ttl;
        let sent = match &mut session.upstream {
            Upstream::Own(socket, peer) => socket.send(offload, run, *peer, ttl),
            Upstream::Shared(index) => {
                let Some(mapping) = mappings.get_mut(*index) else { return };
                mapping.socket.send(offload, run, flow.dst.0, ttl)
            }
            Upstream::Text(_) => return self.respond(id, run, now),
        };
        session.count_up(Traffic::from(&sent));
        add(&counters.datagrams_up, sent.datagrams);
        add(&counters.bytes_up, sent.bytes);
        add(&counters.send_errors, sent.lost);
        if let Some(error) = &sent.error {
            reporter.report_failure(flow, error, counters, now);
        }
        table.used(id, Sender::Client, run.count(), now);
    }

    /// Answers each datagram in place of an upstream.
    fn respond(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Some((_, session)) = self.table.get_mut(id) else { return };
        let Upstream::Text(text) = &session.upstream else { return };
        let text = std::sync::Arc::clone(text);
        let received = u64::from(run.count());
        session.count_up(Traffic { datagrams: received, bytes: run.contents.len() as u64 });
        add(&self.counters.datagrams_up, received);
        add(&self.counters.bytes_up, run.contents.len() as u64);
        self.table.used(id, Sender::Client, run.count(), now);
        for _ in 0..received {
            self.down(id, &Run::one(run.from, None, text.as_bytes()), now);
        }
    }

    /// Datagrams of a session to its client.
    fn down(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Self { table, offload, counters, raw, .. } = self;
        let Some((flow, session)) = table.get_mut(id) else { return };
        let sent = match &mut session.reply {
            Reply::Own(channel) => channel.send(offload, run, flow.client.0),
            Reply::Raw => raw.send(flow.dst, flow.client, run),
        };
        session.count_down(Traffic::from(&sent));
        add(&counters.datagrams_down, sent.datagrams);
        add(&counters.bytes_down, sent.bytes);
        add(&counters.send_errors, sent.lost);
        let sender = match session.upstream {
            Upstream::Text(_) => Sender::Ourselves,
            Upstream::Own(..) | Upstream::Shared(_) => Sender::Upstream,
        };
        table.used(id, sender, run.count(), now);
        if table.is_answered(id) {
            self.answered.push(id);
        }
        if sent.refused {
            self.end(id, End::ClientRefused, now);
        }
    }

    /// Datagrams from a peer that the client, which has sent to others by the same mapping, has no session with.
    fn unsolicited(&mut self, client: ClientAddr, run: &Run<'_>) {
        let sent = self.raw.send(OriginalDst(run.from), client, run);
        add(&self.counters.unsolicited, sent.datagrams);
        add(&self.counters.bytes_down, sent.bytes);
        add(&self.counters.datagrams_down, sent.datagrams);
        add(&self.counters.send_errors, sent.lost);
    }

    fn most_up(&mut self, id: SessionId) -> Most {
        let Some((_, session)) = self.table.get_mut(id) else { return SINGLY };
        match &session.upstream {
            Upstream::Own(socket, _) => socket.channel.most(&self.offload),
            Upstream::Shared(index) => self
                .mappings
                .get_mut(*index)
                .map_or(SINGLY, |mapping| mapping.socket.channel.most(&self.offload)),
            Upstream::Text(_) => SINGLY,
        }
    }

    fn most_down(&mut self, id: SessionId) -> Most {
        match self.table.get_mut(id) {
            Some((_, Session { reply: Reply::Own(channel), .. })) => channel.most(&self.offload),
            _ => SINGLY,
        }
    }
}
