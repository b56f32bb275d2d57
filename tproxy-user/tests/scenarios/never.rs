//! Never intercepted, under a rule that says "everything".

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::*;

/// Each rule that says everything, on the gateway.
const EVERYTHING: [&str; 4] = [
    "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --action respond=taken",
    "--scope forwarded --interface lan --interface wan --action direct --source client",
    "--scope outbound --to 0.0.0.0/0 --to ::/0 --action respond=taken",
    "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --action drop",
];

/// Runs `check` under each rule and with each engine.
fn under_everything(world: &World, check: impl Fn(&str)) {
    under_each(world, &EVERYTHING.map(String::from), check);
}

fn under_each(world: &World, rules: &[String], check: impl Fn(&str)) {
    for (rule, engine) in rules.iter().flat_map(|rule| ENGINES.map(|engine| (rule, engine))) {
        let tproxy = world.tproxy(&format!("{rule} --steer {engine}"));
        // A panic in the check is told apart by its row.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(rule)));
        if let Err(reason) = outcome {
            eprintln!("under `{rule} --steer {engine}`:\n{}", *tproxy);
            std::panic::resume_unwind(reason);
        }
    }
}

/// Greets first, as sshd does, and then echoes.
fn sshd(mut stream: TcpStream) {
    if stream.write_all(b"SSH-2.0-test\r\n").is_ok() {
        echo(stream);
    }
}

#[track_caller]
fn ssh(namespace: &Namespace, to: impl Into<SocketAddr>) -> TcpStream {
    let to = to.into();
    let mut stream = connect(namespace, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut greeting = [0; 14];
    stream.read_exact(&mut greeting).unwrap_or_else(|error| panic!("{to}: {error}"));
    assert_eq!(&greeting, b"SSH-2.0-test\r\n", "{to}");
    stream
}

#[test]
fn a_session_to_the_gateways_own_addresses_survives_and_new_ones_open() {
    let world = World::new();
    let own = Family::ALL.iter().flat_map(|family| [family.lan(), family.wan()]).collect::<Vec<_>>();
    for address in &own {
        serve(&world.net.gateway, (*address, 22), sshd);
    }
    let sessions: Vec<_> = own.iter().map(|address| ssh(&world.net.client, (*address, 22))).collect();
    under_everything(&world, |rule| {
        for session in &sessions {
            assert_echo(session, "still here", &rule);
        }
        for address in &own {
            let new = ssh(&world.net.client, (*address, 22));
            assert_echo(&new, "new", &rule);
        }
    });
    for session in &sessions {
        assert_echo(session, "after all of them", &"");
    }
    assert_eq!(retransmitted(&world.net.client), 0);
}

#[test]
fn link_local_connections_are_passed() {
    let world = World::new();
    serve(&world.net.gateway, (Ipv6Addr::UNSPECIFIED, 22), sshd);
    let shown = world.net.gateway.run("ip -6 -oneline addr show dev lan scope link").unwrap();
    let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap();
    let shown = world.net.client.run("ip -oneline link show dev eth0").unwrap();
    let index = shown.split(':').next().unwrap().parse().unwrap();
    let to = SocketAddrV6::new(address.parse().unwrap(), 22, 0, index);
    under_everything(&world, |rule| assert_echo(&ssh(&world.net.client, to), "link-local", &rule));
}

#[test]
fn loopback_connections_of_the_host_are_passed() {
    let world = World::new();
    let _application = Nginx::start(&world.net.gateway).unwrap();
    let gateway = &world.net.gateway;
    let local =
        [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST), Family::V4.lan(), Family::V6.wan()];
    under_everything(&world, |rule| {
        for address in local {
            curl(gateway, "", address, 80).assert_nginx((address, 80).into(), address, &rule);
        }
    });
}

#[test]
fn arp_and_neighbour_discovery_work() {
    let world = World::new();
    under_everything(&world, |rule| {
        for family in Family::ALL {
            for (host, other, device) in
                [(&world.net.client, family.lan(), "eth0"), (&world.net.gateway, family.client(), "lan")]
            {
                host.ip(&format!("neigh flush dev {device}")).unwrap();
                ping(host, other);
                let known = host.ip(&format!("neigh show {other} dev {device}")).unwrap();
                assert!(known.contains("lladdr") && !known.contains("FAILED"), "{rule}: {known}");
            }
        }
    });
}

#[test]
fn ping_to_and_through_the_gateway_works() {
    let world = World::new();
    under_everything(&world, |_| {
        for family in Family::ALL {
            for address in [family.lan(), family.wan(), family.server(), family.public()] {
                ping(&world.net.client, address);
            }
            ping(&world.net.gateway, family.public());
        }
    });
}

