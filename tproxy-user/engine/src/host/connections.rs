//! Which sockets are connected in this network namespace, and whose they are.

use std::{io, iter, net::SocketAddr};

use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::{
    IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;
use tproxy_common::flow::Protocol;

use super::netlink::Netlink;

/// Whether some socket, in whatever state and of whomever, has this very pair of addresses and ports.
///
/// # Errors
/// The kernel's.
pub fn exists(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    // No interface: our own `sk_lookup` program, which the kernel asks here, too, knows by it that no packet is looked at.
    find(&Netlink::open(NETLINK_SOCK_DIAG)?, protocol, local, remote, 0).map(|found| found.is_some())
}

/// What the kernel knows of a process of this host by one of its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owner {
    /// Its user id.
    pub(crate) uid: u32,
    /// Its cgroup of the v2 hierarchy.
    pub(crate) cgroup: Option<u64>,
    /// The socket's mark.
    pub(crate) mark: u32,
    /// The interface that the socket is bound to; 0 is none.
    pub(crate) device: u32,
}

/// Whose connection this is: none, where the process has closed it. A socket that is bound to an interface is found where
/// that is one of `interfaces`.
pub(crate) fn owner(
    local: SocketAddr,
    remote: SocketAddr,
    interfaces: impl IntoIterator<Item = u32>,
) -> io::Result<Option<Owner>> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    for interface in iter::once(0).chain(interfaces) {
        if let Some(socket) = find(&netlink, Protocol::Tcp, local, remote, interface)? {
            // Without a file (`sk->sk_socket`), there is no user id.
            return Ok(Some(owner_of(&socket)).filter(|_| socket.header.inode != 0));
        }
    }
    Ok(None)
}

fn owner_of(socket: &InetResponse) -> Owner {
    /// `linux/inet_diag.h`
    const INET_DIAG_CGROUP_ID: u16 = 21;
    let header = &socket.header;
    let mut owner = Owner { uid: header.uid, device: header.socket_id.interface_id, ..Owner::default() };
    for attribute in &socket.nlas {
        match attribute {
            Nla::Mark(mark) => owner.mark = *mark,
            Nla::Other(other) if other.kind() == INET_DIAG_CGROUP_ID => {
                let mut id = [0; 8];
                if other.value_len() == id.len() {
                    other.emit_value(&mut id);
                    owner.cgroup = Some(u64::from_ne_bytes(id));
                }
            }
            _ => {}
        }
    }
    owner
}

/// The socket that has this very pair. Where there is none, the kernel answers with who would receive what is sent there.
fn find(
    netlink: &Netlink,
    protocol: Protocol,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
) -> io::Result<Option<Box<InetResponse>>> {
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
        interface_id: interface,
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
            let found = &socket.header.socket_id;
            let is_it = (found.destination_address, found.destination_port) == (remote.ip(), remote.port());
            Ok(is_it.then_some(socket))
        }
        Ok(_) => Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(None),
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
