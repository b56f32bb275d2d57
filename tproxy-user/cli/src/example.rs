//! What the tests show of an instance.

use std::{sync::Arc, time::Duration};

use tproxy::{
    arrivals::Entrance,
    config::{Action, Config, Rule, Scope},
    family::Family,
    generation::{Generation, KeptRule},
    host::{Direction, Identity},
    instance::{Health, Look, Loss},
    latency::Latency,
    tcp::{self, End, TcpCounters},
    udp::{self, UdpCounters},
};
use tproxy_common::{flow::Protocol, verdict::Reason};

/// One in which most numbers are not zero.
pub(crate) fn look() -> Look {
    let latency = Latency::default();
    for microseconds in [700, 900, 2_000_000] {
        latency.observe(Duration::from_micros(microseconds));
    }
    let mut tcp = tcp::Snapshot {
        accepted: 7,
        bytes_up: 100,
        bytes_down: 1000,
        accept_latency: latency.snapshot(),
        ..TcpCounters::default().snapshot()
    };
    tcp.ends[End::ConnectRefused as usize].1 = 2;
    tcp.ends[End::Eof as usize].1 = 1;
    let rules = [
        Rule::new("web", Scope::Forwarded, Action::Direct),
        Rule::new("say \"no\"", Scope::Forwarded, Action::Reject),
    ];
    let via = Action::Upstream("socks5://10.9.9.9:1080".parse().expect("a URL"));
    let via = Config::new(vec![Rule::new("via", Scope::Forwarded, via)]);
    let upstreams = Generation::first(&via, Arc::default()).upstreams();
    upstreams[0].servers()[0].succeeded(Duration::from_millis(3));
    Look {
        upstreams,
        identity: Identity::DEFAULT,
        draining: false,
        workers: 2,
        hits: [(Arc::clone(&rules[0].name), 7), (Arc::clone(&rules[1].name), 5)].into(),
        rules: rules.iter().map(KeptRule::from).collect(),
        hooks: vec![("lan".into(), Direction::Ingress)],
        tcp,
        udp: udp::Snapshot { sessions: 3, ..UdpCounters::default().snapshot() },
        packets: vec![(Reason::RuleSteer, 7), (Reason::RuleReject, 5)],
        generation: 2,
        health: Health { missing: vec!["cannot add the IPv4 rule: no".into()], failures: 2, restored: 1 },
        losses: vec![Loss {
            entrance: Entrance { ifindex: 2, family: Family::V6, protocol: Protocol::Tcp },
            interface: "lan".into(),
            flows: 3,
            reason: Some("the firewall".into()),
        }],
    }
}
