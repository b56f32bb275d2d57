//! Scope `forwarded`.

use std::net::{IpAddr, Ipv6Addr};

use nix::sys::socket::{setsockopt, sockopt};
use tproxy::socket::{IcmpError, next_error};

use super::*;

const PORT: u16 = 7;
const DATAGRAMS: &str = "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --proto udp";

#[test]
fn direct_relays_and_the_answer_comes_from_the_original_destination() {
    for world in [World::new(), World::l3()] {
        reflecting(&world, PORT);
        for engine in ENGINES {
            for (source, seen) in [("host", Family::wan as fn(Family) -> IpAddr), ("client", Family::client)]
            {
                let tproxy =
                    world.tproxy(&format!("{DATAGRAMS} --action direct --source {source} --steer {engine}"));
                for family in Family::ALL {
                    let client = datagrams(&world.net.client, (family.client(), 0));
                    let own = client.local_addr().unwrap();
                    for to in [family.server(), family.public()].map(|address| SocketAddr::new(address, PORT))
                    {
                        for text in ["first", "second"] {
                            let answer = ask(&client, to, text, &*tproxy);
                            let start = seen_as(seen(family));
                            assert!(answer.starts_with(&start), "{engine} {source}: {answer}\n{}", *tproxy);
                            assert!(answer.ends_with(&format!("said {text}")), "{answer}\n{}", *tproxy);
                        }
                        tproxy
                            .wait_line(&[&own.to_string(), &to.to_string(), "direct"], PATIENCE)
                            .unwrap_or_else(|error| panic!("{engine} {source}: {error}"));
                    }
                }
            }
        }
    }
}

#[test]
fn source_client_port_keeps_the_clients_address_and_port() {
    let world = World::new();
    reflecting(&world, PORT);
    for engine in ENGINES {
        let tproxy =
            world.tproxy(&format!("{DATAGRAMS} --action direct --source client-port --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let own = client.local_addr().unwrap();
            for address in [family.server(), family.public()] {
                for _ in 0..3 {
                    let answer = ask(&client, (address, PORT).into(), "hello", &*tproxy);
                    assert_eq!(answer, format!("{own} said hello"), "{engine}\n{}", *tproxy);
                }
            }
            tproxy.wait_line(&[&own.to_string(), "direct"], PATIENCE).unwrap();
        }
    }
}

#[test]
fn upstream_sends_every_flow_to_one_server_of_either_family() {
    let world = World::new();
    for family in Family::ALL {
        reflect(&world.net.server, (family.server(), 99));
    }
    for (engine, upstream) in ENGINES.iter().flat_map(|engine| Family::ALL.map(|upstream| (engine, upstream)))
    {
        let target = SocketAddr::new(upstream.server(), 99);
        let tproxy = world.tproxy(&format!("{DATAGRAMS} --action upstream={target} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let answer = ask(&client, (family.public(), 1234).into(), "hello", &*tproxy);
            let wan = upstream.wan().to_string();
            assert!(answer.contains(&wan) && answer.ends_with("said hello"), "{answer}\n{}", *tproxy);
        }
    }
}

#[test]
fn respond_answers_each_datagram_with_the_text() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{DATAGRAMS} --action respond=hello --steer {engine}"));
        for (family, nowhere) in Family::ALL.into_iter().zip(["203.0.113.9", "2001:db8::9"]) {
            let client = datagrams(&world.net.client, (family.client(), 0));
            for address in [family.public(), nowhere.parse().unwrap()] {
                for text in ["one", "", "three"] {
                    assert_eq!(ask(&client, (address, 1234).into(), text, &*tproxy), "hello", "{engine}");
                }
            }
        }
    }
}

#[test]
fn reject_says_port_unreachable_from_the_original_destination() {
    for world in [World::new(), World::l3()] {
        reflecting(&world, PORT);
        for engine in ENGINES {
            let tproxy = world.tproxy(&format!("{DATAGRAMS} --port 81 --action reject --steer {engine}"));
            for family in Family::ALL {
                let client = datagrams(&world.net.client, (family.client(), 0));
                match family {
                    Family::V4 => setsockopt(&client, sockopt::Ipv4RecvErr, &true),
                    Family::V6 => setsockopt(&client, sockopt::Ipv6RecvErr, &true),
                }
                .unwrap();
                let to = SocketAddr::new(family.public(), 81);
                client.connect(to).unwrap();
                for text in ["short", &"long".repeat(300)] {
                    client.send(text.as_bytes()).unwrap();
                    let refused = client.recv(&mut [0; 8]).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{engine}\n{}", *tproxy);
                    let error = next_error(&client).unwrap().expect("an ICMP error");
                    assert_eq!((error.peer, error.reporter), (to, to.ip()), "{engine}\n{}", *tproxy);
                    assert_eq!(error.error, IcmpError::PortUnreachable, "{engine}");
                }
                let other = datagrams(&world.net.client, (family.client(), 0));
                let own = other.local_addr().unwrap();
                let answer = ask(&other, (family.server(), PORT).into(), "passed", &*tproxy);
                assert_eq!(answer, format!("{own} said passed"), "{engine}");
            }
        }
    }
}

