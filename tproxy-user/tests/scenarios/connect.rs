//! Connecting before accepting: a destination that cannot be reached looks so to the client.

use std::{io::ErrorKind, net::IpAddr, time::Duration};

use crate::support::*;

/// Where nothing listens.
const NOBODY: u16 = 4;

/// Both scopes in which first packets are held, with who connects.
fn scopes(world: &World) -> [(&'static str, &Namespace); 2] {
    let forwarded = "--scope forwarded --interface lan --action direct --proto tcp --accept auto";
    let outbound = "--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct --proto tcp --accept auto";
    [(forwarded, &world.net.client), (outbound, &world.net.gateway)]
}

#[test]
fn what_refuses_or_is_silent_looks_so_and_what_answers_is_relayed() {
    let world = World::new();
    world.net.server.run("iptables -A INPUT -p tcp --dport 82 -j DROP").unwrap();
    world.net.server.run("ip6tables -A INPUT -p tcp --dport 82 -j DROP").unwrap();
    for (scope, client) in scopes(&world) {
        for more in ["", "--steer sk_assign"] {
            let tproxy = world.tproxy(&format!("{scope} {more}"));
            for family in Family::ALL {
                // Twice: the second time, more is known of the destination.
                for _ in 0..2 {
                    let error = connect(client, (family.server(), NOBODY)).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}\n{}", *tproxy);
                    curl(client, "", family.server(), 80).assert_nginx(
                        (family.server(), 80).into(),
                        family.wan(),
                        &*tproxy,
                    );
                }
                let silent = connect_within(client, (family.server(), 82), Duration::from_millis(1_500));
                assert_eq!(silent.unwrap_err().kind(), ErrorKind::TimedOut, "{}", *tproxy);
            }
        }
    }
}

#[test]
fn what_has_no_route_from_the_gateway_is_unreachable() {
    let world = World::new();
    let [(scope, client), _] = scopes(&world);
    for family in Family::ALL {
        let address: IpAddr = match family {
            Family::V4 => "198.18.0.1".parse().unwrap(),
            Family::V6 => "2001:db8:99::1".parse().unwrap(),
        };
        world.net.gateway.run(&format!("ip route add unreachable {address}")).unwrap();
        let tproxy = world.tproxy(scope);
        let error = connect(client, (address, 80)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}\n{}", *tproxy);
        tproxy.wait_line(&[&address.to_string(), "unreachable"], PATIENCE).unwrap();
    }
}

#[test]
fn what_is_accepted_at_once_is_reset() {
    let world = World::new();
    let [(scope, client), _] = scopes(&world);
    let tproxy = world.tproxy(&scope.replace("--accept auto", "--accept at-once"));
    for family in Family::ALL {
        // Which may be before the client has seen that it was accepted.
        if let Err(error) = connect(client, (family.server(), NOBODY)) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        tproxy.wait_line(&[&family.server().to_string(), "connect_refused"], PATIENCE).unwrap();
    }
}
