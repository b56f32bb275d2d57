//! UDP: sessions, which a worker keeps. What it takes off the kernel goes to a program's [`UdpSession`], and the other way
//! round.

use std::{fmt, io, sync::Arc};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Taker, WAITING};
use crate::flow::{ClientAddr, OriginalDst};

/// Datagrams of one session that wait to be received, at most; further ones are lost, as they are when a socket's buffer is
/// full.
const DATAGRAMS: usize = 256;

/// What IPv4 takes with its header and that of UDP.
const LONGEST: usize = 65_507;

/// The UDP flows of the rules that have the [`Taker`].
#[derive(Debug)]
pub struct UdpSessions(mpsc::Receiver<UdpSession>);

/// What a client sends to one destination, and what it is told from there. It ends when this is dropped, and otherwise as any
/// session does: after silence (`timeouts.udp`, `timeouts.udp_stream`), to make room for others (`limits.udp_sessions`), when
/// somebody closes it, or with the instance. What comes just then may be lost, as any datagram may; what the client sends later
/// begins another one.
pub struct UdpSession {
    /// Who sends.
    pub client: ClientAddr,
    /// Where the client's datagrams were to go.
    pub destination: OriginalDst,
    /// The name of the rule that selected the flow.
    pub rule: Arc<str>,
    received: mpsc::Receiver<Box<[u8]>>,
    ticket: Ticket,
    worker: mpsc::Sender<Said>,
}

/// Which session of a worker: its place, which others may have later, and which of those that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) place: u32,
    pub(crate) number: u64,
}

/// What a program says of a session.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ticket: Ticket,
    pub(crate) word: Word,
}

#[derive(Debug)]
pub(crate) enum Word {
    /// This goes to the client.
    Send(Box<[u8]>),
    /// The session is of no more use.
    End,
}

/// A place for one more session with a program.
pub(crate) struct Handing(mpsc::OwnedPermit<UdpSession>);

/// The worker's end of a session that was handed over.
#[derive(Debug)]
pub(crate) struct TakenSession {
    pub(crate) ticket: Ticket,
    received: mpsc::Sender<Box<[u8]>>,
}

/// Both ends, for the flows of rules about UDP.
#[must_use]
pub fn sessions() -> (Taker, UdpSessions) {
    let (taker, sessions) = mpsc::channel(WAITING);
    (Taker { connections: None, sessions: Some(taker) }, UdpSessions(sessions))
}

impl UdpSessions {
    /// Waits for the next session; `None` once no rule hands over any more. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<UdpSession> {
        self.0.recv().await
    }
}

impl UdpSession {
    /// Waits for the client's next datagram, of which the first is the one that began the flow; `None` when the session has
    /// ended. Safe to drop while waiting.
    pub async fn recv(&mut self) -> Option<Box<[u8]>> {
        self.received.recv().await
    }

    /// Sends a datagram to the client, from the destination. Whether it arrives nobody knows.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for one that is too long for UDP, [`io::ErrorKind::NotConnected`] when the session has
    /// ended.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        if datagram.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.received.is_closed() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let said = Said { ticket: self.ticket, word: Word::Send(datagram.into()) };
        self.worker.send(said).await.map_err(|_| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for UdpSession {
    fn drop(&mut self) {
        // Else the worker finds out with the client's next datagram, or the session is silent for too long.
        let _ = self.worker.try_send(Said { ticket: self.ticket, word: Word::End });
    }
}

impl fmt::Debug for UdpSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, destination, rule, .. } = self;
        f.debug_struct("UdpSession")
            .field("client", client)
            .field("destination", destination)
            .field("rule", rule)
            .finish_non_exhaustive()
    }
}

impl Taker {
    /// A place for a session.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] when nobody takes any, [`io::ErrorKind::WouldBlock`] when too many wait to be taken.
    pub(crate) fn place(&self) -> io::Result<Handing> {
        let taker = self.sessions.clone().ok_or(io::ErrorKind::NotConnected)?;
        let place = taker.try_reserve_owned();
        place.map(Handing).map_err(why_not)
    }
}

impl Handing {
    /// Hands a session over. What is said of it comes by `worker`.
    pub(crate) fn hand_over(
        self,
        (client, destination): (ClientAddr, OriginalDst),
        rule: Arc<str>,
        ticket: Ticket,
        worker: mpsc::Sender<Said>,
    ) -> TakenSession {
        let (give, received) = mpsc::channel(DATAGRAMS);
        self.0.send(UdpSession { client, destination, rule, received, ticket, worker });
        TakenSession { ticket, received: give }
    }
}

impl TakenSession {
    /// Gives a datagram of the client's to the program.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] when the program is done with the session, [`io::ErrorKind::WouldBlock`] when it is not
    /// done with earlier ones.
    pub(crate) fn give(&self, datagram: &[u8]) -> io::Result<()> {
        self.received.try_send(datagram.into()).map_err(why_not)
    }
}

/// As [`Taker::place`] and [`TakenSession::give`] have it.
fn why_not<T>(error: TrySendError<T>) -> io::Error {
    match error {
        TrySendError::Full(_) => io::ErrorKind::WouldBlock,
        TrySendError::Closed(_) => io::ErrorKind::NotConnected,
    }
    .into()
}
