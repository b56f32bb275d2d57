//! `tproxy doctor`: what it finds is there, what it says that cures it does, and its probe goes the whole way.

use serde_json::Value;

use crate::{reload::File, support::*};

/// What doctor says in a namespace, and its exit code.
pub(crate) struct Said {
    code: Option<i32>,
    report: Value,
}

#[track_caller]
pub(crate) fn doctor(namespace: &Namespace, args: &str) -> Said {
    let ended = tproxy_output(namespace, &format!("doctor --json {args}"));
    let report = serde_json::from_str(&ended.said).unwrap_or_else(|error| panic!("{error}: {}", ended.said));
    Said { code: ended.status.code(), report }
}

impl Said {
    pub(crate) fn findings(&self, check: &str, level: &str) -> Vec<&Value> {
        let all = self.report["findings"].as_array().expect("findings");
        all.iter().filter(|finding| finding["check"] == check && finding["level"] == level).collect()
    }

    /// The one finding of a check that is not ok: what cures it.
    #[track_caller]
    pub(crate) fn cure(&self, check: &str, level: &str) -> String {
        let found = self.findings(check, level);
        assert_eq!(found.len(), 1, "{check}: {:#}", self.report);
        assert!(found[0]["breaks"].is_string(), "{:#}", found[0]);
        found[0]["cure"].as_str().expect("a cure").to_owned()
    }

    #[track_caller]
    pub(crate) fn assert_ok(&self, check: &str) {
        assert!(!self.findings(check, "ok").is_empty(), "{check}: {:#}", self.report);
        assert!(self.findings(check, "warn").is_empty(), "{check}: {:#}", self.report);
        assert!(self.findings(check, "fail").is_empty(), "{check}: {:#}", self.report);
    }
}

/// The command in a cure that goes on to say when.
fn command(cure: &str) -> &str {
    cure.split(" if it is").next().expect("always one")
}

#[test]
fn what_is_in_the_way_of_routing_is_found_and_cured_by_the_command_given() {
    let host = Namespace::new("sick").unwrap();
    for (disease, check, level) in [
        ("ip rule add pref 50 fwmark 0x20000000/0x20000000 lookup 7", "mark", "fail"),
        ("ip -6 rule add pref 51 fwmark 0x30000000 lookup 7", "mark", "fail"),
        ("ip route add local default dev lo table 29808", "table", "fail"),
        ("ip link set lo down", "lo", "fail"),
        ("sysctl -qw net.ipv4.ip_forward=0", "forwarding 4", "warn"),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding 6", "warn"),
        ("sysctl -qw net.core.somaxconn=64", "backlog", "warn"),
    ] {
        host.run(disease).unwrap();
        let said = doctor(&host, "");
        assert_eq!(said.code, Some(if level == "fail" { 1 } else { said.code_of_warnings() }), "{disease}");
        host.run(command(&said.cure(check, level))).unwrap();
        doctor(&host, "").assert_ok(check);
    }
}

impl Said {
    /// A fresh namespace has both: neither forwarding nor enough descriptors need be there.
    fn code_of_warnings(&self) -> i32 {
        assert_eq!(self.report["worst"], "warn", "{:#}", self.report);
        3
    }
}

#[test]
fn a_rule_that_is_asked_before_ours_takes_steered_packets_until_ours_come_first() {
    let world = World::new();
    let public = Family::V4.public();
    world
        .net
        .gateway
        .ip("rule add pref 60 iif lan lookup 77\nroute add default via 10.2.0.2 table 77")
        .unwrap();
    let cure = doctor(&world.net.gateway, "").cure("rules", "warn");
    let flags = cure.strip_prefix("tproxy run ").and_then(|rest| rest.strip_suffix(" …")).expect(&cure);
    let rule = format!("{FORWARDED} --port 80 --action respond=taken");
    {
        let _too_late = world.tproxy(&rule);
        assert!(!world.curl(public, 80).body.contains("taken"));
    }
    let tproxy = world.tproxy(&format!("{rule} {flags}"));
    world.curl(public, 80).assert_body("taken", &*tproxy);
}

#[test]
fn a_firewall_that_drops_steered_packets_is_found_and_opened_by_the_command_given() {
    for (set_up, family) in [
        ("nft -f -", Family::V4),
        ("iptables -P INPUT DROP", Family::V4),
        ("ip6tables -P INPUT DROP", Family::V6),
    ] {
        let world = World::new();
        let gateway = &world.net.gateway;
        doctor(gateway, "").assert_ok("firewall");
        gateway
            .feed(set_up, "table inet f { chain in { type filter hook input priority 0; policy drop; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }")
            .unwrap();
        if family == Family::V6 {
            gateway.run("ip6tables -A INPUT -p icmpv6 -j ACCEPT").unwrap();
        }
        let tproxy = world.tproxy(&format!("{FORWARDED} --proto tcp --action respond=taken"));
        let cut_off =
            connect_within(&world.net.client, (family.public(), 81), std::time::Duration::from_secs(1));
        assert!(cut_off.is_err(), "{set_up}: the firewall should have dropped it");
        gateway.run(&doctor(gateway, "").cure("firewall", "warn")).unwrap();
        doctor(gateway, "").assert_ok("firewall");
        world.curl(family.public(), 81).assert_body("taken", &*tproxy);
    }
}

