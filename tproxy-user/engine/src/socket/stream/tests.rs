use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use super::*;
use crate::socket::rig::{address_of, with_foreign_addresses};

#[test]
fn what_a_listener_accepts_has_its_options() {
    for family in Family::BOTH {
        let listener = listener(family, Mark::DEFAULT).unwrap();
        let _client = TcpStream::connect(address_of(&listener)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.mark().unwrap(), Mark::DEFAULT.own());
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE);
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
    with_foreign_addresses(|| {
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
    with_foreign_addresses(|| {
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
    for family in Family::BOTH {
        let hole = black_hole(family, Mark::DEFAULT).unwrap();
        let connected = TcpStream::connect_timeout(&address_of(&hole), Duration::from_millis(300));
        assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

fn connect(to: SocketAddr, source: UpstreamSource) -> io::Result<Socket> {
    let socket = upstream(to, source, Mark::DEFAULT).unwrap();
    socket.set_nonblocking(false)?;
    socket.connect(&to.into())?;
    Ok(socket)
}
