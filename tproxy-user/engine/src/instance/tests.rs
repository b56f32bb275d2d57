//! What a kernel without tcx does, on one that has it.

use std::{io::Read, net::IpAddr, net::TcpStream};

use tproxy_netns::Topology;

use super::*;
use crate::{
    config::{Action, Scope, SessionLimits, Steer, Timeouts},
    generation::RuleNumber,
};

fn config(steer: Steer, mark: &str, number: u32, port: u16, text: &str) -> Config {
    let rule = Rule {
        interfaces: vec!["lan".into()],
        ports: vec![port..=port].into(),
        ..Rule::new("1", Scope::Forwarded, Action::Respond(text.into()))
    };
    let second = Duration::from_secs(1);
    Config {
        mark: mark.parse().unwrap(),
        table: number,
        priority: number,
        steer,
        workers: 1,
        timeouts: Timeouts {
            connect: second,
            idle: 10 * second,
            drain: second,
            udp: second,
            udp_stream: second,
        },
        sessions: SessionLimits { total: 16, per_client: 16 },
        ..Config::new(vec![rule])
    }
}

/// What somebody who stays silent is told.
fn told(net: &Topology, to: IpAddr, port: u16) -> String {
    let mut text = String::new();
    let connected = net.client.enter(|| TcpStream::connect((to, port)));
    connected
        .and_then(|mut stream| stream.read_to_string(&mut text))
        .unwrap_or_else(|error| panic!("{error}"));
    text
}

#[test]
fn clsact_filters_do_what_tcx_links_do_and_go_with_their_instance() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        let net = Topology::three().unwrap();
        let tc = || {
            ["qdisc show", "filter show dev lan ingress", "filter show dev wan ingress"]
                .map(|what| net.gateway.run(&format!("tc {what}")).unwrap())
        };
        let start =
            |config| net.gateway.enter(|| Instance::start_with(Attachment::Clsact, config, false)).unwrap();
        let before = tc();
        let first = start(config(steer, "0x2/0x3", 1000, 80, "first"));
        // Bits 0 and 16 of a mark are as good as any.
        let second = start(config(steer, "0x10000/0x30000", 1001, 81, "second"));
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 80), "first\n");
            assert_eq!(told(&net, family.public(), 81), "second\n");
        }
        net.gateway.enter(|| first.stop()).unwrap();
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 81), "second\n");
        }
        let [_, lan, _] = tc();
        assert!(lan.contains("handle 0x10000 ") && !lan.contains("handle 0x2 "), "{lan}");
        net.gateway.enter(|| second.stop()).unwrap();
        assert_eq!(tc(), before);
    }
}

#[test]
fn what_only_earlier_rules_needed_goes_when_they_have_no_flow_any_more() {
    let net = Topology::three().unwrap();
    let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
    let next = Config {
        rules: vec![Rule::new("2", Scope::Inbound, Action::Respond("second".into()))],
        ..first.clone()
    };
    net.gateway.enter(|| {
        let mut instance = Instance::start(first, false).unwrap();
        let hooks = |instance: &Instance| instance.datapath.attached().len();
        let needed = hooks(&instance);
        assert!(needed > 0);
        assert!(!instance.reload(next.clone()).unwrap().is_empty());
        instance.retire().unwrap();
        let with_both = hooks(&instance);
        assert!(with_both >= needed && instance.plan.delivering.contains("lan"));
        let flow = instance.generations.rule(RuleNumber(0)).unwrap();
        instance.superseded[0].until = Some(Instant::now());
        instance.retire().unwrap();
        assert_eq!((hooks(&instance), instance.superseded.len()), (with_both, 1), "it has a flow");
        assert!(instance.generations.rule(RuleNumber(0)).is_none());
        drop(flow);
        instance.retire().unwrap();
        let plan = instance.surroundings.plan(&next.rules);
        assert_eq!((hooks(&instance), instance.superseded.len()), (plan.hooks.len(), 0));
        assert!(!instance.plan.delivering.contains("lan"));
        instance.stop().unwrap();
    });
}
