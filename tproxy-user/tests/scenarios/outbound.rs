//! Scope `outbound`: what the host's own processes send.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use crate::support::*;

#[test]
fn direct_relays_to_the_original_destination() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world
            .tproxy(&format!("--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct --steer {engine}"));
        for family in Family::ALL {
            for destination in [(family.server(), 80).into(), SocketAddr::new(family.public(), 8080)] {
                let got = curl(&world.net.gateway, "", destination.ip(), destination.port());
                got.assert_nginx(destination, family.wan(), &*tproxy);
                let words = [&family.wan().to_string(), &destination.to_string(), "direct"];
                tproxy.wait_line(&words.map(|word: &str| word), PATIENCE).unwrap();
            }
        }
    }
}

/// The address that an application is bound to, and the routing of its user and of its packets' mark.
#[test]
fn what_is_relayed_leaves_as_the_applications_own_packets_would() {
    let world = World::new();
    let gateway = &world.net.gateway;
    for (family, other, length, flag) in
        [(Family::V4, "10.2.0.9", 24, "-4"), (Family::V6, "fd00:2::9", 64, "-6")]
    {
        gateway.run(&format!("ip addr add {other}/{length} dev wan nodad preferred_lft 0")).unwrap();
        let server = family.server();
        gateway.run(&format!("ip {flag} route add {server} dev wan src {other} table 77")).unwrap();
        gateway.run(&format!("ip {flag} rule add uidrange 1000-1000 lookup 77 pref 200")).unwrap();
    }
    let tproxy = world.tproxy("--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct");
    for (family, other) in [(Family::V4, "10.2.0.9"), (Family::V6, "fd00:2::9")] {
        let server = SocketAddr::new(family.server(), 80);
        let other: std::net::IpAddr = other.parse().unwrap();
        let plain = curl(gateway, "", server.ip(), 80);
        plain.assert_nginx(server, family.wan(), &*tproxy);
        let user = curl(gateway, "setpriv --reuid 1000 --clear-groups", server.ip(), 80);
        user.assert_nginx(server, other, &*tproxy);
        let there = datagrams(&world.net.server, (server.ip(), 4077));
        let bound = gateway.enter(|| std::net::UdpSocket::bind((other, 0))).unwrap();
        bound.send_to(b"x", (server.ip(), there.local_addr().unwrap().port())).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(there.recv_from(&mut buffer).unwrap().1.ip(), other, "{}", *tproxy);
    }
}

/// Packets that leave by a tun device have no Ethernet header, and `lo`, where they are redirected to, wants one.
#[test]
fn an_l3_tun_interface_is_as_good_as_an_ethernet_one() {
    let world = World::l3();
    let host = &world.net.client;
    for engine in ENGINES {
        let everything = format!("--scope outbound --to 0.0.0.0/0 --to ::/0 --steer {engine}");
        let tproxy = tproxy_in(host, &format!("{everything} --action direct"));
        for family in Family::ALL {
            let destination = SocketAddr::new(family.public(), 8080);
            curl(host, "", family.public(), 8080).assert_nginx(destination, family.client(), &*tproxy);
            tproxy.wait_line(&[&destination.to_string(), "direct"], PATIENCE).unwrap();
        }
        drop(tproxy);
        let tproxy = tproxy_in(host, &format!("{everything} --port 81 --action reject"));
        for family in Family::ALL {
            let error = connect_within(host, (family.server(), 81), Duration::from_millis(900)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}\n{}", *tproxy);
        }
    }
}

#[test]
fn the_other_actions_do_what_they_say() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let everything = "--scope outbound --to 0.0.0.0/0 --to ::/0";
    for engine in ENGINES {
        for upstream in Family::ALL {
            let target = SocketAddr::new(upstream.server(), 8443);
            let tproxy = world.tproxy(&format!("{everything} --action upstream={target} --steer {engine}"));
            for family in Family::ALL {
                let got = curl(gateway, "", family.public(), 80);
                got.assert_nginx(target, upstream.wan(), &*tproxy);
            }
        }
        let tproxy = world.tproxy(&format!("{everything} --action respond=hello --steer {engine}"));
        for family in Family::ALL {
            curl(gateway, "", family.public(), 80).assert_body("hello", &*tproxy);
        }
        drop(tproxy);
        let tproxy = world.tproxy(&format!("{everything} --port 81 --action reject --steer {engine}"));
        for family in Family::ALL {
            assert_refused_at_once(gateway, (family.server(), 81), &*tproxy);
        }
        drop(tproxy);
        let tproxy = world.tproxy(&format!("{everything} --port 81 --action drop --steer {engine}"));
        for error in each_at_once(Family::ALL, |family| {
            connect_within(gateway, (family.server(), 81), Duration::from_millis(1_500)).unwrap_err()
        }) {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}\n{}", *tproxy);
        }
        for family in Family::ALL {
            let got = curl(gateway, "", family.server(), 80);
            got.assert_nginx((family.server(), 80).into(), family.wan(), &*tproxy);
        }
    }
}

#[test]
fn the_classic_recipe_answers_on_lo_without_any_route() {
    for engine in ENGINES {
        let alone = Namespace::new("alone").unwrap();
        let tproxy = tproxy_in(
            &alone,
            &format!(
                "--scope outbound --interface lo --to 8.8.8.8 --port 80 --action respond=hello --steer {engine}"
            ),
        );
        let got = curl(&alone, "--interface lo", Family::V4.public(), 80);
        got.assert_body("hello", &*tproxy);
        tproxy.wait_line(&["8.8.8.8:80", "respond"], PATIENCE).unwrap();
    }
}

#[test]
fn forwarded_traffic_is_not_outbound() {
    let world = World::new();
    let tproxy = world.tproxy("--scope outbound --to 0.0.0.0/0 --to ::/0 --action respond=hello");
    for family in Family::ALL {
        world.curl(family.server(), 80).assert_nginx((family.server(), 80).into(), family.client(), &*tproxy);
        curl(&world.net.gateway, "", family.server(), 80).assert_body("hello", &*tproxy);
    }
}

#[test]
fn a_named_interface_limits_the_rule() {
    let world = World::new();
    let tproxy =
        world.tproxy("--scope outbound --interface lan --to 0.0.0.0/0 --to ::/0 --action respond=hello");
    curl(&world.net.gateway, "", Family::V4.client(), 80).assert_body("hello", &*tproxy);
    for family in Family::ALL {
        let got = curl(&world.net.gateway, "", family.server(), 80);
        got.assert_nginx((family.server(), 80).into(), family.wan(), &*tproxy);
    }
}
