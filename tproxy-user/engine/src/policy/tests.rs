use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tproxy_common::{
    flow::{Flow, Protocol, Tuple},
    policy::{decide, may_be_reply, may_select},
    verdict::{Reason, Verdict},
};

use super::{
    generate::{INTERFACES, UIDS, address, any_rule, interfaces, port, protocol, rule, selecting},
    *,
};
use crate::config::{Listed, NamedSet, Selector};

fn nets(texts: &[&str]) -> Listed<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>().into()
}

fn to(named: &[&str], action: Action) -> Rule {
    selecting(|of| of.to = nets(named), action)
}

fn flow(src: &str, dst: &str, port: u16) -> Flow {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
    let tuple = Tuple { src: addr(src), dst: addr(dst), sport: [1, 1], dport: port.to_be_bytes() };
    Flow { protocol: Protocol::Tcp, tuple, ifindex: 7, uid: 1000 }
}

fn verdict(rules: &[Rule], flow: &Flow) -> Verdict {
    let compiled = Compiled::new(rules, |_| None, &[]);
    let host = Addr::from(IpAddr::from([192, 0, 2, 1]));
    let lookups = HostLookups {
        compiled: &compiled,
        is_host_address: &|addr| *addr == host,
        is_publishing: false,
        sender_cgroups: &[],
    };
    decide(Scope::Forwarded, flow, &lookups)
}

#[test]
fn everything_matches_both_families_and_never_the_host() {
    let everything = [to(&["0.0.0.0/0", "::/0"], Action::Direct)];
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
fn of_a_link_only_hosts_can_be_selected_and_only_by_rules_that_name_them() {
    let metadata = "169.254.169.254";
    let never = Verdict::Pass(Reason::NeverIntercepted);
    let but = |named: &[&str], except: &[&str]| {
        [selecting(|of| (of.to, of.except) = (nets(named), nets(except)), Action::Direct)]
    };
    let to = |named: &[&str]| but(named, &[]);
    for link in ["0.0.0.0/0", "169.254.0.0/16", "169.254.169.0/24", "169.254.169.254/31"] {
        assert_eq!(verdict(&to(&[link]), &flow("10.0.0.1", metadata, 80)), never, "{link}");
    }
    assert_eq!(verdict(&[rule()], &flow("10.0.0.1", metadata, 80)), never, "any");
    let named = to(&["10.0.0.0/8", "169.254.169.254/32"]);
    assert_eq!(verdict(&named, &flow("10.0.0.1", metadata, 80)), Verdict::Steer(0));
    assert_eq!(verdict(&named, &flow("169.254.0.9", metadata, 80)), Verdict::Steer(0));
    assert_eq!(verdict(&named, &flow("10.0.0.1", "169.254.169.253", 80)), never);
    assert_eq!(verdict(&named, &flow("169.254.0.9", "10.0.0.1", 80)), Verdict::Steer(0), "IPv4 is forwarded");
    let beyond = flow("fe80::1", "2001:db8::1", 80);
    let by = |action| verdict(&[selecting(|_| {}, action)], &beyond);
    assert_eq!(by(Action::Direct), never, "nobody beyond the link can answer");
    assert_eq!(by(Action::Respond("no".into())), Verdict::Unreadable);
    assert_eq!((by(Action::Drop), by(Action::Reject)), (Verdict::Drop, Verdict::Reject));
    assert_eq!(
        verdict(&but(&["169.254.169.254/32"], &["169.254.0.0/16"]), &flow("10.0.0.1", metadata, 80)),
        never
    );
    let neighbour = to(&["fe80::7/128"]);
    assert_eq!(verdict(&neighbour, &flow("fe80::1", "fe80::7", 80)), Verdict::Steer(0));
    assert_eq!(verdict(&neighbour, &flow("fe80::1", "fe80::8", 80)), never);
    // The first that names it wins, whatever comes before for everything.
    let [named] = to(&["169.254.169.254/32"]);
    let rules = [selecting(|_| {}, Action::Drop), named];
    assert_eq!(verdict(&rules, &flow("10.0.0.1", metadata, 80)), Verdict::Steer(1));
}

#[test]
fn dhcp_is_left_alone_but_by_rules_that_mean_it() {
    let everything = |action, sport: u16, dport, scope| {
        let rule = selecting(|of| of.reach.scope = scope, action);
        let compiled = Compiled::new(&[rule], |_| None, &[]);
        let lookups = HostLookups {
            compiled: &compiled,
            is_host_address: &|_| false,
            is_publishing: false,
            sender_cgroups: &[],
        };
        let mut datagram = Flow { protocol: Protocol::Udp, ..flow("10.0.0.1", "192.0.2.67", dport) };
        datagram.tuple.sport = sport.to_be_bytes();
        decide(scope, &datagram, &lookups)
    };
    let never = Verdict::Pass(Reason::NeverIntercepted);
    let respond = || Action::Respond("no".into());
    for (action, verdict) in
        [(Action::Direct, never), (Action::Drop, Verdict::Drop), (respond(), Verdict::Steer(0))]
    {
        assert_eq!(everything(action, 68, 67, Scope::Forwarded), verdict);
    }
    assert_eq!(everything(Action::Drop, 68, 67, Scope::Outbound), never, "the lease of this host");
    assert_eq!(everything(Action::Drop, 4068, 67, Scope::Outbound), Verdict::Drop, "a way out by that port");
    assert_eq!(everything(Action::Direct, 4068, 67, Scope::Forwarded), Verdict::Steer(0));
}

#[test]
fn what_is_reserved_for_the_future_is_forwarded_today() {
    for reserved in ["240.0.0.1", "255.255.255.254"] {
        assert_eq!(verdict(&[rule()], &flow("10.0.0.1", reserved, 80)), Verdict::Steer(0), "{reserved}");
    }
}

#[test]
fn the_v6_root_does_not_match_v4() {
    let v6_only = [to(&["::/0"], Action::Direct)];
    assert_eq!(verdict(&v6_only, &flow("10.0.0.1", "8.8.8.8", 80)), Verdict::Pass(Reason::NoRule));
}

#[test]
fn an_exception_holds_for_longer_prefixes_too() {
    let (named, excepted) = (nets(&["10.0.0.0/8", "10.1.1.0/24"]), nets(&["10.1.0.0/16"]));
    let rules = [selecting(|of| (of.to, of.except) = (named, excepted), Action::Direct)];
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "10.2.0.1", 80)), Verdict::Steer(0));
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "10.1.1.1", 80)), Verdict::Pass(Reason::NoRule));
}

