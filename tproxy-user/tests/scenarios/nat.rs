//! Beside NAT of the gateway's own: what it changes is still the client's flow, and ours.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{reload::File, support::*, udp};

/// An UDP port on the server where everybody is told who they are.
const PORT: u16 = 7;

/// Source NAT on everything that leaves towards the server, by iptables or by nft.
fn translate_sources(world: &World, how: &str) {
    let gateway = &world.net.gateway;
    match how {
        "masquerade" => {
            for iptables in ["iptables", "ip6tables"] {
                gateway.run(&format!("{iptables} -w -t nat -A POSTROUTING -o wan -j MASQUERADE")).unwrap();
            }
        }
        _ => {
            let snat = |family: Family| format!("snat {} to {}", ip(family), family.wan());
            let rules =
                Family::ALL.map(|family| format!("meta nfproto {} oifname wan {}", nf(family), snat(family)));
            let chain = "type nat hook postrouting priority srcnat;";
            let table =
                format!("table inet translate {{\nchain post {{\n{chain}\n{}\n}}\n}}", rules.join("\n"));
            gateway.feed("nft -f -", &table).unwrap();
        }
    }
}

fn ip(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

fn nf(family: Family) -> &'static str {
    if family == Family::V4 { "ipv4" } else { "ipv6" }
}

#[test]
fn with_source_client_the_server_sees_what_source_nat_makes_of_the_client() {
    for how in ["masquerade", "snat"] {
        let world = World::new();
        translate_sources(&world, how);
        udp::reflecting(&world, PORT);
        for engine in ENGINES {
            for source in ["client", "client-port"] {
                let tproxy =
                    world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
                for family in Family::ALL {
                    let context = format!("{how} {engine} {source}\n{}", *tproxy);
                    for destination in [(family.server(), 80).into(), SocketAddr::new(family.public(), 8080)]
                    {
                        let got = world.curl(destination.ip(), destination.port());
                        got.assert_nginx(destination, family.wan(), &context);
                        tproxy.wait_line(&[&destination.to_string(), "action=direct"], PATIENCE).unwrap();
                    }
                    let client = datagrams(&world.net.client, (family.client(), 0));
                    for text in ["first", "second"] {
                        let answer = udp::ask(&client, (family.public(), PORT).into(), text, &context);
                        assert!(answer.starts_with(&seen_as(family.wan())), "{answer}\n{context}");
                        assert!(answer.ends_with(&format!("said {text}")), "{answer}\n{context}");
                    }
                }
            }
        }
    }
}

/// Destination NAT on the gateway: a line for both families, in which `ADDRESS` is `to` of each, and `SERVER` the server.
fn translate(gateway: &Namespace, chain: &str, to: fn(Family) -> IpAddr, rule: &str) {
    for (iptables, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        let bracketed = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let rule = rule.replace("ADDRESS", &to(family).to_string());
        let rule = rule.replace("SERVER", &bracketed(family.server()));
        gateway.run(&format!("{iptables} -w -t nat -A {chain} {rule}")).unwrap();
    }
}

/// A service address, behind which is somebody else: a cluster's, or a public resolver that the gateway redirects.
fn service(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.96.0.10".parse().unwrap(),
        Family::V6 => "fd00:96::10".parse().unwrap(),
    }
}

#[test]
fn what_the_gateway_translates_is_taken_and_goes_where_it_went() {
    let world = World::new();
    let gateway = &world.net.gateway;
    udp::reflecting(&world, PORT);
    translate(
        gateway,
        "PREROUTING",
        service,
        "-i lan -p tcp -d ADDRESS --dport 81 -j DNAT --to-destination SERVER:8080",
    );
    translate(
        gateway,
        "PREROUTING",
        service,
        &format!("-i lan -p udp -d ADDRESS --dport 9 -j DNAT --to-destination SERVER:{PORT}"),
    );
    // The gateway's own, whatever address is asked for it.
    translate(gateway, "PREROUTING", service, "-i lan -p tcp --dport 82 -j REDIRECT --to-ports 4082");
    translate(gateway, "PREROUTING", service, "-i lan -p udp --dport 10 -j REDIRECT --to-ports 4010");
    for family in Family::ALL {
        serve(gateway, (family.lan(), 4082), echo);
        udp::reflect(gateway, (family.lan(), 4010));
    }
    for (engine, source) in
        ENGINES.iter().flat_map(|engine| ["host", "client", "client-port"].map(|source| (engine, source)))
    {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
        let mut decided = 0;
        let mut assert_decided = |more: u64, context: &String| {
            decided += more;
            assert_eq!(hits(gateway), [decided], "{context}");
        };
        for family in Family::ALL {
            let context = format!("{engine} {source} {family:?}\n{}", *tproxy);
            let seen = if source == "host" { family.wan() } else { family.client() };
            let server = SocketAddr::new(family.server(), 8080);
            for _ in 0..2 {
                world.curl(service(family), 81).assert_nginx(server, seen, &context);
            }
            tproxy
                .wait_line(
                    &[&format!("{}:", family.client()).replace("::2:", "::2"), &server.to_string()],
                    PATIENCE,
                )
                .unwrap();
            assert_decided(2, &context);
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second", "third"] {
                let answer = udp::ask(&client, (service(family), 9).into(), text, &context);
                assert!(answer.starts_with(&seen_as(seen)), "{answer}\n{context}");
            }
            assert_decided(1, &context);
            // Whatever the rule says: it would answer the client's address, and not us.
            let connection = connect(&world.net.client, (service(family), 82)).unwrap();
            assert_echo(&connection, "to the gateway itself", &context);
            assert_decided(1, &context);
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second"] {
                udp::ask(&client, (service(family), 10).into(), text, &context);
            }
            assert_decided(1, &context);
        }
    }
}

