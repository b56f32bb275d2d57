//! UDP sockets: listeners, sockets of sessions, sockets towards upstreams.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    os::fd::AsFd,
};

use nix::sys::socket::{SetSockOpt, setsockopt, sockopt};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Protocol, SockRef, Socket, Type};

use tproxy_common::packet::Fragmenting;

use super::{
    Egress, SocketError, UpstreamSource, bind, bind_foreign, discard_all, is_source, message, os, privileged,
    set_number, transparent,
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    mark::Mark,
};

/// Bytes for what arrives before it has a session, with the kernel's own bookkeeping.
const LISTENER_BUFFER: usize = 4 << 20;

/// The same for a flow that has a socket: a burst of QUIC or of media while the worker is busy with others. Memory is
/// taken only by what waits.
const FLOW_BUFFER: usize = 1 << 20;

/// What an upstream socket sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Whatever each datagram says; it receives from anybody.
    Any(Family),
    /// One peer, from which alone it receives.
    Peer(SocketAddr),
}

impl Endpoint {
    const fn family(self) -> Family {
        match self {
            Self::Any(family) => family,
            Self::Peer(peer) => Family::of(peer.ip()),
        }
    }
}

/// A UDP socket that tc and `sk_lookup` can steer to: transparent, non-blocking, not connected, with the own mark. A
/// [`DatagramReceiver`](super::DatagramReceiver) finds out the original destinations.
///
/// It is bound to a loopback address and to a port of the kernel's choice, as [`listener`](super::listener) is.
///
/// # Errors
/// [`SocketError::Privilege`] without `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
pub fn datagram_listener(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = unbound(family)?;
    own(&socket, mark)?;
    transparent(&socket, family)?;
    match family {
        Family::V4 => {
            set(&socket, sockopt::Ipv4OrigDstAddr, "IP_RECVORIGDSTADDR")?;
            set(&socket, sockopt::Ipv4RecvTtl, "IP_RECVTTL")?;
        }
        Family::V6 => {
            set(&socket, sockopt::Ipv6OrigDstAddr, "IPV6_RECVORIGDSTADDR")?;
            set(&socket, sockopt::Ipv6RecvHopLimit, "IPV6_RECVHOPLIMIT")?;
        }
    }
    tell_of_fragments(&socket, family)?;
    receive_buffer(&socket, LISTENER_BUFFER)?;
    bind_alone(&socket, family)?;
    Ok(socket)
}

/// A UDP socket that discards what is steered to it.
///
/// # Errors
/// As [`datagram_listener`].
pub fn datagram_black_hole(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = datagram_from_anybody(family, mark)?;
    discard_all(&socket)?;
    bind_alone(&socket, family)?;
    Ok(socket)
}

/// A UDP socket that may receive what is for addresses of others.
pub(super) fn datagram_from_anybody(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = unbound(family)?;
    own(&socket, mark)?;
    transparent(&socket, family)?;
    Ok(socket)
}

/// To a port of the kernel's choice. See `stream::bind_and_listen` on `SO_REUSEPORT`.
fn bind_alone(socket: &Socket, family: Family) -> Result<(), SocketError> {
    socket.set_reuse_port(true).map_err(os("SO_REUSEPORT"))?;
    socket.bind(&SocketAddr::new(family.loopback(), 0).into()).map_err(os("bind"))
}

/// A socket with a flow of its own: it sends from the original destination to the client, and from now on the kernel's
/// own lookup has it receive what the client sends there.
///
/// # Errors
/// [`SocketError::Taken`] when somebody of this host holds the original destination's port on every address or this one;
/// [`SocketError::Privilege`], [`SocketError::Os`].
pub fn session(dst: OriginalDst, client: ClientAddr, mark: Mark) -> Result<Socket, SocketError> {
    let family = Family::of(client.0.ip());
    let socket = relaying(family)?;
    tell_of_fragments(&socket, family)?;
    // There is one for each client of the same destination.
    socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
    bind_foreign(&socket, family, dst.0)?;
    socket.connect(&client.0.into()).map_err(os("connect"))?;
    own(&socket, mark)?;
    Ok(socket)
}