/// One echo request and its answer, by the kernel's ping sockets (icmp(7)).
#[track_caller]
fn ping(namespace: &Namespace, to: IpAddr) {
    namespace.set_sysctl("net.ipv4.ping_group_range", "0 0").unwrap();
    let (protocol, request, reply) = match to {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129),
    };
    let to = SocketAddr::new(to, 0);
    let socket =
        namespace.enter(|| Socket::new(Domain::for_address(to), Type::DGRAM, Some(protocol))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Type, code, checksum and identifier (the kernel's), sequence number, data.
    let packet = [request, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g'];
    socket.send_to(&packet, &to.into()).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut answer = [0; 12];
    (&socket).read_exact(&mut answer).unwrap_or_else(|error| panic!("no answer from {to}: {error}"));
    assert_eq!((answer[0], &answer[8..]), (reply, &b"ping"[..]), "{to}");
}

#[test]
fn broadcast_as_dhcp_sends_it_arrives() {
    let world = World::new();
    let server = datagrams(&world.net.gateway, "0.0.0.0:67".parse::<SocketAddr>().unwrap());
    let client = datagrams(&world.net.client, "0.0.0.0:68".parse::<SocketAddr>().unwrap());
    client.set_broadcast(true).unwrap();
    server.set_broadcast(true).unwrap();
    socket2::SockRef::from(&server).bind_device(Some(b"lan")).unwrap();
    under_everything(&world, |rule| {
        for to in ["255.255.255.255:67", "10.1.0.255:67"] {
            client.send_to(b"discover", to).unwrap();
            assert_datagram(&server, b"discover", rule);
        }
        server.send_to(b"offer", "255.255.255.255:68").unwrap();
        assert_datagram(&client, b"offer", rule);
    });
}

#[test]
fn multicast_arrives() {
    let world = World::new();
    let (group4, group6): (Ipv4Addr, Ipv6Addr) =
        ("224.0.0.251".parse().unwrap(), "ff02::fb".parse().unwrap());
    let receiver4 = datagrams(&world.net.gateway, "0.0.0.0:5353".parse::<SocketAddr>().unwrap());
    receiver4.join_multicast_v4(&group4, &"10.1.0.1".parse().unwrap()).unwrap();
    let receiver6 = datagrams(&world.net.gateway, "[::]:5354".parse::<SocketAddr>().unwrap());
    let index = |namespace: &Namespace, device: &str| -> u32 {
        let shown = namespace.run(&format!("ip -oneline link show dev {device}")).unwrap();
        shown.split(':').next().unwrap().parse().unwrap()
    };
    receiver6.join_multicast_v6(&group6, index(&world.net.gateway, "lan")).unwrap();
    let sender4 = datagrams(&world.net.client, "10.1.0.2:0".parse::<SocketAddr>().unwrap());
    let sender6 = datagrams(&world.net.client, "[fd00:1::2]:0".parse::<SocketAddr>().unwrap());
    let to6 = SocketAddrV6::new(group6, 5354, 0, index(&world.net.client, "eth0"));
    under_everything(&world, |rule| {
        sender4.send_to(b"four", (group4, 5353)).unwrap();
        assert_datagram(&receiver4, b"four", rule);
        sender6.send_to(b"six", to6).unwrap();
        assert_datagram(&receiver6, b"six", rule);
    });
}

#[test]
fn udp_through_the_gateway_is_passed_by_rules_about_tcp() {
    let world = World::new();
    let rules = EVERYTHING.map(|rule| format!("{rule} --proto tcp"));
    under_each(&world, &rules, |rule| {
        for family in Family::ALL {
            let server = datagrams(&world.net.server, (family.server(), 0));
            let client = datagrams(&world.net.client, (family.client(), 0));
            client.send_to(b"query", server.local_addr().unwrap()).unwrap();
            let (_, seen) = server.recv_from(&mut [0; 16]).unwrap_or_else(|error| panic!("{rule}: {error}"));
            assert_eq!(seen, client.local_addr().unwrap(), "{rule}");
            server.send_to(b"answer", seen).unwrap();
            assert_datagram(&client, b"answer", rule);
        }
    });
}

#[track_caller]
fn assert_datagram(socket: &UdpSocket, expected: &[u8], rule: &str) {
    let mut buffer = [0; 64];
    let count = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{rule}: {error}"));
    assert_eq!(&buffer[..count], expected, "{rule}");
}

#[test]
fn a_connection_to_our_own_listener_is_reset_and_counted() {
    let world = World::new();
    for engine in ENGINES {
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        let listeners = listeners(&world.net.gateway, tproxy.pid());
        assert!(!listeners.is_empty(), "{}", *tproxy);
        for address in &listeners {
            let outcome = connect(&world.net.gateway, *address).and_then(|mut stream| stream.read(&mut [0]));
            let kind = outcome.unwrap_err().kind();
            let ended = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&kind);
            assert!(ended, "{address}: {kind:?}\n{}", *tproxy);
        }
        // It still serves.
        world.curl(Family::V4.server(), 80).assert_nginx(
            (Family::V4.server(), 80).into(),
            Family::V4.wan(),
            &*tproxy,
        );
        let loops = counted_at_the_end(&mut tproxy, "loop");
        assert_eq!(loops, listeners.len() as u64, "{}", *tproxy);
    }
}

#[test]
fn our_listeners_are_not_exposed() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action direct"));
    let listeners = listeners(&world.net.gateway, tproxy.pid());
    assert!(!listeners.is_empty(), "{}", *tproxy);
    for address in listeners {
        for own in [Family::V4.lan(), Family::V4.wan(), Family::V6.lan(), Family::V6.wan()] {
            let error = connect(&world.net.client, (own, address.port())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{own} {address}\n{}", *tproxy);
        }
    }
}

/// Where process `pid` listens.
fn listeners(namespace: &Namespace, pid: u32) -> Vec<SocketAddr> {
    let shown = namespace.run("ss -Hltnp").unwrap();
    let ours = shown.lines().filter(|line| line.contains(&format!("pid={pid},")));
    let mut addresses: Vec<_> =
        ours.filter_map(|line| line.split_whitespace().nth(3)?.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}
