//! Moving datagrams.

use std::{io, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Instant};

use super::{
    End,
    batch::{Batch, Most, Run},
    counters::add,
    dns,
    relay::Relay,
    session::{Reply, Session, Traffic, Upstream},
    stray::Stray,
    table::{Flow, Sender, SessionId, Table},
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    socket::{self, Endpoint, UpstreamSource, Visibility},
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
        match batch.receive(&channel.socket) {
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
        let (client, dst, ttl) = (*client, *dst, session.travel.ttl);
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
        if batch.receive(&socket.channel.socket).is_err() {
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
        if batch.receive(&mapping.socket.channel.socket).is_err() {
            return;
        }
        let (client, (rule, origin)) = (mapping.sharing.client, mapping.decided);
        while let Some(from) = batch.next_from() {
            let flow = Flow { client, dst: OriginalDst(from) };
            let session = self.table.find(&flow);
            let most = session.map_or(SINGLY, |id| self.most_down(id));
            let Some(run) = batch.next_run(most) else { return };
            match session {
                Some(id) => self.down(id, &run, now),
                None => {
                    // What the client answers goes by the same mapping, whatever its rule says of ports (TFTP, STUN).
                    let seen = self.as_seen(from, index);
                    if seen.is_none() && self.expected.allows(client, now) {
                        self.memory.expect(client, flow.dst, rule, &origin);
                    }
                    self.unsolicited(client, seen.unwrap_or(from), &run);
                }
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
        let Self { table, mappings, counters, reporter, .. } = self;
        let Some((flow, session)) = table.get_mut(id) else { return };
        let travel = session.travel;
        let sent = match &mut session.upstream {
            Upstream::Own(socket, peer) => socket.send(run, *peer, travel),
            Upstream::Shared(index) => {
                let Some(mapping) = mappings.get_mut(*index) else { return };
                let sent = mapping.socket.send(run, flow.dst.0, travel);
                if sent.is_too_long() {
                    reporter.report_all(mapping, Some(flow), counters, now);
                }
                sent
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
        note_what_is_no_dns(table, id, run, dns::is_query);
    }

    /// Answers datagrams in place of an upstream, where nobody is harmed by it.
    fn respond(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Some((flow, session)) = self.table.get_mut(id) else { return };
        let Upstream::Text(text) = &session.upstream else { return };
        let (text, client) = (Arc::clone(text), flow.client);
        let most =
            session.record.rule.treatment.limits.amplification.map_or(AMPLIFICATION, NonZeroUsize::get);
        let received = u64::from(run.count());
        session.count_up(Traffic { datagrams: received, bytes: run.contents.len() as u64 });
        add(&self.counters.datagrams_up, received);
        add(&self.counters.bytes_up, run.contents.len() as u64);
        self.table.used(id, Sender::Client, run.count(), now);
        note_what_is_no_dns(&mut self.table, id, run, dns::is_query);
        for question in run.datagrams() {
            let answer = text.as_bytes();
            if is_fair(question, answer, client, most) && self.answers.allows(client, now) {
                self.down(id, &Run::one(run.from, answer), now);
            } else {
                add(&self.counters.unanswered, 1);
            }
        }
    }

    /// Datagrams of a session to its client.
    fn down(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Self { table, counters, raw, .. } = self;
        let Some((flow, session)) = table.get_mut(id) else { return };
        let sent = match &mut session.reply {
            Reply::Own(channel) => channel.send(run, flow.client.0),
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
        note_what_is_no_dns(table, id, run, dns::is_answer);
        if table.is_answered(id) {
            self.answered.push(id);
        }
        if sent.refused {
            self.end(id, End::ClientRefused, now);
        }
    }

    /// As whom a client is seen that sends to a mapping of another's, as to anybody: who receives it can answer only there
    /// (RFC 4787, REQ-9). The address is the one by which the other's mapping is known to the peer that it was made for.
    fn as_seen(&mut self, from: SocketAddr, index: u32) -> Option<SocketAddr> {
        let port = self.mappings.endpoints.port_of(from)?;
        let mapping = self.mappings.get_mut(index)?;
        let (to, egress) = (Endpoint::Peer(mapping.peer.0), mapping.socket.egress);
        let towards = socket::datagram_upstream(to, UpstreamSource::Host, egress).ok()?;
        Some(SocketAddr::new(towards.local_addr().ok()?.as_socket()?.ip(), port))
    }

    /// Datagrams from a peer that the client, which has sent to others by the same mapping, has no session with.
    fn unsolicited(&mut self, client: ClientAddr, from: SocketAddr, run: &Run<'_>) {
        let sent = self.raw.send(OriginalDst(from), client, run);
        add(&self.counters.unsolicited, sent.datagrams);
        add(&self.counters.bytes_down, sent.bytes);
        add(&self.counters.datagrams_down, sent.datagrams);
        add(&self.counters.send_errors, sent.lost);
    }

    fn most_up(&mut self, id: SessionId) -> Most {
        let Some((_, session)) = self.table.get_mut(id) else { return SINGLY };
        match &session.upstream {
            Upstream::Own(socket, _) => socket.channel.most(),
            Upstream::Shared(index) => {
                self.mappings.get_mut(*index).map_or(SINGLY, |mapping| mapping.socket.channel.most())
            }
            Upstream::Text(_) => SINGLY,
        }
    }

    fn most_down(&mut self, id: SessionId) -> Most {
        match self.table.get_mut(id) {
            Some((_, Session { reply: Reply::Own(channel), .. })) => channel.most(),
            _ => SINGLY,
        }
    }
}

/// How many times as long as its question an answer may be, where the rule says nothing else (as RFC 9000, 8).
const AMPLIFICATION: usize = 3;

/// Whether an answer is not much longer than its question, whose sender may be forged; and not to an answer of ours that
/// somebody sends back: that would go on for ever.
fn is_fair(question: &[u8], answer: &[u8], client: ClientAddr, most: usize) -> bool {
    let headers = match Family::of(client.0.ip()) {
        Family::V4 => 28,
        Family::V6 => 48,
    };
    let is_sent_back = !answer.is_empty() && memmem(question, answer);
    headers + answer.len() <= most.saturating_mul(headers + question.len()) && !is_sent_back
}

/// Whether one has the other in it.
fn memmem(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}

/// DNS ends with its answer, and nothing else does.
fn note_what_is_no_dns(table: &mut Table<Session>, id: SessionId, run: &Run<'_>, is_dns: fn(&[u8]) -> bool) {
    if table.may_be_dns(id) && !run.datagrams().all(is_dns) {
        table.is_no_dns(id);
    }
}