/// A socket towards upstreams. Its error queue is on: see [`next_error`](super::next_error).
///
/// # Errors
/// [`SocketError::Taken`] when somebody holds the client's port; [`SocketError::Family`], [`SocketError::Privilege`],
/// and [`SocketError::Os`], also when there is no way to the peer.
pub fn datagram_upstream(
    upstream: Endpoint,
    source: UpstreamSource,
    egress: impl Into<Egress>,
) -> Result<Socket, SocketError> {
    let (family, egress) = (upstream.family(), egress.into());
    let socket = relaying(family)?;
    egress.set(&socket)?;
    match family {
        Family::V4 => set(&socket, sockopt::Ipv4RecvErr, "IP_RECVERR")?,
        Family::V6 => set(&socket, sockopt::Ipv6RecvErr, "IPV6_RECVERR")?,
    }
    match source {
        UpstreamSource::Own(own) if is_source(own, family) => bind(&socket, SocketAddr::new(own, 0))?,
        UpstreamSource::Host | UpstreamSource::Own(_) => {
            bind(&socket, SocketAddr::new(unspecified(family), 0))?;
        }
        UpstreamSource::Client(client) => bind_foreign(&socket, family, SocketAddr::new(client, 0))?,
        UpstreamSource::ClientPort(client) => {
            // The client may use its port towards many destinations at once, and so must we.
            socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
            bind_foreign(&socket, family, client)?;
        }
    }
    let mark = || socket.set_mark(egress.mark()).map_err(privileged("SO_MARK"));
    let Endpoint::Peer(peer) = upstream else { return mark().map(|()| socket) };
    let connect = || socket.connect(&peer.into()).map_err(os("connect"));
    match source {
        // The kernel chooses its address now, by the way that it has with the mark.
        UpstreamSource::Host | UpstreamSource::Own(_) => mark().and_then(|()| connect()),
        // With the mark, what is on its way to the client at this port would be taken for its own until it is connected.
        UpstreamSource::Client(_) | UpstreamSource::ClientPort(_) => connect()
            .or_else(|unreachable| {
                mark()?;
                // Perhaps there is a way only for what has the mark.
                connect().map_err(|_| unreachable)
            })
            .and_then(|()| mark()),
    }
    .map(|()| socket)
}

/// A socket that sends from an address and port that need not be this host's: the first lines of the recipe of
/// transparent proxies. What is sent back arrives here only where routing delivers that address locally. It carries no
/// mark, so that an instance treats its datagrams like any program's.
///
/// ```no_run
/// use std::net::SocketAddr;
///
/// let socket = tproxy::datagram_from("8.8.8.8:8080".parse()?)?;
/// let to: SocketAddr = "10.0.0.2:9999".parse()?;
/// socket.send_to(b"hello", &to.into())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`SocketError::Taken`] when somebody of this host holds the address and port, [`SocketError::Privilege`] without
/// `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
pub fn datagram_from(from: SocketAddr) -> Result<Socket, SocketError> {
    let family = Family::of(from.ip());
    let socket = Socket::new(family.into(), Type::DGRAM, Some(Protocol::UDP)).map_err(os("socket"))?;
    transparent(&socket, family)?;
    bind(&socket, from)?;
    Ok(socket)
}

/// Whether packets find a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// They do, as the kernel's lookup has it.
    Found,
    /// They go where they would without it; nor can it send. What it has received can be read.
    Hidden,
}

