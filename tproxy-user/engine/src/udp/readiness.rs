//! Which of a worker's UDP sockets have something to be read.
//!
//! A worker asks one `epoll` of its own for all of them, and the runtime only whether that has an answer: then a session
//! costs the runtime neither a task nor a registration, ends where it is ended, descriptors and all, and a socket that was
//! not read to its end is simply named again, after the others.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::table::SessionId;
use crate::{family::Family, socket::ReadableFd};
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
};

/// Sockets named at once.
const EVENTS: usize = 32;

/// Whose socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A listener.
    Listener(Family),
    /// A session's, connected to the client.
    Client(SessionId),
    /// A session's, connected to the upstream.
    Upstream(SessionId),
    /// A mapping's.
    Mapping(u32),
}

impl Token {
    const fn to_u64(self) -> u64 {
        let (kind, index) = match self {
            Self::Listener(Family::V4) => (0, 4),
            Self::Listener(Family::V6) => (0, 6),
            Self::Client(id) => (1, id.index()),
            Self::Upstream(id) => (2, id.index()),
            Self::Mapping(index) => (3, index),
        };
        kind << 32 | index as u64
    }

    const fn from_u64(bits: u64) -> Self {
        let index = bits as u32;
        match (bits >> 32, index) {
            (0, 4) => Self::Listener(Family::V4),
            (0, _) => Self::Listener(Family::V6),
            (1, _) => Self::Client(SessionId::new(index)),
            (2, _) => Self::Upstream(SessionId::new(index)),
            _ => Self::Mapping(index),
        }
    }
}

/// The sockets, with what was answered last.
pub(super) struct Readiness {
    epoll: ReadableFd,
    named: Vec<(Token, Ready)>,
}

impl Readiness {
    /// To be called inside the worker's runtime.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        Ok(Self { epoll: ReadableFd::new(epoll)?, named: Vec::with_capacity(EVENTS) })
    }

    /// By which sockets are added.
    pub(super) fn watch(&self) -> Interest {
        Interest(Arc::clone(self.epoll.descriptor()))
    }

    /// Waits until there is something. What was there before and was not read is there again.
    pub(super) async fn wait(&mut self) {
        loop {
            let mut guard = self.epoll.ready().await.expect("the runtime outlives its tasks");
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut events = [const { MaybeUninit::uninit() }; EVENTS];
            match epoll::wait(guard.get_inner(), &mut events, Some(&now)) {
                Ok(([], _)) => guard.clear_ready(),
                Ok((events, _)) => return self.named.extend(events.iter().rev().map(Ready::by)),
                Err(error) => assert_eq!(error, Errno::INTR, "an epoll that is open can be asked"),
            }
        }
    }

    /// What [`Self::wait`] found, once.
    pub(super) fn take(&mut self) -> Option<(Token, Ready)> {
        self.named.pop()
    }
}

/// Adds sockets to those of a [`Readiness`].
pub(super) struct Interest(Arc<OwnedFd>);

impl Interest {
    /// Has `socket` watched until it is closed.
    ///
    /// # Errors
    /// For lack of memory, or of `fs.epoll.max_user_watches`.
    pub(super) fn add(&self, socket: &impl AsFd, token: Token) -> io::Result<()> {
        // Errors are told unasked (EPOLLERR).
        Ok(epoll::add(&*self.0, socket, EventData::new_u64(token.to_u64()), EventFlags::IN)?)
    }
}

/// What a socket is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// There are datagrams.
    Readable,
    /// There is an error; perhaps there are datagrams, too.
    Error,
}

impl Ready {
    fn by(event: &epoll::Event) -> (Token, Self) {
        let epoll::Event { flags, data, .. } = *event;
        let told = if flags.contains(EventFlags::ERR) { Self::Error } else { Self::Readable };
        (Token::from_u64(data.u64()), told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let id = SessionId::new(u32::MAX - 1);
        let sessions = [Token::Client(id), Token::Upstream(id), Token::Mapping(7)];
        for token in Family::BOTH.map(Token::Listener).into_iter().chain(sessions) {
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }
}
