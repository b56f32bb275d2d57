use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
};

use super::*;
use crate::flow::{ClientAddr, OriginalDst};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn address_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

#[test]
fn what_a_listener_accepts_has_its_options() {
    for family in FAMILIES {
        let listener = listener(family, Mark::DEFAULT).unwrap();
        let _client = TcpStream::connect(address_of(&listener)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.mark().unwrap(), Mark::DEFAULT.own());
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(300));
    }
}

#[test]
fn listeners_have_ports_of_their_own() {
    let mark = Mark::DEFAULT;
    let (one, other) = (listener(Family::V4, mark).unwrap(), listener(Family::V4, mark).unwrap());
    assert_ne!(address_of(&one), address_of(&other));
}

#[test]
fn another_family_cannot_be_spoofed() {
    let result = upstream(
        "127.0.0.1:1".parse().unwrap(),
        UpstreamSource::Client("2001:db8::1".parse().unwrap()),
        Mark::DEFAULT,
    );
    assert!(matches!(result, Err(SocketError::Family { .. })), "{result:?}");
}

#[test]
fn a_server_sees_a_foreign_source() {
    in_namespace(|| {
        for (family, client) in [(Family::V4, "198.51.100.7"), (Family::V6, "2001:db8::7")] {
            let server = TcpListener::bind((family.loopback(), 0)).unwrap();
            let to = server.local_addr().unwrap();
            let client: IpAddr = client.parse().unwrap();

            let _by_ip = connect(to, UpstreamSource::Client(client)).unwrap();
            assert_eq!(server.accept().unwrap().1.ip(), client);

            let wanted = SocketAddr::new(client, 4321);
            let _by_port = connect(to, UpstreamSource::ClientPort(wanted)).unwrap();
            assert_eq!(server.accept().unwrap().1, wanted);
        }
    });
}

#[test]
fn a_client_port_serves_many_destinations_but_each_only_once() {
    in_namespace(|| {
        let servers: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let to: Vec<_> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
        let source = UpstreamSource::ClientPort("198.51.100.7:4321".parse().unwrap());
        let _first = connect(to[0], source).unwrap();
        let _second = connect(to[1], source).unwrap();
        let again = connect(to[0], source).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrNotAvailable);
    });
}

