//! What arrives at a UDP listener, with its original destination.

use std::{io, os::fd::AsFd};

use super::message::{Message, Pieces, TrafficClass, receive_messages};
use crate::flow::{ClientAddr, OriginalDst};

/// A datagram is shorter than this.
const LONGEST: usize = 1 << 16;

/// Datagrams received in one go.
const AT_ONCE: usize = 32;

/// A datagram that was steered to a listener.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub client: ClientAddr,
    /// Where it was to go.
    pub dst: OriginalDst,
    /// Its class.
    pub class: TrafficClass,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// How it came.
    pub pieces: Pieces,
    /// What is in it.
    pub payload: &'a [u8],
}

/// Receives from listeners. One datagram takes one call: what arrives here is the beginning of flows, and no two datagrams
/// of different flows can be received as one anyway.
#[derive(Debug)]
pub struct DatagramReceiver(Box<[u8]>);

impl Default for DatagramReceiver {
    fn default() -> Self {
        Self(vec![0; LONGEST].into())
    }
}

impl DatagramReceiver {
    /// Hands datagrams to `each`, in order, until there are no more, but not for ever. Says how many there were; with none,
    /// the listener is empty.
    ///
    /// # Errors
    /// What is wrong with the listener.
    pub fn recv(&mut self, listener: &impl AsFd, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        for received in 0..AT_ONCE {
            match self.receive(listener) {
                Ok(datagram) => datagram.into_iter().for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
                Err(error) => return Err(error),
            }
        }
        Ok(AT_ONCE)
    }

    /// Receives one; nothing if it lacks what only other sockets' datagrams can lack.
    fn receive(&mut self, listener: &impl AsFd) -> io::Result<Option<Datagram<'_>>> {
        let mut message = [Message::NOTHING];
        receive_messages(listener, &mut self.0, LONGEST, &mut message)?;
        let [Message { from, dst, ttl, class, pieces, length, .. }] = message;
        let payload = &self.0[..length];
        Ok(dst.zip(ttl).map(|(dst, ttl)| Datagram {
            client: ClientAddr(from),
            dst: OriginalDst(dst),
            class,
            ttl,
            pieces,
            payload,
        }))
    }
}

#[cfg(test)]
mod tests;
