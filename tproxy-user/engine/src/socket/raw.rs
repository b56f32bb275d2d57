//! Datagrams from addresses and ports that no UDP socket of ours can be bound to.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
};

use rustix::{io::Errno, net::sockopt::set_socket_send_buffer_size_force};
use socket2::{MsgHdr, Protocol, Socket, Type};

use super::{
    SocketError, control::SendControl, discard_all, message::TrafficClass, os, privileged, transparent,
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    mark::Mark,
};

/// Bytes for what has not left yet, with the kernel's own bookkeeping: one socket sends for many sessions.
const BUFFER: usize = 4 << 20;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

/// Sends whole datagrams. The kernel makes the IP header, and fragments where it has to.
#[derive(Debug)]
pub struct RawSender(Socket);

impl RawSender {
    /// # Errors
    /// [`SocketError::Privilege`] without `CAP_NET_RAW` and `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
    pub fn new(family: Family, mark: Mark) -> Result<Self, SocketError> {
        let socket = raw(family, Protocol::UDP, mark)?;
        set_socket_send_buffer_size_force(&socket, BUFFER)
            .map_err(|errno| privileged("SO_SNDBUFFORCE")(errno.into()))?;
        Ok(Self(socket))
    }

    /// Sends `payload` to `to` as if from `from`, of the same family.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; else what the kernel says of the way to `to`.
    pub fn send(
        &mut self,
        from: OriginalDst,
        to: ClientAddr,
        class: TrafficClass,
        payload: &[u8],
    ) -> io::Result<()> {
        let length =
            u16::try_from(UDP_HEADER + payload.len()).map_err(|_| io::Error::from(Errno::MSGSIZE))?;
        let mut header = [0; UDP_HEADER];
        header[..2].copy_from_slice(&from.0.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.0.port().to_be_bytes());
        header[4..6].copy_from_slice(&length.to_be_bytes());
        let sum = checksum([&pseudo_header(from.0.ip(), to.0.ip(), UDP, length)[..], &header, payload]);
        // Zero would say that there is none (RFC 768).
        header[6..].copy_from_slice(&(if sum == 0 { !0 } else { sum }).to_be_bytes());
        let control = SendControl::new(from.0.ip(), class);
        send(&self.0, to.0.ip(), &control, &[IoSlice::new(&header), IoSlice::new(payload)])
    }
}

/// A raw socket for sending. It receives nothing: it is bound to a loopback address, so that the kernel offers it next to
/// nothing (`raw_v4_match`), and discards that.
pub(super) fn raw(family: Family, protocol: Protocol, mark: Mark) -> Result<Socket, SocketError> {
    let socket =
        Socket::new(family.into(), Type::RAW.nonblocking(), Some(protocol)).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::PermissionDenied => {
                SocketError::Privilege { step: "SOCK_RAW", capability: "CAP_NET_RAW" }
            }
            _ => os("socket")(source),
        })?;
    discard_all(&socket)?;
    socket.set_mark(mark.own()).map_err(privileged("SO_MARK"))?;
    transparent(&socket, family)?;
    socket.bind(&SocketAddr::new(family.loopback(), 0).into()).map_err(os("bind"))?;
    Ok(socket)
}

pub(super) fn send(
    socket: &Socket,
    to: IpAddr,
    control: &SendControl,
    parts: &[IoSlice<'_>],
) -> io::Result<()> {
    // The port would have to be that of the protocol.
    let to = SocketAddr::new(to, 0).into();
    let message = MsgHdr::new().with_addr(&to).with_buffers(parts).with_control(control.bytes());
    socket.sendmsg(&message, 0).map(drop)
}

/// What a checksum covers beside the packet itself (RFC 768; RFC 8200, 8.1). Of IPv4 it is the beginning, and zeroes, which
/// add nothing.
pub(super) fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: u16) -> [u8; 40] {
    let mut header = [0; 40];
    let size = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header[..4].copy_from_slice(&from.octets());
            header[4..8].copy_from_slice(&to.octets());
            8
        }
        (from, to) => {
            header[..16].copy_from_slice(&v6(from));
            header[16..32].copy_from_slice(&v6(to));
            32
        }
    };
    header[size..size + 2].copy_from_slice(&length.to_be_bytes());
    header[size + 3] = protocol;
    header
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The Internet checksum (RFC 1071) of parts, each but the last of an even length.
pub(super) fn checksum<const N: usize>(parts: [&[u8]; N]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (words, odd) = part.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += odd.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests;
