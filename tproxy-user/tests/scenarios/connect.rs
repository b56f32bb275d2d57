//! Connecting before accepting: a destination that cannot be reached looks so to the client.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{reload::File, support::*};

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

/// Forwarded flows are taken on the same interfaces, where tc sees what is for the host, too.
const INBOUND: &str = r#"
steer = "ENGINE"
[[rules]]
name = "application"
scope = "inbound"
ports = ["4", "82", "4080", "8080"]
protocol = "tcp"
source = "SOURCE"
action = "direct"
[[rules]]
name = "gateway"
scope = "forwarded"
interfaces = ["lan"]
ports = ["81"]
action = "respond=taken"
"#;

#[test]
fn an_application_that_is_dead_looks_so() {
    for (world, steer) in
        [(World::new(), "sk_lookup"), (World::new(), "sk_assign"), (World::l3(), "sk_lookup")]
    {
        let (host, client) = (&world.net.gateway, &world.net.client);
        let _application = Nginx::start(host).unwrap();
        for iptables in ["iptables", "ip6tables"] {
            host.run(&format!("{iptables} -A INPUT -i lo -p tcp --dport 82 -j DROP")).unwrap();
        }
        // With it, a mark on what is for the host would have its sender taken for the host.
        for (source, src_valid_mark) in [("host", "1"), ("client", "0")] {
            host.set_sysctl("net.ipv4.conf.lan.src_valid_mark", src_valid_mark).unwrap();
            let file = File::new(&INBOUND.replace("SOURCE", source).replace("ENGINE", steer));
            let tproxy = world.tproxy(&file.flags());
            for family in Family::ALL {
                let context = format!("{steer} {source} {family:?}\n{}", *tproxy);
                let seen = if source == "client" { family.client() } else { family.lan() };
                for _ in 0..2 {
                    assert_refused_at_once(client, (family.lan(), NOBODY), &context);
                    let before = retransmitted(client);
                    world.curl(family.lan(), 8080).assert_nginx((family.lan(), 8080).into(), seen, &context);
                    assert_eq!(retransmitted(client), before, "a SYN was sent again\n{context}");
                }
                let silent = connect_within(client, (family.lan(), 82), Duration::from_millis(1_500));
                assert_eq!(silent.unwrap_err().kind(), ErrorKind::TimedOut, "{context}");
                let application = listen(host, (family.lan(), 4080));
                connect(client, (family.lan(), 4080)).unwrap();
                drop(application);
                // Of its death the first one is told that comes so soon after another; it is dead when no process that
                // another test starts has a copy of its socket any more.
                let (gone, begun) = (SocketAddr::new(family.lan(), 4080).to_string(), Instant::now());
                loop {
                    let _told = connect(client, (family.lan(), 4080));
                    let line = tproxy.wait_line(&[&gone, "connect_refused"], Duration::from_millis(200));
                    if line.is_ok() {
                        break;
                    }
                    assert!(begun.elapsed() < PATIENCE, "{context}");
                }
                assert_refused_at_once(client, (family.lan(), 4080), &context);
                world.curl(family.public(), 81).assert_body("taken", &context);
            }
        }
    }
}

#[test]
fn what_nat_redirects_to_an_application_is_accepted_at_once() {
    let world = World::new();
    let (host, client) = (&world.net.gateway, &world.net.client);
    let _application = Nginx::start(host).unwrap();
    for iptables in ["iptables", "ip6tables"] {
        host.run(&format!(
            "{iptables} -w -t nat -A PREROUTING -i lan -p tcp --dport 83 -j REDIRECT --to-ports 8080"
        ))
        .unwrap();
    }
    let tproxy =
        world.tproxy("--scope inbound --port 8080 --proto tcp --action direct --accept after-connect");
    for family in Family::ALL {
        let before = retransmitted(client);
        world.curl(family.lan(), 83).assert_nginx((family.lan(), 8080).into(), family.lan(), &*tproxy);
        assert_eq!(retransmitted(client), before, "a SYN was sent again\n{}", *tproxy);
    }
}
