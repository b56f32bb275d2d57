use serde_json::{Value, json};
use tproxy::{family::Family, host::admission::Iptables};

use super::{steered::all_by, *};

const LAN: &str = "lan";
const WAN: &str = "wan";

fn steered(interfaces: &[&str]) -> BTreeSet<FirstPacket> {
    interfaces.iter().flat_map(|interface| all_by(interface)).collect()
}

/// What the program for IPv4 has in the way of packets from LAN and WAN.
fn save(table: &str, lines: &str) -> Vec<Obstacle> {
    let text = format!("*nat\n:INPUT ACCEPT [0:0]\nCOMMIT\n*{table}\n{lines}COMMIT\n");
    let view = View { mark: Mark::DEFAULT, steered: &steered(&[LAN, WAN]), config: None };
    iptables::obstacles(&text, Iptables::Iptables, Family::V4, view, |_| true)
}

fn kinds(obstacles: &[Obstacle]) -> Vec<ObstacleKind> {
    obstacles.iter().map(|obstacle| obstacle.kind).collect()
}

/// Where the one obstacle is, and for whom.
#[track_caller]
fn place(obstacles: &[Obstacle]) -> String {
    assert_eq!(obstacles.len(), 1, "{obstacles:?}");
    obstacles[0].shown()
}

#[test]
fn iptables_discards_by_policy_or_by_a_rule_unless_the_mark_is_accepted_before() {
    let accept = "-A INPUT -m mark --mark 0x20000000/0x30000000 -j ACCEPT\n";
    assert_eq!(
        save("filter", ":INPUT ACCEPT [1:1]\n-A INPUT -p tcp --dport 22 -j DROP\n"),
        [],
        "some packets only"
    );
    for discarding in [
        ":INPUT DROP [0:0]\n",
        ":INPUT ACCEPT [0:0]\n-A INPUT -j REJECT --reject-with icmp-port-unreachable\n",
        ":INPUT ACCEPT [0:0]\n:user - [0:0]\n-A INPUT -j user\n-A user -i lo -j RETURN\n-A user -j DROP\n",
        ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m connmark --mark 0x20000000/0x30000000 -j ACCEPT\n",
        ":INPUT DROP [0:0]\n:user - [0:0]\n-A INPUT -g user\n-A INPUT -j ACCEPT\n",
        ":INPUT DROP [0:0]\n-A INPUT -m socket --transparent -j ACCEPT\n",
        ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
        // As ufw has it.
        ":INPUT ACCEPT [0:0]\n:not-local - [0:0]\n-A INPUT -j not-local\n-A not-local -m addrtype --dst-type LOCAL -j RETURN\n\
         -A not-local -m comment --comment \"all \\\"-j ACCEPT\\\" the rest\" -j DROP\n",
    ] {
        let found = save("filter", discarding);
        assert_eq!(kinds(&found), [ObstacleKind::Discards], "{discarding}");
        assert_eq!(found[0].cure, "iptables -I INPUT -m mark --mark 0x20000000/0x30000000 -j ACCEPT");
    }
    assert_eq!(save("filter", &format!(":INPUT DROP [0:0]\n{accept}")), []);
    let late = save("filter", &format!(":INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n{accept}"));
    assert_eq!(kinds(&late), [ObstacleKind::Discards], "too late");
    let behind = ":INPUT DROP [0:0]\n:a - [0:0]\n:b - [0:0]\n-A INPUT -j a\n-A a -g b\n-A b -m mark --mark 0x20000000/0x30000000 -j ACCEPT\n";
    assert_eq!(save("filter", behind), []);
    let new = ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\n";
    assert_eq!(save("filter", new), []);
}

#[test]
fn iptables_takes_the_mark_away() {
    for (rule, unmarks) in [
        ("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", true),
        ("-j CONNMARK --restore-mark --nfmask 0xffff --ctmask 0xffff", false),
        ("-p tcp -j CONNMARK --restore-mark", true),
        ("-i other -j CONNMARK --restore-mark", false),
        ("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", false),
        ("-i wan -j MARK --set-xmark 0x1/0xffffffff", true),
        ("-i wan -j MARK --set-xmark 0x1/0xff", false),
        ("-m mark --mark 0x0/0x30000000 -j MARK --set-xmark 0x1/0xffffffff", false),
    ] {
        let found = save("mangle", &format!(":PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\n"));
        assert_eq!(kinds(&found), if unmarks { vec![ObstacleKind::Unmarks] } else { vec![] }, "{rule}");
        for obstacle in found {
            assert_eq!(
                obstacle.cure,
                "iptables -t mangle -I PREROUTING -m mark --mark 0x20000000/0x30000000 -j ACCEPT"
            );
        }
    }
    let skipped = ":PREROUTING ACCEPT [0:0]\n-A PREROUTING -m mark --mark 0x20000000/0x30000000 -j ACCEPT\n\
                   -A PREROUTING -j CONNMARK --restore-mark\n";
    assert_eq!(save("mangle", skipped), []);
}

