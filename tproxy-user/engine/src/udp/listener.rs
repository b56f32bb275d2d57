//! Where flows begin.

use std::{io, time::Instant};

use socket2::Socket;

use super::forward::Forwarder;
use crate::{family::Family, socket::DatagramReceiver};

/// Receive calls in one go; then other sockets have their turn.
const AT_ONCE: usize = 4;

/// A listener of a worker.
pub(super) struct Listener {
    family: Family,
    socket: Socket,
    receiver: DatagramReceiver,
}

impl Listener {
    pub(super) fn new(family: Family, socket: Socket) -> Self {
        Self { family, socket, receiver: DatagramReceiver::default() }
    }

    pub(super) const fn family(&self) -> Family {
        self.family
    }

    /// Receives what is there, but not for ever.
    pub(super) fn receive(&mut self, forwarder: &mut Forwarder, now: Instant) {
        let Self { socket, receiver, family } = self;
        for _ in 0..AT_ONCE {
            let received = receiver.recv(socket, |datagram| {
                forwarder.relay.has_read(*family, datagram.payload.len());
                forwarder.take(&datagram, now);
            });
            match received {
                Ok(0) => return forwarder.relay.take_over(*family, true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return forwarder.relay.take_over(*family, true);
                }
                // Which reading has cleared.
                Err(error) => return tracing::debug!(%error, "listener"),
            }
        }
        forwarder.relay.take_over(*family, false);
    }
}
