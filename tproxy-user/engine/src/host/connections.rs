//! Whether a socket is connected, in this network namespace.

use std::{io, net::SocketAddr};

use netlink_packet_sock_diag::{
    IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;
use tproxy_common::flow::Protocol;

use super::netlink::Netlink;

/// Whether some socket, in whatever state and of whomever, has this very pair of addresses and ports. Where there is none,
/// the kernel answers with who would receive what is sent there.
///
/// # Errors
/// The kernel's.
pub fn exists(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    let (number, (source, destination)) = match protocol {
        Protocol::Tcp => (IPPROTO_TCP, (local, remote)),
        // "src and dst are swapped for historical reasons" (udp_dump_one)
        Protocol::Udp => (IPPROTO_UDP, (remote, local)),
    };
    let socket_id = SocketId {
        source_port: source.port(),
        destination_port: destination.port(),
        source_address: source.ip(),
        destination_address: destination.ip(),
        // No interface: our own `sk_lookup` program, which the kernel asks here, too, knows by it that no packet is
        // looked at.
        interface_id: 0,
        // INET_DIAG_NOCOOKIE
        cookie: [0xff; 8],
    };
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: number,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    };
    match netlink.get(SockDiagMessage::InetRequest(request)) {
        Ok(Some(SockDiagMessage::InetResponse(socket))) => {
            let found = socket.header.socket_id;
            Ok((found.destination_address, found.destination_port) == (remote.ip(), remote.port()))
        }
        Ok(_) => Ok(false),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_pair_that_is_connected_is_found_and_no_other() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(loopback).unwrap();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let other = SocketAddr::new(remote.ip(), 1);
            assert!(exists(Protocol::Tcp, local, remote).unwrap());
            assert!(exists(Protocol::Tcp, remote, local).unwrap());
            assert!(!exists(Protocol::Tcp, remote, other).unwrap(), "a listener is no connection");
            assert!(!exists(Protocol::Tcp, other, remote).unwrap());

            let (server, client) = (UdpSocket::bind(loopback).unwrap(), UdpSocket::bind(loopback).unwrap());
            let (local, remote) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            assert!(!exists(Protocol::Udp, local, remote).unwrap(), "it is bound only");
            client.connect(remote).unwrap();
            assert!(exists(Protocol::Udp, local, remote).unwrap());
            assert!(!exists(Protocol::Udp, remote, local).unwrap());
            assert!(!exists(Protocol::Udp, local, other).unwrap());
        }
    }
}
