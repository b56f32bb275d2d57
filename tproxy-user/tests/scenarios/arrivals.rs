//! Steered packets that do not arrive: that is said, with the likely reason, where somebody looks.

use std::net::{SocketAddr, UdpSocket};

use serde_json::Value;

use crate::{clean::Snapshot, doctor::doctor, support::*};

/// Has one kind of flow discarded at INPUT.
fn discard(gateway: &Namespace, family: Family, protocol: &str) {
    let nfproto = if family == Family::V4 { "ipv4" } else { "ipv6" };
    input(gateway, &format!("meta nfproto {nfproto} meta l4proto {protocol} iifname lan drop"));
}

fn input(namespace: &Namespace, rule: &str) {
    let chain = format!("chain in {{\ntype filter hook input priority 0\n{rule}\n}}");
    namespace.feed("nft -f -", &format!("table inet f {{\n{chain}\n}}\n")).unwrap();
}

/// Begins a flow from the client, which goes on trying as long as this is held.
fn begin(client: &Namespace, family: Family, protocol: &str) -> (Option<Proc>, Option<UdpSocket>) {
    if protocol == "udp" {
        let socket = datagrams(client, (family.client(), 0));
        socket.send_to(b"?", (family.public(), 9999)).unwrap();
        return (None, Some(socket));
    }
    let url = format!("http://{}/", SocketAddr::new(family.public(), 80));
    (Some(client.start(&format!("curl -sS --max-time 60 {url}")).unwrap()), None)
}

#[track_caller]
fn json(gateway: &Namespace, args: &str) -> Value {
    serde_json::from_str(&tproxy_output(gateway, args).said).unwrap()
}

#[test]
fn what_a_firewall_takes_is_said_with_its_cure_until_something_arrives() {
    each_at_once(
        [
            (Family::V4, "tcp", "sk_lookup"),
            (Family::V6, "tcp", "sk_assign"),
            (Family::V4, "udp", "sk_assign"),
            (Family::V6, "udp", "sk_lookup"),
        ],
        |(family, protocol, engine)| {
            let world = World::new();
            let (gateway, client) = (&world.net.gateway, &world.net.client);
            discard(gateway, family, protocol);
            let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken --steer {engine}"));
            let flow = begin(client, family, protocol);
            let kind = format!("lan ({protocol}, IP{})", if family == Family::V4 { "v4" } else { "v6" });
            let said = [&*kind, "does not arrive", "nft, table inet f, chain in", "cure: "];
            let line = tproxy.wait_line(&said, PATIENCE * 2).unwrap();
            let lost = json(gateway, "status --json")["lost"].clone();
            assert_eq!(lost.as_array().unwrap().len(), 1, "{lost:#}");
            assert!(line.contains(lost[0].as_str().unwrap()), "{line}\n{lost:#}");
            let found = doctor(gateway, "");
            assert_eq!(found.findings("arrivals", "warn").len(), 1);
            let metrics = tproxy_output(gateway, "metrics").said;
            let sample = format!("protocol=\"{protocol}\"}} 1.0");
            assert!(
                metrics
                    .lines()
                    .any(|line| line.starts_with("tproxy_lost{interface=\"lan\"") && line.ends_with(&sample)),
                "{metrics}"
            );
            gateway.run("nft flush ruleset").unwrap();
            drop(flow);
            let _flow = begin(client, family, protocol);
            tproxy.wait_line(&[&*kind, "arrives again"], PATIENCE).unwrap();
            assert_eq!(json(gateway, "status --json")["lost"], Value::Null);
            assert!(doctor(gateway, "").findings("arrivals", "warn").is_empty());
        },
    );
}

/// What else the kernel discards on the way in.
#[test]
fn the_reverse_path_filter_is_named_where_it_has_discarded_something() {
    let world = World::new();
    let (gateway, client) = (&world.net.gateway, &world.net.client);
    client.ip("addr add 10.9.9.9/32 dev lo").unwrap();
    gateway.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan.rp_filter=1").unwrap();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken"));
    // By which the neighbour is known: who asks for it is filtered too.
    world.curl(Family::V4.public(), 80).assert_body("taken", &*tproxy);
    let url = format!("http://{}/", SocketAddr::new(Family::V4.public(), 80));
    let _flow = client.start(&format!("curl -sS --interface 10.9.9.9 --max-time 60 {url}")).unwrap();
    tproxy.wait_line(&["lan (tcp, IPv4)", "does not arrive", "rp_filter", "cure: "], PATIENCE * 2).unwrap();
}

/// The client's own loss is none of ours.
#[test]
fn a_handshake_that_the_client_does_not_complete_is_no_loss() {
    let world = World::new();
    let (gateway, client) = (&world.net.gateway, &world.net.client);
    discard(gateway, Family::V6, "udp");
    input(client, "tcp flags & syn == syn drop");
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken"));
    let _handshake = begin(client, Family::V4, "tcp");
    let _lost = begin(client, Family::V6, "udp");
    tproxy.wait_line(&["lan (udp, IPv6)", "does not arrive"], PATIENCE * 2).unwrap();
    assert!(!tproxy.lines().iter().any(|line| line.contains("lan (tcp")), "{}", *tproxy);
}

/// Nobody is sent anything, and nothing is left: that it arrives is seen by a listener which answers nothing.
#[test]
fn doctor_tries_it_by_each_interface_family_and_protocol_whether_or_not_an_instance_runs() {
    for engine in [None, Some("sk_lookup"), Some("sk_assign")] {
        let world = World::new();
        let (gateway, client) = (&world.net.gateway, &world.net.client);
        let run = |engine| world.tproxy(&format!("{FORWARDED} --action respond=taken --steer {engine}"));
        let tproxy = engine.map(run);
        let before = Snapshot::take(gateway);
        let sent = || (tcp_counter(client, "InSegs"), tcp_counter(&world.net.server, "InSegs"));
        let sent_before = sent();
        let found = doctor(gateway, "");
        found.assert_ok("input");
        let said = found.findings("input", "ok")[0]["found"].as_str().unwrap().to_owned();
        for place in ["lan (TCP, IPv4)", "lan (TCP, IPv6)", "lan (UDP, IPv4)", "lan (UDP, IPv6)"] {
            assert!(said.contains(place), "{said}");
        }
        assert_eq!(sent(), sent_before);
        before.assert_same(gateway, &said);
        if let Some(tproxy) = tproxy {
            assert!(!tproxy.lines().iter().any(|line| line.contains("accepted")), "{}", *tproxy);
        }
    }
}

/// Those that no rule of a firewall shows: a limit, a set of ipset, a program of somebody else's.
#[test]
fn what_cannot_be_read_out_of_the_rules_is_found_by_trying() {
    for (protocol, lost, other) in [("tcp", "TCP", "UDP"), ("udp", "UDP", "TCP")] {
        let world = World::new();
        let gateway = &world.net.gateway;
        let _tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken"));
        input(
            gateway,
            &format!("{protocol} dport >= 1024 meta mark & 0x30000000 == 0x20000000 ip ttl 64 drop"),
        );
        let found = doctor(gateway, "");
        let warnings = found.findings("input", "warn");
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        let said = warnings[0]["found"].as_str().unwrap();
        assert!(said.contains(&format!("lan ({lost}, IPv4) does not arrive")), "{said}");
        let arriving = found.findings("input", "ok")[0]["found"].as_str().unwrap().to_owned();
        for place in [format!("lan ({lost}, IPv6)"), format!("lan ({other}, IPv4)")] {
            assert!(arriving.contains(&place), "{arriving}");
        }
    }
}
