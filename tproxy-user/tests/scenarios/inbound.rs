//! Scope `inbound`: connections to the host's own addresses, before the application sees them.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use socket2::{Domain, Socket, Type};

use crate::support::*;

/// The gateway is the host here; its application is an nginx of its own.
fn host() -> (World, Nginx) {
    let world = World::new();
    let application = Nginx::start(&world.net.gateway).unwrap();
    (world, application)
}

#[test]
fn direct_hands_the_connection_to_the_application() {
    let (world, _application) = host();
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
        let tproxy = world.tproxy(&format!(
            "--scope inbound --port 8080 --action direct --source {source} --steer {engine}"
        ));
        for family in Family::ALL {
            let destination = SocketAddr::new(family.lan(), 8080);
            let seen = if source == "client" { family.client() } else { family.lan() };
            world.curl(family.lan(), 8080).assert_nginx(destination, seen, &*tproxy);
            let words = [&family.client().to_string(), &destination.to_string(), "direct"];
            tproxy.wait_line(&words.map(|word: &str| word), PATIENCE).unwrap();
            // Another port is not the rule's, and local clients are not inbound.
            let other = SocketAddr::new(family.lan(), 81);
            world.curl(family.lan(), 81).assert_nginx(other, family.client(), &*tproxy);
            let position = tproxy.position();
            let local = curl(&world.net.gateway, "", family.lan(), 8080);
            local.assert_nginx(destination, family.lan(), &*tproxy);
            let logged = tproxy.lines().split_off(position);
            assert!(!logged.iter().any(|line| line.contains("direct")), "{engine} {source}: {logged:?}");
        }
    }
}

#[test]
fn an_l3_tun_interface_is_as_good_as_an_ethernet_one() {
    let world = World::l3();
    let _application = Nginx::start(&world.net.gateway).unwrap();
    for engine in ENGINES {
        let tproxy = world
            .tproxy(&format!("--scope inbound --port 8080 --action direct --source client --steer {engine}"));
        for family in Family::ALL {
            let destination = SocketAddr::new(family.lan(), 8080);
            world.curl(family.lan(), 8080).assert_nginx(destination, family.client(), &*tproxy);
            tproxy.wait_line(&[&destination.to_string(), "direct"], PATIENCE).unwrap();
        }
    }
}

#[test]
fn forwarded_traffic_is_not_inbound() {
    let (world, _application) = host();
    let tproxy = world.tproxy("--scope inbound --action respond=hello");
    for family in Family::ALL {
        world.curl(family.server(), 80).assert_nginx((family.server(), 80).into(), family.client(), &*tproxy);
        world.curl(family.lan(), 80).assert_body("hello", &*tproxy);
    }
}

#[test]
fn the_other_actions_do_what_they_say() {
    let (world, _application) = host();
    let application = |family: Family, port: u16| SocketAddr::new(family.lan(), port);
    for engine in ENGINES {
        for upstream in Family::ALL {
            let target = SocketAddr::new(upstream.server(), 8443);
            let tproxy = world
                .tproxy(&format!("--scope inbound --port 80 --action upstream={target} --steer {engine}"));
            for family in Family::ALL {
                world.curl(family.lan(), 80).assert_nginx(target, upstream.wan(), &*tproxy);
            }
        }
        let respond =
            world.tproxy(&format!("--scope inbound --port 80 --action respond=hello --steer {engine}"));
        for family in Family::ALL {
            world.curl(family.lan(), 80).assert_body("hello", &*respond);
        }
        drop(respond);
        let reject = world.tproxy(&format!("--scope inbound --port 81 --action reject --steer {engine}"));
        for family in Family::ALL {
            assert_refused_at_once(&world.net.client, (family.lan(), 81), &*reject);
        }
        drop(reject);
        // SK_DROP of an sk_lookup program ends in a RST, so this takes more than that.
        let silent = world.tproxy(&format!("--scope inbound --port 81 --action drop --steer {engine}"));
        for error in each_at_once(Family::ALL, |family| {
            connect_within(&world.net.client, (family.lan(), 81), Duration::from_millis(1_500)).unwrap_err()
        }) {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}\n{}", *silent);
        }
        for family in Family::ALL {
            world.curl(family.lan(), 80).assert_nginx(application(family, 80), family.client(), &*silent);
        }
        drop(silent);
        let pass = world.tproxy(&format!("--scope inbound --action pass --steer {engine}"));
        for family in Family::ALL {
            world.curl(family.lan(), 80).assert_nginx(application(family, 80), family.client(), &*pass);
        }
    }
}