#[test]
fn policies_that_are_bypassed_and_invalid_packets_are_named() {
    let forward = ":FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.61.0.2/32 -j DROP\n";
    assert_eq!(kinds(&save("filter", forward)), [ObstacleKind::IsBypassed]);
    assert_eq!(kinds(&save("filter", ":FORWARD DROP [0:0]\n")), [ObstacleKind::IsBypassed]);
    let invalid = ":INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n";
    assert_eq!(kinds(&save("filter", invalid)), [ObstacleKind::DiscardsInvalid]);
}

/// What a table of nft has in the way of packets from LAN and WAN.
fn table(chains: &[Value], rules: &[(&str, Value)]) -> Vec<Obstacle> {
    let rules = rules.iter().map(|(chain, expr)| {
        json!({"rule": {"family": "inet", "table": "f", "chain": chain, "handle": 4, "expr": expr}})
    });
    let table = json!({"table": {"family": "inet", "name": "f"}});
    let objects: Vec<_> = [table].into_iter().chain(chains.iter().cloned()).chain(rules).collect();
    ruleset(&objects)
}

fn ruleset(objects: &[Value]) -> Vec<Obstacle> {
    let view = View { mark: Mark::DEFAULT, steered: &steered(&[LAN, WAN]), config: None };
    nft::Ruleset::new(&json!({ "nftables": objects }), Family::BOTH.into()).obstacles(view)
}

fn chain(name: &str, hook: &str, policy: &str) -> Value {
    json!({"chain": {"family": "inet", "table": "f", "name": name, "hook": hook, "policy": policy}})
}

#[test]
fn nft_chains_at_input_discard_unless_the_mark_is_accepted_before() {
    let accept = json!([
        {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 0x3000_0000]}, "right": 0x2000_0000}},
        {"accept": null}
    ]);
    let all = json!([{"counter": {}}, {"drop": null}]);
    let some = json!([
        {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}},
        {"drop": null}
    ]);
    let input = |policy| [chain("in", "input", policy)];
    let discards = [ObstacleKind::Discards];
    assert_eq!(table(&input("accept"), &[("in", some.clone())]), []);
    assert_eq!(kinds(&table(&input("drop"), &[("in", some)])), discards);
    assert_eq!(kinds(&table(&input("accept"), &[("in", all.clone())])), discards);
    assert_eq!(table(&input("drop"), &[("in", accept.clone()), ("in", all.clone())]), []);
    // As firewalld has it: through jumps, with a map and sets.
    let states = |verdict: Value| json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}], ["new", verdict]]}}}]);
    let jump = json!([{"jump": {"target": "more"}}]);
    assert_eq!(kinds(&table(&input("accept"), &[("in", jump.clone()), ("more", all.clone())])), discards);
    assert_eq!(table(&input("drop"), &[("in", states(json!({"accept": null})))]), []);
    assert_eq!(kinds(&table(&input("accept"), &[("in", states(json!({"drop": null})))])), discards);
    let known = json!([
        {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": {"set": ["established", "related"]}}},
        {"accept": null}
    ]);
    assert_eq!(kinds(&table(&input("drop"), &[("in", known), ("in", jump), ("more", all)])), discards);
}

#[test]
fn nft_takes_the_mark_away_and_discards_what_is_forwarded() {
    let prerouting = [chain("pre", "prerouting", "accept")];
    let set = |value: Value| json!([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}]);
    let ct = json!({"ct": {"key": "mark"}});
    let kept = json!({"|": [{"&": [{"meta": {"key": "mark"}}, 0xffff_ff00_u32]}, 1]});
    assert_eq!(kinds(&table(&prerouting, &[("pre", set(ct))])), [ObstacleKind::Unmarks]);
    assert_eq!(kinds(&table(&prerouting, &[("pre", set(json!(1)))])), [ObstacleKind::Unmarks]);
    assert_eq!(table(&prerouting, &[("pre", set(kept))]), []);
    assert_eq!(kinds(&table(&[chain("fwd", "forward", "drop")], &[])), [ObstacleKind::IsBypassed]);
}