#[test]
fn a_killed_instance_is_found_and_cleaned_up_and_a_living_one_is_no_trouble() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
    let beside = doctor(gateway, "");
    for check in ["instances", "mark", "rules", "tc"] {
        beside.assert_ok(check);
    }
    assert!(beside.report.to_string().contains(&format!("pid {}", tproxy.pid())), "{:#}", beside.report);
    tproxy.kill9();
    let said = doctor(gateway, "");
    assert_eq!(said.cure("instances", "warn"), "tproxy cleanup");
    said.assert_ok("mark");
    assert!(tproxy_output(gateway, "cleanup").status.success());
    doctor(gateway, "").assert_ok("instances");
}

#[test]
fn what_a_configuration_needs_is_looked_at() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let file = File::new("");
    let text = "mark = \"0x40000000/0xc0000000\"\n[[rules]]\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\n\
                action = \"direct\"\n[[rules]]\nscope = \"outbound\"\ncgroup = [\"/no-such-one\"]\naction = \"direct\"\n";
    let doctor = |text: &str| {
        file.replace(text);
        doctor(gateway, &file.flags())
    };
    let said = doctor(text);
    said.assert_ok("configuration");
    said.assert_ok("interfaces");
    assert!(said.cure("cgroups", "warn").contains("mkdir /no-such-one"), "{:#}", said.report);
    let nameless = doctor(&text.replace("/no-such-one", "container:0123"));
    assert!(nameless.cure("cgroups", "fail").contains("container:0123"), "{:#}", nameless.report);
    assert!(said.report.to_string().contains("0x40000000/0xc0000000"), "{:#}", said.report);
    assert!(doctor(&text.replace("lan", "nowhere")).cure("interfaces", "warn").contains("ip link"));
    let wrong = doctor(&text.replace("direct", "dorp"));
    assert_eq!(wrong.findings("configuration", "fail").len(), 2, "{:#}", wrong.report);
    gateway.ip("link set lan down").unwrap();
    gateway.run(&doctor(text).cure("interfaces", "warn")).unwrap();
    doctor(text).assert_ok("interfaces");
}

#[test]
fn what_a_running_instance_misses_is_said() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=hello"));
    doctor(gateway, "").assert_ok("instances");
    // With `lo` go the routes by it, and they cannot be put back before it is there.
    gateway.ip("link set lo down").unwrap();
    tproxy.wait_line(&["it is tried again until it succeeds"], PATIENCE).unwrap();
    let said = doctor(gateway, "");
    let found = said.findings("instances", "warn");
    let lacks = format!("pid {} lacks", tproxy.pid());
    assert!(found.iter().any(|finding| finding["found"].to_string().contains(&lacks)), "{:#}", said.report);
    gateway.ip("link set lo up").unwrap();
    tproxy.wait_line(&["what was missing is in place"], PATIENCE).unwrap();
    doctor(gateway, "").assert_ok("instances");
}

#[test]
fn that_ipv6_is_off_is_said_and_no_reason_to_warn() {
    let host = Namespace::new("four").unwrap();
    let found = |word: &str| {
        let said = doctor(&host, "");
        said.assert_ok("IPv6");
        let found = said.findings("IPv6", "ok")[0]["found"].to_string();
        assert!(found.contains(word), "{word}: {found}");
    };
    found("on");
    host.set_sysctl("net.ipv6.conf.lo.disable_ipv6", "1").unwrap();
    found("off");
}

#[test]
fn without_privileges_it_says_which_are_missing() {
    let host = Namespace::new("weak").unwrap();
    let line = format!("setpriv --bounding-set=-net_admin,-sys_admin,-bpf {} doctor", binary().display());
    let mut proc = host.start(&line).unwrap();
    assert_eq!(proc.wait(PATIENCE).unwrap().code(), Some(1), "{proc}");
    let said = proc.lines().join("\n");
    assert!(said.contains("fail capabilities  missing: CAP_NET_ADMIN, CAP_BPF"), "{said}");
    assert!(said.contains("cure: sudo tproxy"), "{said}");
    for check in ["programs", "instances", "firewall", "tc"] {
        assert!(said.contains(&format!("warn {check:<14}cannot tell: only root sees it")), "{check}: {said}");
    }
}

#[test]
fn the_probe_takes_the_whole_path_with_both_protocols_and_families() {
    let host = Namespace::new("probe").unwrap();
    let said = doctor(&host, "--probe");
    let probed: Vec<_> =
        said.findings("probe", "ok").iter().map(|finding| finding["found"].to_string()).collect();
    assert_eq!(probed.len(), 4, "{:#}", said.report);
    for what in ["TCP over IPv4", "TCP over IPv6", "UDP over IPv4", "UDP over IPv6"] {
        assert!(probed.iter().any(|found| found.contains(what)), "{what}: {probed:?}");
    }
}
