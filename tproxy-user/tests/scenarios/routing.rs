//! The way that relayed flows leave by: the one that the host's routing rules have for the client's own packets.

use std::{
    io::{self, ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
};

use socket2::SockRef;

use crate::{clean::Snapshot, support::*, udp};

/// An UDP port on the server where everybody is told who they are.
const PORT: u16 = 7;

/// The table that leads by the second uplink.
const TABLE: u32 = 77;

/// The gateway's address on the second uplink.
fn wan2(family: Family) -> IpAddr {
    let address = if family == Family::V4 { "10.3.0.1" } else { "fd00:3::1" };
    address.parse().expect("an address")
}

/// `ip rule …`
fn rule(world: &World, family: Family, deed: &str, rule: &str) {
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    world.net.gateway.run(&format!("ip {flag} rule {deed} {rule}")).unwrap_or_else(|error| panic!("{error}"));
}

/// A second uplink, by which the table [`TABLE`] leads to the server.
fn two_uplinks() -> World {
    let world = World::new();
    let (gateway, server) = (&world.net.gateway, &world.net.server);
    gateway.join("wan2", server, "eth1").unwrap();
    gateway.ip("addr add 10.3.0.1/24 dev wan2\naddr add fd00:3::1/64 dev wan2 nodad").unwrap();
    server.ip("addr add 10.3.0.2/24 dev eth1\naddr add fd00:3::2/64 dev eth1 nodad").unwrap();
    for (flag, hop) in [("-4", "10.3.0.2"), ("-6", "fd00:3::2")] {
        gateway.run(&format!("ip {flag} route add default via {hop} table {TABLE}")).unwrap();
    }
    udp::reflecting(&world, PORT);
    world
}

/// Has the main table lead to the second uplink, too, for who asks for it.
fn add_second_route(world: &World, family: Family) {
    let (flag, hop) = if family == Family::V4 { ("-4", "10.3.0.2") } else { ("-6", "fd00:3::2") };
    world.net.gateway.run(&format!("ip {flag} route add default via {hop} dev wan2 metric 4000")).unwrap();
}

/// What leaves by the first uplink is lost from now on.
fn lose_the_first(world: &World) {
    let chains = ["output", "forward"].map(|hook| {
        format!("chain {hook} {{\ntype filter hook {hook} priority 0;\noifname wan ip daddr != 10.1.0.0/24 drop\noifname wan ip6 daddr 2001::/16 drop\n}}")
    });
    world.net.gateway.feed("nft -f -", &format!("table inet lost {{\n{}\n}}", chains.join("\n"))).unwrap();
}

/// Asserts whom the server sees of a flow to its public address, over TCP and UDP.
#[track_caller]
fn assert_seen(world: &World, family: Family, source: IpAddr, context: &str) {
    let destination = SocketAddr::new(family.public(), 8080);
    world.curl(destination.ip(), destination.port()).assert_nginx(destination, source, &context);
    let client = datagrams(&world.net.client, (family.client(), 0));
    let answer = udp::ask(&client, (family.public(), PORT).into(), "hello", &context);
    let seen: SocketAddr = answer.split(' ').next().and_then(|seen| seen.parse().ok()).expect("an address");
    assert_eq!(seen.ip(), source, "{answer}\n{context}");
}

#[test]
fn rules_by_interface_and_source_hold_for_what_is_relayed() {
    let world = two_uplinks();
    for family in Family::ALL {
        for selector in [
            "iif lan".to_owned(),
            format!("from {}", family.client()),
            format!("iif lan to {}", family.public()),
        ] {
            let rule = |deed| rule(&world, family, deed, &format!("{selector} lookup {TABLE} pref 200"));
            rule("add");
            for engine in ENGINES {
                for nat in ["endpoint-independent", "per-destination"] {
                    let before = Snapshot::take(&world.net.gateway);
                    let tproxy =
                        world.tproxy(&format!("{FORWARDED} --action direct --nat {nat} --steer {engine}"));
                    let context = format!("{selector}, {engine}, {nat}\n{}", *tproxy);
                    assert_seen(&world, family, wan2(family), &context);
                    drop(tproxy);
                    before.assert_same(&world.net.gateway, &context);
                }
            }
            rule("del");
        }
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
        assert_seen(&world, family, family.wan(), &format!("no rule\n{}", *tproxy));
    }
}

#[test]
fn with_the_clients_address_it_is_the_same_way() {
    let world = two_uplinks();
    lose_the_first(&world);
    for family in Family::ALL {
        for selector in ["iif lan".to_owned(), format!("from {}", family.client())] {
            rule(&world, family, "add", &format!("{selector} lookup {TABLE} pref 200"));
            for source in ["client", "client-port"] {
                let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source}"));
                let context = format!("{selector}, {source}\n{}", *tproxy);
                assert_seen(&world, family, family.client(), &context);
            }
            rule(&world, family, "del", &format!("{selector} lookup {TABLE} pref 200"));
        }
    }
}

