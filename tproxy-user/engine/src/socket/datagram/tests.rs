use std::{mem::MaybeUninit, net::UdpSocket};

use super::*;
use crate::socket::rig::{
    FAMILIES, address_of, foreign, udp_socket, wait_for_datagram, with_foreign_addresses,
};

#[test]
fn a_datagram_leaves_from_a_foreign_address() {
    let net = tproxy_netns::Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let server = udp_socket(&net.server, addresses.server());
        let from = foreign(family, 8080);
        let socket = net.gateway.enter(|| datagram_from(from)).unwrap();
        socket.send_to(b"x", &server.local_addr().unwrap().into()).unwrap();
        assert_eq!(server.recv_from(&mut [0; 1]).unwrap(), (1, from));
        let again = net.gateway.enter(|| datagram_from(from));
        assert!(matches!(again, Err(SocketError::Taken { address }) if address == from), "{again:?}");
    }
}

#[test]
fn a_session_takes_its_flow_from_the_other_sockets_of_its_address() {
    with_foreign_addresses(|| {
        for family in Family::BOTH {
            let dst = OriginalDst(foreign(family, 53));
            let clients = [0; 2].map(|_| UdpSocket::bind((family.loopback(), 0)).unwrap());
            let sessions = clients
                .each_ref()
                .map(|client| session(dst, ClientAddr(client.local_addr().unwrap()), Mark::DEFAULT).unwrap());
            for (client, session) in clients.iter().zip(&sessions) {
                assert_eq!(session.mark().unwrap(), Mark::DEFAULT.own());
                client.send_to(b"up", dst.0).unwrap();
                session.send(b"down").unwrap();
                assert_eq!(client.recv_from(&mut [0; 4]).unwrap(), (4, dst.0));
            }
            for session in &sessions {
                assert_eq!(receive(session).unwrap(), 2);
                assert_eq!(receive(session).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        }
    });
}

#[test]
fn what_comes_while_a_socket_is_hidden_finds_nobody() {
    with_foreign_addresses(|| {
        for family in Family::BOTH {
            let dst = foreign(family, 53);
            let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
            client.connect(dst).unwrap();
            let address = ClientAddr(client.local_addr().unwrap());
            let session = session(OriginalDst(dst), address, Mark::DEFAULT).unwrap();
            client.send(b"1").unwrap();
            set_visibility(&session, Visibility::Hidden).unwrap();
            client.send(b"22").unwrap();
            assert_eq!(client.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            set_visibility(&session, Visibility::Found).unwrap();
            client.send(b"333").unwrap();
            assert_eq!([receive(&session).unwrap(), receive(&session).unwrap()], [1, 3]);
            session.send(b"down").unwrap();
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
        }
    });
}

#[test]
fn a_session_cannot_have_a_port_that_somebody_holds() {
    with_foreign_addresses(|| {
        // Of both families: the option that would keep it from IPv4 is off.
        let _resolver = UdpSocket::bind((unspecified(Family::V6), 53)).unwrap();
        for family in Family::BOTH {
            let (dst, client) = (foreign(family, 53), SocketAddr::new(family.loopback(), 1));
            let taken = session(OriginalDst(dst), ClientAddr(client), Mark::DEFAULT);
            assert!(matches!(taken, Err(SocketError::Taken { address }) if address == dst), "{taken:?}");
        }
    });
}

#[test]
fn a_server_sees_the_source_that_was_asked_for() {
    with_foreign_addresses(|| {
        for family in Family::BOTH {
            let server = UdpSocket::bind((family.loopback(), 0)).unwrap();
            let to = server.local_addr().unwrap();
            let client = foreign(family, 4321);
            for endpoint in [Endpoint::Any(family), Endpoint::Peer(to)] {
                for (source, ip, port) in [
                    (UpstreamSource::Host, family.loopback(), None),
                    (UpstreamSource::Client(client.ip()), client.ip(), None),
                    (UpstreamSource::ClientPort(client), client.ip(), Some(client.port())),
                ] {
                    let socket = datagram_upstream(endpoint, source, Mark::DEFAULT).unwrap();
                    match endpoint {
                        Endpoint::Any(_) => socket.send_to(b"up", &to.into()),
                        Endpoint::Peer(_) => socket.send(b"up"),
                    }
                    .unwrap();
                    let (length, seen) = server.recv_from(&mut [0; 2]).unwrap();
                    assert_eq!((length, seen.ip()), (2, ip), "{endpoint:?} {source:?}");
                    assert!(port.is_none_or(|port| port == seen.port()), "{endpoint:?} {source:?}: {seen}");
                    server.send_to(b"down", seen).unwrap();
                    assert_eq!(receive(&socket).unwrap(), 4);
                }
            }
        }
    });
}

#[test]
fn any_hears_everybody_and_peer_only_its_peer() {
    for family in Family::BOTH {
        let [peer, other] = [0; 2].map(|_| UdpSocket::bind((family.loopback(), 0)).unwrap());
        let to = peer.local_addr().unwrap();
        for (endpoint, hears) in [(Endpoint::Any(family), true), (Endpoint::Peer(to), false)] {
            let socket = datagram_upstream(endpoint, UpstreamSource::Host, Mark::DEFAULT).unwrap();
            let own = SocketAddr::new(family.loopback(), address_of(&socket).port());
            other.send_to(b"x", own).unwrap();
            peer.send_to(b"y", own).unwrap();
            wait_for_datagram(&socket);
            let mut first = [MaybeUninit::uninit(); 1];
            let (_, from) = socket.recv_from(&mut first).unwrap();
            let first_is_other = from.as_socket() == other.local_addr().ok();
            assert_eq!(first_is_other, hears, "{endpoint:?}");
        }
    }
}

#[test]
fn another_family_cannot_be_spoofed() {
    let client = foreign(Family::V6, 4321);
    for source in [UpstreamSource::Client(client.ip()), UpstreamSource::ClientPort(client)] {
        let result = datagram_upstream(Endpoint::Any(Family::V4), source, Mark::DEFAULT);
        assert!(matches!(result, Err(SocketError::Family { .. })), "{result:?}");
    }
}

#[test]
fn nothing_gets_into_a_black_hole_and_nobody_is_told() {
    for family in Family::BOTH {
        let hole = datagram_black_hole(family, Mark::DEFAULT).unwrap();
        let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
        client.connect(address_of(&hole)).unwrap();
        client.send(b"x").unwrap();
        assert_eq!(receive(&hole).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(client.take_error().unwrap().is_none(), "an ICMP error came");
    }
}

fn receive(socket: &Socket) -> io::Result<usize> {
    socket.recv(&mut [MaybeUninit::uninit(); 8])
}
