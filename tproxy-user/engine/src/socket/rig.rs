//! What the tests of sockets share.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;
use tproxy_netns::{Namespace, Topology};

use crate::family::Family;

/// Both families, with the addresses of [`Topology`].
pub(super) const FAMILIES: [(Family, tproxy_netns::Family); 2] =
    [(Family::V4, tproxy_netns::Family::V4), (Family::V6, tproxy_netns::Family::V6)];

/// The longest anything is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn address_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// An address that is at home nowhere, with a port.
pub(super) fn foreign(family: Family, port: u16) -> SocketAddr {
    let address = match family {
        Family::V4 => "198.51.100.7",
        Family::V6 => "2001:db8::7",
    };
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Runs a test in a network namespace where the foreign addresses are delivered locally.
pub(super) fn with_foreign_addresses(test: impl FnOnce() + Send) {
    let namespace = Namespace::new("socket").unwrap();
    namespace.ip("route add local 198.51.100.0/24 dev lo\nroute add local 2001:db8::/32 dev lo").unwrap();
    namespace.enter(test);
}

/// A network whose gateway says nothing about datagrams to the foreign addresses.
pub(super) fn silent_gateway() -> Topology {
    let net = Topology::three().unwrap();
    net.gateway.ip("route add blackhole 198.51.100.0/24\nroute add blackhole 2001:db8::/32").unwrap();
    net
}

/// A UDP socket of a namespace's that does not wait for ever.
pub(super) fn udp_socket(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind((address, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Waits until something can be received.
pub(super) fn wait_for_datagram(socket: &impl AsFd) {
    wait_for(socket, PollFlags::IN);
}

/// Waits until there is an error, or one in the error queue.
pub(super) fn wait_for_error(socket: &impl AsFd) {
    wait_for(socket, PollFlags::empty());
}

fn wait_for(socket: &impl AsFd, flags: PollFlags) {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(socket, flags)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "waited in vain");
}

/// A counter of a namespace's IP layer, by its name in `/proc/net/snmp`.
pub(super) fn counter(namespace: &Namespace, family: Family, name: &str) -> u64 {
    // thread-self: /proc/net is the main thread's namespace.
    let read = |file| namespace.enter(|| std::fs::read_to_string(file)).unwrap();
    match family {
        Family::V4 => {
            let text = read("/proc/thread-self/net/snmp");
            let mut rows = text.lines().filter(|line| line.starts_with("Ip:"));
            let names = rows.next().unwrap().split_whitespace();
            let row = names.zip(rows.next().unwrap().split_whitespace()).find(|(of, _)| *of == name);
            row.unwrap().1.parse().unwrap()
        }
        Family::V6 => {
            let text = read("/proc/thread-self/net/snmp6");
            let row = text.lines().find_map(|line| line.strip_prefix(&format!("Ip6{name} ")));
            row.unwrap().trim().parse().unwrap()
        }
    }
}
