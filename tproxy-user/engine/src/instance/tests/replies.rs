//! Replies of the host's own sockets, and to them, are no new flows, whatever the tables have forgotten.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tproxy_netns::{Family, Namespace, PATIENCE};

use tproxy_common::capacity;

use super::*;
use crate::config::Protocols;

const PORT: u16 = 7000;

/// A rule that selects all datagrams of a scope.
fn every_datagram(scope: Scope) -> Vec<Rule> {
    let reach = Reach { protocols: Protocols::Udp, ..scope.into() };
    vec![Rule::new("all", reach, Action::Respond("taken".into()))]
}

fn hits(instance: &Instance) -> u64 {
    instance.datapath.rule_hits().unwrap().get("all").copied().unwrap_or_default()
}

#[track_caller]
fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

fn socket(namespace: &Namespace, address: IpAddr, port: u16) -> UdpSocket {
    let socket = namespace.datagrams((address, port).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Peers of a socket, a port each.
const PEERS: usize = 200;

#[test]
fn what_the_host_replies_is_no_new_flow_whatever_was_forgotten() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        let net = Topology::three().unwrap();
        net.gateway.enter(|| {
            let instance = remembering(steer, every_datagram(Scope::Outbound), 2);
            for family in Family::ALL {
                let service = SocketAddr::new(family.lan(), PORT);
                let server = socket(&net.gateway, any(family), PORT);
                let peers: Vec<_> = (0..PEERS).map(|_| socket(&net.client, family.client(), 0)).collect();
                let came: Vec<_> = peers
                    .iter()
                    .map(|peer| {
                        peer.send_to(b"first", service).unwrap();
                        receive(&server).1
                    })
                    .collect();
                for _ in 0..2 {
                    instance.datapath.forget_datagrams();
                    for (peer, from) in peers.iter().zip(&came) {
                        server.send_to(b"reply", from).unwrap();
                        assert_eq!(receive(peer), ("reply".to_owned(), service), "{steer:?}");
                    }
                }
                assert_eq!(hits(&instance), 0, "{steer:?} {family:?}");
            }
            let client = socket(&net.gateway, any(Family::V4), 0);
            client.send_to(b"?", (Family::V4.server(), PORT)).unwrap();
            assert_eq!(receive(&client).0, "taken");
            assert_eq!(hits(&instance), 1);
            instance.stop().unwrap();
        });
    }
}

#[test]
fn what_the_host_is_answered_is_no_new_flow_whatever_was_forgotten() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        let net = Topology::three().unwrap();
        net.gateway.enter(|| {
            let instance = remembering(steer, every_datagram(Scope::Inbound), 2);
            for family in Family::ALL {
                let client = socket(&net.gateway, any(family), 0);
                let servers: Vec<_> = (0..PEERS).map(|_| socket(&net.server, family.server(), 0)).collect();
                let came: Vec<_> = servers
                    .iter()
                    .map(|server| {
                        client.send_to(b"first", server.local_addr().unwrap()).unwrap();
                        receive(server).1
                    })
                    .collect();
                for _ in 0..2 {
                    instance.datapath.forget_datagrams();
                    for (server, from) in servers.iter().zip(&came) {
                        server.send_to(b"answer", from).unwrap();
                        let answer = ("answer".to_owned(), server.local_addr().unwrap());
                        assert_eq!(receive(&client), answer, "{steer:?}");
                    }
                }
                assert_eq!(hits(&instance), 0, "{steer:?} {family:?}");
            }
            let client = socket(&net.client, Family::V4.client(), 0);
            client.send_to(b"?", (Family::V4.lan(), PORT)).unwrap();
            assert_eq!(receive(&client).0, "taken");
            assert_eq!(hits(&instance), 1);
            instance.stop().unwrap();
        });
    }
}

/// More than the least memory has room for.
#[test]
fn a_server_of_more_peers_than_are_remembered_has_its_replies_left_alone() {
    const CHUNK: u16 = 100;
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let instance = remembering(Steer::SkLookup, every_datagram(Scope::Outbound), 2);
        for family in Family::ALL {
            let server = socket(&net.gateway, any(family), PORT);
            let mut peers = Vec::new();
            for first in (20_000_u16..44_000).step_by(CHUNK.into()) {
                net.client.enter(|| {
                    for port in first..first + CHUNK {
                        let peer = UdpSocket::bind((family.client(), port)).unwrap();
                        peer.send_to(b"first", (family.lan(), PORT)).unwrap();
                    }
                });
                peers.extend((0..CHUNK).map(|_| receive(&server).1));
            }
            for peer in &peers {
                // Nobody is there any more, and the kernel may say so.
                let _ = server.send_to(b"reply", peer);
            }
            assert!(peers.len() > capacity::MEMORY as usize, "not all would fit where flows are evicted");
            assert_eq!(hits(&instance), 0, "{family:?}");
        }
        instance.stop().unwrap();
    });
}

#[test]
fn what_has_been_silent_for_too_long_is_taken_out_and_nothing_else() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let instance = remembering(Steer::SkLookup, every_datagram(Scope::Outbound), 2);
        let server = socket(&net.gateway, any(Family::V4), PORT);
        let peer = socket(&net.client, Family::V4.client(), 0);
        peer.send_to(b"first", (Family::V4.lan(), PORT)).unwrap();
        let came = receive(&server).1;
        let left_after = |silence| instance.datapath.host_flows(silence).unwrap().sweep();
        assert_eq!(left_after(Duration::from_secs(600)), 1);
        server.send_to(b"reply", came).unwrap();
        assert_eq!(receive(&peer).0, "reply");
        let since = Instant::now();
        while left_after(Duration::ZERO) != 0 {
            assert!(since.elapsed() < PATIENCE, "it is never silent");
            std::thread::yield_now();
        }
        instance.stop().unwrap();
    });
}
