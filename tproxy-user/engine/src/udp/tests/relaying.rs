//! What goes in comes out, once, in order, and nowhere else.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

use tproxy_netns::Family;

use super::rig::*;
use crate::{
    config::{Action, Nat, Treatment},
    flow::{ClientAddr, OriginalDst},
    socket::TrafficClass,
    udp::Selected,
};

fn addresses(client: &UdpSocket, server: &UdpSocket) -> (ClientAddr, OriginalDst) {
    (ClientAddr(client.local_addr().unwrap()), OriginalDst(server.local_addr().unwrap()))
}

#[test]
fn datagrams_go_to_the_original_destination_and_back() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        for family in Family::ALL {
            let (client, server) = rig.pair(family);
            for _ in 0..3 {
                assert_eq!(exchange(&client, &server).ip(), family.wan());
            }
            // It is not busy, and the datapath brings it here.
            assert!(!rig.forgotten().contains(&addresses(&client, &server)));
        }
        let counted = rig.stop();
        assert_eq!((counted.sessions, counted.datagrams_up, counted.datagrams_down), (2, 6, 6), "{counted}");
        assert_eq!((counted.bytes_up, counted.bytes_down), (24, 24));
    }
}

#[test]
fn datagrams_go_to_the_upstream_and_come_back_from_the_original_destination() {
    for (family, upstream) in [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)] {
        let rig = Rig::new(rule(Action::Upstream(SocketAddr::new(upstream.server(), PORT).into())));
        let server = rig.server(upstream.server(), PORT);
        // Nobody has this address.
        let client = rig.client_of(SocketAddr::new(
            if family == Family::V4 { [192, 0, 2, 7].into() } else { "2001:db8::7".parse().unwrap() },
            9,
        ));
        assert_eq!(exchange(&client, &server).ip(), upstream.wan());
    }
}

/// The first datagrams arrive by the listener, and when there are many, the others by the session's own socket.
#[test]
fn order_is_kept_while_a_session_takes_over() {
    const DATAGRAMS: usize = 1500;
    const IN_FLIGHT: usize = 100;
    let rig = Rig::new(rule(Action::Direct));
    let server = rig.server(Family::V4.public(), PORT);
    let clients: Vec<_> = (0..10).map(|_| rig.client_of(server.local_addr().unwrap())).collect();
    for client in &clients {
        let received = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let started = Instant::now();
                for number in 0..DATAGRAMS {
                    while number - received.load(Relaxed) >= IN_FLIGHT {
                        assert!(started.elapsed() < PATIENCE);
                        thread::yield_now();
                    }
                    client.send(&number.to_be_bytes()).unwrap();
                }
            });
            for number in 0..DATAGRAMS {
                let mut buffer = [0; 8];
                receive(&server, &mut buffer);
                assert_eq!(usize::from_be_bytes(buffer), number);
                received.fetch_add(1, Relaxed);
            }
        });
    }
    assert_eq!(rig.counted().sessions, 10);
}

#[test]
fn nobody_gets_what_is_another_clients() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 200;
    let rig = Rig::new(rule(Action::Direct));
    let server = rig.server(Family::V4.public(), PORT);
    let clients: Vec<_> = (0..CLIENTS).map(|_| rig.client_of(server.local_addr().unwrap())).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 8];
            for _ in 0..CLIENTS * ROUNDS {
                let (length, from) = receive(&server, &mut buffer);
                server.send_to(&buffer[..length], from).unwrap();
            }
        });
        for (own, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let sent = [own as u8, round as u8];
                    client.send(&sent).unwrap();
                    let mut received = [0; 2];
                    receive(client, &mut received);
                    assert_eq!(received, sent);
                }
            });
        }
    });
    assert_eq!(rig.counted().sessions, CLIENTS as u64);
}

#[test]
fn empty_and_huge_datagrams_are_relayed() {
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let (client, server) = rig.pair(family);
        let mut buffer = vec![0; 65_536];
        for size in [0, 1, 0, 4000, 60_000, 65_507, 0] {
            let contents: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
            client.send(&contents).unwrap();
            let (length, from) = receive(&server, &mut buffer);
            assert!(buffer[..length] == contents, "{length} of {size}");
            server.send_to(&contents, from).unwrap();
            let (length, _) = receive(&client, &mut buffer);
            assert!(buffer[..length] == contents, "{length} of {size}");
        }
    }
    assert_eq!(rig.stop().send_errors, 0);
}

/// Equal ones, so that they are put together, and others between them.
#[test]
fn bursts_of_many_sizes_arrive_as_they_were() {
    const SIZES: [usize; 10] = [1200, 1200, 1200, 300, 1200, 2000, 2000, 2000, 0, 1200];
    let rig = Rig::new(rule(Action::Direct));
    let (client, server) = rig.pair(Family::V4);
    let from = exchange(&client, &server);
    let mut buffer = [0; 3000];
    for round in 0..100_u8 {
        for (sender, receiver) in [(&client, &server), (&server, &client)] {
            for size in SIZES {
                let contents = vec![round; size];
                let to = if std::ptr::eq(sender, &client) { server.local_addr().unwrap() } else { from };
                sender.send_to(&contents, to).unwrap();
            }
            for size in SIZES {
                let (length, _) = receive(receiver, &mut buffer);
                assert_eq!(buffer[..length], vec![round; size]);
            }
        }
    }
}