#[test]
fn drop_is_silent_and_pass_leaves_the_flow_alone() {
    let world = World::new();
    reflecting(&world, PORT);
    reflecting(&world, 81);
    for (engine, action) in ENGINES.iter().flat_map(|engine| [(engine, "drop"), (engine, "pass")]) {
        let mut tproxy = world.tproxy(&format!("{DATAGRAMS} --port 81 --action {action} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let own = client.local_addr().unwrap();
            client.send_to(b"hello", (family.server(), 81)).unwrap();
            if action == "pass" {
                assert_eq!(receive(&client).unwrap().0, format!("{own} said hello"), "{engine}\n{}", *tproxy);
            }
            // What is sent later by the same way tells that the first would have arrived.
            let answer = ask(&client, (family.server(), PORT).into(), "later", &*tproxy);
            assert_eq!(answer, format!("{own} said later"), "{engine}\n{}", *tproxy);
            assert_nothing(&client, &*tproxy);
        }
        let counter = if action == "drop" { "drop_rule" } else { "pass_rule" };
        assert!(counted_at_the_end(&mut tproxy, counter) >= 2, "{}", *tproxy);
    }
}

#[test]
fn proto_keeps_the_other_protocol_out() {
    let world = World::new();
    reflecting(&world, 80);
    for (proto, taken) in [("tcp", [true, false]), ("udp", [false, true]), ("both", [true, true])] {
        let tproxy = world.tproxy(&format!("{FORWARDED} --proto {proto} --action respond=taken"));
        for family in Family::ALL {
            let tcp = world.curl(family.server(), 80).body.trim_end() == "taken";
            let client = datagrams(&world.net.client, (family.client(), 0));
            let udp = ask(&client, (family.server(), 80).into(), "hello", &*tproxy) == "taken";
            assert_eq!([tcp, udp], taken, "--proto {proto} {family:?}\n{}", *tproxy);
        }
    }
}

/// Two clients with one port each to one destination, and one client to two: each gets what is meant for it.
#[test]
fn a_session_never_catches_the_datagrams_of_another() {
    let world = World::new();
    world.net.client.ip("addr add 10.1.0.3/24 dev eth0\naddr add fd00:1::3/64 dev eth0 nodad").unwrap();
    reflecting(&world, PORT);
    for engine in ENGINES {
        let tproxy =
            world.tproxy(&format!("{DATAGRAMS} --action direct --source client-port --steer {engine}"));
        for (family, other) in Family::ALL.into_iter().zip(["10.1.0.3", "fd00:1::3"]) {
            let other: IpAddr = other.parse().unwrap();
            let clients =
                [family.client(), other].map(|address| datagrams(&world.net.client, (address, 5_000)));
            for round in 0..20 {
                for (client, to) in clients.iter().flat_map(|client| {
                    [family.server(), family.public()].map(|address| (client, SocketAddr::new(address, PORT)))
                }) {
                    let answer = ask(client, to, &format!("{round} {to}"), &*tproxy);
                    let own = client.local_addr().unwrap();
                    assert_eq!(answer, format!("{own} said {round} {to}"), "{engine}\n{}", *tproxy);
                }
            }
            for client in &clients {
                assert_nothing(client, &*tproxy);
            }
        }
    }
}

#[test]
fn a_service_of_the_gateway_on_the_same_port_keeps_its_own_clients() {
    let world = World::new();
    for family in Family::ALL {
        reflect(&world.net.server, (family.server(), 99));
    }
    reflect(&world.net.gateway, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 53));
    for engine in ENGINES {
        let target = SocketAddr::new(Family::V4.server(), 99);
        let mut tproxy =
            world.tproxy(&format!("{DATAGRAMS} --port 53 --action upstream={target} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let own = client.local_addr().unwrap();
            let relayed = ask(&client, (family.public(), 53).into(), "relayed", &*tproxy);
            assert!(relayed.starts_with(&format!("{}:", Family::V4.wan())), "{relayed}\n{}", *tproxy);
            let served = ask(&client, (family.lan(), 53).into(), "served", &*tproxy);
            assert!(served.contains(&own.port().to_string()) && served.ends_with("served"), "{served}");
            assert!(!served.contains(&Family::V4.wan().to_string()), "{served}");
        }
        assert_eq!(counted_at_the_end(&mut tproxy, "sessions"), 2, "{}", *tproxy);
    }
}