#[test]
fn rules_that_come_and_go_hold_for_flows_that_begin_then() {
    let world = two_uplinks();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
    for family in Family::ALL {
        let context = tproxy.to_string();
        assert_seen(&world, family, family.wan(), &context);
        let ours = |gateway: &Namespace| {
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            gateway.run(&format!("ip {flag} rule")).unwrap().contains("uidrange")
        };
        for (deed, source) in [("add", wan2(family)), ("del", family.wan())] {
            rule(&world, family, deed, &format!("iif lan lookup {TABLE} pref 200"));
            let begun = std::time::Instant::now();
            while ours(&world.net.gateway) != (deed == "add") {
                assert!(begun.elapsed() < PATIENCE, "{}", *tproxy);
            }
            assert_seen(&world, family, source, &format!("{deed}\n{}", *tproxy));
        }
    }
}

/// The kill switch of a VPN.
#[test]
fn where_the_client_has_no_way_there_is_none_for_what_is_relayed() {
    let world = two_uplinks();
    for family in Family::ALL {
        for (action, kind) in
            [("prohibit", None), ("unreachable", Some(ErrorKind::NetworkUnreachable)), ("blackhole", None)]
        {
            rule(&world, family, "add", &format!("iif lan {action} pref 200"));
            let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --accept after-connect"));
            let refused = connect(&world.net.client, (family.public(), 8080)).unwrap_err();
            assert!(kind.is_none_or(|kind| refused.kind() == kind), "{action}: {refused}\n{}", *tproxy);
            tproxy.wait_line(&["closed", "end=unreachable"], PATIENCE).unwrap();
            let client = datagrams(&world.net.client, (family.client(), 0));
            client.send_to(b"x", (family.public(), PORT)).unwrap();
            let mut tproxy = tproxy;
            let nowhere = counted_at_the_end(&mut tproxy, "no_upstream");
            assert_eq!(nowhere, 1, "{action}\n{}", *tproxy);
            rule(&world, family, "del", &format!("iif lan {action} pref 200"));
        }
    }
}

/// A rule that compares the whole mark does not select what bears ours beside it.
#[test]
fn what_an_application_marks_leaves_by_its_mark() {
    let world = two_uplinks();
    let gateway = &world.net.gateway;
    for family in Family::ALL {
        rule(&world, family, "add", &format!("fwmark 0x1 lookup {TABLE} pref 200"));
        let tproxy = world.tproxy("--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct");
        let ask = |mark: u32| -> io::Result<String> {
            let socket = datagrams(gateway, (family.unspecified(), 0));
            SockRef::from(&socket).set_mark(mark)?;
            Ok(udp::ask(&socket, (family.public(), PORT).into(), "hello", &tproxy.to_string()))
        };
        for (mark, source) in [(0, family.wan()), (1, wan2(family))] {
            let answer = ask(mark).unwrap();
            let seen: SocketAddr = answer.split(' ').next().and_then(|seen| seen.parse().ok()).unwrap();
            assert_eq!(seen.ip(), source, "{answer}, mark {mark}\n{}", *tproxy);
        }
        rule(&world, family, "del", &format!("fwmark 0x1 lookup {TABLE} pref 200"));
    }
}