fn matches(left: Value, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

#[test]
fn who_is_lost_is_told_where_it_is_not_everybody() {
    let lan = ":INPUT DROP [0:0]\n:in - [0:0]\n-A INPUT -j in\n-A in -i la+ -j ACCEPT\n";
    assert_eq!(place(&save("filter", lan)), "iptables, table filter, chain INPUT: policy DROP (from wan)");
    let tcp = ":INPUT DROP [0:0]\n-A INPUT ! -i wan -p tcp -j ACCEPT\n-A INPUT -p udp -j ACCEPT\n";
    assert_eq!(
        place(&save("filter", tcp)),
        "iptables, table filter, chain INPUT: policy DROP (TCP from wan)"
    );
    let input = [chain("in", "input", "drop")];
    let v4 = json!([matches(meta("nfproto"), "==", json!("ipv4")), {"accept": null}]);
    assert_eq!(place(&table(&input, &[("in", v4)])), "nft, table inet f, chain in: policy drop (IPv6)");
    let not = json!([
        matches(json!({"payload": {"protocol": "ip", "field": "saddr"}}), "!=", json!("10.0.0.1")),
        {"accept": null}
    ]);
    assert_eq!(kinds(&table(&input, &[("in", not)])), [ObstacleKind::Discards], "of IPv6 that says nothing");
}

#[test]
fn sets_maps_and_several_keys_at_once_are_looked_up() {
    let input = [chain("in", "input", "drop")];
    let set =
        |elements: Value| json!({"set": {"family": "inet", "table": "f", "name": "s", "elem": elements}});
    let looked_up = json!([matches(meta("iifname"), "==", json!("@s")), {"accept": null}]);
    let both = [input[0].clone(), set(json!(["lan", {"elem": {"val": "wan", "expires": 9}}]))];
    assert_eq!(table(&both, &[("in", looked_up.clone())]), []);
    let one = [input[0].clone(), set(json!(["la*"]))];
    assert_eq!(
        place(&table(&one, &[("in", looked_up)])),
        "nft, table inet f, chain in: policy drop (from wan)"
    );
    let map = json!({"map": {"family": "inet", "table": "f", "name": "m", "map": "verdict", "elem": [
        ["*", {"drop": null}],
        [{"concat": ["lan", "tcp"]}, {"goto": {"target": "fine"}}],
        [{"concat": ["lan", "udp"]}, {"accept": null}]
    ]}});
    let keys = json!({"concat": [meta("iifname"), meta("l4proto")]});
    let by_map = json!([{"vmap": {"key": keys, "data": "@m"}}]);
    let rules = [("in", by_map), ("fine", json!([{"accept": null}]))];
    let found = table(&[chain("in", "input", "accept"), map], &rules);
    assert_eq!(
        place(&found),
        "nft, table inet f, chain in: rule 4 of chain in, which discards by a map (from wan)"
    );
    let mark = json!({"&": [meta("mark"), 0x3000_0000]});
    let by_mark = |key| json!([{"vmap": {"key": key, "data": {"set": [[0x2000_0000, {"accept": null}]]}}}]);
    assert_eq!(table(&input, &[("in", by_mark(mark))]), []);
    assert_eq!(
        kinds(&table(&input, &[("in", by_mark(meta("mark")))])),
        [ObstacleKind::Discards],
        "other bits may be set"
    );
}

#[test]
fn tables_with_names_of_iptables_are_read_once() {
    let object = |kind: &str, more: Value| {
        let mut object = json!({"family": "ip", "table": "filter"});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ kind: object })
    };
    let base = [
        json!({"table": {"family": "ip", "name": "filter"}}),
        object("chain", json!({"name": "INPUT", "hook": "input", "policy": "drop"})),
    ];
    let rule = |expr: Value| object("rule", json!({"chain": "INPUT", "handle": 1, "expr": expr}));
    let its =
        rule(json!([{"xt": {"type": "match", "name": "conntrack"}}, {"counter": null}, {"accept": null}]));
    let native = rule(json!([matches(meta("iifname"), "==", json!({"set": ["lan"]})), {"accept": null}]));
    let of_iptables = [&base[..], &[its]].concat();
    assert_eq!(ruleset(&of_iptables), [], "iptables-save shows it");
    let native = [&base[..], &[native]].concat();
    assert_eq!(place(&ruleset(&native)), "nft, table ip filter, chain INPUT: policy drop (from wan)");
    let listed = json!({ "nftables": of_iptables });
    let view = View { mark: Mark::DEFAULT, steered: &steered(&[LAN]), config: None };
    let alone = nft::Ruleset::new(&listed, BTreeSet::new()).obstacles(view);
    assert_eq!(kinds(&alone), [ObstacleKind::Discards], "nobody else reads it");
}

