//! Servers that stand for the original destination, or do not.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::rig::*;
use crate::{
    config::{Action, Host, Pick, Scheme, Source, Timeouts, Upstream, UpstreamGroup, UpstreamServer},
    tcp::End,
};

/// What a server does that was connected.
#[derive(Clone, Copy)]
enum Then {
    Close,
    Wait,
    Reset,
}

fn at(scheme: Scheme, address: SocketAddr) -> UpstreamServer {
    UpstreamServer { scheme, host: Host::Address(address.ip()), port: address.port() }
}

/// A rig that goes by these servers, with so long for it.
fn rig(servers: Vec<UpstreamServer>, limit: Duration) -> Rig {
    let group = UpstreamGroup { name: None, servers, pick: Pick::First, check: None, credentials: None };
    let action = Action::Upstream(Upstream::Group(group.into()));
    let timeouts = Timeouts { connect: limit, ..TIMEOUTS };
    Rig::with(action.clone(), |setup| setup.generations = generations(rule(action, Source::Host), timeouts))
}

/// Hears of a client by a proxy's words, whose last byte is this, and says something in return.
fn answer(stream: &mut TcpStream, until: impl Fn(&[u8]) -> bool, words: &[u8]) {
    let mut heard = Vec::new();
    while !until(&heard) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        heard.push(byte[0]);
    }
    for byte in words {
        stream.write_all(&[*byte]).unwrap();
    }
}

const SOCKS5: [(usize, &[u8]); 2] = [(3, &[5, 0]), (10, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])];

/// Of whom the client hears at once, before it has said anything.
fn serve_one(server: &TcpListener, scheme: Scheme) -> TcpStream {
    let (mut stream, _) = server.accept().unwrap();
    match scheme {
        Scheme::Socks5 => {
            for (length, words) in SOCKS5 {
                answer(&mut stream, |heard| heard.len() == length, words);
            }
        }
        Scheme::Http => {
            answer(&mut stream, |heard| heard.ends_with(b"\r\n\r\n"), b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n");
        }
        Scheme::ProxyV1 => answer(&mut stream, |heard| heard.ends_with(b"\r\n"), b""),
        // IPv4, with a number of one digit.
        Scheme::ProxyV2 => answer(&mut stream, |heard| heard.len() == 16 + 12 + 4, b""),
        Scheme::Tcp => {}
    }
    stream.write_all(b"banner").unwrap();
    stream
}

#[test]
fn a_server_that_stands_for_the_destination_is_relayed_like_it() {
    for scheme in [Scheme::Tcp, Scheme::Socks5, Scheme::Http, Scheme::ProxyV1, Scheme::ProxyV2] {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let rig = rig(vec![at(scheme, server.local_addr().unwrap())], PATIENCE);
        let mut client = rig.client();
        client.write_all(b"first").unwrap();
        let mut upstream = serve_one(&server, scheme);
        let mut heard = [0; 6];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"banner", "{scheme:?}");
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        upstream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "first", "{scheme:?}");
        drop((client, upstream));
        rig.assert_end(End::Eof);
    }
}

#[test]
fn a_server_that_fails_has_its_reason_and_the_client_is_reset() {
    let too_much = [b"HTTP/1.1 200 OK\r\nA: ", &[b'b'; 20_000][..]].concat();
    let rows: &[(Scheme, &[u8], Then, End)] = &[
        (Scheme::Socks5, b"SSH-2.0-OpenSSH\r\n", Then::Wait, End::UpstreamNonsense),
        (Scheme::Socks5, &[5], Then::Close, End::UpstreamCut),
        (Scheme::Socks5, &[5], Then::Wait, End::UpstreamSilent),
        (Scheme::Socks5, &[], Then::Close, End::UpstreamClosed),
        (Scheme::Socks5, &[], Then::Wait, End::UpstreamSilent),
        (Scheme::Socks5, &[], Then::Reset, End::UpstreamReset),
        (Scheme::Socks5, &[5, 0xff], Then::Close, End::UpstreamUnauthorized),
        (Scheme::Http, b"HTTP/1.1 200 OK\r\nA: b\r\n", Then::Close, End::UpstreamCut),
        (Scheme::Http, b"HTTP/1.1 200 OK\r\nA: b\r\n", Then::Wait, End::UpstreamSilent),
        (Scheme::Http, b"HTTP/1.1 403 No\r\n\r\n", Then::Close, End::UpstreamDenied),
        (Scheme::Http, &too_much, Then::Wait, End::UpstreamTooMuch),
        (Scheme::Http, &[], Then::Close, End::UpstreamClosed),
    ];
    for (scheme, words, then, end) in rows.iter().copied() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let limit = if end == End::UpstreamSilent { Duration::from_millis(300) } else { PATIENCE };
        let rig = rig(vec![at(scheme, server.local_addr().unwrap())], limit);
        let client = rig.client();
        let (mut upstream, _) = server.accept().unwrap();
        // What is not read would have a close be a reset.
        let _greeting = upstream.read(&mut [0; 512]).unwrap();
        let _ = upstream.write_all(words);
        let waiting = match then {
            Then::Close => {
                drop(upstream);
                None
            }
            Then::Reset => {
                reset(upstream);
                None
            }
            Then::Wait => Some(upstream),
        };
        assert_reset(client);
        let counted = rig.finish();
        assert_eq!((counted.accepted, counted.ended(end)), (1, 1), "{scheme:?} {end}: {counted}");
        drop(waiting);
    }
}

#[test]
fn the_next_server_is_tried_while_there_is_time() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let [silent, server] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let servers = [nobody, silent.local_addr().unwrap(), server.local_addr().unwrap()];
    let rig = rig(servers.map(|address| at(Scheme::Socks5, address)).into(), Duration::from_millis(1_500));
    let mut client = rig.client();
    let waiting = thread::spawn(move || silent.accept().unwrap());
    let upstream = serve_one(&server, Scheme::Socks5);
    let mut heard = [0; 6];
    client.read_exact(&mut heard).unwrap();
    drop((client, upstream, waiting.join().unwrap()));
    rig.finish();
}

#[test]
fn a_name_that_has_no_address_is_a_reason_of_its_own() {
    let host = Host::Name("nobody.invalid".into());
    let server = UpstreamServer { scheme: Scheme::Socks5, host, port: 1080 };
    let rig = rig(vec![server], Duration::from_millis(500));
    assert_reset(rig.client());
    rig.assert_end(End::UpstreamUnresolved);
}

#[test]
fn a_name_stands_for_its_addresses() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (host, port) = (Host::Name("localhost".into()), server.local_addr().unwrap().port());
    let rig = rig(vec![UpstreamServer { scheme: Scheme::ProxyV1, host, port }], PATIENCE);
    let client = rig.client();
    let upstream = serve_one(&server, Scheme::ProxyV1);
    drop((client, upstream));
    rig.finish();
}

#[test]
fn a_dialogue_is_given_up_with_the_client() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = rig(vec![at(Scheme::Socks5, server.local_addr().unwrap())], PATIENCE);
    let client = rig.client();
    let (mut upstream, _) = server.accept().unwrap();
    upstream.read_exact(&mut [0; 3]).unwrap();
    reset(client);
    wait_for_reset(&upstream);
    rig.assert_end(End::ClientReset);
}