#[test]
fn a_rule_chooses_another_way() {
    let world = two_uplinks();
    let gateway = &world.net.gateway;
    for (family, address, length) in [(Family::V4, "10.2.0.9", 24), (Family::V6, "fd00:2::9", 64)] {
        gateway.run(&format!("ip addr add {address}/{length} dev wan nodad preferred_lft 0")).unwrap();
        let assert_seen_by = |egress: &str, source: IpAddr| {
            for action in
                ["direct".to_owned(), format!("upstream={}", SocketAddr::new(family.public(), 8080))]
            {
                let tproxy = world.tproxy(&format!("{FORWARDED} --proto tcp --action {action} {egress}"));
                let destination = SocketAddr::new(family.public(), 8080);
                let context = format!("{action} {egress}\n{}", *tproxy);
                world.curl(destination.ip(), 8080).assert_nginx(destination, source, &context);
            }
            let tproxy = world.tproxy(&format!("{FORWARDED} --action direct {egress}"));
            assert_seen(&world, family, source, &format!("{egress}\n{}", *tproxy));
        };
        assert_seen_by(&format!("--egress-source {address}"), address.parse().unwrap());
        // A rule that nobody else meets leads to the table.
        for selector in ["fwmark 0x1/0xff", "fwmark 0x1"] {
            rule(&world, family, "add", &format!("{selector} lookup {TABLE} pref 200"));
            assert_seen_by("--egress-mark 0x1/0xff", wan2(family));
            assert_seen_by("--egress-interface wan2", wan2(family));
            rule(&world, family, "del", &format!("{selector} lookup {TABLE} pref 200"));
        }
        // No rule leads anywhere, but the main table has another route.
        add_second_route(&world, family);
        assert_seen_by("--egress-interface wan2", wan2(family));
        assert_seen_by("--egress-interface wan", family.wan());
    }
}

#[test]
fn a_way_that_is_not_there_is_said_and_leads_nowhere() {
    let world = World::new();
    for (egress, said, end) in [
        ("--egress-interface gone", "there is no interface 'gone' (egress.interface)", "end=unreachable"),
        (
            "--egress-source 192.0.2.9",
            "192.0.2.9 (egress.source) is none of this host's addresses",
            "192.0.2.9 is none of this host's addresses",
        ),
    ] {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --accept at-once {egress}"));
        tproxy.wait_line(&["WARN", said], PATIENCE).unwrap();
        let client = connect(&world.net.client, (Family::V4.public(), 8080));
        let ended = client.and_then(|client| (&client).read(&mut [0])).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{}", *tproxy);
        tproxy.wait_line(&["closed", end], PATIENCE).unwrap();
    }
}

/// What `explain` says of the way that a client's flow leaves by.
#[track_caller]
fn explained(world: &World, family: Family, flags: &str) -> String {
    let (client, server) = (SocketAddr::new(family.client(), 5), SocketAddr::new(family.public(), 80));
    let ended = tproxy_output(
        &world.net.gateway,
        &format!("explain --json tcp {client} {server} --interface lan {flags}"),
    );
    let said: serde_json::Value =
        serde_json::from_str(&ended.said).unwrap_or_else(|error| panic!("{error}: {}", ended.said));
    let steps = said[0]["steps"].as_array().unwrap().clone();
    let egress = steps.iter().find(|step| step["step"] == "egress");
    egress.unwrap_or_else(|| panic!("{said:#}"))["found"].as_str().unwrap().to_owned()
}

#[test]
fn explain_says_by_which_way_it_leaves_and_who_comes_first() {
    let world = two_uplinks();
    for family in Family::ALL {
        let other = explained(&world, family, &format!("-- {FORWARDED} --action direct"));
        assert!(
            other.contains("by table main, as any packet of this host") && other.contains("this host's"),
            "{other}"
        );
        add_second_route(&world, family);
        let chosen = format!("-- {FORWARDED} --action direct --egress-interface wan2 --egress-mark 0x1/0xff");
        let chosen = explained(&world, family, &chosen);
        assert!(chosen.contains("only by wan2") && chosen.contains("0x30000001"), "{chosen}");
        rule(&world, family, "add", &format!("iif lan lookup {TABLE}"));
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source client"));
        let said = explained(&world, family, "");
        assert!(said.contains(&format!("by table {TABLE}")), "{said}\n{}", *tproxy);
        assert!(said.contains(&format!("{} (the client's)", family.client())), "{said}");
        assert!(!said.contains("asked first"), "{said}");
        // It selects what this host sends, and no client's packets.
        rule(&world, family, "add", "pref 50 iif lo lookup main");
        let said = explained(&world, family, "");
        assert!(said.contains("asked first and leads to table 254") && said.contains("pref 50"), "{said}");
        rule(&world, family, "del", "pref 50");
        drop(tproxy);
        rule(&world, family, "add", "iif lan prohibit pref 40");
        let refused = explained(&world, family, &format!("-- {FORWARDED} --action direct"));
        assert!(refused.contains("there is no way for it"), "{refused}");
        rule(&world, family, "del", "pref 40");
        rule(&world, family, "del", &format!("iif lan lookup {TABLE}"));
    }
}