#[test]
fn nothing_gets_into_a_black_hole() {
    for family in FAMILIES {
        let hole = black_hole(family, Mark::DEFAULT).unwrap();
        let connected = TcpStream::connect_timeout(&address_of(&hole), Duration::from_millis(300));
        assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_datagram_leaves_from_a_foreign_address() {
    in_namespace(|| {
        for (family, from) in [(Family::V4, "198.51.100.7:8080"), (Family::V6, "[2001:db8::7]:8080")] {
            let server = UdpSocket::bind((family.loopback(), 0)).unwrap();
            let from: SocketAddr = from.parse().unwrap();
            let socket = datagram_from(from).unwrap();
            socket.send_to(b"x", &server.local_addr().unwrap().into()).unwrap();
            assert_eq!(server.recv_from(&mut [0; 1]).unwrap(), (1, from));
            assert!(matches!(datagram_from(from), Err(SocketError::Taken { address }) if address == from));
        }
    });
}

#[test]
fn a_listener_tells_who_sent_a_datagram_and_where_it_was_to_go() {
    in_namespace(|| {
        for family in FAMILIES {
            let listener = datagram_listener(family, Mark::DEFAULT).unwrap();
            let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
            client.send_to(b"one", address_of(&listener)).unwrap();
            client.send_to(b"", address_of(&listener)).unwrap();
            let mut seen = Vec::new();
            let mut receiver = Receiver::default();
            let mut receive = || {
                receiver.recv(&listener, |datagram| {
                    assert_eq!(datagram.client.0, client.local_addr().unwrap());
                    assert_eq!(
                        (datagram.dst.0, datagram.ttl, datagram.ecn),
                        (address_of(&listener), 64, None)
                    );
                    seen.push(datagram.payload.to_vec());
                })
            };
            assert_eq!((receive().unwrap(), receive().unwrap()), (2, 0));
            assert_eq!(seen, [b"one".to_vec(), vec![]]);
        }
    });
}

#[test]
fn a_session_takes_its_flow_from_the_other_sockets_of_its_address() {
    in_namespace(|| {
        for (family, dst) in [(Family::V4, "198.51.100.7:53"), (Family::V6, "[2001:db8::7]:53")] {
            let dst = OriginalDst(dst.parse().unwrap());
            let clients = [0; 2].map(|_| UdpSocket::bind((family.loopback(), 0)).unwrap());
            let sessions = clients
                .each_ref()
                .map(|client| session(dst, ClientAddr(client.local_addr().unwrap()), Mark::DEFAULT).unwrap());
            for (client, session) in clients.iter().zip(&sessions) {
                client.send_to(b"up", dst.0).unwrap();
                session.send(b"down").unwrap();
                assert_eq!(client.recv_from(&mut [0; 4]).unwrap(), (4, dst.0));
            }
            for session in &sessions {
                let mut received = [std::mem::MaybeUninit::uninit(); 4];
                assert_eq!(session.recv(&mut received).unwrap(), 2);
                assert_eq!(session.recv(&mut received).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        }
    });
}

#[test]
fn a_session_cannot_have_a_port_that_somebody_holds() {
    in_namespace(|| {
        let _holder = UdpSocket::bind("0.0.0.0:53").unwrap();
        let (dst, client) = ("198.51.100.7:53".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        let taken = session(OriginalDst(dst), ClientAddr(client), Mark::DEFAULT);
        assert!(matches!(taken, Err(SocketError::Taken { address }) if address == dst), "{taken:?}");
    });
}

#[test]
fn a_raw_datagram_is_one_like_others_but_for_the_port_that_somebody_holds() {
    in_namespace(|| {
        for (family, from) in [(Family::V4, "198.51.100.7:53"), (Family::V6, "[2001:db8::7]:53")] {
            let from: SocketAddr = from.parse().unwrap();
            let _holder = datagram_from(from).unwrap();
            let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
            let mut sender = RawSender::new(family, Mark::DEFAULT).unwrap();
            let mut buffer = vec![0; 65_536];
            for size in [0, 1, 4000, 60_000] {
                let sent = vec![7; size];
                let to = ClientAddr(client.local_addr().unwrap());
                sender.send(OriginalDst(from), to, None, &sent).unwrap();
                let (length, seen) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], seen), (&sent[..], from));
            }
        }
    });
}

#[test]
fn an_upstream_socket_tells_who_did_not_receive_and_why() {
    in_namespace(|| {
        for family in FAMILIES {
            let closed = {
                let gone = UdpSocket::bind((family.loopback(), 0)).unwrap();
                gone.local_addr().unwrap()
            };
            for endpoint in [Endpoint::Any(family), Endpoint::Peer(closed)] {
                let socket = datagram_upstream(endpoint, UpstreamSource::Host, Mark::DEFAULT).unwrap();
                assert_eq!(next_error(&socket).unwrap(), None);
                socket.send_to(b"x", &closed.into()).unwrap();
                let told =
                    PeerError { peer: closed, reporter: closed.ip(), error: IcmpError::PortUnreachable };
                assert_eq!(next_error(&socket).unwrap(), Some(told));
                assert_eq!(next_error(&socket).unwrap(), None);
            }
        }
    });
}

#[test]
fn an_icmp_error_reaches_the_socket_that_it_is_about() {
    in_namespace(|| {
        for (family, dst) in [(Family::V4, "198.51.100.7:9"), (Family::V6, "[2001:db8::7]:9")] {
            let dst = OriginalDst(dst.parse().unwrap());
            let client =
                datagram_upstream(Endpoint::Peer(dst.0), UpstreamSource::Host, Mark::DEFAULT).unwrap();
            let own = ClientAddr(address_of(&client));
            let mut sender = IcmpSender::new(family, Mark::DEFAULT).unwrap();
            for error in
                [IcmpError::PortUnreachable, IcmpError::PacketTooBig { mtu: 1300 }, IcmpError::TimeExceeded]
            {
                sender.send(dst.0.ip(), error, own, dst).unwrap();
                let told = PeerError { peer: dst.0, reporter: dst.0.ip(), error };
                assert_eq!(next_error(&client).unwrap(), Some(told));
            }
        }
    });
}

#[test]
fn nothing_gets_into_a_black_hole_of_datagrams() {
    in_namespace(|| {
        for family in FAMILIES {
            let hole = datagram_black_hole(family, Mark::DEFAULT).unwrap();
            let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
            client.connect(address_of(&hole)).unwrap();
            client.send(b"x").unwrap();
            let received = hole.recv(&mut [std::mem::MaybeUninit::uninit(); 1]);
            assert_eq!(received.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(client.take_error().unwrap().is_none(), "no ICMP error comes");
        }
    });
}

fn connect(to: SocketAddr, source: UpstreamSource) -> io::Result<Socket> {
    let socket = upstream(to, source, Mark::DEFAULT).unwrap();
    socket.set_nonblocking(false)?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// Runs a test in a network namespace where 198.51.100.0/24 and 2001:db8::/32 are at home.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    struct Namespace(String);
    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
    let name = format!("tproxy-socket-{random:016x}");
    ip(&["netns", "add", &name]);
    let namespace = Namespace(name);
    let ip_inside = |args: &[&str]| ip(&[&["-n", namespace.0.as_str()], args].concat());
    ip_inside(&["link", "set", "lo", "up"]);
    ip_inside(&["route", "add", "local", "198.51.100.0/24", "dev", "lo"]);
    ip_inside(&["route", "add", "local", "2001:db8::/32", "dev", "lo"]);
    let file = std::fs::File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    let result = thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {}: is this root?", args.join(" "));
}
