//! Daemons of the host, and sessions of the same port: neither keeps the other from anything.

use std::net::Ipv6Addr;

use super::*;

const PORT: u16 = 7;

/// Everything that a daemon may bind: both families at once, one, or an address; without `SO_REUSEADDR`.
fn addresses(family: Family) -> [SocketAddr; 3] {
    [(Ipv6Addr::UNSPECIFIED, PORT).into(), (family.unspecified(), PORT).into(), (family.lan(), PORT).into()]
}

/// Binds, serves `client` once at the host's own address, and is gone.
fn come_and_go(world: &World, family: Family, address: SocketAddr, context: &dyn std::fmt::Display) {
    let daemon = datagrams(&world.net.gateway, address);
    let client = datagrams(&world.net.client, (family.client(), 0));
    client.send_to(b"hello", (family.lan(), PORT)).unwrap();
    let (said, from) = receive(&daemon).unwrap_or_else(|error| panic!("{address}: {error}\n{context}"));
    // A socket of both families has addresses of IPv4 within IPv6.
    let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
    assert_eq!((&*said, seen), ("hello", client.local_addr().unwrap()), "{address}\n{context}");
    daemon.send_to(b"welcome", from).unwrap();
    assert_eq!(receive(&client).unwrap().0, "welcome", "{address}\n{context}");
    assert_nothing(&daemon, context);
}

#[test]
fn a_daemon_comes_while_sessions_live_and_both_go_on() {
    for world in [World::new(), World::l3()] {
        reflecting(&world, PORT);
        for engine in ENGINES {
            let args = "--scope forwarded --interface lan --proto udp --port 7 --action direct";
            for nat in ["endpoint-independent", "per-destination"] {
                let tproxy = world.tproxy(&format!("{args} --nat {nat} --steer {engine}"));
                for family in Family::ALL {
                    let client = datagrams(&world.net.client, (family.client(), 0));
                    let go_on = |said: &str| {
                        for address in [family.public(), family.server()] {
                            let answer = ask(&client, (address, PORT).into(), said, &*tproxy);
                            assert!(answer.contains(&family.wan().to_string()), "{answer}\n{}", *tproxy);
                            assert!(answer.ends_with(said), "{answer}\n{}", *tproxy);
                        }
                    };
                    go_on("before");
                    for address in addresses(family) {
                        come_and_go(&world, family, address, &*tproxy);
                        let daemon = datagrams(&world.net.gateway, address);
                        go_on("meanwhile");
                        assert_nothing(&daemon, &*tproxy);
                    }
                    go_on("after");
                }
            }
        }
    }
}

#[test]
fn what_the_host_itself_sends_keeps_no_daemon_from_its_port_either() {
    let world = World::new();
    reflecting(&world, PORT);
    for engine in ENGINES {
        let args = "--scope outbound --proto udp --port 7 --to 0.0.0.0/0 --to ::/0 --action direct";
        let tproxy = world.tproxy(&format!("{args} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.gateway, (family.wan(), 0));
            let own = client.local_addr().unwrap().to_string();
            let to = SocketAddr::new(family.public(), PORT);
            let go_on = |said: &str| {
                let answer = ask(&client, to, said, &*tproxy);
                assert!(
                    answer.ends_with(said) && !answer.starts_with(&format!("{own} ")),
                    "{answer}\n{}",
                    *tproxy
                );
            };
            go_on("before");
            for address in addresses(family) {
                let daemon = datagrams(&world.net.gateway, address);
                go_on("meanwhile");
                assert_nothing(&daemon, &*tproxy);
            }
            go_on("after");
        }
    }
}

/// A port of the host's own address, which a rule answers for until somebody serves it, and then, too.
#[test]
fn a_daemon_may_have_the_port_that_a_rule_answers_for() {
    let world = World::new();
    for engine in ENGINES {
        let args = "--scope inbound --proto udp --port 7 --action respond=ours";
        let tproxy = world.tproxy(&format!("{args} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let to = SocketAddr::new(family.lan(), PORT);
            assert_eq!(ask(&client, to, "before", &*tproxy), "ours");
            for address in addresses(family) {
                let daemon = datagrams(&world.net.gateway, address);
                assert_eq!(ask(&client, to, "meanwhile", &*tproxy), "ours", "{address} {engine}");
                assert_nothing(&daemon, &*tproxy);
            }
        }
    }
}
