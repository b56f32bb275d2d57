//! Whether a TCP connection exists in this network namespace.

use std::{io, net::SocketAddr};

use netlink_packet_sock_diag::{
    IPPROTO_TCP, SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Netlink;

/// `TCP_LISTEN` (net/tcp_states.h): where there is no connection, the kernel answers with who would get one.
const TCP_LISTEN: u8 = 10;

/// Whether some socket, in whatever state and of whomever, has this very pair of addresses and ports.
///
/// # Errors
/// The kernel's.
pub fn exists(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        // No interface: our own `sk_lookup` program, which the kernel asks here, too, knows by it that no packet is
        // looked at.
        interface_id: 0,
        // INET_DIAG_NOCOOKIE
        cookie: [0xff; 8],
    };
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    };
    match netlink.get(SockDiagMessage::InetRequest(request)) {
        Ok(Some(SockDiagMessage::InetResponse(socket))) => Ok(socket.header.state != TCP_LISTEN),
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
