use rustix::io::Errno;

use socket2::Socket;
use tproxy_netns::Topology;

use super::*;
use crate::{
    family::Family,
    mark::Mark,
    socket::{
        Endpoint, UpstreamSource, datagram_upstream,
        rig::{FAMILIES, udp_socket, wait_for_error},
        set_ttl,
    },
};

fn sends(socket: &Socket, length: usize, to: SocketAddr) {
    socket.send_to(&vec![0; length], &to.into()).unwrap();
}

#[test]
fn a_closed_port_is_told_by_its_host() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let closed = SocketAddr::new(addresses.server(), 9);
        for endpoint in [Endpoint::Any(family), Endpoint::Peer(closed)] {
            let socket = net
                .gateway
                .enter(|| datagram_upstream(endpoint, UpstreamSource::Host, Mark::DEFAULT))
                .unwrap();
            assert_eq!(next_error(&socket).unwrap(), None);
            sends(&socket, 1, closed);
            wait_for_error(&socket);
            let told = PeerError { peer: closed, reporter: closed.ip(), error: IcmpError::PortUnreachable };
            assert_eq!(next_error(&socket).unwrap(), Some(told));
            assert_eq!(next_error(&socket).unwrap(), None);
        }
    }
}

#[test]
fn a_spoofed_source_is_told_too() {
    let net = Topology::three().unwrap();
    // The return leg, which the datapath steers otherwise.
    net.gateway.ip("route add local 10.1.0.2/32 dev lo\nroute add local fd00:1::2/128 dev lo").unwrap();
    for (family, addresses) in FAMILIES {
        let closed = SocketAddr::new(addresses.server(), 9);
        let client = SocketAddr::new(addresses.client(), 4_321);
        for source in [UpstreamSource::Client(client.ip()), UpstreamSource::ClientPort(client)] {
            let socket = net
                .gateway
                .enter(|| datagram_upstream(Endpoint::Any(family), source, Mark::DEFAULT))
                .unwrap();
            sends(&socket, 1, closed);
            wait_for_error(&socket);
            let told = PeerError { peer: closed, reporter: closed.ip(), error: IcmpError::PortUnreachable };
            assert_eq!(next_error(&socket).unwrap(), Some(told));
        }
    }
}

#[test]
fn a_router_tells_of_time_exceeded_and_of_what_is_too_big() {
    let net = Topology::narrow(1_280).unwrap();
    for (family, addresses) in FAMILIES {
        let router: IpAddr = match family {
            Family::V4 => "10.4.0.2".parse().unwrap(),
            Family::V6 => "fd00:4::2".parse().unwrap(),
        };
        let server = udp_socket(&net.server, addresses.server());
        let peer = server.local_addr().unwrap();
        let any = Endpoint::Any(family);
        let socket =
            net.gateway.enter(|| datagram_upstream(any, UpstreamSource::Host, Mark::DEFAULT)).unwrap();

        set_ttl(&socket, family, 1).unwrap();
        sends(&socket, 1, peer);
        wait_for_error(&socket);
        let told = PeerError { peer, reporter: router, error: IcmpError::TimeExceeded };
        assert_eq!(next_error(&socket).unwrap(), Some(told));

        set_ttl(&socket, family, 2).unwrap();
        sends(&socket, 1_400, peer);
        wait_for_error(&socket);
        let told = PeerError { peer, reporter: router, error: IcmpError::PacketTooBig { mtu: 1_280 } };
        assert_eq!(next_error(&socket).unwrap(), Some(told));

        // In fragments from now on, since the kernel has learnt it too.
        let mut buffer = [0; 4_001];
        for length in [1_400, 4_000] {
            sends(&socket, length, peer);
            assert_eq!(server.recv_from(&mut buffer).unwrap().0, length);
        }
        assert_eq!(next_error(&socket).unwrap(), None);
    }
}

#[test]
fn what_does_not_even_leave_says_what_would() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let any = Endpoint::Any(family);
        let socket =
            net.gateway.enter(|| datagram_upstream(any, UpstreamSource::Host, Mark::DEFAULT)).unwrap();
        let closed = SocketAddr::new(addresses.server(), 9);
        let too_long = socket.send_to(&[0; 65_535], &closed.into()).unwrap_err();
        assert_eq!(Errno::from_io_error(&too_long), Some(Errno::MSGSIZE));
        // The kernel has noted it, and that makes the socket readable.
        wait_for_error(&socket);
        let told = next_error(&socket).unwrap().unwrap();
        assert_eq!(told.error, IcmpError::PacketTooBig { mtu: 1500 });
        let port = match family {
            Family::V4 => 0,
            Family::V6 => 9,
        };
        assert_eq!(told.peer, SocketAddr::new(addresses.server(), port));
        sends(&socket, 1, closed);
        wait_for_error(&socket);
        assert_eq!(next_error(&socket).unwrap().unwrap().error, IcmpError::PortUnreachable);
        assert_eq!(next_error(&socket).unwrap(), None);
    }
}
