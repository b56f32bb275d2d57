//! Where a datagram of a session goes, and what follows from it.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Instant};

use super::{
    super::{
        End,
        batch::Run,
        channel::Sent,
        counters::add,
        dns,
        session::{Reply, Session, Traffic, Travel, Upstream},
        table::{Flow, Sender, SessionId, Table},
    },
    Command, Relay,
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    socket::Egress,
};

/// Where datagrams of a client go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Up {
    /// To this address, by the session's own socket.
    Own(SocketAddr, Travel),
    /// To this address, by the socket of a mapping.
    Shared(u32, SocketAddr, Travel),
    /// To whoever has taken the session.
    Taker,
    /// Nowhere: they are answered. See [`Relay::asked`].
    Answer,
}

/// Where datagrams for a client go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Down {
    pub(in super::super) flow: Flow,
    pub(in super::super) reply: Reply,
}

/// Somebody whom a client has no session with, and who knows it by its mapping.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Stranger {
    pub(in super::super) client: ClientAddr,
    /// If it is itself a client that has a mapping: its port there, and the peer and the way by which the mapping of the client
    /// that it sends to is known. Whoever receives it can answer only there (RFC 4787, REQ-9).
    pub(in super::super) seen_by: Option<(u16, SocketAddr, Egress)>,
}

impl Relay {
    /// Whose session this is, and how what it sends upstream travels.
    pub(in super::super) fn owner(&mut self, id: SessionId) -> Option<(Flow, Travel)> {
        self.table.get_mut(id).map(|(flow, session)| (*flow, session.travel))
    }

    /// Where a session's datagrams go that come from the client.
    pub(in super::super) fn up(&mut self, id: SessionId) -> Option<Up> {
        let (flow, session) = self.table.get_mut(id)?;
        Some(match &session.upstream {
            Upstream::Own(_, peer) => Up::Own(*peer, session.travel),
            Upstream::Shared(index) => Up::Shared(*index, flow.dst.0, session.travel),
            Upstream::Taker => Up::Taker,
            Upstream::Text(_) => Up::Answer,
        })
    }

    /// They were sent there.
    pub(in super::super) fn sent_up(&mut self, id: SessionId, run: &Run<'_>, sent: &Sent, now: Instant) {
        let Some((flow, session)) = self.table.get_mut(id) else { return };
        let flow = *flow;
        session.count_up(Traffic::from(sent));
        let counters = &self.books.counters;
        add(&counters.datagrams_up, sent.datagrams);
        add(&counters.bytes_up, sent.bytes);
        add(&counters.send_errors, sent.lost);
        if let Some(error) = &sent.error {
            self.failed(&flow, error, now);
        }
        self.heard(id, run, now);
    }

    /// Datagrams have come that are answered in place of an upstream, with this.
    pub(in super::super) fn asked(&mut self, id: SessionId, run: &Run<'_>, now: Instant) -> Option<Arc<str>> {
        let (_, session) = self.table.get_mut(id)?;
        let Upstream::Text(text) = &session.upstream else { return None };
        let text = Arc::clone(text);
        let (datagrams, bytes) = (u64::from(run.count()), run.contents.len() as u64);
        session.count_up(Traffic { datagrams, bytes });
        add(&self.books.counters.datagrams_up, datagrams);
        add(&self.books.counters.bytes_up, bytes);
        self.heard(id, run, now);
        Some(text)
    }

    /// A client has sent these.
    fn heard(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        self.table.used(id, Sender::Client, run.count(), now);
        note_what_is_no_dns(&mut self.table, id, run, dns::is_query);
        self.paced(id, run.count());
    }

    /// Whether one of them is answered: where nobody is harmed by it.
    pub(in super::super) fn may_answer(
        &mut self,
        id: SessionId,
        question: &[u8],
        answer: &[u8],
        now: Instant,
    ) -> bool {
        let Some((flow, session)) = self.table.get_mut(id) else { return false };
        let most =
            session.record.rule.treatment.limits.amplification.map_or(AMPLIFICATION, NonZeroUsize::get);
        let may =
            is_fair(question, answer, flow.client, most) && self.allowed.answers.allows(flow.client, now);
        if !may {
            add(&self.books.counters.unanswered, 1);
        }
        may
    }

