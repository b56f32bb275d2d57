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

use super::{IcmpError, receive};

/// Room for an extended error with an IPv6 address, and for what else a socket asks for.
const CONTROL: usize = 192;

/// A datagram of ours that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerError {
    /// Where it was sent.
    pub peer: SocketAddr,
    /// Who says that it did not arrive.
    pub reporter: IpAddr,
    /// Why not.
    pub error: IcmpError,
}

/// Takes the next error off a socket; nothing when there is none. Errors of this host, and those that
/// [`IcmpError`] has no word for, are left out: what failed here, `send` has said.
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
        let peer = message.address.as_ref().and_then(receive::address);
        let known = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, offender)
                if error.ee_origin == libc::SO_EE_ORIGIN_ICMP =>
            {
                let reporter = SockaddrIn::from(offender?).ip().into();
                Some((IcmpError::of_v4(error.ee_type, error.ee_code, error.ee_info)?, reporter))
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

#[cfg(test)]
mod tests;