/// What left together once is sent one by one, and split by the kernel.
#[test]
fn bursts_arrive_by_a_narrow_path() {
    const BURST: usize = 10;
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let (client, server) = rig.pair(family);
        rig.net
            .gateway
            .ip(&format!("route add {} via {} mtu 1280", family.public(), family.server()))
            .unwrap();
        for round in 0..10_u8 {
            for _ in 0..BURST {
                client.send(&[round; 1400]).unwrap();
            }
            for _ in 0..BURST {
                let mut buffer = [0; 1500];
                let (length, _) = receive(&server, &mut buffer);
                assert_eq!(buffer[..length], [round; 1400]);
            }
        }
    }
    assert_eq!(rig.stop().send_errors, 0);
}

#[test]
fn the_class_is_carried_both_ways() {
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let (client, server) = rig.pair(family);
        let dst = server.local_addr().unwrap();
        // By the listener, and then by the session's own socket. ECN, DSCP, and none again.
        for class in [1, 2, 3, 0xb8, 0x2b, 0].map(TrafficClass) {
            send_marked(&client, dst, class, b"ping");
            let received = receive_marked(&server);
            assert_eq!(received.class, class);
            let back = TrafficClass(!class.0);
            send_marked(&server, received.from, back, b"pong");
            assert_eq!(receive_marked(&client).class, back);
        }
    }
}

#[test]
fn each_datagram_is_answered_in_place_of_a_server() {
    let rig = Rig::new(rule(Action::Respond("hello".into())));
    for family in Family::ALL {
        // The server's port is closed.
        let client = rig.client_of((family.public(), 7).into());
        for size in [3, 0, 900] {
            client.send(&vec![0; size]).unwrap();
            let mut buffer = [0; 10];
            let (length, _) = receive(&client, &mut buffer);
            assert_eq!(&buffer[..length], b"hello");
        }
    }
    let counted = rig.stop();
    assert_eq!((counted.sessions, counted.datagrams_up, counted.datagrams_down), (2, 6, 6), "{counted}");
}

/// Exchanges, as fast as they go, until it had its effect.
fn be_busy(client: &UdpSocket, server: &UdpSocket, had_its_effect: impl Fn() -> bool) {
    let began = Instant::now();
    while !had_its_effect() {
        assert!(began.elapsed() < PATIENCE, "in vain");
        for _ in 0..100 {
            client.send(b"much").unwrap();
        }
        for _ in 0..100 {
            receive(server, &mut [0; 10]);
        }
    }
}

#[test]
fn a_session_has_a_socket_of_its_own_while_it_is_busy_and_then_a_daemon_can_have_the_port() {
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let (client, server) = rig.pair(family);
        be_busy(&client, &server, || rig.forgotten().contains(&addresses(&client, &server)));
        exchange(&client, &server);
        let bind = || rig.net.gateway.enter(|| UdpSocket::bind((family.unspecified(), PORT)));
        let began = Instant::now();
        let daemon = loop {
            // One that is not busy.
            exchange(&client, &server);
            match bind() {
                Ok(daemon) => break daemon,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            thread::sleep(A_WHILE);
        };
        exchange(&client, &server);
        assert_silent(&daemon);
    }
    let counted = rig.stop();
    assert_eq!((counted.sessions, counted.reply_fallbacks), (2, 0), "{counted}");
}

#[test]
fn a_live_session_keeps_no_daemon_from_its_port() {
    for action in [Action::Direct, Action::Respond("pong".into())] {
        let rig = Rig::new(rule(action.clone()));
        for family in Family::ALL {
            let server = rig.server(family.public(), PORT);
            let client = rig.client_of(server.local_addr().unwrap());
            let ask = || match action {
                Action::Direct => _ = exchange(&client, &server),
                _ => {
                    client.send(b"ping").unwrap();
                    receive(&client, &mut [0; 10]);
                }
            };
            ask();
            for address in [family.unspecified(), family.lan()] {
                // Without SO_REUSEADDR.
                let daemon = rig.net.gateway.datagrams((address, PORT).into()).unwrap();
                ask();
                assert_silent(&daemon);
            }
            ask();
        }
        assert_eq!(rig.stop().sessions, 2);
    }
}

#[test]
fn a_port_that_somebody_holds_is_no_obstacle() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        // Of both families.
        let holder = rig.net.gateway.enter(|| UdpSocket::bind(("::", PORT)).unwrap());
        for family in Family::ALL {
            let (client, server) = rig.pair(family);
            be_busy(&client, &server, || rig.counted().reply_fallbacks == 1 + (family == Family::V6) as u64);
            for _ in 0..3 {
                exchange(&client, &server);
            }
            assert!(
                !rig.forgotten().contains(&addresses(&client, &server)),
                "it has to be steered further on"
            );
        }
        assert_silent(&holder);
        assert_eq!(rig.stop().reply_fallbacks, 2);
    }
}

#[test]
fn what_no_rule_selects_is_carried() {
    let rig = Rig::with(rule(Action::Direct), |setup| {
        setup.memory = Box::new(Just(Some(Selected::Carry)));
    });
    for family in Family::ALL {
        let (client, server) = rig.pair(family);
        client.send(b"ping").unwrap();
        let mut buffer = [0; 10];
        let (length, from) = receive(&server, &mut buffer);
        assert_eq!((&buffer[..length], from), (&b"ping"[..], client.local_addr().unwrap()));
    }
    let counted = rig.stop();
    assert_eq!((counted.carried, counted.sessions), (2, 0), "{counted}");
}
