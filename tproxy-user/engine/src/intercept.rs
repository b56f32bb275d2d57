//! Flows to arbitrary destinations for a program of one's own: a rule with [`Action::HandOver`] has its connections arrive
//! at [`Connections`] and its UDP flows at [`UdpSessions`], in place of being relayed. `examples/intercept.rs` and
//! `examples/intercept_udp.rs` are whole ones.
//!
//! [`Action::HandOver`]: crate::config::Action::HandOver

mod connections;
mod sessions;

use std::fmt;

use tokio::sync::mpsc;

pub use connections::{Connections, Intercepted, connections};
pub(crate) use sessions::{Handing, Said, TakenSession, Ticket, Word};
pub use sessions::{UdpSession, UdpSessions, sessions};

/// Flows that wait to be taken, at most; further connections wait at their workers, and UDP flows are turned away.
const WAITING: usize = 1024;

/// Where a rule's flows go. The other end is [`Connections`] or [`UdpSessions`]. What a rule selects of a protocol that its taker
/// does not take is turned away, and counted.
#[derive(Clone)]
pub struct Taker {
    connections: Option<mpsc::Sender<connections::Handed>>,
    sessions: Option<mpsc::Sender<UdpSession>>,
}

impl Taker {
    /// One for rules about both protocols: it takes what this one takes, and what another one does.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            connections: self.connections.or(other.connections),
            sessions: self.sessions.or(other.sessions),
        }
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Taker")
    }
}

impl PartialEq for Taker {
    fn eq(&self, other: &Self) -> bool {
        fn are_same<T>(one: Option<&mpsc::Sender<T>>, other: Option<&mpsc::Sender<T>>) -> bool {
            match (one, other) {
                (Some(one), Some(other)) => one.same_channel(other),
                (one, other) => one.is_none() && other.is_none(),
            }
        }
        are_same(self.connections.as_ref(), other.connections.as_ref())
            && are_same(self.sessions.as_ref(), other.sessions.as_ref())
    }
}

impl Eq for Taker {}

#[cfg(test)]
mod tests;
