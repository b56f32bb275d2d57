use std::net::IpAddr;

use proptest::prelude::*;
use tproxy_common::{
    flow::{Flow, Tuple},
    policy::decide,
    verdict::{Reason, Verdict},
};

use super::*;
use crate::config::Source;

fn rule() -> Rule {
    Rule {
        name: "r".into(),
        scope: Scope::Forwarded,
        interfaces: vec![],
        from: vec![],
        to: vec![],
        except: vec![],
        ports: vec![],
        uids: vec![],
        cgroups: vec![],
        action: Action::Direct,
        source: Source::Host,
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn flow(src: &str, dst: &str, port: u16) -> Flow {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
    let tuple = Tuple { src: addr(src), dst: addr(dst), sport: [1, 1], dport: port.to_be_bytes() };
    Flow { tuple, ifindex: 7, uid: 1000 }
}

fn verdict(rules: &[Rule], flow: &Flow) -> Verdict {
    let compiled = Compiled::new(rules, |_| None, &[]);
    let host = Addr::from(IpAddr::from([192, 0, 2, 1]));
    let lookups =
        HostLookups { compiled: &compiled, is_host_address: &|addr| *addr == host, sender_cgroups: &[] };
    decide(Scope::Forwarded, flow, &lookups)
}

#[test]
fn everything_matches_both_families_and_never_the_host() {
    let everything = [Rule { to: nets(&["0.0.0.0/0", "::/0"]), ..rule() }];
    assert_eq!(verdict(&everything, &flow("10.0.0.1", "8.8.8.8", 80)), Verdict::Steer(0));
    assert_eq!(verdict(&everything, &flow("2001:db8::1", "2001:db8::2", 80)), Verdict::Steer(0));
    assert_eq!(verdict(&everything, &flow("10.0.0.1", "192.0.2.1", 22)), Verdict::Pass(Reason::HostAddress));
    for special in ["224.0.0.251", "255.255.255.255", "169.254.0.1"] {
        assert_eq!(
            verdict(&everything, &flow("10.0.0.1", special, 80)),
            Verdict::Pass(Reason::NeverIntercepted)
        );
    }
}

#[test]
fn the_v6_root_does_not_match_v4() {
    let v6_only = [Rule { to: nets(&["::/0"]), ..rule() }];
    assert_eq!(verdict(&v6_only, &flow("10.0.0.1", "8.8.8.8", 80)), Verdict::Pass(Reason::NoRule));
}

#[test]
fn an_exception_holds_for_longer_prefixes_too() {
    let rules = [Rule { to: nets(&["10.0.0.0/8", "10.1.1.0/24"]), except: nets(&["10.1.0.0/16"]), ..rule() }];
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "10.2.0.1", 80)), Verdict::Steer(0));
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "10.1.1.1", 80)), Verdict::Pass(Reason::NoRule));
}

#[test]
fn the_first_match_wins() {
    let rules = [
        Rule { ports: vec![443..=443], action: Action::Pass, ..rule() },
        Rule { to: nets(&["8.0.0.0/8"]), action: Action::Drop, ..rule() },
        Rule { action: Action::Reject, ..rule() },
    ];
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "8.8.8.8", 443)), Verdict::Pass(Reason::RulePass));
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "8.8.8.8", 80)), Verdict::Drop);
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "9.9.9.9", 80)), Verdict::Reject);
}

#[test]
fn a_rule_whose_interface_is_absent_matches_nothing() {
    let rules = [rule()];
    let flow = flow("10.0.0.1", "8.8.8.8", 80);
    let on = |interfaces: &[u32]| {
        let compiled = Compiled::new(&rules, |_| Some(interfaces.iter().copied().collect()), &[]);
        let lookups = HostLookups { compiled: &compiled, is_host_address: &|_| false, sender_cgroups: &[] };
        decide(Scope::Forwarded, &flow, &lookups)
    };
    assert_eq!(on(&[7]), Verdict::Steer(0));
    assert_eq!(on(&[8]), Verdict::Pass(Reason::NoRule));
    assert_eq!(on(&[]), Verdict::Pass(Reason::NoRule));
}

/// What the rules mean, said once more without tables.
fn by_walking_the_rules(rules: &[Rule], flow: &Flow) -> Option<u32> {
    let dst = IpAddr::from(flow.tuple.dst);
    let src = IpAddr::from(flow.tuple.src);
    let port = u16::from_be_bytes(flow.tuple.dport);
    let within = |nets: &[IpNet], addr: &IpAddr| nets.iter().any(|net| net.contains(addr));
    rules
        .iter()
        .position(|rule| {
            rule.scope == Scope::Outbound
                && (rule.from.is_empty() || within(&rule.from, &src))
                && (rule.to.is_empty() || within(&rule.to, &dst))
                && !within(&rule.except, &dst)
                && (rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(&port)))
                && (rule.uids.is_empty() || rule.uids.contains(&flow.uid))
        })
        .map(|index| index as u32)
}

/// Few addresses, so that prefixes nest and flows hit them.
fn net() -> impl Strategy<Value = IpNet> {
    let v4 = (0u8..4, 0u8..4, prop::sample::select(vec![0u8, 6, 7, 8, 16, 30, 32]))
        .prop_map(|(a, d, len)| IpNet::new(IpAddr::from([a + 8, 0, 0, d]), len).unwrap());
    let v6 = (0u16..3, prop::sample::select(vec![0u8, 15, 16, 127, 128]))
        .prop_map(|(a, len)| IpNet::new(IpAddr::from([0x2000 + a, 0, 0, 0, 0, 0, 0, a]), len).unwrap());
    prop_oneof![v4, v6]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let list = || prop::collection::vec(net(), 0..3);
    let ports = prop::collection::vec((0u16..6, 0u16..3).prop_map(|(from, more)| from..=from + more), 0..3);
    let scope = prop_oneof![4 => Just(Scope::Outbound), 1 => Just(Scope::Forwarded)];
    (scope, list(), list(), list(), ports, prop::collection::vec(0u32..3, 0..2)).prop_map(
        |(scope, from, to, except, ports, uids)| Rule { scope, from, to, except, ports, uids, ..rule() },
    )
}

proptest! {
    #[test]
    fn tables_say_what_the_rules_say(
        rules in prop::collection::vec(any_rule(), 0..80),
        flows in prop::collection::vec((net(), net(), 1u16..8, 0u32..3), 1..30),
    ) {
        let compiled = Compiled::new(&rules, |_| None, &[]);
        let lookups = HostLookups { compiled: &compiled, is_host_address: &|_| false, sender_cgroups: &[] };
        for (src, dst, port, uid) in flows {
            let tuple = Tuple { src: src.addr().into(), dst: dst.addr().into(), sport: [9, 9], dport: port.to_be_bytes() };
            let flow = Flow { tuple, ifindex: 1, uid };
            let expected = by_walking_the_rules(&rules, &flow).map_or(Verdict::Pass(Reason::NoRule), Verdict::Steer);
            prop_assert_eq!(decide(Scope::Outbound, &flow, &lookups), expected);
        }
    }
}