/// Sets it. A packet for which another CPU has just found the socket may still come.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without `CAP_NET_RAW`.
pub fn set_visibility(socket: &impl AsFd, visibility: Visibility) -> io::Result<()> {
    // `sock_bindtoindex()` takes any index. No interface has this one: `dev_index_reserve()` gives out small ones.
    const NOWHERE: NonZeroU32 = NonZeroU32::new(i32::MAX as u32).unwrap();
    // It is `SO_BINDTOIFINDEX`, for either family.
    SockRef::from(socket).bind_device_by_index_v4(match visibility {
        Visibility::Found => None,
        Visibility::Hidden => Some(NOWHERE),
    })
}

/// Sets the TTL or hop limit of what a socket sends from now on.
///
/// # Errors
/// The kernel's, which has none for a socket of this family.
pub fn set_ttl(socket: &impl AsFd, family: Family, ttl: u8) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match family {
        Family::V4 => socket.set_ttl_v4(ttl.into()),
        Family::V6 => socket.set_unicast_hops_v6(ttl.into()),
    }
}

/// Says whether what a socket sends from now on may be fragmented. What must not, and does not fit, is not sent, and the
/// error queue tells what would (`ip_append_data`, `ip6_append_data`).
///
/// # Errors
/// The kernel's, which has none for a socket of this family.
pub fn set_fragmenting(socket: &impl AsFd, family: Family, fragmenting: Fragmenting) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    // The values of IPv6 are the same.
    set_number(
        socket,
        level,
        option,
        match fragmenting {
            Fragmenting::Allowed => libc::IP_PMTUDISC_DONT,
            Fragmenting::Forbidden => libc::IP_PMTUDISC_DO,
        },
    )
}

/// Has each datagram say whether it came in fragments.
fn tell_of_fragments(socket: &Socket, family: Family) -> Result<(), SocketError> {
    match family {
        Family::V4 => set_number(socket, libc::IPPROTO_IP, message::IP_RECVFRAGSIZE, 1),
        Family::V6 => set_number(socket, libc::IPPROTO_IPV6, message::IPV6_RECVFRAGSIZE, 1),
    }
    .map_err(os("IP_RECVFRAGSIZE"))
}

/// A socket between a client and an upstream: it receives several datagrams of one flow as one message, with their class.
fn relaying(family: Family) -> Result<Socket, SocketError> {
    let socket = unbound(family)?;
    set(&socket, sockopt::UdpGroSegment, "UDP_GRO")?;
    receive_buffer(&socket, FLOW_BUFFER)?;
    Ok(socket)
}

/// `SO_RCVBUFFORCE` (socket(7)): more than `net.core.rmem_max`.
fn receive_buffer(socket: &Socket, bytes: usize) -> Result<(), SocketError> {
    set_socket_recv_buffer_size_force(socket, bytes)
        .map_err(|errno| privileged("SO_RCVBUFFORCE")(errno.into()))
}

/// Sets the own mark, by which the datapath knows a socket to be ours. That of a flow gets it when it is connected: as long
/// as it is only bound, others' datagrams to the same destination would be taken for its own.
fn own(socket: &Socket, mark: Mark) -> Result<(), SocketError> {
    socket.set_mark(mark.own()).map_err(privileged("SO_MARK"))
}

/// The options that all of them have in common.
fn unbound(family: Family) -> Result<Socket, SocketError> {
    let socket =
        Socket::new(family.into(), Type::DGRAM.nonblocking(), Some(Protocol::UDP)).map_err(os("socket"))?;
    match family {
        Family::V4 => socket.set_recv_tos_v4(true).map_err(os("IP_RECVTOS"))?,
        Family::V6 => {
            socket.set_only_v6(true).map_err(os("IPV6_V6ONLY"))?;
            socket.set_recv_tclass_v6(true).map_err(os("IPV6_RECVTCLASS"))?;
        }
    }
    Ok(socket)
}

fn set(socket: &Socket, option: impl SetSockOpt<Val = bool>, name: &'static str) -> Result<(), SocketError> {
    setsockopt(socket, option, &true).map_err(|errno| os(name)(errno.into()))
}

const fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests;
