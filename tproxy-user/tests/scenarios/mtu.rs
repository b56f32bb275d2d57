//! Path-MTU discovery: the routers' ICMP errors about our flows are ours.

use std::{io::Read, io::Write, net::TcpStream, thread};

use crate::support::*;

const LENGTH: usize = 4 << 20;

#[test]
fn a_link_of_1200_bytes_is_discovered_on_both_sides_over_ipv4() {
    discover(Family::V4, 1_200);
}

#[test]
fn a_link_of_1280_bytes_is_discovered_on_both_sides_over_ipv6() {
    // 1,280 is the least an IPv6 link may carry.
    discover(Family::V6, 1_280);
}

fn discover(family: Family, mtu: u16) {
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
        // A network each: what a host has learnt of a path it keeps.
        let net = Topology::narrow(mtu).unwrap();
        let args = format!("{FORWARDED} --action direct --source {source} --steer {engine}");
        let tproxy = tproxy_in(&net.gateway, &args);
        let listener = listen(&net.server, (family.server(), 7));
        let client = connect(&net.client, (family.server(), 7))
            .unwrap_or_else(|error| panic!("{engine} {source}: {error}\n{}", *tproxy));
        let server = accept(&listener);
        assert_ne!(server.peer_addr().unwrap(), client.local_addr().unwrap(), "passed by\n{}", *tproxy);
        let context = format!("{engine} {source}\n{}", *tproxy);
        thread::scope(|scope| {
            for (from, to) in [(&client, &server), (&server, &client)] {
                scope.spawn(|| send(from, &context));
                scope.spawn(|| receive(to, &context));
            }
        });
        for router in &net.routers {
            assert!(too_big_sent(router, family) > 0, "{} had nothing to say\n{context}", router.name());
        }
    }
}

fn send(mut stream: &TcpStream, context: &str) {
    stream.write_all(&vec![b'x'; LENGTH]).unwrap_or_else(|error| panic!("{error}\n{context}"));
}

fn receive(mut stream: &TcpStream, context: &str) {
    stream.read_exact(&mut vec![0; LENGTH]).unwrap_or_else(|error| panic!("stalled: {error}\n{context}"));
}

/// How many "too big" errors a router has sent.
fn too_big_sent(router: &Namespace, family: Family) -> u64 {
    let (file, name) = match family {
        Family::V4 => ("/proc/thread-self/net/snmp", "OutDestUnreachs"),
        Family::V6 => ("/proc/thread-self/net/snmp6", "Icmp6OutPktTooBigs"),
    };
    let text = router.enter(|| std::fs::read_to_string(file)).unwrap();
    match family {
        Family::V6 => text.lines().find_map(|line| line.strip_prefix(name)),
        Family::V4 => {
            let mut rows = text.lines().filter(|line| line.starts_with("Icmp:"));
            let names = rows.next().unwrap().split_whitespace();
            names.zip(rows.next().unwrap().split_whitespace()).find(|row| row.0 == name).map(|row| row.1)
        }
    }
    .and_then(|value| value.trim().parse().ok())
    .unwrap_or_else(|| panic!("no {name} in {text}"))
}
