//! Clients that use a source port again at once, and SYN cookies.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use rustix::process::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{clean::assert_cleanup, support::*};

const CLIENT_PORT: u16 = 40_000;

/// Connects from a port of our choice, as busy clients and NAT gateways come to do.
#[track_caller]
fn connect_from(world: &World, port: u16, to: SocketAddr, context: &dyn std::fmt::Display) -> TcpStream {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let attempt = || {
        let open = || Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
        let socket = world.net.client.enter(open).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(family.client(), port).into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).map(|()| socket)
    };
    let started = Instant::now();
    let socket = loop {
        match attempt() {
            // The connection before is in LAST_ACK until the acknowledgement of its FIN has come.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && started.elapsed() < PATIENCE => {
                thread::yield_now();
            }
            connected => break connected.unwrap_or_else(|error| panic!("{to}: {error}\n{context}")),
        }
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// One connection from the fixed port that the server's side closes first, so that TIME_WAIT is not the client's.
/// Returns whether it was relayed.
#[track_caller]
fn one_connection(world: &World, listener: &TcpListener, context: &dyn std::fmt::Display) -> bool {
    let to = listener.local_addr().unwrap();
    let mut client = connect_from(world, CLIENT_PORT, to, context);
    let server = accept(listener);
    let relayed = server.peer_addr().unwrap() != client.local_addr().unwrap();
    // FIN both ways: the server's first.
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap_or_else(|error| panic!("{error}\n{context}")), 0);
    drop(client);
    relayed
}

#[track_caller]
fn assert_no_retransmission(world: &World, context: &dyn std::fmt::Display) {
    assert_eq!(retransmitted(&world.net.client), 0, "the client had to send again\n{context}");
}

fn rows() -> impl Iterator<Item = (&'static str, &'static str, Family)> {
    ENGINES.into_iter().flat_map(|engine| {
        ["host", "client"]
            .into_iter()
            .flat_map(move |source| Family::ALL.map(|family| (engine, source, family)))
    })
}

#[test]
fn without_us_a_source_port_is_taken_again_at_once() {
    let world = World::new();
    for family in Family::ALL {
        let listener = listen(&world.net.server, (family.server(), 7));
        for round in 0..5 {
            assert!(!one_connection(&world, &listener, &round));
            assert_no_retransmission(&world, &round);
        }
    }
}

#[test]
fn a_source_port_in_time_wait_is_taken_again_while_running() {
    let world = World::new();
    for (engine, source, family) in rows() {
        let row = format!("{engine} {source} {family:?}");
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
        let listener = listen(&world.net.server, (family.server(), 0));
        for round in 0..5 {
            let context = format!("{row}, round {round}\n{}", *tproxy);
            assert!(one_connection(&world, &listener, &context), "passed by\n{context}");
            assert_no_retransmission(&world, &context);
        }
    }
}

#[test]
fn the_same_source_port_passes_directly_right_after_a_stop() {
    for (engine, source, family) in rows() {
        assert_passes_after(engine, source, family, |_, tproxy| {
            tproxy.signal(Signal::TERM);
            tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        });
    }
}

#[test]
fn the_same_source_port_passes_directly_after_kill_9_and_cleanup() {
    for (engine, source, family) in rows() {
        assert_passes_after(engine, source, family, |world, tproxy| {
            tproxy.kill9();
            assert_cleanup(&world.net.gateway);
        });
    }
}

fn assert_passes_after(engine: &str, source: &str, family: Family, end: impl FnOnce(&World, &mut Tproxy)) {
    let world = World::new();
    let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
    let context = format!("{engine} {source} {family:?}");
    let listener = listen(&world.net.server, (family.server(), 7));
    assert!(one_connection(&world, &listener, &context), "passed by\n{context}\n{}", *tproxy);
    end(&world, &mut tproxy);
    for round in 0..3 {
        let context = format!("{context}, round {round}\n{}", *tproxy);
        assert!(!one_connection(&world, &listener, &context), "still taken\n{context}");
        assert_no_retransmission(&world, &context);
    }
}

#[test]
fn what_the_rules_no_longer_take_passes_although_its_old_socket_lingers() {
    for (engine, family) in ENGINES.iter().flat_map(|engine| Family::ALL.map(|family| (engine, family))) {
        let world = World::new();
        let listener = listen(&world.net.server, (family.server(), 7));
        let first = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        assert!(one_connection(&world, &listener, &*first), "passed by\n{}", *first);
        drop(first);
        let second = world.tproxy(&format!("{FORWARDED} --action pass --steer {engine}"));
        assert!(!one_connection(&world, &listener, &*second), "taken\n{}", *second);
        assert_no_retransmission(&world, &*second);
    }
}

#[test]
fn a_taken_client_port_falls_back_to_another_and_is_counted() {
    let world = World::new();
    let mut tproxy = world.tproxy(&format!("{FORWARDED} --action upstream=10.2.0.2:7 --source client-port"));
    let listener = listen(&world.net.server, (Family::V4.server(), 7));
    // One client port, two original destinations, one upstream: the second cannot have the 4-tuple.
    let first = connect_from(&world, CLIENT_PORT, "8.8.8.8:1".parse().unwrap(), &*tproxy);
    let seen = accept(&listener);
    assert_eq!(seen.peer_addr().unwrap(), first.local_addr().unwrap(), "{}", *tproxy);
    let second = connect_from(&world, CLIENT_PORT, "8.8.8.8:2".parse().unwrap(), &*tproxy);
    let other = accept(&listener);
    assert_eq!(other.peer_addr().unwrap().ip(), second.local_addr().unwrap().ip(), "{}", *tproxy);
    assert_ne!(other.peer_addr().unwrap().port(), CLIENT_PORT, "{}", *tproxy);
    drop((first, second, seen, other));
    assert_eq!(counted_at_the_end(&mut tproxy, "source_fallbacks"), 1, "{}", *tproxy);
}

#[test]
fn syn_cookies_do_not_lose_the_connection() {
    for world in [World::new(), World::l3()] {
        world.net.gateway.set_sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
        for (engine, source, family) in rows() {
            let tproxy =
                world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
            let seen = if source == "host" { family.wan() } else { family.client() };
            for _again in 0..3 {
                world.curl(family.public(), 80).assert_nginx((family.public(), 80).into(), seen, &*tproxy);
            }
            let client = family.client().to_string();
            tproxy.wait_line(&[&client, &family.public().to_string()], PATIENCE).unwrap();
        }
    }
}

/// What we accept holds the original destination's port on this host.
#[test]
fn a_daemon_can_be_started_on_the_port_of_a_live_connection() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action direct"));
    for (family, wildcard) in [(Family::V4, "0.0.0.0:80"), (Family::V6, "[::]:80")] {
        let _live = connect(&world.net.client, (family.server(), 80)).unwrap();
        tproxy.wait_line(&[&family.client().to_string(), "accepted"], PATIENCE).unwrap();
        let daemon = listen(&world.net.gateway, wildcard.parse::<SocketAddr>().unwrap());
        connect(&world.net.client, (family.lan(), 80)).unwrap();
        accept(&daemon);
    }
}
