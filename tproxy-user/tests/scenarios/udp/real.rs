//! Real programs that speak UDP.

use std::net::IpAddr;

use super::*;

/// dnsmasq on one address, or on all; it says who it is, at length too.
fn name_server(namespace: &Namespace, address: Option<IpAddr>, name: &str) -> Proc {
    tproxy_netns::require_tool("dnsmasq").unwrap_or_else(|error| panic!("{error}"));
    let mut command = namespace.command("dnsmasq");
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--edns-packet-max=4096",
    ]);
    if let Some(address) = address {
        command.args(["--bind-interfaces", "--except-interface=lo", &format!("--listen-address={address}")]);
    }
    let long = format!(",{}", "x".repeat(250)).repeat(10);
    command.args([
        format!("--txt-record=who.example,{name}"),
        format!("--txt-record=long.example,{name}{long}"),
    ]);
    let server = Proc::start(command).unwrap_or_else(|error| panic!("{error}"));
    server.wait_line(&["started"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    server
}

/// What dig says of a TXT record that `server` was asked for.
#[track_caller]
fn dig(namespace: &Namespace, server: IpAddr, query: &str) -> String {
    let line = format!("dig +tries=1 +time=5 @{server} {query} TXT");
    namespace.run(&line).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn dig_is_answered_by_another_server_over_tcp_too_where_it_does_not_fit() {
    let world = World::new();
    let _servers =
        Family::ALL.map(|family| name_server(&world.net.server, Some(family.server()), "elsewhere"));
    for (engine, upstream) in ENGINES.iter().flat_map(|engine| Family::ALL.map(|upstream| (engine, upstream)))
    {
        let target = SocketAddr::new(upstream.server(), 53);
        let tproxy =
            world.tproxy(&format!("{FORWARDED} --port 53 --action upstream={target} --steer {engine}"));
        for family in Family::ALL {
            let asked = family.public();
            let said = dig(&world.net.client, asked, "who.example");
            assert!(said.contains("\"elsewhere\""), "{said}\n{}", *tproxy);
            assert!(said.contains(&format!("SERVER: {asked}#53({asked}) (UDP)")), "{said}");
            let long = dig(&world.net.client, asked, "+noedns long.example");
            assert!(long.contains("Truncated, retrying in TCP mode"), "{long}\n{}", *tproxy);
            assert!(long.contains(&format!("SERVER: {asked}#53({asked}) (TCP)")), "{long}");
            // By EDNS there is room for it in one datagram, which does not fit the link.
            let whole = dig(&world.net.client, asked, "+bufsize=4096 +ignore long.example");
            assert!(whole.contains("\"elsewhere\"") && whole.contains("(UDP)"), "{whole}\n{}", *tproxy);
        }
    }
}

#[test]
fn the_gateways_own_name_server_keeps_its_clients() {
    let world = World::new();
    let _elsewhere = name_server(&world.net.server, Some(Family::V4.server()), "elsewhere");
    let _own = name_server(&world.net.gateway, None, "gateway");
    for engine in ENGINES {
        let target = SocketAddr::new(Family::V4.server(), 53);
        let tproxy =
            world.tproxy(&format!("{FORWARDED} --port 53 --action upstream={target} --steer {engine}"));
        for family in Family::ALL {
            for (asked, answers) in [(family.lan(), "\"gateway\""), (family.public(), "\"elsewhere\"")] {
                let said = dig(&world.net.client, asked, "who.example");
                assert!(said.contains(answers), "{engine} {asked}: {said}\n{}", *tproxy);
            }
        }
    }
}

#[test]
fn iperf3_loses_nothing_in_either_direction() {
    let world = World::new();
    for (engine, family) in ENGINES.iter().flat_map(|engine| Family::ALL.map(|family| (engine, family))) {
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        let server = world.net.server.start("iperf3 --server --forceflush").unwrap();
        server.wait_line(&["Server listening"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        for direction in ["", "--reverse"] {
            let address = family.server();
            let line = format!(
                "iperf3 --client {address} --udp --bitrate 2M --bytes 500K --length 1200 --json {direction}"
            );
            let report = world.net.client.run(&line).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            let sum = &report["end"]["sum"];
            assert_eq!(sum["lost_packets"], 0, "{engine} {family:?} {direction}: {sum}\n{}", *tproxy);
            assert!(sum["packets"].as_u64().is_some_and(|packets| packets > 400), "{sum}");
        }
        assert_eq!(counted_at_the_end(&mut tproxy, "sessions"), 2, "{}", *tproxy);
    }
}

/// Probes with hop limits from 1 on show every router, and the gateway as one of them.
#[test]
fn traceroute_shows_the_same_way() {
    let net = Topology::narrow(1_400).unwrap();
    let trace = |family: Family| {
        let line = format!("traceroute -n -q 1 -w 5 -N 1 -m 6 {}", family.server());
        let said = net.client.run(&line).unwrap_or_else(|error| panic!("{error}"));
        let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        said.lines().skip(1).filter_map(hop).collect::<Vec<_>>()
    };
    let without = Family::ALL.map(trace);
    assert_eq!(without[0], ["10.1.0.1", "10.3.0.1", "10.4.0.2", "10.2.0.2"]);
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
        let args = format!("{FORWARDED} --action direct --source {source} --steer {engine}");
        let mut tproxy = tproxy_in(&net.gateway, &args);
        let with = Family::ALL.map(trace);
        assert_eq!(with, without, "{engine} {source}\n{}", *tproxy);
        assert!(counted_at_the_end(&mut tproxy, "sessions") >= 4, "it was passed\n{}", *tproxy);
    }
}