#[test]
fn published_ports_are_selected_and_what_is_the_gateways_own_is_not() {
    let world = World::new();
    let gateway = &world.net.gateway;
    // Under which a marked packet could be taken for one that the gateway has sent itself.
    for key in ["conf/all/src_valid_mark", "tcp_fwmark_accept"] {
        gateway.run(&format!("sysctl -qw net.ipv4.{}=1", key.replace('/', "."))).unwrap();
    }
    udp::reflecting(&world, PORT);
    translate(
        gateway,
        "PREROUTING",
        Family::lan,
        "-p tcp -d ADDRESS --dport 81 -j DNAT --to-destination SERVER:8080",
    );
    translate(
        gateway,
        "PREROUTING",
        Family::lan,
        &format!("-p udp -d ADDRESS --dport 9 -j DNAT --to-destination SERVER:{PORT}"),
    );
    translate(gateway, "PREROUTING", Family::lan, "-p tcp -d ADDRESS --dport 82 -j REDIRECT --to-ports 4082");
    for family in Family::ALL {
        serve(gateway, (family.lan(), 4082), echo);
        udp::reflect(gateway, (family.lan(), 4010));
    }
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let context = format!("{engine} {family:?}\n{}", *tproxy);
            let server = SocketAddr::new(family.server(), 8080);
            for _ in 0..2 {
                world.curl(family.lan(), 81).assert_nginx(server, family.wan(), &context);
            }
            tproxy.wait_line(&[&server.to_string(), "action=direct"], PATIENCE).unwrap();
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second", "third"] {
                let answer = udp::ask(&client, (family.lan(), 9).into(), text, &context);
                assert!(answer.starts_with(&seen_as(family.wan())), "{answer}\n{context}");
            }
            for port in [82, 4082] {
                let connection = connect(&world.net.client, (family.lan(), port)).unwrap();
                assert_echo(&connection, "to the gateway itself", &context);
            }
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second"] {
                let answer = udp::ask(&client, (family.lan(), 4010).into(), text, &context);
                assert!(answer.starts_with(&seen_as(family.client())), "{answer}\n{context}");
            }
        }
        // Two connections and a flow in each family; none of the gateway's own.
        assert_eq!(hits(gateway), [6], "{}", *tproxy);
        drop(tproxy);
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 81 --action reject --steer {engine}"));
        for family in Family::ALL {
            // That it is published is known when the first packet has gone through NAT, which is too late to answer that one.
            let outcome = connect(&world.net.client, (family.lan(), 81)).map_err(|error| error.kind());
            assert_eq!(outcome.err(), Some(ErrorKind::ConnectionRefused), "{}", *tproxy);
            assert_refused_at_once(&world.net.client, (family.lan(), 81), &*tproxy);
            let connection = connect(&world.net.client, (family.lan(), 4082)).unwrap();
            assert_echo(&connection, "to the gateway itself", &*tproxy);
        }
        drop(tproxy);
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action drop --steer {engine}"));
        for family in Family::ALL {
            let outcome = connect_within(&world.net.client, (family.lan(), 81), Duration::from_millis(500));
            assert_eq!(outcome.map_err(|error| error.kind()).err(), Some(ErrorKind::TimedOut), "{}", *tproxy);
            let connection = connect(&world.net.client, (family.lan(), 4082)).unwrap();
            assert_echo(&connection, "to the gateway itself", &*tproxy);
        }
        assert!(counted_at_the_end(&mut tproxy, "drop_rule") >= 2, "{}", *tproxy);
    }
}

/// A rule of scope `inbound` for any port, beside one of scope `forwarded` about something else.
const BOTH_SCOPES: &str = r#"
steer = "ENGINE"
[[rules]]
name = "unrelated"
scope = "forwarded"
interfaces = ["lan"]
ports = [9999]
action = "direct"
[[rules]]
name = "in"
scope = "inbound"
action = "direct"
"#;

