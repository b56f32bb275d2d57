//! First packets that look other than most, and are what they say.

use std::{net::SocketAddr, time::Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    packets::{Ends, SYN, TCP, UDP},
    server::Server,
    wire::{PRIORITY_TAG, Wire},
};
use crate::support::*;

/// Waits until a raw socket receives a segment that accepts the connection from a port.
fn assert_accepted(raw: &Socket, family: Family, sport: u16, context: &dyn std::fmt::Display) {
    const SYN_ACK: u8 = 0x12;
    let header = if family == Family::V4 { 20 } else { 0 };
    let (begun, mut buffer) = (Instant::now(), [0; 128]);
    while begun.elapsed() < PATIENCE {
        let Ok(length) = std::io::Read::read(&mut &*raw, &mut buffer) else { break };
        let segment = buffer.get(header..length).unwrap_or_default();
        if segment.get(2..4) == Some(&sport.to_be_bytes()) && segment.get(13) == Some(&SYN_ACK) {
            return;
        }
    }
    panic!("{family:?}: port {sport} was not accepted\n{context}");
}

/// IP telephones and others tag what they send with a priority, and no VLAN (802.1Q): the kernel takes that for untagged.
#[test]
fn what_has_a_priority_is_taken() {
    let net = Topology::three().unwrap();
    let wire = Wire::of(&net);
    for (round, engine) in (0..).zip(ENGINES) {
        let tproxy = tproxy_in(
            &net.gateway,
            &format!("{FORWARDED} --port 80,53 --action respond=taken --steer {engine}"),
        );
        for family in Family::ALL {
            let ends = Ends::of(family);
            let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
            let raw = net.client.enter(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap();
            SockRef::from(&raw).set_read_timeout(Some(PATIENCE)).unwrap();
            for (tag, sport) in [(PRIORITY_TAG, 20_000 + round), ([0x88, 0xa8, 0xe0, 0], 21_000 + round)] {
                let context = format!("{engine} {tag:02x?}\n{}", *tproxy);
                wire.send(&[tag], &ends.packet(TCP, &ends.syn(sport)));
                assert_accepted(&raw, family, sport, &context);
                let asking = datagrams(&net.client, (family.client(), sport));
                wire.send(&[tag], &ends.packet(UDP, &ends.datagram(sport, 53, b"query")));
                let mut buffer = [0; 16];
                let (length, from) =
                    asking.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{context}"));
                let answer = String::from_utf8_lossy(&buffer[..length]);
                assert_eq!(
                    (answer.trim_end(), from),
                    ("taken", SocketAddr::new(family.server(), 53)),
                    "{context}"
                );
            }
        }
    }
}

const MD5: &[u8] = &[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1];
const AUTHENTICATION: &[u8] = &[2, 4, 5, 120, 29, 16, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// Only its two ends have the key that a connection of BGP is signed with: it passes, or is refused.
#[test]
fn what_is_signed_passes() {
    let net = Topology::three().unwrap();
    let (wire, server) = (Wire::of(&net), Server::listen(&net));
    let mut sports = 20_000..;
    for (action, passes) in [("direct", true), ("respond=no", true), ("reject", false), ("drop", false)] {
        for engine in ENGINES {
            let rule = format!("{FORWARDED} --port 80 --action {action} --steer {engine}");
            let mut tproxy = tproxy_in(&net.gateway, &rule);
            let mut sent = Vec::new();
            for family in Family::ALL {
                let ends = Ends::of(family);
                for (options, sport) in [MD5, AUTHENTICATION].into_iter().zip(&mut sports) {
                    wire.send(&[], &ends.packet(TCP, &ends.segment(sport, &[SYN], options, &[])));
                    sent.push(sport);
                }
            }
            let arrived: Vec<_> = server
                .receive(&net, &wire)
                .iter()
                .map(|one| one.sport)
                .filter(|sport| sent.contains(sport))
                .collect();
            let expected = if passes { sent.clone() } else { Vec::new() };
            assert_eq!(arrived, expected, "{action} {engine}\n{}", *tproxy);
            if passes {
                assert_eq!(counted_at_the_end(&mut tproxy, "pass_signed"), sent.len() as u64, "{}", *tproxy);
            }
        }
    }
}

#[test]
fn what_is_signed_reaches_its_application() {
    let net = Topology::three().unwrap();
    let wire = Wire::of(&net);
    for (engine, first) in ENGINES.into_iter().zip([20_000, 21_000]) {
        let tproxy = tproxy_in(
            &net.gateway,
            &format!("--scope inbound --port 80 --action direct --proto tcp --steer {engine}"),
        );
        for family in Family::ALL {
            let _application = listen(&net.gateway, (family.lan(), 80));
            let ends = Ends::between(family.client(), family.lan());
            for (options, sport) in [MD5, AUTHENTICATION].into_iter().zip(first..) {
                wire.send(&[], &ends.packet(TCP, &ends.segment(sport, &[SYN], options, &[])));
                let from = SocketAddr::new(family.client(), sport).to_string();
                tproxy.wait_line(&["passed: it is signed", &from], PATIENCE).unwrap();
            }
            // It listens for others, too.
            assert!(connect(&net.client, (family.lan(), 80)).is_ok(), "{}", *tproxy);
        }
    }
}
