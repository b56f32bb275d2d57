use std::{
    io::ErrorKind,
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
};

use rustix::io::Errno;
use tproxy_netns::Topology;

use super::*;
use crate::socket::{
    Endpoint, PeerError, UpstreamSource, datagram_upstream, next_error,
    rig::{FAMILIES, address_of, foreign, silent_gateway, udp_socket, wait_for_error},
};

const ALL: [IcmpError; 6] = [
    IcmpError::PortUnreachable,
    IcmpError::HostUnreachable,
    IcmpError::NetUnreachable,
    IcmpError::AdminProhibited,
    IcmpError::PacketTooBig { mtu: 1_400 },
    IcmpError::TimeExceeded,
];

/// As if a router on the way said so.
fn router(family: Family) -> IpAddr {
    match family {
        Family::V4 => "203.0.113.9".parse().unwrap(),
        Family::V6 => "2001:db8:9::9".parse().unwrap(),
    }
}

#[test]
fn the_clients_kernel_finds_the_socket_and_knows_who_said_what() {
    let net = silent_gateway();
    for (family, addresses) in FAMILIES {
        let dst = OriginalDst(foreign(family, 9));
        let mut sender = net.gateway.enter(|| IcmpSender::new(family, Mark::DEFAULT)).unwrap();
        for endpoint in [Endpoint::Any(family), Endpoint::Peer(dst.0)] {
            let socket = net
                .client
                .enter(|| datagram_upstream(endpoint, UpstreamSource::Host, Mark::DEFAULT))
                .unwrap();
            let client = ClientAddr(SocketAddr::new(addresses.client(), address_of(&socket).port()));
            for (error, reporter) in ALL.iter().flat_map(|e| [(*e, dst.0.ip()), (*e, router(family))]) {
                sender.send(reporter, error, client, dst).unwrap();
                wait_for_error(&socket);
                let told = PeerError { peer: dst.0, reporter, error };
                assert_eq!(next_error(&socket).unwrap(), Some(told), "{endpoint:?}");
                assert_eq!(next_error(&socket).unwrap(), None, "{endpoint:?}");
            }
        }
    }
}

#[test]
fn an_ordinary_client_gets_the_errno() {
    let net = silent_gateway();
    for (family, addresses) in FAMILIES {
        let prohibited = match family {
            Family::V4 => Errno::HOSTUNREACH,
            Family::V6 => Errno::ACCESS,
        };
        let dst = OriginalDst(foreign(family, 9));
        let mut sender = net.gateway.enter(|| IcmpSender::new(family, Mark::DEFAULT)).unwrap();
        let socket = udp_socket(&net.client, addresses.client());
        socket.connect(dst.0).unwrap();
        let client = ClientAddr(socket.local_addr().unwrap());
        for (error, errno) in [
            (IcmpError::PortUnreachable, Errno::CONNREFUSED),
            (IcmpError::AdminProhibited, prohibited),
            (IcmpError::PacketTooBig { mtu: 1_400 }, Errno::MSGSIZE),
        ] {
            socket.send(&[0; 1_450]).unwrap();
            sender.send(dst.0.ip(), error, client, dst).unwrap();
            let got = socket.recv(&mut [0; 1]).unwrap_err();
            assert_eq!(Errno::from_io_error(&got), Some(errno), "{error:?}: {got}");
        }
        let route = net.client.ip(&format!("route get {}", dst.0.ip())).unwrap();
        assert!(route.contains("mtu 1400"), "{route}");
        // It is in fragments from now on.
        socket.send(&[0; 1_450]).unwrap();
    }
}

#[test]
fn other_sockets_of_the_client_are_told_nothing() {
    let net = silent_gateway();
    for (family, addresses) in FAMILIES {
        let dst = OriginalDst(foreign(family, 9));
        let mut sender = net.gateway.enter(|| IcmpSender::new(family, Mark::DEFAULT)).unwrap();
        let [told, other, elsewhere] = [0; 3].map(|_| udp_socket(&net.client, addresses.client()));
        told.connect(dst.0).unwrap();
        other.connect(dst.0).unwrap();
        elsewhere.connect(foreign(family, 10)).unwrap();
        for socket in [&told, &elsewhere] {
            let client = ClientAddr(socket.local_addr().unwrap());
            sender.send(dst.0.ip(), IcmpError::PortUnreachable, client, dst).unwrap();
        }
        assert_eq!(told.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for socket in [&other, &elsewhere] {
            assert!(socket.take_error().unwrap().is_none());
        }
    }
}

#[test]
fn it_receives_nothing_of_what_the_host_does() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let sender = net.gateway.enter(|| IcmpSender::new(family, Mark::DEFAULT)).unwrap();
        // Nobody listens there: errors come back from the client, and from this host itself.
        for address in [addresses.client(), family.loopback()] {
            let socket = net.gateway.enter(|| UdpSocket::bind(("::", 0))).unwrap();
            socket.connect((address, 9)).unwrap();
            socket.send(b"x").unwrap();
            wait_for_error(&socket);
        }
        let received = sender.0.recv(&mut [MaybeUninit::uninit(); 1]);
        assert_eq!(received.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