#[test]
fn what_is_sent_on_by_nat_is_nobodys_inbound() {
    let world = World::new();
    let gateway = &world.net.gateway;
    udp::reflecting(&world, PORT);
    for (protocol, port) in [("tcp", 8080), ("udp", PORT)] {
        let rule = format!("-p {protocol} -d ADDRESS --dport 81 -j DNAT --to-destination SERVER:{port}");
        translate(gateway, "PREROUTING", Family::lan, &rule);
    }
    for family in Family::ALL {
        serve(gateway, (family.lan(), 4082), echo);
    }
    for engine in ENGINES {
        let file = File::new(&BOTH_SCOPES.replace("ENGINE", engine));
        let tproxy = world.tproxy(&file.flags());
        for family in Family::ALL {
            let context = format!("{engine} {family:?}\n{}", *tproxy);
            world.curl(family.lan(), 81).assert_nginx(
                (family.server(), 8080).into(),
                family.client(),
                &context,
            );
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second", "third"] {
                let answer = udp::ask(&client, (family.lan(), 81).into(), text, &context);
                assert!(answer.starts_with(&seen_as(family.client())), "{answer}\n{context}");
            }
            let connection = connect(&world.net.client, (family.lan(), 4082)).unwrap();
            assert_echo(&connection, "to the gateway itself", &context);
        }
        assert_eq!(hits(gateway), [0, 2], "the gateway's own\n{}", *tproxy);
    }
}

#[test]
fn what_the_gateway_translates_of_its_own_goes_as_it_would() {
    let world = World::new();
    let gateway = &world.net.gateway;
    udp::reflecting(&world, PORT);
    for (to, port) in [(service as fn(Family) -> IpAddr, 81), (Family::lan, 83)] {
        translate(
            gateway,
            "OUTPUT",
            to,
            &format!("-p tcp -d ADDRESS --dport {port} -j DNAT --to-destination SERVER:8080"),
        );
        translate(
            gateway,
            "OUTPUT",
            to,
            &format!("-p udp -d ADDRESS --dport {port} -j DNAT --to-destination SERVER:{PORT}"),
        );
    }
    for (other, length, family) in [("10.2.0.9", 24, Family::V4), ("fd00:2::9", 64, Family::V6)] {
        gateway.run(&format!("ip addr add {other}/{length} dev wan nodad preferred_lft 0")).unwrap();
        let iptables = if family == Family::V4 { "iptables" } else { "ip6tables" };
        gateway
            .run(&format!(
                "{iptables} -w -t nat -A POSTROUTING -o wan -p tcp --dport 80 -j SNAT --to-source {other}"
            ))
            .unwrap();
    }
    for engine in ENGINES {
        let mut tproxy = world
            .tproxy(&format!("--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct --steer {engine}"));
        for (family, other) in [(Family::V4, "10.2.0.9"), (Family::V6, "fd00:2::9")] {
            let context = format!("{engine} {family:?}\n{}", *tproxy);
            let server = |port| SocketAddr::new(family.server(), port);
            for (address, port, seen) in
                [(service(family), 81, family.wan()), (family.lan(), 83, family.lan())]
            {
                curl(gateway, "", address, port).assert_nginx(server(8080), seen, &context);
                let client = datagrams(gateway, (family.unspecified(), 0));
                client.connect((address, port)).unwrap();
                for text in ["first", "second"] {
                    client.send(text.as_bytes()).unwrap();
                    let mut buffer = [0; 256];
                    let length =
                        client.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{context}"));
                    assert!(String::from_utf8_lossy(&buffer[..length]).ends_with(text), "{context}");
                }
                // A socket that is not connected knows no destination that could be compared.
                let client = datagrams(gateway, (family.unspecified(), 0));
                for text in ["first", "second"] {
                    let answer = udp::ask(&client, (address, port).into(), text, &context);
                    assert!(answer.ends_with(text), "{answer}\n{context}");
                }
            }
            curl(gateway, "", family.server(), 80).assert_nginx(server(80), other.parse().unwrap(), &context);
            // And what nobody translates is taken.
            curl(gateway, "", family.public(), 8080).assert_nginx(
                (family.public(), 8080).into(),
                family.wan(),
                &context,
            );
        }
        // A rule has selected them all.
        assert_eq!(hits(gateway), [16], "{}", *tproxy);
        assert_eq!(counted_at_the_end(&mut tproxy, "pass_translated"), 14, "{}", *tproxy);
        let tproxy = world
            .tproxy(&format!("--scope outbound --to 0.0.0.0/0 --to ::/0 --action reject --steer {engine}"));
        for family in Family::ALL {
            assert_refused_at_once(gateway, (service(family), 81), &*tproxy);
        }
        drop(tproxy);
        // What may not be got round is not passed, and cannot be taken.
        let mut tproxy = world.tproxy(&format!(
            "--scope outbound --to 0.0.0.0/0 --to ::/0 --proto udp --action respond=no --steer {engine}"
        ));
        for family in Family::ALL {
            let client = datagrams(gateway, (family.unspecified(), 0));
            client.connect((service(family), 81)).unwrap();
            client.send(b"asked").unwrap();
            let refused = client.recv(&mut [0; 8]).map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{engine} {family:?}\n{}", *tproxy);
        }
        assert!(counted_at_the_end(&mut tproxy, "reject_unserved") >= 2, "{}", *tproxy);
    }
}
