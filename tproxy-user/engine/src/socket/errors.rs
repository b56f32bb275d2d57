//! The error queue of UDP sockets towards upstreams.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg},
};

use super::IcmpError;

/// Room for an extended error with an IPv6 address, and for what else a socket asks for.
const CONTROL: usize = 192;

/// A datagram of ours that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerError {
    /// Where it was sent; port 0 where it did not even leave an IPv4 socket that is not connected
    /// (`ip_append_data`).
    pub peer: SocketAddr,
    /// Who says that it did not arrive.
    pub reporter: IpAddr,
    /// Why not.
    pub error: IcmpError,
}

/// Takes the next error off a socket; nothing when there is none. Those that [`IcmpError`] has no word for are left
/// out, and those of this host, of which `send` has said what there is to say, except how long a datagram may be.
///
/// # Errors
/// The kernel's.
pub fn next_error(socket: &impl AsFd) -> io::Result<Option<PeerError>> {
    loop {
        let mut control = [0; CONTROL];
        // What was sent is of no interest.
        let mut buffer = [IoSliceMut::new(&mut [])];
        let received = recvmsg::<SockaddrStorage>(
            socket.as_fd().as_raw_fd(),
            &mut buffer,
            Some(&mut control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        );
        let message = match received {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let peer = message.address.as_ref().and_then(address);
        let known = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, offender)
                if error.ee_origin == libc::SO_EE_ORIGIN_ICMP =>
            {
                let reporter = SockaddrIn::from(offender?).ip().into();
                Some((IcmpError::of_v4(error.ee_type, error.ee_code, error.ee_info)?, reporter))
            }
            // It did not even leave: it must not be fragmented, and is longer than what the way to the peer is known to take.
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)
                if error.ee_origin == libc::SO_EE_ORIGIN_LOCAL && error.ee_errno == libc::EMSGSIZE as u32 =>
            {
                Some((IcmpError::too_big(error.ee_info), peer?.ip()))
            }
            ControlMessageOwned::Ipv6RecvErr(error, offender)
                if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 =>
            {
                let reporter = SockaddrIn6::from(offender?).ip().into();
                Some((IcmpError::of_v6(error.ee_type, error.ee_code, error.ee_info)?, reporter))
            }
            _ => None,
        });
        if let (Some(peer), Some((error, reporter))) = (peer, known) {
            return Ok(Some(PeerError { peer, reporter, error }));
        }
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

#[cfg(test)]
mod tests;
