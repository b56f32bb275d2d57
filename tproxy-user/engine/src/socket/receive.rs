//! What arrives at a UDP listener, with its original destination.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};
use quinn_udp::EcnCodepoint;

use crate::flow::{ClientAddr, OriginalDst};

/// A datagram is shorter than this.
const LONGEST: usize = 1 << 16;

/// Datagrams received in one go.
const AT_ONCE: usize = 32;

/// Room for an address, a TTL and a traffic class with their headers (cmsg(3)).
const CONTROL: usize = 128;

/// A datagram that was steered to a listener.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub client: ClientAddr,
    /// Where it was to go.
    pub dst: OriginalDst,
    /// Its ECN codepoint.
    pub ecn: Option<EcnCodepoint>,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// What is in it.
    pub payload: &'a [u8],
}

/// Receives from listeners. One datagram takes one call: what arrives here is the beginning of flows, and no two datagrams
/// of different flows can be received as one anyway.
#[derive(Debug)]
pub struct Receiver(Box<[u8]>);

impl Default for Receiver {
    fn default() -> Self {
        Self(vec![0; LONGEST].into())
    }
}

impl Receiver {
    /// Hands datagrams to `each`, in order, until there are no more, but not for ever. Says how many there were; with none,
    /// the listener is empty.
    ///
    /// # Errors
    /// What is wrong with the listener.
    pub fn recv(&mut self, listener: &impl AsFd, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        for received in 0..AT_ONCE {
            match self.receive(listener) {
                Ok(datagram) => datagram.into_iter().for_each(&mut each),
                Err(Errno::EAGAIN) => return Ok(received),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(AT_ONCE)
    }

    /// Receives one; nothing if it lacks what only other sockets' datagrams can lack.
    fn receive(&mut self, listener: &impl AsFd) -> nix::Result<Option<Datagram<'_>>> {
        let mut control = [0; CONTROL];
        let mut buffer = [IoSliceMut::new(&mut self.0)];
        let listener = listener.as_fd().as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(listener, &mut buffer, Some(&mut control), MsgFlags::empty())?;
        let (mut dst, mut tos, mut ttl) = (None, 0, None);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4OrigDstAddr(address) => dst = Some(SocketAddr::V4(v4(&address))),
                ControlMessageOwned::Ipv6OrigDstAddr(address) => dst = Some(SocketAddr::V6(v6(&address))),
                ControlMessageOwned::Ipv4Tos(bits) => tos = bits,
                ControlMessageOwned::Ipv6TClass(bits) => tos = bits as u8,
                ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
                    ttl = Some(hops as u8)
                }
                _ => {}
            }
        }
        let (client, bytes) = (message.address.as_ref().and_then(address), message.bytes);
        Ok(client.zip(dst).zip(ttl).map(|((client, dst), ttl)| Datagram {
            client: ClientAddr(client),
            dst: OriginalDst(dst),
            ecn: EcnCodepoint::from_bits(tos),
            ttl,
            payload: &self.0[..bytes],
        }))
    }
}

pub(super) fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

fn v4(address: &libc::sockaddr_in) -> std::net::SocketAddrV4 {
    nix::sys::socket::SockaddrIn::from(*address).into()
}

fn v6(address: &libc::sockaddr_in6) -> std::net::SocketAddrV6 {
    nix::sys::socket::SockaddrIn6::from(*address).into()
}

#[cfg(test)]
mod tests;
