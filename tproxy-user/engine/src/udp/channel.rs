//! A socket of ours, and sending by it.

use std::{io, net::SocketAddr};

use rustix::io::Errno;
use socket2::Socket;
use tproxy_common::packet::Fragmenting;

use super::{
    batch::{Most, Run},
    session::Travel,
};
use crate::{
    family::Family,
    socket::{self, Outgoing, PeerError, Pieces, send_message},
};

/// Errors taken off a socket in one go.
const ERRORS_AT_ONCE: usize = 64;

/// The longest datagram that fits every Ethernet with the headers of IPv6 and UDP.
const USUAL: usize = 1452;

/// Datagrams that one call sends: `UDP_MAX_SEGMENTS`, which newer kernels have doubled.
const MOST: usize = 64;

/// What became of a run.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    /// Datagrams that the kernel did not take.
    pub(super) lost: u64,
    /// Why not, the last time.
    pub(super) error: Option<io::Error>,
    /// Nobody received an earlier one (`ECONNREFUSED`).
    pub(super) refused: bool,
}

impl Sent {
    /// Whether the last that was not taken must not be fragmented, and would have to.
    pub(super) fn is_too_long(&self) -> bool {
        self.error.as_ref().and_then(Errno::from_io_error) == Some(Errno::MSGSIZE)
    }

    pub(super) fn count(&mut self, datagrams: u64, bytes: usize, result: io::Result<()>) {
        match result {
            Ok(()) => {
                self.datagrams += datagrams;
                self.bytes += bytes as u64;
            }
            Err(error) => {
                self.lost += datagrams;
                self.error = Some(error);
            }
        }
    }
}

/// A session's socket towards the client, or a socket towards an upstream.
pub(super) struct Channel {
    pub(super) socket: Socket,
    /// Datagrams up to this size may leave together. Longer ones have not fit the path, and the kernel splits what has to
    /// be fragmented only when it comes by itself (`udp_send_skb`).
    together: usize,
}

impl Channel {
    pub(super) const fn new(socket: Socket) -> Self {
        Self { socket, together: usize::MAX }
    }

    /// What may be put together for this socket.
    pub(super) const fn most(&self) -> Most {
        Most { datagrams: MOST, size: self.together }
    }

    /// Sends a run, in one call if that is possible.
    ///
    /// What would block is lost, as it is in a router whose queue is full. To wait instead would hold up the worker's one
    /// batch, or take memory for each session, and make the queue longer than the kernel's own two already are.
    pub(super) fn send(&mut self, run: &Run<'_>, to: SocketAddr) -> Sent {
        let mut sent = Sent::default();
        let count = u64::from(run.count());
        let most = self.most();
        let outgoing = |contents| Outgoing { to, class: run.class, contents, segment: None };
        if count > 1 && count <= most.datagrams as u64 && run.size <= most.size {
            let whole = Outgoing { segment: Some(run.size as u16), ..outgoing(run.contents) };
            let result = self.attempt(&whole, &mut sent.refused);
            let errno = result.as_ref().err().and_then(Errno::from_io_error);
            if !matches!(errno, Some(Errno::MSGSIZE | Errno::INVAL | Errno::IO)) {
                sent.count(count, run.contents.len(), result);
                return sent;
            }
            self.together = USUAL.min(run.size - 1);
        }
        for datagram in run.datagrams() {
            let full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
            if sent.error.as_ref().is_some_and(full) {
                sent.lost += 1;
                continue;
            }
            let result = self.attempt(&outgoing(datagram), &mut sent.refused);
            sent.count(1, datagram.len(), result);
        }
        sent
    }

    /// An error may be that of an earlier datagram, and reading it clears it (`sock_error`); so there is a second attempt.
    fn attempt(&self, outgoing: &Outgoing<'_>, refused: &mut bool) -> io::Result<()> {
        match send_message(&self.socket, outgoing) {
            Err(error) if !is_about_this_one(&error) => {
                *refused |= error.kind() == io::ErrorKind::ConnectionRefused;
                send_message(&self.socket, outgoing)
            }
            result => result,
        }
    }
}

/// A socket towards an upstream, with what was set last for it.
pub(super) struct UpstreamSocket {
    pub(super) channel: Channel,
    ttl: Option<u8>,
    fragmenting: Option<Fragmenting>,
}

impl UpstreamSocket {
    pub(super) const fn new(channel: Channel) -> Self {
        Self { channel, ttl: None, fragmenting: None }
    }

    pub(super) fn send(&mut self, run: &Run<'_>, to: SocketAddr, travel: Travel) -> Sent {
        let family = Family::of(to.ip());
        if self.ttl != Some(travel.ttl) {
            // Without it the datagram lives longer or shorter than it should, and arrives all the same.
            let _ = socket::set_ttl(&self.channel.socket, family, travel.ttl);
            self.ttl = Some(travel.ttl);
        }
        // What the client itself had to fragment nobody can ask it to make shorter.
        let fragmenting = match run.pieces {
            Pieces::One => travel.fragmenting,
            Pieces::Many => Some(Fragmenting::Allowed),
        };
        if let Some(wanted) = fragmenting.filter(|wanted| self.fragmenting != Some(*wanted)) {
            // The kernel has an opinion of its own otherwise, which is to fragment what does not fit.
            let _ = socket::set_fragmenting(&self.channel.socket, family, wanted);
            self.fragmenting = Some(wanted);
        }
        self.channel.send(run, to)
    }

    /// Errors that it has to tell.
    pub(super) fn errors(&self) -> impl Iterator<Item = PeerError> {
        // An error of reading says that there is none, or none that could be understood.
        std::iter::from_fn(move || socket::next_error(&self.channel.socket).ok().flatten())
            .take(ERRORS_AT_ONCE)
    }

    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.channel.socket.local_addr().ok()?.as_socket()
    }
}

/// The buffer is full, or it is too long.
fn is_about_this_one(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || Errno::from_io_error(error) == Some(Errno::MSGSIZE)
}