    /// The session of whoever sent to a mapping.
    pub(in super::super) fn session_with(&self, mapping: u32, from: SocketAddr) -> Option<SessionId> {
        let client = self.mappings.get(mapping)?.sharing.client;
        self.table.find(&Flow { client, dst: OriginalDst(from) })
    }

    /// Datagrams have come to a session's own upstream socket. Whether they are its peer's; another's came just as the socket
    /// was connected, and this mapping is to keep them out.
    pub(in super::super) fn is_peers(&mut self, id: SessionId, run: &Run<'_>) -> bool {
        let Some((_, Session { upstream: Upstream::Own(_, peer), .. })) = self.table.get_mut(id) else {
            return false;
        };
        if *peer != run.from {
            add(&self.books.counters.not_from_peer, u64::from(run.count()));
        }
        *peer == run.from
    }

    /// Where a session's datagrams go that are for the client.
    pub(in super::super) fn down(&mut self, id: SessionId) -> Option<Down> {
        self.table.get_mut(id).map(|(flow, session)| Down { flow: *flow, reply: session.reply })
    }

    /// They were sent there.
    pub(in super::super) fn sent_down(&mut self, id: SessionId, run: &Run<'_>, sent: &Sent, now: Instant) {
        let Some((_, session)) = self.table.get_mut(id) else { return };
        session.count_down(Traffic::from(sent));
        let sender = match session.upstream {
            Upstream::Text(_) => Sender::Ourselves,
            Upstream::Own(..) | Upstream::Shared(_) | Upstream::Taker => Sender::Upstream,
        };
        self.count_down(sent);
        self.table.used(id, sender, run.count(), now);
        note_what_is_no_dns(&mut self.table, id, run, dns::is_answer);
        self.paced(id, run.count());
        if self.table.is_answered(id) {
            self.answered.push(id);
        }
        if sent.refused {
            self.end(id, End::ClientRefused, now);
        }
    }

    /// Who somebody is that has sent to a mapping without a session.
    pub(in super::super) fn stranger(&self, mapping: u32, from: SocketAddr) -> Option<Stranger> {
        let port = self.mappings.endpoints.port_of(from);
        let mapping = self.mappings.get(mapping)?;
        let seen_by = port.map(|port| (port, mapping.peer.0, mapping.outlet.egress));
        Some(Stranger { client: mapping.sharing.client, seen_by })
    }

    /// What the client answers goes by the same mapping, whatever its rule says of ports (TFTP, STUN).
    pub(in super::super) fn expect(&mut self, mapping: u32, from: SocketAddr, now: Instant) {
        let Some(mapping) = self.mappings.get(mapping) else { return };
        let (client, (rule, origin)) = (mapping.sharing.client, mapping.decided);
        if self.allowed.expected.allows(client, now) {
            let flow = Flow { client, dst: OriginalDst(from) };
            self.commands.push_back(Command::Expect { flow, rule, origin });
        }
    }

    /// Their datagrams were sent to the client.
    pub(in super::super) fn sent_unsolicited(&self, sent: &Sent) {
        add(&self.books.counters.unsolicited, sent.datagrams);
        self.count_down(sent);
    }

    /// Datagrams that no rule selects were sent on.
    pub(in super::super) fn carried(&self, sent: &Sent) {
        add(&self.books.counters.carried, sent.datagrams);
        add(&self.books.counters.send_errors, sent.lost);
    }

    fn count_down(&self, sent: &Sent) {
        let counters = &self.books.counters;
        add(&counters.datagrams_down, sent.datagrams);
        add(&counters.bytes_down, sent.bytes);
        add(&counters.send_errors, sent.lost);
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