#[test]
fn the_first_match_wins() {
    let rules = [
        selecting(|of| of.ports = vec![443..=443].into(), Action::Pass),
        to(&["8.0.0.0/8"], Action::Drop),
        selecting(|_| {}, Action::Reject),
    ];
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "8.8.8.8", 443)), Verdict::Pass(Reason::RulePass));
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "8.8.8.8", 80)), Verdict::Drop);
    assert_eq!(verdict(&rules, &flow("1.1.1.1", "9.9.9.9", 80)), Verdict::Reject);
}

#[test]
fn scope_inbound_is_about_the_hosts_own_addresses_and_not_its_own_clients() {
    let rules = [selecting(|of| of.reach.scope = Scope::Inbound, Action::Direct)];
    let compiled = Compiled::new(&rules, |_| None, &[]);
    let hosts = ["192.0.2.1", "127.0.0.1"].map(|text| Addr::from(text.parse::<IpAddr>().unwrap()));
    let lookups = HostLookups {
        compiled: &compiled,
        is_host_address: &|addr| hosts.contains(addr),
        is_publishing: false,
        sender_cgroups: &[],
    };
    let verdict = |src, dst| decide(Scope::Inbound, &flow(src, dst, 80), &lookups);
    assert_eq!(verdict("198.51.100.1", "192.0.2.1"), Verdict::Steer(0));
    assert_eq!(verdict("198.51.100.1", "8.8.8.8"), Verdict::Pass(Reason::HostAddress));
    assert_eq!(verdict("192.0.2.1", "192.0.2.1"), Verdict::Pass(Reason::HostAddress));
    assert_eq!(verdict("127.0.0.1", "127.0.0.1"), Verdict::Pass(Reason::HostAddress));
}

#[test]
fn the_deepest_cgroup_of_the_sender_decides_with_the_rules_of_those_above() {
    let outbound = || Selector::from(Scope::Outbound);
    let (https, of_above) = (vec![443..=443].into(), vec!["above".into()]);
    let rules = [
        Rule::new("0", Selector { ports: https, cgroups: of_above, ..outbound() }, Action::Drop),
        Rule::new("1", Selector { cgroups: vec!["above/below".into()], ..outbound() }, Action::Reject),
        Rule::new(
            "2",
            Selector { uids: vec![1000], ..outbound() },
            Treatment { accept: Accept::AtOnce, ..Action::Direct.into() },
        ),
    ];
    let [above, below, elsewhere] = [&[1][..], &[1, 2], &[3]].map(Cgroup::of);
    let compiled = Compiled::new(&rules, |_| None, &[vec![above.clone()], vec![below.clone()], vec![]]);
    let verdict = |sender: &[Cgroup], port| {
        let lookups = HostLookups {
            compiled: &compiled,
            is_host_address: &|_| false,
            is_publishing: false,
            sender_cgroups: sender,
        };
        decide(Scope::Outbound, &flow("10.0.0.1", "8.8.8.8", port), &lookups)
    };
    assert_eq!(verdict(&[below.clone(), above.clone()], 443), Verdict::Drop, "a rule of the cgroup above");
    assert_eq!(verdict(&[below, above.clone()], 80), Verdict::Reject);
    assert_eq!(verdict(&[above], 80), Verdict::Steer(2), "not in the cgroup below");
    assert_eq!(verdict(&[elsewhere], 443), Verdict::Steer(2));
    assert_eq!(verdict(&[], 443), Verdict::Steer(2), "no sender known");
}

