//! Where flows begin.

use std::{collections::VecDeque, io, time::Instant};

use socket2::Socket;

use super::{relay::Relay, table::SessionId};
use crate::{
    family::Family,
    socket::{Datagram, DatagramReceiver},
};

/// Receive calls in one go; then other sockets have their turn.
const AT_ONCE: usize = 4;

/// A datagram in a receive buffer takes at least this of it (`SKB_TRUESIZE`, whose bookkeeping alone is more).
const LEAST: usize = 512;

/// A listener of a worker, with the sessions whose own sockets are not read yet.
pub(super) struct Listener {
    family: Family,
    socket: Socket,
    receiver: DatagramReceiver,
    queue: Queue,
}

/// What is in a listener, as far as anybody can tell.
struct Queue {
    /// What its receive buffer can hold, in bytes.
    room: u64,
    /// Bytes of that buffer that were read at least, ever.
    read: u64,
    /// In the order of their places.
    waiting: VecDeque<(SessionId, Place)>,
}

/// How far a listener has to be read until nothing is in it that was there when a session's socket was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

impl Listener {
    pub(super) fn new(family: Family, socket: Socket) -> io::Result<Self> {
        Ok(Self {
            family,
            queue: Queue { room: socket.recv_buffer_size()? as u64, read: 0, waiting: VecDeque::new() },
            socket,
            receiver: DatagramReceiver::default(),
        })
    }

    pub(super) const fn family(&self) -> Family {
        self.family
    }

    /// Whether sessions wait for what is in it. It may have nothing, and is not named then.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.queue.waiting.is_empty()
    }

    /// Takes a datagram that should have come by this listener.
    pub(super) fn take(&mut self, datagram: &Datagram<'_>, relay: &mut Relay, now: Instant) {
        self.queue.take(datagram, relay, now);
    }

    /// Receives what is there, but not for ever.
    pub(super) fn receive(&mut self, relay: &mut Relay, now: Instant) {
        let Self { socket, receiver, queue, .. } = self;
        for _ in 0..AT_ONCE {
            let received = receiver.recv(socket, |datagram| {
                queue.read += datagram.payload.len().max(LEAST) as u64;
                queue.take(&datagram, relay, now);
            });
            match received {
                Ok(0) => return self.hand_over(relay, |_| true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.hand_over(relay, |_| true);
                }
                // Which reading has cleared.
                Err(error) => return tracing::debug!(%error, "listener"),
            }
        }
        let read = Place(self.queue.read);
        self.hand_over(relay, |place| place <= read);
    }

    /// Has the sockets of sessions read of which the listener holds nothing any more.
    fn hand_over(&mut self, relay: &mut Relay, is_read: impl Fn(Place) -> bool) {
        while let Some((id, place)) = self.queue.waiting.front().copied().filter(|(_, place)| is_read(*place))
        {
            self.queue.waiting.pop_front();
            relay.take_over(id, place);
        }
    }
}

impl Queue {
    fn take(&mut self, datagram: &Datagram<'_>, relay: &mut Relay, now: Instant) {
        let place = Place(self.read + self.room);
        if let Some(id) = relay.take(datagram, place, now) {
            self.waiting.push_back((id, place));
        }
    }
}
