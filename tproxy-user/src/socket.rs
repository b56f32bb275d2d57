//! The sockets of an instance: listeners, sessions' and upstream sockets, with the options that make them transparent. The one module of user space that may use `unsafe`.
//!
//! Every socket carries the own mark, so that the datapath leaves its packets alone. Those of TCP linger for zero seconds: closing it is a reset, until
//! [`close_in_order`] was called. A connection
//! that is cut off (a panic, a stop, `kill -9`) must not look to its ends like one that was complete,
//! and a reset leaves no socket behind that has a foreign address.

mod control;
mod datagram;
mod errors;
mod icmp;
mod raw;
mod readable;
mod receive;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

pub use datagram::{
    Endpoint, datagram_black_hole, datagram_from, datagram_listener, datagram_upstream, session, set_ttl,
};
pub use errors::{PeerError, next_error};
pub use icmp::{IcmpError, IcmpSender};
pub use raw::RawSender;
pub use readable::Readable;
pub use receive::{Datagram, Receiver};
use socket2::{Protocol, SockAddr, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use crate::{family::Family, mark::Mark};

/// Connections that may wait for `accept`; `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// A peer that has vanished without a word is found out within eight minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(30))
    .with_retries(6);

/// Whose address an upstream socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamSource {
    /// This host's, of the kernel's choice.
    Host,
    /// The client's IP address, and a port that the kernel chooses when it knows the destination.
    Client(IpAddr),
    /// The client's IP address and port.
    ClientPort(SocketAddr),
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A capability is missing.
    #[error("{step} needs {capability}")]
    Privilege {
        /// The call or option that was refused.
        step: &'static str,
        /// What would allow it.
        capability: &'static str,
    },
    /// Somebody else holds the local address and port.
    #[error("the local address {address} is taken")]
    Taken {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// An IPv4 client cannot be spoofed towards an IPv6 upstream, nor the other way round.
    #[error("{client} cannot be the source of a connection to {upstream}")]
    Family {
        /// Who was to be spoofed.
        client: IpAddr,
        /// Where the connection was to go.
        upstream: SocketAddr,
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

/// A listener that tc and `sk_lookup` can steer to: transparent, non-blocking, with the own mark.
///
/// It is bound to a loopback address, so that it is not exposed, and to a port of the kernel's choice:
/// steering does not ask what a listener is bound to. What it accepts inherits every option set here,
/// the own mark among them, which makes `net.ipv4.tcp_fwmark_accept` harmless: the kernel copies
/// the mark of a SYN only into a socket whose listener has none (`inet_request_mark`).
///
/// # Errors
/// [`SocketError::Privilege`] without `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
pub fn listener(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = marked(family, mark)?;
    transparent(&socket, family)?;
    bind_and_listen(&socket, family)?;
    Ok(socket)
}

/// A listener to which nothing gets through: what is steered to it gets no answer at all.
/// `sk_lookup` can choose a socket or refuse, but it cannot discard; this is how it does.
///
/// # Errors
/// As [`listener`].
pub fn black_hole(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = marked(family, mark)?;
    transparent(&socket, family)?;
    discard_all(&socket)?;
    bind_and_listen(&socket, family)?;
    Ok(socket)
}

/// A socket that is ready to `connect` to `upstream` from the address that `source` says.
///
/// # Errors
/// [`SocketError::Taken`] when the client's port is held by somebody; the same can come to light only
/// at `connect`, as `EADDRNOTAVAIL`. [`SocketError::Family`], [`SocketError::Privilege`], and
/// [`SocketError::Os`] for lack of resources.
pub fn upstream(upstream: SocketAddr, source: UpstreamSource, mark: Mark) -> Result<Socket, SocketError> {
    let family = Family::of(upstream.ip());
    let socket = marked(family, mark)?;
    let address = match source {
        UpstreamSource::Host => return Ok(socket),
        UpstreamSource::Client(client) => {
            // Without it bind() would reserve a port for this address alone, of which there are 28,000,
            // instead of connect() choosing one that is free towards this upstream.
            bind_address_no_port(&socket)?;
            SocketAddr::new(client, 0)
        }
        UpstreamSource::ClientPort(client) => {
            // The client may use its port towards many destinations at once, and so must we.
            socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
            client
        }
    };
    if Family::of(address.ip()) != family {
        return Err(SocketError::Family { client: address.ip(), upstream });
    }
    transparent(&socket, family)?;
    socket.bind(&SockAddr::from(address)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => SocketError::Taken { address },
        _ => SocketError::Os { step: "bind", source: error },
    })?;
    Ok(socket)
}

/// From now on, closing this socket is to its peer the end of the data and not a reset.
/// What is still to be sent is sent by the kernel.
pub fn close_in_order(socket: &impl AsFd) {
    // It fails for no socket of ours; if it did, the peer would see a reset.
    let _ = SockRef::from(socket).set_linger(None);
}

/// The options that all sockets have in common.
fn marked(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket =
        Socket::new(family.into(), Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(os("socket"))?;
    socket.set_mark(mark.own()).map_err(privileged("SO_MARK"))?;
    if family == Family::V6 {
        socket.set_only_v6(true).map_err(os("IPV6_V6ONLY"))?;
    }
    socket.set_linger(Some(Duration::ZERO)).map_err(os("SO_LINGER"))?;
    // Whoever wrote has decided on the size of segments; Nagle's delay on top of it would be ours.
    socket.set_tcp_nodelay(true).map_err(os("TCP_NODELAY"))?;
    // Urgent bytes stay at their place in the stream; otherwise read() would leave them out.
    socket.set_out_of_band_inline(true).map_err(os("SO_OOBINLINE"))?;
    socket.set_tcp_keepalive(&KEEPALIVE).map_err(os("SO_KEEPALIVE"))?;
    Ok(socket)
}

fn transparent(socket: &Socket, family: Family) -> Result<(), SocketError> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true).map_err(privileged("IP_TRANSPARENT")),
        Family::V6 => socket.set_ip_transparent_v6(true).map_err(privileged("IPV6_TRANSPARENT")),
    }
}

/// From now on the socket receives nothing.
fn discard_all(socket: &Socket) -> Result<(), SocketError> {
    // `ret #0`: keep no byte of the packet, which is to drop it.
    const RETURN_ZERO: SockFilter = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket.attach_filter(&[RETURN_ZERO]).map_err(os("SO_ATTACH_FILTER"))
}

fn bind_and_listen(socket: &Socket, family: Family) -> Result<(), SocketError> {
    socket.bind(&SocketAddr::new(family.loopback(), 0).into()).map_err(os("bind"))?;
    // For what it accepts: those connections hold the ports of original destinations, and without the option no daemon
    // of this host could be started on one of them. Set only now, so that the port just bound is nobody else's.
    socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
    socket.listen(BACKLOG).map_err(os("listen"))
}

/// `IP_BIND_ADDRESS_NO_PORT` (ip(7)), for which there is no safe wrapper.
/// It is an option of `SOL_IP` for IPv6 sockets too: `ipv6_setsockopt` passes those on.
fn bind_address_no_port(socket: &Socket) -> Result<(), SocketError> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the pointer and the length
    // describe `on`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(os("IP_BIND_ADDRESS_NO_PORT")(io::Error::last_os_error())) }
}

fn os(step: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Os { step, source }
}

fn privileged(step: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => SocketError::Privilege { step, capability: "CAP_NET_ADMIN" },
        _ => SocketError::Os { step, source },
    }
}

#[cfg(test)]
mod tests;
