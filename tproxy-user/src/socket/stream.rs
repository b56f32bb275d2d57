//! TCP sockets: listeners, sockets towards upstreams.
//!
//! They linger for zero seconds: closing one is a reset, until [`close_in_order`] was called. A connection
//! that is cut off (a panic, a stop, `kill -9`) must not look to its ends like one that was complete,
//! and a reset leaves no socket behind that has a foreign address.

use std::{net::SocketAddr, os::fd::AsFd, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{SocketError, UpstreamSource, bind_foreign, discard_all, os, privileged, transparent};
use crate::{family::Family, mark::Mark};

/// Connections that may wait for `accept`; `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// A peer that has vanished without a word is found out within eight minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(30))
    .with_retries(6);

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
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
                .map_err(|errno| os("IP_BIND_ADDRESS_NO_PORT")(errno.into()))?;
            SocketAddr::new(client, 0)
        }
        UpstreamSource::ClientPort(client) => {
            // The client may use its port towards many destinations at once, and so must we.
            socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
            client
        }
    };
    bind_foreign(&socket, family, address)?;
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

fn bind_and_listen(socket: &Socket, family: Family) -> Result<(), SocketError> {
    socket.bind(&SocketAddr::new(family.loopback(), 0).into()).map_err(os("bind"))?;
    // For what it accepts: those connections hold the ports of original destinations, and without the option no daemon
    // of this host could be started on one of them. Set only now, so that the port just bound is nobody else's.
    socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
    socket.listen(BACKLOG).map_err(os("listen"))
}

#[cfg(test)]
mod tests;
