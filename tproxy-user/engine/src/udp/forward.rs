//! Moving datagrams: what has come is read, the relay says where it goes, and hears what became of it.

use std::{io, net::SocketAddr, time::Instant};

use super::{
    End,
    batch::{Batch, Most, Run},
    channel::Sent,
    io::{Io, SINGLY},
    readiness::Token,
    relay::{Command, Down, Relay, Step, Stranded, Stranger, Up},
    session::Reply,
    table::{Flow, SessionId},
};
use crate::{
    flow::{ClientAddr, OriginalDst},
    intercept::{Said, Word},
    socket::{Datagram, Visibility},
};

/// What a worker's sessions go by, and what moves their datagrams. When it is dropped, the sessions end.
pub(super) struct Forwarder {
    pub(super) relay: Relay,
    pub(super) io: Io,
}

impl Forwarder {
    /// A datagram that came by a listener, or should have.
    pub(super) fn take(&mut self, datagram: &Datagram<'_>, now: Instant) {
        let flow = Flow { client: datagram.client, dst: datagram.dst };
        let run = Run::of(datagram);
        if let Some(id) = self.relay.find(&flow).or_else(|| self.begin(datagram, now)) {
            self.up(id, &run, now);
        }
    }

    /// Makes a session of the flow that a datagram is the first of.
    fn begin(&mut self, datagram: &Datagram<'_>, now: Instant) -> Option<SessionId> {
        let Self { relay, io } = self;
        let selected = io.memory.selected(datagram.client, datagram.dst);
        let mut step = relay.begin(datagram, selected, now);
        loop {
            carry_out(relay, io, now);
            step = match step {
                Step::FindWay(beginning) => {
                    let way = io.ways.egress(beginning.rule(), &beginning.first());
                    let is_redirected = io.ways.is_redirected(beginning.rule(), datagram.dst.0.ip());
                    relay.found_way(beginning, way, is_redirected, now)
                }
                Step::Open(opening) => match io.open(&opening) {
                    Ok(sockets) => {
                        let id = relay.opened(opening, sockets.local_addr(), now);
                        let begun = relay.begun(id)?;
                        if let Err(error) = io.adopt(id, begun, sockets) {
                            tracing::debug!(%error, "cannot watch a socket");
                            relay.unwatched(id, now);
                        }
                        carry_out(relay, io, now);
                        return Some(id);
                    }
                    Err(error) => relay.not_opened(opening, error, now),
                },
                Step::Carry => {
                    self.carry(datagram);
                    return None;
                }
                Step::Refused => return None,
            };
        }
    }

    /// Relays what the socket towards a client has.
    pub(super) fn read_client(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        if self.receive_from_client(id, batch, now) {
            self.all_up(id, batch, now);
        }
    }