#[test]
fn except_from_and_to_limit_the_rule() {
    let (world, _application) = host();
    let rows = [
        ("--to 10.1.0.1", [true, false]),
        ("--to ::/0", [false, true]),
        ("--except 10.1.0.0/24", [false, true]),
        ("--from fd00:1::2", [false, true]),
        ("--from 10.1.0.0/24", [true, false]),
    ];
    for (flags, taken) in rows {
        let tproxy = world.tproxy(&format!("--scope inbound --port 80 {flags} --action respond=hello"));
        for (family, taken) in Family::ALL.into_iter().zip(taken) {
            let got = world.curl(family.lan(), 80);
            assert_eq!(got.body.trim_end() == "hello", taken, "{flags} {family:?}: {got:?}\n{}", *tproxy);
        }
    }
}

/// What the datapath remembers of a connection of ours to an application must not be taken for a client's.
#[test]
fn a_client_on_the_port_of_a_connection_of_ours_that_failed_is_taken() {
    const PORT: u16 = 9;
    let world = World::new();
    let (client, gateway) = (&world.net.client, &world.net.gateway);
    let ports = |range: &str| gateway.set_sysctl("net.ipv4.ip_local_port_range", range).unwrap();
    let connect_from = |family: Family, port: u16| {
        client.enter(|| {
            let own = SocketAddr::new(family.client(), port);
            let socket = Socket::new(Domain::for_address(own), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&own.into())?;
            socket.connect_timeout(&SocketAddr::new(family.lan(), PORT).into(), PATIENCE).map(|()| socket)
        })
    };
    let flags = format!("--scope inbound --port {PORT} --action direct --source client --accept at-once");
    for engine in ENGINES {
        // Its application refuses; or it says nothing, and the client gives up.
        for silent in [false, true] {
            let tproxy = world.tproxy(&format!("{flags} --steer {engine}"));
            // Its listeners have one of their own by now.
            ports("40000 40000");
            if silent {
                let rule = format!("iif lo tcp dport {PORT} drop");
                let chain = format!("chain in {{ type filter hook input priority 0; {rule}; }}");
                gateway.feed("nft -f -", &format!("table inet silent {{ {chain}; }}")).unwrap();
            }
            for (nth, family) in (1..).zip(Family::ALL) {
                for port in [30_000, 40_000] {
                    let position = tproxy.position();
                    // It may be reset before it is looked at.
                    drop(connect_from(family, port));
                    tproxy.wait_line_from(position, &["closed", &format!(":{port}")], PATIENCE).unwrap();
                }
                assert_eq!(hits(gateway), [2 * nth], "{engine} {silent} {family:?}\n{}", *tproxy);
            }
            if silent {
                gateway.run("nft delete table inet silent").unwrap();
            }
            ports("32768 60999");
        }
    }
}

#[test]
fn an_application_nobody_runs_is_still_refused() {
    let world = World::new();
    let tproxy = world.tproxy("--scope inbound --port 9 --action direct --source client");
    for family in Family::ALL {
        let outcome = connect(&world.net.client, (family.lan(), 9)).and_then(|stream| stream.peek(&mut [0]));
        let kind = outcome.unwrap_err().kind();
        let refused = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset].contains(&kind);
        assert!(refused, "{kind:?}\n{}", *tproxy);
        tproxy.wait_line(&[&family.client().to_string()], PATIENCE).unwrap();
    }
}
