//! What is said on a socket that was connected to a server, until it stands for the original destination: then it is
//! relayed like any other. Without a socket or a clock, and tested without them.

mod connect;
mod proxy;
mod socks5;

use std::{io, net::SocketAddr};

use rustix::net::{RecvFlags, recv};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::TcpStream,
};

use super::End;
use crate::{
    config::{Credentials, Scheme},
    flow::{ClientAddr, OriginalDst},
    flows::FlowId,
};

/// The longest answer.
const LONGEST: usize = 16 * 1024;

/// Bytes of an answer that are looked at without asking for more room.
const USUAL: usize = 512;

/// What a server is told of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) id: FlowId,
    pub(super) client: ClientAddr,
    pub(super) dst: OriginalDst,
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// To send this.
    Say(Vec<u8>),
    /// To look at what comes, by [`Dialogue::hear`].
    Hear,
    /// To relay.
    Relay,
}

/// What is said to one server.
#[derive(Debug)]
pub(super) enum Dialogue {
    /// It is all in the first words.
    Say(Option<Vec<u8>>),
    Socks5(socks5::Dialogue),
    Connect(connect::Dialogue),
}

impl Dialogue {
    /// Nothing, where there is nothing to be said.
    pub(super) fn of(scheme: Scheme, told: &Told, credentials: Option<&Credentials>) -> Option<Self> {
        match scheme {
            Scheme::Tcp => None,
            Scheme::Socks5 => Some(Self::Socks5(socks5::Dialogue::new(told, credentials))),
            Scheme::Http => Some(Self::Connect(connect::Dialogue::new(told, credentials))),
            Scheme::ProxyV1 => Some(Self::Say(Some(proxy::v1(told)))),
            Scheme::ProxyV2 => Some(Self::Say(Some(proxy::v2(told)))),
        }
    }

    /// What is said where there is no flow, to see whether a server is there.
    pub(super) fn of_nothing(scheme: Scheme, credentials: Option<&Credentials>) -> Option<Self> {
        match scheme {
            // That would be a connection to somewhere.
            Scheme::Tcp | Scheme::Http => None,
            Scheme::Socks5 => Some(Self::Socks5(socks5::Dialogue::of_nothing(credentials))),
            Scheme::ProxyV1 => Some(Self::Say(Some(proxy::v1_of_nothing()))),
            Scheme::ProxyV2 => Some(Self::Say(Some(proxy::v2_of_nothing()))),
        }
    }

    fn turn(&mut self) -> Turn {
        match self {
            Self::Say(words) => words.take().map_or(Turn::Relay, Turn::Say),
            Self::Socks5(dialogue) => dialogue.turn(),
            Self::Connect(dialogue) => dialogue.turn(),
        }
    }

    /// How long the answer is that `seen` begins with; none, while there is more to come of it.
    fn hear(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        match self {
            Self::Say(_) => Ok(Some(0)),
            Self::Socks5(dialogue) => dialogue.hear(seen),
            Self::Connect(dialogue) => dialogue.hear(seen),
        }
    }

    /// Holds the dialogue. Not a byte behind its end is taken.
    pub(super) async fn hold(mut self, stream: &mut TcpStream) -> Result<(), DialogueError> {
        let mut heard = 0;
        loop {
            match self.turn() {
                Turn::Relay => return Ok(()),
                Turn::Say(words) => stream.write_all(&words).await?,
                Turn::Hear => heard += self.listen(stream, heard).await?,
            }
            // Any number of answers that are none yet (100 Continue) are too much as well.
            if heard > LONGEST {
                return Err(DialogueError::TooMuch);
            }
        }
    }

    /// Waits for an answer, and takes it off the socket once it is whole.
    async fn listen(&mut self, stream: &TcpStream, heard: usize) -> Result<usize, DialogueError> {
        let mut room = vec![0; USUAL];
        let mut known = 0;
        loop {
            let ready = stream.ready(Interest::READABLE).await?;
            let looked = stream.try_io(Interest::READABLE, || {
                let (seen, _) = recv(stream, &mut room[..], RecvFlags::PEEK)?;
                // Has the runtime wait for what comes behind it.
                if seen == known && seen > 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(seen) }
            });
            match looked {
                Ok(0) => return Err(DialogueError::Closed),
                Ok(seen) => known = seen,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                // What came before its end was seen by now.
                Err(_) if ready.is_read_closed() && known > 0 => return Err(DialogueError::Cut),
                Err(_) => continue,
            }
            if let Some(length) = self.hear(&room[..known])? {
                let (taken, _) =
                    recv(stream, &mut room[..length], RecvFlags::empty()).map_err(io::Error::from)?;
                debug_assert_eq!(taken, length, "what was seen is there");
                return Ok(length);
            }
            if known == room.len() {
                if heard + known >= LONGEST {
                    return Err(DialogueError::TooMuch);
                }
                room.resize((2 * room.len()).min(LONGEST), 0);
            }
        }
    }
}

/// What comes of a dialogue with a server that says `words`, so many bytes at a time: how many of them are its answers.
///
/// # Errors
/// How the connection would end.
pub fn rehearse(scheme: Scheme, dst: SocketAddr, words: &[u8], step: usize) -> Result<usize, End> {
    let told = Told { id: FlowId(1), client: ClientAddr(dst), dst: OriginalDst(dst) };
    let Some(mut dialogue) = Dialogue::of(scheme, &told, None) else { return Ok(0) };
    let mut heard = 0;
    loop {
        match dialogue.turn() {
            Turn::Say(_) => {}
            Turn::Relay => return Ok(heard),
            Turn::Hear => {
                let left = &words[heard..];
                let ends = (1..left.len()).step_by(step.max(1)).chain([left.len()]);
                let answer = ends.map(|end| dialogue.hear(&left[..end])).find_map(Result::transpose);
                match answer {
                    Some(length) => heard += length.map_err(|error| error.end())?,
                    None if left.is_empty() => return Err(End::UpstreamClosed),
                    None => return Err(End::UpstreamCut),
                }
            }
        }
    }
}

/// Why a server does not stand for the original destination.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialogueError {
    /// What it answered is no answer.
    #[error("it answered what is no answer: {0}")]
    Nonsense(String),
    #[error("it answered more than {LONGEST} bytes")]
    TooMuch,
    #[error("it closed the connection without an answer")]
    Closed,
    #[error("it closed the connection in the midst of its answer")]
    Cut,
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Denied(String),
    /// It tells of what became of its own connection.
    #[error("{0}")]
    NotConnected(&'static str, io::ErrorKind),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DialogueError {
    /// Whether another server would be told the same, or something else: this one has decided.
    pub(super) const fn is_verdict(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NotConnected(..) | Self::Failed(_))
    }

    pub(super) fn end(&self) -> End {
        match self {
            Self::Nonsense(_) => End::UpstreamNonsense,
            Self::TooMuch => End::UpstreamTooMuch,
            Self::Closed => End::UpstreamClosed,
            Self::Cut => End::UpstreamCut,
            Self::Unauthorized(_) => End::UpstreamUnauthorized,
            Self::Denied(_) => End::UpstreamDenied,
            Self::NotConnected(_, io::ErrorKind::ConnectionRefused) => End::ConnectRefused,
            Self::NotConnected(..) => End::Unreachable,
            Self::Failed(_) => End::UpstreamFailed,
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionAborted => End::AddressGone,
            Self::Io(error) if super::connection::is_reset(error) => End::UpstreamReset,
            Self::Io(_) => End::UpstreamLost,
        }
    }

    pub(super) fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::NotConnected(_, kind) => Some(*kind),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