#[test]
fn while_nobody_knows_what_is_steered_an_interface_that_input_trusts_is_enough() {
    let among = Steered::Among(steered(&[LAN, WAN, STRANGER, LOOPBACK]));
    let found = |steered: &Steered, lines: &str| {
        let text = format!("*filter\n{lines}COMMIT\n");
        let view = View { mark: Mark::DEFAULT, steered: steered.packets(), config: None };
        sift(steered, iptables::obstacles(&text, Iptables::Iptables, Family::V4, view, |_| true))
    };
    let trusting = ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -i lan -j ACCEPT\n";
    let (said, rest) = found(&among, trusting);
    assert!(said.is_some_and(|said| said.contains("from lan, and not from wan")));
    assert_eq!(rest, []);
    let (said, rest) = found(&Steered::Known(steered(&[LAN, WAN])), trusting);
    assert_eq!(
        (said, place(&rest)),
        (None, "iptables, table filter, chain INPUT: policy DROP (from wan)".into())
    );
    let (said, rest) = found(&among, ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n");
    assert_eq!(
        (said, kinds(&rest)),
        (None, vec![ObstacleKind::Discards]),
        "nothing arrives by lo but one's own"
    );
    let (said, rest) = found(&among, ":INPUT ACCEPT [0:0]\n-A INPUT -i lan -j DROP\n");
    let by_name = "iptables, table filter, chain INPUT: -A INPUT -i lan -j DROP (from lan)";
    assert_eq!((said, place(&rest)), (None, by_name.into()));
}

#[test]
fn the_mark_of_own_packets_is_taken_away_where_this_host_s_are_taken() {
    let own = |interfaces: &[&str], save: &str| {
        let text = format!("*mangle\n:OUTPUT ACCEPT [0:0]\n{save}COMMIT\n");
        let view = View { mark: Mark::DEFAULT, steered: &steered(interfaces), config: None };
        iptables::obstacles(&text, Iptables::Iptables, Family::V4, view, |_| true)
    };
    let restore = "-A OUTPUT -j CONNMARK --restore-mark\n";
    let found = own(&[LOOPBACK], restore);
    assert_eq!(kinds(&found), [ObstacleKind::UnmarksOwn]);
    assert_eq!(found[0].cure, "iptables -t mangle -I OUTPUT -m mark --mark 0x30000000/0x30000000 -j ACCEPT");
    assert_eq!(own(&[LAN], restore), []);
    let skipped = format!("-A OUTPUT -m mark --mark 0x30000000/0x30000000 -j ACCEPT\n{restore}");
    assert_eq!(own(&[LOOPBACK], &skipped), []);
}

#[test]
fn nat_that_sends_elsewhere_what_a_rule_selects_is_found_with_its_cure() {
    let config = tproxy::config::parse(
        "tproxy.toml".as_ref(),
        b"[[rules]]\nscope = 'forwarded'\ninterfaces = ['lan']\nto = ['10.0.0.0/8']\nports = [53, 80]\naction = 'direct'\n\
         [[rules]]\nscope = 'outbound'\nports = [443]\naction = 'direct'\n",
    )
    .unwrap();
    let packets = steered(&[LAN, "lo"]);
    let view = View { mark: Mark::DEFAULT, steered: &packets, config: Some(&config) };
    for (chain, rule, expected) in [
        (
            "PREROUTING",
            "-i lan -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353",
            Some(ObstacleKind::Redirects),
        ),
        (
            "PREROUTING",
            "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080",
            Some(ObstacleKind::Redirects),
        ),
        (
            "PREROUTING",
            "-p tcp -m multiport --dports 22,79:81 -j DNAT --to-destination 10.0.0.2",
            Some(ObstacleKind::Redirects),
        ),
        (
            "PREROUTING",
            "-d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080",
            None,
        ),
        ("PREROUTING", "-p tcp -m tcp --dport 443 -j REDIRECT --to-ports 1", None),
        ("PREROUTING", "-i wan -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 1", None),
        ("PREROUTING", "-m addrtype --dst-type LOCAL -j DNAT --to-destination 10.0.0.2", None),
        (
            "OUTPUT",
            "-d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.2:6443",
            Some(ObstacleKind::RedirectsOwn),
        ),
        ("OUTPUT", "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 1", None),
        ("POSTROUTING", "-j MASQUERADE", None),
    ] {
        let text = format!("*nat\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n");
        let found = iptables::obstacles(&text, Iptables::Iptables, Family::V4, view, |_| true);
        assert_eq!(kinds(&found), expected.into_iter().collect::<Vec<_>>(), "{rule}");
    }
    let accepted = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m mark --mark 0x20000000/0x30000000 -j ACCEPT\n\
                    -A PREROUTING -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n";
    assert_eq!(iptables::obstacles(accepted, Iptables::Iptables, Family::V4, view, |_| true), []);
}
