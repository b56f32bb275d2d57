//! A socket of ours, and sending by it.

use std::{io, net::SocketAddr};

use quinn_udp::{Transmit, UdpSocketState};
use socket2::{Domain, Socket, Type};

use super::batch::{Batch, Most, Run};

/// The longest datagram that fits every Ethernet with the headers of IPv6 and UDP.
const USUAL: usize = 1452;

/// What the kernel can do for datagrams, as `quinn-udp` has found out. One serves all sockets of a worker.
pub(super) struct Offload(UdpSocketState);

impl Offload {
    /// # Errors
    /// For lack of a descriptor.
    pub(super) fn new() -> io::Result<Self> {
        // It sets options for QUIC (no fragments, timestamps) that our own sockets must not have.
        let spare = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        UdpSocketState::new((&spare).into()).map(Self)
    }

    /// As [`Batch::receive`].
    pub(super) fn receive(&self, socket: &Socket, batch: &mut Batch) -> io::Result<()> {
        batch.receive(&self.0, socket)
    }

    fn send(&mut self, socket: &Socket, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.0.try_send(socket.into(), transmit);
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        if matches!(errno, Some(libc::EINVAL | libc::EIO)) {
            // It takes these for the kernel's word about GSO and ECN, and does without from then on. But they are about
            // this one path (a tunnel that cannot split, a smaller MTU on Linux before 6.14): forget it.
            if let Ok(anew) = Self::new() {
                *self = anew;
            }
        }
        result
    }
}

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
    pub(super) fn most(&self, offload: &Offload) -> Most {
        Most { datagrams: offload.0.max_gso_segments(), size: self.together }
    }

    /// Sends a run, in one call if that is possible.
    ///
    /// What would block is lost, as it is in a router whose queue is full. To wait instead would hold up the worker's one
    /// batch, or take memory for each session, and make the queue longer than the kernel's own two already are.
    pub(super) fn send(&mut self, offload: &mut Offload, run: &Run<'_>, to: SocketAddr) -> Sent {
        let mut sent = Sent::default();
        let count = u64::from(run.count());
        let most = self.most(offload);
        let transmit =
            |contents| Transmit { destination: to, ecn: run.ecn, contents, segment_size: None, src_ip: None };
        if count > 1 && count <= most.datagrams as u64 && run.size <= most.size {
            let whole = Transmit { segment_size: Some(run.size), ..transmit(run.contents) };
            let result = self.attempt(offload, &whole, &mut sent.refused);
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
            let result = self.attempt(offload, &transmit(datagram), &mut sent.refused);
            sent.count(1, datagram.len(), result);
        }
        sent
    }

    /// An error may be that of an earlier datagram, and reading it clears it (`sock_error`); so there is a second attempt.
    fn attempt(&self, offload: &mut Offload, transmit: &Transmit<'_>, refused: &mut bool) -> io::Result<()> {
        match offload.send(&self.socket, transmit) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                *refused |= error.kind() == io::ErrorKind::ConnectionRefused;
                offload.send(&self.socket, transmit)
            }
            result => result,
        }
    }
}
