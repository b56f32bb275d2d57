//! Devices above others (tunnels, bridges): a flow is decided once, where a process sends it, or where routing sees it arrive.

use std::net::{IpAddr, SocketAddr};

use crate::{reload::File, support::*, udp};

/// An UDP port where everybody is told who they are.
const PORT: u16 = 7;

/// The addresses of gateway and server in the overlay.
fn overlay(family: Family) -> [IpAddr; 2] {
    let addresses = if family == Family::V4 { ["10.9.0.1", "10.9.0.2"] } else { ["fd00:9::1", "fd00:9::2"] };
    addresses.map(|address| address.parse().expect("an address"))
}

/// VXLAN between gateway and server, by which the server finds the client, too.
fn join_by_vxlan(world: &World, outer: Family) {
    let ends = [
        (&world.net.gateway, "wan", outer.wan(), outer.server()),
        (&world.net.server, "eth0", outer.server(), outer.wan()),
    ];
    for (number, (namespace, device, local, remote)) in (1..).zip(ends) {
        namespace
            .ip(&format!(
                "link add over type vxlan id 1 dstport 8472 local {local} remote {remote} dev {device}\n\
                 addr add 10.9.0.{number}/24 dev over\naddr add fd00:9::{number}/64 dev over nodad\nlink set over up"
            ))
            .unwrap();
    }
    let server = &world.net.server;
    server.ip("route add 10.1.0.0/24 via 10.9.0.1").unwrap();
    server.run("ip -6 route add fd00:1::/64 via fd00:9::1").unwrap();
    for family in Family::ALL {
        udp::reflect(server, (overlay(family)[1], PORT));
    }
}

#[test]
fn outbound_takes_what_processes_send_and_nothing_that_a_tunnel_does() {
    for outer in Family::ALL {
        let world = World::new();
        join_by_vxlan(&world, outer);
        for engine in ENGINES {
            let gateway = &world.net.gateway;
            let tproxy = world.tproxy(&format!(
                "--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct --steer {engine}"
            ));
            for family in Family::ALL {
                let context = format!("{engine} {outer:?} {family:?}\n{}", *tproxy);
                let [own, server] = overlay(family);
                for (namespace, address) in [(&world.net.client, family.client()), (gateway, own)] {
                    curl(namespace, "", server, 80).assert_nginx((server, 80).into(), address, &context);
                    let socket = datagrams(namespace, (address, 0));
                    for text in ["first", "second"] {
                        let answer = udp::ask(&socket, (server, PORT).into(), text, &context);
                        let seen = SocketAddr::new(address, 0).to_string();
                        assert!(answer.starts_with(seen.trim_end_matches('0')), "{answer}\n{context}");
                    }
                }
            }
            // A connection and a flow of the gateway's own in each family.
            assert_eq!(hits(gateway), [4], "{engine} {outer:?}\n{}", *tproxy);
        }
    }
}

/// A rule with a spoofed source has hooks everywhere, where its replies may come by.
const BEHIND_A_BRIDGE: &str = r#"
[[rules]]
name = "spoofed"
scope = "forwarded"
interfaces = ["br0"]
ports = ["81"]
source = "client"
action = "direct"
[[rules]]
name = "taken"
scope = "forwarded"
interfaces = ["br0"]
action = "respond=taken"
"#;

#[test]
fn clients_behind_a_bridge_are_decided_where_routing_sees_them() {
    for engine in ENGINES {
        let world = World::new();
        let gateway = &world.net.gateway;
        gateway
            .ip("link add br0 type bridge\naddr flush dev lan\nlink set lan master br0\nlink set br0 up\n\
                 addr add 10.1.0.1/24 dev br0\naddr add fd00:1::1/64 dev br0 nodad")
            .unwrap();
        let file = File::new(&format!("steer = \"{engine}\"{BEHIND_A_BRIDGE}"));
        let tproxy = world.tproxy(&file.flags());
        for family in Family::ALL {
            let context = format!("{engine} {family:?}\n{}", *tproxy);
            world.curl(family.public(), 80).assert_body("taken", &context);
            world.curl(family.server(), 81).assert_nginx(
                (family.server(), 81).into(),
                family.client(),
                &context,
            );
            let client = datagrams(&world.net.client, (family.client(), 0));
            for text in ["first", "second"] {
                assert_eq!(udp::ask(&client, (family.public(), 5353).into(), text, &context), "taken");
            }
        }
    }
}