#[test]
fn a_rule_whose_interface_is_absent_matches_nothing() {
    let rules = [rule()];
    let flow = flow("10.0.0.1", "8.8.8.8", 80);
    let on = |interfaces: &[u32]| {
        let compiled = Compiled::new(&rules, |_| Some(interfaces.iter().copied().collect()), &[]);
        let lookups = HostLookups {
            compiled: &compiled,
            is_host_address: &|_| false,
            is_publishing: false,
            sender_cgroups: &[],
        };
        decide(Scope::Forwarded, &flow, &lookups)
    };
    assert_eq!(on(&[7]), Verdict::Steer(0));
    assert_eq!(on(&[8]), Verdict::Pass(Reason::NoRule));
    assert_eq!(on(&[]), Verdict::Pass(Reason::NoRule));
}

#[test]
fn a_fragment_without_ports_waits_for_them_only_where_a_rule_could_ask() {
    let (from, to) = (nets(&["10.0.0.0/8"]), nets(&["8.0.0.0/8"]));
    let rules =
        [selecting(|of| (of.from, of.to, of.ports) = (from, to, vec![53..=53].into()), Action::Direct)];
    let compiled = Compiled::new(&rules, |_| None, &[]);
    let host = Addr::from(IpAddr::from([10, 0, 0, 254]));
    let lookups = HostLookups {
        compiled: &compiled,
        is_host_address: &|addr| *addr == host,
        is_publishing: false,
        sender_cgroups: &[],
    };
    let fragment = |src, dst| Flow { protocol: Protocol::Udp, ..flow(src, dst, 0) };
    let selects = |src, dst| may_select(&fragment(src, dst), &lookups);
    assert!(selects("10.0.0.1", "8.8.8.8"), "its port may be 53");
    assert!(!selects("10.0.0.1", "9.9.9.9"));
    assert!(!selects("192.0.2.7", "8.8.8.8"));
    assert!(selects("10.0.0.254", "8.8.8.8"), "feigned: a rule may drop it");
    assert!(!selects("10.0.0.1", "10.0.0.254"), "for the host");
    assert!(!selects("10.0.0.1", "224.0.0.251"));
    let replies = |src, dst| may_be_reply(&fragment(src, dst), &lookups);
    assert!(replies("203.0.113.9", "10.0.0.1"), "an upstream socket may bear the client's address");
    assert!(!replies("203.0.113.9", "192.0.2.7"));
}

/// What the rules mean, said once more without tables.
fn by_walking_the_rules(rules: &[Rule], hosts: &[IpAddr], scope: Scope, flow: &Flow) -> Verdict {
    let (src, dst) = (IpAddr::from(flow.tuple.src), IpAddr::from(flow.tuple.dst));
    let port = u16::from_be_bytes(flow.tuple.dport);
    let dhcp = if dst.is_ipv4() { [67, 68] } else { [546, 547] };
    let both = [port, u16::from_be_bytes(flow.tuple.sport)];
    let is_dhcp = flow.protocol == Protocol::Udp && both.iter().all(|port| dhcp.contains(port));
    if port == 0 || is_dhcp && scope != Scope::Forwarded {
        return Verdict::Pass(Reason::NeverIntercepted);
    }
    let right_side = match scope {
        Scope::Inbound => hosts.contains(&dst) && !hosts.contains(&src),
        Scope::Forwarded | Scope::Outbound => !hosts.contains(&dst),
    };
    let is_feigned = scope == Scope::Forwarded && hosts.contains(&src);
    if !right_side {
        return Verdict::Pass(Reason::HostAddress);
    }
    let within = |nets: &Listed<IpNet>, addr: &IpAddr| nets.iter().any(|net| net.contains(addr));
    let first = rules.iter().position(|rule| {
        let Selector { reach, from, to, except, ports, uids, cgroups: _ } = &rule.selector;
        reach.scope == scope
            && reach.protocols.include(flow.protocol)
            && (from.is_any() || within(from, &src))
            && (to.is_any() || within(to, &dst))
            && !within(except, &dst)
            && (ports.is_any() || ports.iter().any(|range| range.contains(&port)))
            && (uids.is_empty() || uids.contains(&flow.uid))
            && (reach.interfaces.is_empty() || reach.interfaces.contains(&flow.ifindex.to_string()))
    });
    match first.map(|index| (index as u32, &rules[index].treatment.action)) {
        None if is_feigned => Verdict::Pass(Reason::HostAddress),
        None => Verdict::Pass(Reason::NoRule),
        Some((_, Action::Pass)) => Verdict::Pass(Reason::RulePass),
        Some((_, Action::Reject)) if !is_feigned => Verdict::Reject,
        Some((_, Action::Reject | Action::Drop)) => Verdict::Drop,
        Some((_, Action::Direct)) if is_feigned => Verdict::Pass(Reason::HostAddress),
        Some((_, Action::Direct)) if is_dhcp => Verdict::Pass(Reason::NeverIntercepted),
        Some(_) if is_feigned => Verdict::Unreadable,
        Some((index, _)) => Verdict::Steer(index),
    }
}

