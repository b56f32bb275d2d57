//! Beside NAT of the gateway's own: what it changes is still the client's flow, and ours.

use std::net::SocketAddr;

use crate::{support::*, udp};

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
            for source in ["client"] {
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
                        let seen = SocketAddr::new(family.wan(), 0).to_string();
                        assert!(answer.starts_with(seen.trim_end_matches('0')), "{answer}\n{context}");
                        assert!(answer.ends_with(&format!("said {text}")), "{answer}\n{context}");
                    }
                }
            }
        }
    }
}
