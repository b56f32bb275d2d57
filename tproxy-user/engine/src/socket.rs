//! The sockets of an instance: listeners, sockets of sessions and towards upstreams, senders, with the options that
//! make them transparent. The one module of user space that may use `unsafe`.
//!
//! Every socket carries the own mark, so that the datapath leaves its packets alone.

mod control;
mod datagram;
mod egress;
mod errors;
mod icmp;
mod message;
mod namespace;
mod pinned;
mod probe;
mod raw;
mod readable;
mod receive;
mod stream;
mod syn;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
};

use socket2::{SockFilter, Socket};

pub use datagram::{
    Endpoint, Visibility, datagram_black_hole, datagram_from, datagram_listener, datagram_upstream, session,
    set_fragmenting, set_ttl, set_visibility,
};
pub use egress::Egress;
pub use errors::{PeerError, next_error};
pub use icmp::{IcmpError, IcmpSender};
pub use message::{Message, Outgoing, Pieces, TrafficClass, receive_messages, send_message};
pub use namespace::namespace_cookie;
pub use pinned::PinnedLink;
pub use probe::{Counting, first_packet};
pub use raw::RawSender;
pub use readable::ReadableFd;
pub use receive::{Datagram, DatagramReceiver};
pub use stream::{
    Received, Rest, arrival_interface, black_hole, class_of_syn, close_in_order, destination_before_nat,
    has_data, join_ack_with_data, keep_alive, listener, push, receive, segments_received, set_class,
    upstream,
};

pub use syn::SynSender;

use crate::family::Family;

/// Whose address an upstream socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamSource {
    /// This host's, of the kernel's choice.
    Host,
    /// This one of this host, where it is of the upstream's family, and a port of the kernel's choice.
    Own(IpAddr),
    /// The client's IP address, and a port of the kernel's choice.
    Client(IpAddr),
    /// The client's IP address and port.
    ClientPort(SocketAddr),
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A capability is missing.
    #[error("{step} needs {capability}: run this as root, or give it that capability")]
    Privilege {
        /// The option that was refused.
        step: &'static str,
        /// What it takes.
        capability: &'static str,
    },
    /// Somebody else holds the local address and port.
    #[error("the local address {address} is taken")]
    Taken {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// There is no such local address.
    #[error("{address} is none of this host's addresses")]
    NotOwn {
        /// What was to be bound.
        address: IpAddr,
    },
    /// An IPv4 client cannot be spoofed towards an IPv6 upstream, nor the other way round.
    #[error("{client} cannot be the source of a flow to an {upstream} address")]
    Family {
        /// Who was to be spoofed.
        client: IpAddr,
        /// Family of the address that the flow was to go to.
        upstream: Family,
    },
    /// Anything else.
    #[error("{step}: {source}")]
    Os {
        /// The call or option that failed.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn transparent(socket: &Socket, family: Family) -> Result<(), SocketError> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true).map_err(privileged("IP_TRANSPARENT")),
        Family::V6 => socket.set_ip_transparent_v6(true).map_err(privileged("IPV6_TRANSPARENT")),
    }
}

/// Sets an option that is a number, and that no library knows.
fn set_number(socket: &impl AsFd, level: i32, option: i32, number: i32) -> io::Result<()> {
    let (value, length) = ((&raw const number).cast(), size_of_val(&number) as libc::socklen_t);
    // SAFETY: `value` points to `length` bytes, which the kernel reads.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option, as much of it as there is room for, and says how long that is.
fn get(socket: &impl AsFd, level: i32, option: i32, room: &mut [u8]) -> io::Result<usize> {
    let mut length = room.len() as libc::socklen_t;
    // SAFETY: the room is as long as `length` says, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, room.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

/// From now on nothing is received.
fn discard_all(socket: &Socket) -> Result<(), SocketError> {
    // `ret #0`: keep no byte of the packet, which is to drop it.
    const RETURN_ZERO: SockFilter = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket.attach_filter(&[RETURN_ZERO]).map_err(os("SO_ATTACH_FILTER"))
}

/// Binds to an address that need not be this host's, before something is sent to an address of `family`.
fn bind_foreign(socket: &Socket, family: Family, address: SocketAddr) -> Result<(), SocketError> {
    if Family::of(address.ip()) != family {
        return Err(SocketError::Family { client: address.ip(), upstream: family });
    }
    transparent(socket, family)?;
    bind(socket, address)
}

/// Binds to an address that others may hold.
fn bind(socket: &Socket, address: SocketAddr) -> Result<(), SocketError> {
    socket.bind(&address.into()).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => SocketError::Taken { address },
        io::ErrorKind::AddrNotAvailable => SocketError::NotOwn { address: address.ip() },
        _ => os("bind")(error),
    })
}

/// Whether an address of this host can be the source of what goes to an address of `family`.
fn is_source(own: IpAddr, family: Family) -> bool {
    Family::of(own) == family && !own.is_loopback()
}

fn os(step: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Os { step, source }
}

fn privileged(step: &'static str) -> impl Fn(io::Error) -> SocketError {
    refused_without("CAP_NET_ADMIN", step)
}

fn refused_without(capability: &'static str, step: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => SocketError::Privilege { step, capability },
        _ => SocketError::Os { step, source },
    }
}

#[cfg(test)]
mod rig;
