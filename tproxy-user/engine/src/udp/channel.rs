//! A socket of ours, and sending by it.

use std::{io, net::SocketAddr};

use socket2::Socket;

use super::batch::{Most, Run};
use crate::socket::{Outgoing, send_message};

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
        self.error.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EMSGSIZE)
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
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            if !matches!(errno, Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO)) {
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

/// The buffer is full, or it is too long.
fn is_about_this_one(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EMSGSIZE)
}