    /// Says whether there was anything.
    fn receive_from_client(&mut self, id: SessionId, batch: &mut Batch, now: Instant) -> bool {
        // If so, this is another session's event, from before this one had its place.
        if self.relay.is_waiting(id) {
            return false;
        }
        let Some(channel) = self.io.client(id) else { return false };
        match batch.receive(&channel.socket) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.relay.end(id, End::ClientRefused, now);
                }
                false
            }
        }
    }

    fn all_up(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        let Some((Flow { client, dst }, travel)) = self.relay.owner(id) else { return };
        while let Some(run) = batch.next_run(self.most_up(id)) {
            if run.from == client.0 {
                self.up(id, &run, now);
                continue;
            }
            // A stray. While a socket is being connected, a look-up on another CPU may have found it when it was only bound, for
            // it to be connected when the look-up asks whether it is (`__udp4_lib_lookup` does so after `compute_score`, without
            // a lock). It has to go where it would have gone by the listener.
            let Run { from, class, pieces, .. } = run;
            for payload in run.datagrams() {
                let client = ClientAddr(from);
                self.take(&Datagram { client, dst, class, pieces, ttl: travel.ttl, payload }, now);
            }
        }
    }

    /// Datagrams from a client to where its session leads.
    fn up(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let up = self.relay.up(id);
        let sent = match up {
            Some(Up::Own(peer, travel)) => self.io.own(id).map(|socket| socket.send(run, peer, travel)),
            Some(Up::Shared(index, to, travel)) => {
                let sent = self.io.shared(index).map(|socket| socket.send(run, to, travel));
                if sent.as_ref().is_some_and(Sent::is_too_long) {
                    self.tell_errors_of_mapping(index, Some(id), now);
                }
                sent
            }
            Some(Up::Taker) => self.io.give(id, run),
            Some(Up::Answer) => return self.answer(id, run, now),
            None => None,
        };
        let Some(sent) = sent else { return };
        self.relay.sent_up(id, run, &sent, now);
        let is_done = |error: &io::Error| error.kind() == io::ErrorKind::NotConnected;
        if up == Some(Up::Taker) && sent.error.as_ref().is_some_and(is_done) {
            self.relay.end(id, End::Closed, now);
        }
    }

    /// What somebody says who has taken a session.
    pub(super) fn hear(&mut self, said: Said, now: Instant) {
        let Said { ticket, word } = said;
        let Some(id) = self.io.taken(ticket) else { return };
        let Some(Down { flow, .. }) = self.relay.down(id) else { return };
        match word {
            Word::Send(datagram) => self.down(id, &Run::one(flow.dst.0, &datagram), now),
            Word::End => self.relay.end(id, End::Closed, now),
        }
    }

    /// Answers datagrams in place of an upstream.
    fn answer(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Some(text) = self.relay.asked(id, run, now) else { return };
        for question in run.datagrams() {
            if self.relay.may_answer(id, question, text.as_bytes(), now) {
                self.down(id, &Run::one(run.from, text.as_bytes()), now);
            }
        }
    }

    /// Relays what a session's own upstream socket has.
    pub(super) fn read_upstream(&mut self, id: SessionId, batch: &mut Batch, now: Instant) {
        let Some(socket) = self.io.own(id) else { return };
        // An error was one that the error queue tells, too; reading has cleared it.
        if batch.receive(&socket.channel.socket).is_err() {
            return;
        }
        while let Some(run) = batch.next_run(self.most_down(id)) {
            if self.relay.is_peers(id, &run) {
                self.down(id, &run, now);
            }
        }
    }

    /// Relays what the socket of a mapping has, each datagram by the session with its sender.
    pub(super) fn read_mapping(&mut self, index: u32, batch: &mut Batch, now: Instant) {
        let Some(socket) = self.io.shared(index) else { return };
        if batch.receive(&socket.channel.socket).is_err() {
            return;
        }
        while let Some(from) = batch.next_from() {
            let session = self.relay.session_with(index, from);
            let most = session.map_or(SINGLY, |id| self.most_down(id));
            let Some(run) = batch.next_run(most) else { return };
            match session {
                Some(id) => self.down(id, &run, now),
                None => self.unsolicited(index, &run, now),
            }
        }
    }

    /// Datagrams of a session to its client.
    fn down(&mut self, id: SessionId, run: &Run<'_>, now: Instant) {
        let Some(Down { flow: Flow { client, dst }, reply }) = self.relay.down(id) else { return };
        let sent = match reply {
            Reply::Own => self.io.client(id).map(|channel| channel.send(run, client.0)),
            Reply::Raw | Reply::OnlyRaw => Some(self.io.raw.send(dst, client, run)),
        };
        if let Some(sent) = sent {
            self.relay.sent_down(id, run, &sent, now);
        }
    }

    /// Datagrams from a peer that the client, which has sent to others by the same mapping, has no session with.
    fn unsolicited(&mut self, index: u32, run: &Run<'_>, now: Instant) {
        let Some(Stranger { client, seen_by }) = self.relay.stranger(index, run.from) else { return };
        let seen = seen_by
            .and_then(|(port, peer, egress)| Some(SocketAddr::new(Io::address_towards(peer, egress)?, port)));
        if seen.is_none() {
            self.relay.expect(index, run.from, now);
            // Before it can answer.
            self.carry_out(now);
        }
        let sent = self.io.raw.send(OriginalDst(seen.unwrap_or(run.from)), client, run);
        self.relay.sent_unsolicited(&sent);
    }

    /// Sends a datagram on as it is, from its sender to its destination.
    fn carry(&mut self, datagram: &Datagram<'_>) {
        let (from, to) = (OriginalDst(datagram.client.0), ClientAddr(datagram.dst.0));
        let sent = self.io.raw.send(from, to, &Run::of(datagram));
        self.relay.carried(&sent);
    }

    /// Has the relay know of the errors that a socket has to tell.
    pub(super) fn look_at_errors(&mut self, token: Token, now: Instant) {
        match token {
            Token::Upstream(id) => {
                let errors = self.io.own(id).into_iter().flat_map(|socket| socket.errors());
                for error in errors {
                    self.relay.session_error(id, &error, now);
                }
            }
            Token::Mapping(index) => self.tell_errors_of_mapping(index, None, now),
            // Their errors are told where they are read.
            Token::Client(_) | Token::Listener(_) => {}
        }
    }

    fn tell_errors_of_mapping(&mut self, index: u32, sent: Option<SessionId>, now: Instant) {
        for error in self.io.shared(index).into_iter().flat_map(|socket| socket.errors()) {
            self.relay.mapping_error(index, sent, &error, now);
        }
    }

    /// Ends sessions of which all that was asked is answered.
    pub(super) fn end_answered(&mut self, batch: &mut Batch, now: Instant) {
        while let Some(id) = self.relay.next_answered() {
            self.end_unless_more(id, End::Answered, batch, now);
        }
    }

    /// Ends one session that has been silent for too long, and says whether there was one.
    pub(super) fn sweep(&mut self, draining: bool, batch: &mut Batch, now: Instant) -> bool {
        let Some((id, end)) = self.relay.next_silent(draining, now) else { return false };
        self.end_unless_more(id, end, batch, now);
        true
    }

    /// Ends a session that seems to be over. If its client has sent more, that is relayed and the session goes on.
    fn end_unless_more(&mut self, id: SessionId, end: End, batch: &mut Batch, now: Instant) {
        if self.relay.is_waiting(id) {
            return;
        }
        // What came between a last look and the end would be lost. From here on it is the listener's, who has it decided.
        self.io.set_visibility(id, Visibility::Hidden);
        if self.receive_from_client(id, batch, now) {
            self.io.set_visibility(id, Visibility::Found);
            self.all_up(id, batch, now);
        } else {
            self.relay.end(id, end, now);
        }
        self.carry_out(now);
    }

    /// Closes the own sockets of sessions that are no longer busy. What comes from then on comes by the listener.
    pub(super) fn give_back(&mut self, batch: &mut Batch, now: Instant) {
        for id in self.relay.next_second() {
            self.relay.gives_back(id);
            self.carry_out(now);
            self.io.set_visibility(id, Visibility::Hidden);
            while self.receive_from_client(id, batch, now) {
                self.all_up(id, batch, now);
            }
            self.io.close_client(id);
        }
        self.carry_out(now);
    }

    /// Makes sockets anew whose address is gone. Where there is no other yet, it is tried again.
    pub(super) fn move_on(&mut self, stranded: Vec<Stranded>) {
        for stranded in stranded {
            if self.make_anew(stranded).is_none() {
                self.relay.stays();
            }
        }
    }

    fn make_anew(&mut self, stranded: Stranded) -> Option<()> {
        let anew = self.relay.anew(stranded)?;
        let socket = self.io.upstream(anew.to, anew.client, &anew.rule, anew.egress).ok()?;
        let local = socket.local_addr();
        if self.relay.is_better(stranded, local) {
            match stranded {
                Stranded::Own(id) => self.io.set_upstream(id, socket),
                Stranded::Shared(index, _) => self.io.set_mapping(index, socket),
            }
            .ok()?;
            self.relay.moved(stranded, local);
        }
        Some(())
    }

    /// Does what the relay asks for.
    pub(super) fn carry_out(&mut self, now: Instant) {
        carry_out(&mut self.relay, &mut self.io, now);
    }

    fn most_up(&mut self, id: SessionId) -> Most {
        let socket = match self.relay.up(id) {
            Some(Up::Own(..)) => self.io.own(id),
            Some(Up::Shared(index, ..)) => self.io.shared(index),
            Some(Up::Taker | Up::Answer) | None => None,
        };
        socket.map_or(SINGLY, |socket| socket.channel.most())
    }

    fn most_down(&mut self, id: SessionId) -> Most {
        self.io.client(id).map_or(SINGLY, |channel| channel.most())
    }
}

fn carry_out(relay: &mut Relay, io: &mut Io, now: Instant) {
    while let Some(command) = relay.next_command() {
        if let Command::Own(id, flow) = command {
            match io.open_client(id, &flow) {
                Ok(()) => relay.owns(id),
                Err(error) => relay.owns_not(id, &error),
            }
        } else if let Err(id) = io.carry_out(command) {
            relay.unwatched(id, now);
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let now = Instant::now();
        self.relay.end_all(now);
        self.carry_out(now);
    }
}