proptest! {
    #[test]
    fn tables_say_what_the_rules_say(
        rules in prop::collection::vec(any_rule(), 0..80),
        hosts in prop::collection::vec(address(), 0..4),
        flows in prop::collection::vec((protocol(), address(), address(), port(), UIDS, INTERFACES), 1..30),
    ) {
        let compiled = Compiled::new(&rules, interfaces, &[]);
        let is_host_address = |addr: &Addr| hosts.contains(&IpAddr::from(*addr));
        let lookups = HostLookups { compiled: &compiled, is_host_address: &is_host_address, is_publishing: false, sender_cgroups: &[] };
        for (protocol, src, dst, port, uid, ifindex) in flows {
            let tuple = Tuple { src: src.into(), dst: dst.into(), sport: [9, 9], dport: port.to_be_bytes() };
            let flow = Flow { protocol, tuple, ifindex, uid };
            for scope in Scope::ALL {
                let expected = by_walking_the_rules(&rules, &hosts, scope, &flow);
                prop_assert_eq!(decide(scope, &flow, &lookups), expected, "{:?}", scope);
            }
        }
    }
}

#[test]
fn a_set_without_members_is_not_any() {
    let empty = Arc::new(NamedSet { name: "empty".into(), members: vec![] });
    let nowhere = Listed { own: vec![], sets: vec![empty] };
    let flow = flow("10.0.0.1", "8.8.8.8", 80);
    let to = selecting(|of| of.to = nowhere.clone(), Action::Direct);
    assert_eq!(verdict(&[to], &flow), Verdict::Pass(Reason::NoRule));
    let except = selecting(|of| of.except = nowhere, Action::Direct);
    assert_eq!(verdict(&[except], &flow), Verdict::Steer(0));
}

/// As many as one instance may have, each rule with prefixes and ports of its own and with those of shared sets.
#[test]
fn the_most_rules_and_prefixes_compile_in_no_time() {
    const RULES: u32 = 4096;
    const SHARED: u32 = 50_000;
    let prefixes = |first: u32, count: u32| -> Vec<IpNet> {
        let net = |index: u32| IpNet::new(IpAddr::from(((first + index) << 8).to_be_bytes()), 24);
        (0..count).map(|index| net(index).unwrap()).collect()
    };
    let shared = Arc::new(NamedSet { name: "shared".into(), members: prefixes(1 << 20, SHARED) });
    let shared_ports = Arc::new(NamedSet { name: "ports".into(), members: vec![1024..=65_535] });
    let rules: Vec<_> = (0..RULES)
        .map(|index| {
            let narrow = |of: &mut Selector| {
                of.to = Listed { own: prefixes(index * 12, 12), sets: vec![Arc::clone(&shared)] };
                of.from = prefixes(index, 1).into();
                let own = vec![index as u16 + 1..=index as u16 + 100];
                of.ports = Listed { own, sets: vec![Arc::clone(&shared_ports)] };
            };
            selecting(narrow, Action::Direct)
        })
        .collect();
    let start = Instant::now();
    let compiled = Compiled::new(&rules, |_| None, &[]);
    let took = start.elapsed();
    let (roots, links) = (2, 2);
    assert_eq!(compiled.destinations.len() as u32, RULES * 12 + SHARED + roots + links);
    assert!(took < Duration::from_secs(3), "{took:?}");
}
