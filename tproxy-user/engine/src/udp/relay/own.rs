//! Which sessions have a socket of their own towards the client.
//!
//! One that is bound to the original destination's port keeps everybody else from binding that at all addresses, daemons of
//! this host too (`udp_lib_lport_inuse`): whatever address the socket has, and without their leave (`SO_REUSEADDR`, or
//! `SO_REUSEPORT` and the same user). So a session has none until it sends so much that it pays: the kernel then takes and
//! gives several datagrams at once, which it does for no raw socket.

use super::{
    super::{
        counters::add,
        session::{Reply, Session},
        table::{Flow, SessionId, Table},
    },
    Command, Relay,
};
use crate::{family::Family, socket::SocketError};

/// Datagrams in a second, both ways, with which a session gets a socket of its own.
pub(super) const BUSY: u32 = 512;

/// And with fewer than these, it gives it back.
pub(super) const QUIET: u32 = 128;

/// How much a session sends.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Pace {
    /// The second in which it last did.
    second: u32,
    /// Datagrams in it.
    datagrams: u32,
}

/// Who has such a socket, as of the last look.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Counts on.
    second: u32,
    owners: Vec<(SessionId, Flow)>,
}

impl Pace {
    /// Whether it has just become busy.
    fn count(&mut self, second: u32, datagrams: u32) -> bool {
        if self.second != second {
            *self = Self { second, datagrams: 0 };
        }
        let before = self.datagrams;
        self.datagrams = before.saturating_add(datagrams);
        before < BUSY && self.datagrams >= BUSY
    }

    const fn is_quiet(self, second: u32) -> bool {
        self.second != second || self.datagrams < QUIET
    }
}

impl Relay {
    /// Datagrams of a session have passed.
    pub(super) fn paced(&mut self, id: SessionId, datagrams: u32) {
        let second = self.owners.second;
        let Some((flow, session)) = self.table.get_mut(id) else { return };
        if session.pace.count(second, datagrams) && session.reply == Reply::Raw {
            self.commands.push_back(Command::Own(id, *flow));
        }
    }

    /// A session has a socket of its own from now on: the kernel's own lookup brings the flow's datagrams to it.
    pub(in super::super) fn owns(&mut self, id: SessionId) {
        let Some((flow, session)) = self.table.get_mut(id) else { return };
        let flow = *flow;
        session.reply = Reply::Own;
        session.waits_for = Some(self.queues[Family::of(flow.client.0.ip()) as usize].wait(id));
        self.owners.owners.push((id, flow));
        self.forget(flow);
    }

    /// It cannot have one.
    pub(in super::super) fn owns_not(&mut self, id: SessionId, error: &SocketError) {
        let Some((_, session)) = self.table.get_mut(id) else { return };
        if let SocketError::Taken { .. } = error {
            session.reply = Reply::OnlyRaw;
            add(&self.books.counters.reply_fallbacks, 1);
        } else {
            tracing::debug!(%error, "no socket for a session");
        }
    }

    /// The sessions that do without a socket of their own again, after a second.
    pub(in super::super) fn next_second(&mut self) -> Vec<SessionId> {
        let Self { table, owners: Owners { second, owners }, .. } = self;
        owners.retain(|(id, flow)| is_owner(table, *id, flow));
        let quiet = |id: SessionId| {
            let session = table.get_mut(id)?.1;
            (session.waits_for.is_none() && session.pace.is_quiet(*second)).then_some(id)
        };
        let quiet = owners.iter().map(|(id, _)| *id).filter_map(quiet).collect();
        *second = second.wrapping_add(1);
        quiet
    }

    /// A session does without it from now on: the datapath remembers its flow again.
    pub(in super::super) fn gives_back(&mut self, id: SessionId) {
        let Some((flow, session)) = self.table.get_mut(id) else { return };
        session.reply = Reply::Raw;
        let (rule, origin) = session.decided;
        self.commands.push_back(Command::Expect { flow: *flow, rule, origin });
    }
}

/// Another session may be in the same place.
fn is_owner(table: &mut Table<Session>, id: SessionId, flow: &Flow) -> bool {
    table.get_mut(id).is_some_and(|(of, session)| of == flow && session.reply == Reply::Own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_much_in_one_second_is_busy_once_and_quiet_when_that_is_over() {
        let mut pace = Pace::default();
        assert!(!pace.count(1, BUSY - 1) && pace.count(1, 1) && !pace.count(1, BUSY));
        assert!(!pace.is_quiet(1) && pace.is_quiet(2));
        assert!(!pace.count(2, QUIET - 1) && pace.is_quiet(2));
        assert!(!pace.count(2, 1) && !pace.is_quiet(2));
        assert!(pace.count(3, u32::MAX) && !pace.count(3, u32::MAX));
    }
}
