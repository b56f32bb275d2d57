//! How sessions end, and what errors tell.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tproxy_netns::Family;

use tproxy_common::abi::Origin;

use super::super::dns::tests::{answer, query};
use super::rig::*;
use crate::{
    config::{Action, Nat, Timeouts, Treatment},
    generation::RuleNumber,
    udp::{End, Selected},
};

#[test]
fn silence_ends_a_session_sooner_while_nobody_has_answered() {
    let rig = Rig::with(rule(Action::Direct), |setup| {
        let (udp, udp_stream) = (Duration::from_millis(1500), Duration::from_millis(4500));
        limited(setup, Timeouts { udp, udp_stream, ..TIMEOUTS }, SESSIONS);
    });
    let (client, server) = rig.pair(Family::V4);
    let answered = rig.client_of(server.local_addr().unwrap());
    exchange(&answered, &server);
    client.send(b"x").unwrap();
    rig.wait_until(|counted| counted.ended(End::Idle) == 1);
    assert_eq!(rig.worker.live(), 1, "the one that was answered");
    let counted = rig.wait_for_the_end();
    assert_eq!(counted.ended(End::Idle), 2, "{counted}");
}

#[test]
fn a_dns_session_ends_with_the_last_answer() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        let server = rig.server(Family::V4.public(), 53);
        let client = rig.client_of(server.local_addr().unwrap());
        let mut froms = Vec::new();
        for name in [b'a', b'b'] {
            client.send(&query(name)).unwrap();
            let mut buffer = [0; 100];
            let (length, from) = receive(&server, &mut buffer);
            assert_eq!(buffer[..length], query(name));
            froms.push(from);
        }
        server.send_to(&answer(b'a'), froms[0]).unwrap();
        receive(&client, &mut [0; 1]);
        assert_eq!(rig.worker.live(), 1, "one query is open");
        server.send_to(&answer(b'b'), froms[1]).unwrap();
        receive(&client, &mut [0; 1]);
        assert_ended(&rig.wait_for_the_end(), End::Answered);
        // The client's next query is another session.
        client.send(&query(b'c')).unwrap();
        rig.wait_until(|counted| counted.sessions == 2);
    }
}

#[test]
fn what_is_no_dns_does_not_end_with_an_answer() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        let server = rig.server(Family::V6.public(), 53);
        let client = rig.client_of(server.local_addr().unwrap());
        // A VPN's, and one that only begins like DNS.
        for (asked, told) in [(b"request".to_vec(), b"response".to_vec()), (query(b'a'), b"more".to_vec())] {
            client.send(&asked).unwrap();
            let (_, from) = receive(&server, &mut [0; 100]);
            for _ in 0..3 {
                server.send_to(&told, from).unwrap();
                receive(&client, &mut [0; 100]);
            }
        }
        let counted = rig.counted();
        assert_eq!((counted.sessions, counted.active()), (1, 1), "{counted}");
    }
}

#[test]
fn a_closed_port_of_the_upstream_is_told_to_the_client() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        for family in Family::ALL {
            let client = rig.client_of((family.public(), PORT).into());
            client.send(b"x").unwrap();
            assert_refused(&client);
            // It is no end: somebody may listen later.
            let server = rig.server(family.public(), PORT);
            exchange(&client, &server);
        }
        let counted = rig.stop();
        assert_eq!((counted.sessions, counted.icmp_sent), (2, 2), "{counted}");
    }
}

#[test]
fn a_closed_port_of_another_upstream_is_told_as_if_it_were_the_original_destinations() {
    let rig = Rig::new(rule(Action::Upstream(SocketAddr::new(Family::V6.server(), PORT).into())));
    for family in Family::ALL {
        let client = rig.client_of((family.public(), 9).into());
        client.send(b"x").unwrap();
        assert_refused(&client);
    }
}

#[test]
fn an_upstream_without_a_way_to_it_is_told_to_the_client() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        rig.net.gateway.ip("route add unreachable 192.0.2.0/24").unwrap();
        let client = rig.client_of(([192, 0, 2, 1], 9).into());
        // Without it, only what is final is told.
        setsockopt(&client, sockopt::Ipv4RecvErr, &true).unwrap();
        client.send(b"x").unwrap();
        let error = try_receive(&client, &mut [0; 10]).expect_err("an error and no datagram");
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
    }
}

#[test]
fn a_client_that_is_gone_ends_its_session() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        let (client, server) = rig.pair(Family::V4);
        let from = exchange(&client, &server);
        drop(client);
        persist(|| server.send_to(b"anybody?", from).map(drop), || rig.worker.live() == 0);
        assert_ended(&rig.wait_for_the_end(), End::ClientRefused);
    }
}

#[test]
fn what_nobody_decided_goes_nowhere() {
    for (selected, action) in [
        (None, Action::Direct),
        (Some(Selected::By(RuleNumber(7), Origin::default(), None)), Action::Direct),
        (Some(Selected::By(RuleNumber(0), Origin::default(), None)), Action::Pass),
    ] {
        let rig = Rig::with(rule(action), |setup| setup.memory = Box::new(Just(selected)));
        let (client, server) = rig.pair(Family::V4);
        client.send(b"x").unwrap();
        let counted = rig.wait_until(|counted| counted.undecided == 1);
        assert_eq!(counted.sessions, 0);
        assert_silent(&server);
    }
}

#[test]
fn a_datagram_to_a_listener_of_ours_goes_nowhere() {
    let rig = Rig::with(rule(Action::Direct), |setup| {
        setup.bound = Arc::new([(Family::V4.public(), PORT).into()]);
    });
    let (client, _server) = rig.pair(Family::V4);
    client.send(b"x").unwrap();
    assert_eq!(rig.wait_until(|counted| counted.to_ourselves == 1).sessions, 0);
}

#[test]
fn a_stop_ends_all_sessions() {
    let rig = Rig::new(rule(Action::Direct));
    let (client, server) = rig.pair(Family::V4);
    exchange(&client, &server);
    assert_ended(&rig.stop(), End::Stopped);
}

#[test]
fn draining_waits_for_sessions_that_are_in_use() {
    let rig = Rig::new(rule(Action::Direct));
    let server = rig.server(Family::V4.public(), PORT);
    let (silent, used): (UdpSocket, UdpSocket) =
        (rig.client_of(server.local_addr().unwrap()), rig.client_of(server.local_addr().unwrap()));
    exchange(&silent, &server);
    exchange(&used, &server);
    rig.worker.drain();
    while rig.counted().ended(End::Stopped) == 0 {
        exchange(&used, &server);
    }
    assert_eq!(rig.worker.live(), 1);
    assert_eq!(rig.wait_for_the_end().ended(End::Stopped), 2);
}
